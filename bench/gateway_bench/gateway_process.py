"""Portico's gateway, by its one real entry, in a process of its own.

    python -m gateway_bench.gateway_process --folder FOLDER --port PORT [--certificate FILE --key FILE]

The portal's origin is on PORT, the apps' on PORT + 1. Limits are those that every Portico has.
"""

from __future__ import annotations

import argparse
import socket

from portico.config import load_config
from portico.gateway import process


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", default="")
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    folder = options.folder
    config = load_config(
        None, port=options.port, run_dir=folder, state_dir=folder, install_dir=folder,
        tls_certificate=options.certificate, tls_key=options.key,
    )  # fmt: skip
    listeners = {
        "listen-portal": socket.create_server(("127.0.0.1", config.port), backlog=4096),
        "listen-apps": socket.create_server(("127.0.0.1", config.apps_port), backlog=4096),
    }
    tls = process.make_tls(options.certificate, options.key) if options.certificate else None
    process.run(config, listeners, tls)


if __name__ == "__main__":
    main()
