"""The classical set-up: a websockify for each seat, behind one nginx that finds the seat's by the token in the path."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway_bench.processes import Running, find_free_port, started, wait_for

from workshop_bench.connection import Way
from workshop_bench.desktops import Seat

_NGINX = """daemon off;
worker_processes auto;
pid {folder}/pid;
error_log {folder}/nginx-errors;
events {{ worker_connections 4096; }}
http {{
access_log off;
{temporary}
server {{
listen 127.0.0.1:{port};
{locations}
}}
}}
"""
_LOCATION = """location = /{token}/websockify {{
proxy_pass http://127.0.0.1:{port};
proxy_http_version 1.1;
proxy_set_header Upgrade $http_upgrade;
proxy_set_header Connection "upgrade";
proxy_buffering off;
proxy_read_timeout 1h;
}}"""


@dataclass
class Classical:
    """What is running: its processes, and each seat's way."""

    running: list[Running]
    ways: list[Way]


@contextlib.contextmanager
def classical_started(seats: list[Seat], tools: dict[str, list[str]], folder: Path) -> Iterator[Classical]:
    """Run it until the block ends.

    Args:
        seats: With desktops.
        tools: Argv of ``nginx`` and ``websockify``.
        folder: For files, the run's own.
    """
    with contextlib.ExitStack() as stack:
        running, ways, locations, port = [], [], [], find_free_port()
        for seat in seats:
            own, token = find_free_port(), secrets.token_hex(16)
            argv = [*tools["websockify"], f"--unix-target={seat.socket}", f"127.0.0.1:{own}"]
            log = folder / f"websockify-{seat.number}.log"
            running.append(stack.enter_context(started(argv, log, with_children=True)))
            locations.append(_LOCATION.format(token=token, port=own))
            ways.append(Way(port, f"/{token}/websockify"))
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in names)
        conf = folder / "nginx.conf"
        conf.write_text(_NGINX.format(folder=folder, port=port, temporary=temporary, locations="\n".join(locations)))
        argv = [*tools["nginx"], "-p", str(folder), "-e", f"{folder}/nginx-errors", "-c", str(conf)]
        nginx = stack.enter_context(started(argv, folder / "nginx.log", with_children=True))
        running.append(nginx)
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 5).close(), "nginx", nginx)
        yield Classical(running, ways)
