"""``python -m portico.cli.process NAME``: what each process that ``portico up`` starts does first, whoever it is.

It dies with the supervisor (which every process of Portico survives well), can't gain privileges by running a program,
dumps no core with people's secrets, and has only the descriptors that PORTICO_FDS names. Settings come as JSON in
PORTICO_SETTINGS, and are checked already.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

from portico.cli.supervisor import HOPELESS_STATUS
from portico.config import ClusterConfig, Config
from portico.errors import PorticoError

FAILS_WITHIN_S: Final = 0.1
"""What can't serve has failed by then; the channel to the portal is open too."""

_PR_SET_PDEATHSIG: Final = 1  # prctl(2), linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def render_settings(config: Config) -> str:
    """Return ``config`` as :func:`read_settings` takes it."""
    return json.dumps(dataclasses.asdict(config))


def read_settings() -> Config:
    """Return the settings that the supervisor handed over."""
    values: dict[str, Any] = json.loads(os.environ["PORTICO_SETTINGS"])
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    values["clusters"] = tuple(ClusterConfig(**one) for one in values["clusters"])
    return Config(**values)


def read_descriptors() -> dict[str, int]:
    """Return the inherited descriptors by name."""
    text = os.environ.get("PORTICO_FDS", "")
    return {name: int(number) for name, _, number in (part.partition("=") for part in text.split(",") if part)}


def harden(*, gains_nothing: bool) -> None:
    """Tie this process to its supervisor; with ``gains_nothing`` no program that it runs can gain privileges (set-uid).

    The death signal is set here and not by the parent, because a change of ids before exec would clear it (prctl(2)).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = [(_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_DUMPABLE, 0)]
    if gains_nothing:
        options.append((_PR_SET_NO_NEW_PRIVS, 1))
    for option, value in options:
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl({option})")
    if os.getppid() != int(os.environ.get("PORTICO_SUPERVISOR", os.getppid())):
        sys.exit("The supervisor has ended.")


def main() -> None:
    """Become the process that is named on the command line; a foreseeable failure is told in its own words."""
    try:
        _become(sys.argv[1] if len(sys.argv) > 1 else "")
    except PorticoError as error:
        print("\n".join(part for part in (error.message, error.why, error.hint) if part), file=sys.stderr, flush=True)
        sys.exit(HOPELESS_STATUS)


def _become(name: str) -> None:
    config, descriptors = read_settings(), read_descriptors()
    harden(gains_nothing=name not in ("broker", "sshd"))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if name == "broker":
        from portico.broker import server

        server.run(config, _take_socket(descriptors, "broker"))
    elif name == "portal":
        from portico.cli.portal_process import run_portal

        run_portal(
            config, {name: _take_socket(descriptors, name) for name in ("portal", "api", "routes", "relays", "ssh")}
        )
    elif name == "sshd":
        from portico.cli.sshd_process import run_sshd

        run_sshd(config)
    elif name == "rendezvous":
        from portico.cli.relay_files import RelayTls
        from portico.gateway import rendezvous
        from portico.gateway.plane import PlaneLoop

        listener = _take_socket(descriptors, "listen-relays")
        with asyncio.Runner(loop_factory=PlaneLoop) as runner:
            runner.run(rendezvous.serve(config.socket_paths["relays"], listener, RelayTls(config)))
    elif name.partition("-")[0] == "gateway":
        from portico.gateway.plane import PlaneLoop

        ready = descriptors.pop("ready", None)
        listeners = {name: _take_socket(descriptors, name) for name in descriptors}
        with asyncio.Runner(loop_factory=PlaneLoop) as runner:
            runner.run(_run_gateway(config, listeners, ready))
    else:
        sys.exit(f"There is no process {name!r}.")


async def _run_gateway(config: Config, listeners: Mapping[str, socket.socket], ready: int | None) -> None:
    from portico.gateway import process

    tls = process.make_tls(config.tls_certificate, config.tls_key) if config.tls_certificate else None
    serving = asyncio.create_task(process.serve(config, listeners, tls))
    if ready is not None:  # the supervisor waits for it, and lets an older gateway drain then
        await asyncio.wait([serving], timeout=FAILS_WITHIN_S)
        if not serving.done():
            os.write(ready, b"1")
        os.close(ready)
    await serving


def _take_socket(descriptors: dict[str, int], name: str) -> socket.socket:
    sock = socket.socket(fileno=descriptors[name])
    sock.set_inheritable(False)
    return sock


if __name__ == "__main__":
    main()
