"""A whole Portico with two sessions of one user, whose apps are the bench's own; and how to open a stream to each.

It runs where the tests' support runs: as root, with Portico installed. Its processes are not pinned.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from gateway_bench import authorise

Ways = dict[str, tuple[Callable[[], None], Callable[[], None]]]

_APP: Final = """name = "Bench, {kind}"
summary = "What the benchmark opens streams to."
reach = "{reach}"
script = "job.sh"
[resources]
cores = {{ default = 1, minimum = 1, maximum = 1 }}
memory_gb = {{ default = 0.25, minimum = 0.25, maximum = 1 }}
hours = {{ default = 1, minimum = 1, maximum = 1 }}
"""
_JOB: Final = """#!/bin/sh
PYTHONPATH={folder} exec "$PORTICO_PYTHON" -m gateway_bench.app --{kind} "$PORTICO_SOCKET"
"""
_REACHES: Final = {"rfb": "rfb", "websocket": "http"}


def find_reason_to_skip() -> str:
    """Return why no whole Portico can be started here; empty where it can."""
    for name in ("httpx", "websockets"):
        if not importlib.util.find_spec(name):
            return f"this Python has no {name}; the one in Portico's venv-test has"
    return str(importlib.import_module("running").find_reason_to_skip())


def _write_catalog(folder: Path) -> Path:
    """Write the two apps, and the modules that they are, where every user can read them."""
    folder.chmod(stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
    code = folder / "code/gateway_bench"
    code.mkdir(parents=True)
    for name in ("__init__.py", "app.py", "rfb.py"):
        shutil.copy(Path(__file__).with_name(name), code)
    for kind, reach in _REACHES.items():
        app = folder / "catalog" / f"bench-{kind}"
        app.mkdir(parents=True)
        (app / "app.toml").write_text(_APP.format(kind=kind, reach=reach))
        (app / "job.sh").write_text(_JOB.format(folder=code.parent, kind=kind))
    return folder / "catalog"


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Ways]:
    """Run it; give, for what is kept and what is asked, how to open a stream at the app and through the gateway."""
    load = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    portico = importlib.import_module("running").RunningPortico({"catalog_dirs": [str(_write_catalog(folder))]})
    try:
        portico.start()
        person = portico.user("bench")
        sessions = {}
        for kind in _REACHES:
            sessions[kind] = person.start(f"bench-{kind}", cores=1)["id"]
        for session in sessions.values():
            person.wait(session)
        os.sched_setaffinity(0, load)
        yield _make_ways(portico, person, sessions)
    finally:
        os.sched_setaffinity(0, load)
        portico.destroy()


def _make_ways(portico: Any, person: Any, sessions: dict[str, str]) -> Ways:
    sockets = {
        kind: str(next(portico.run_dir.glob(f"users/*/{session}/app.sock"))) for kind, session in sessions.items()
    }
    cookies = "; ".join(f"{name}={value}" for name, value in person.http.cookies.items())
    asked = f"Cookie: {cookies}\r\nOrigin: {portico.url}\r\n"
    stream = f"/sessions/{sessions['rfb']}/stream"
    session, host = sessions["websocket"], f"localhost:{portico.apps_port}"
    kept = f"Cookie: {_enter(portico, person, session)}\r\nOrigin: http://{host}\r\n"
    return {
        "kept": (
            lambda: authorise.open_websocket(sockets["websocket"], host),
            lambda: authorise.open_websocket(("127.0.0.1", portico.apps_port), host, f"/s/{session}/", kept),
        ),
        "asked": (
            lambda: authorise.open_rfb(sockets["rfb"]),
            lambda: authorise.open_rfb_stream(portico.port, stream, asked),
        ),
    }


def _enter(portico: Any, person: Any, session: str) -> str:
    """Go the way of the Connect button (docs/protocol.md); return the app's cookie."""
    import httpx

    page = person.http.post(f"/sessions/{session}/connect").raise_for_status().text
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    if not ticket:
        raise ValueError("no ticket in the page")
    with httpx.Client(base_url=f"http://localhost:{portico.apps_port}", timeout=30) as browser:
        browser.post("/_portico/enter", data={"ticket": ticket[1]}, headers={"Origin": portico.url})
        return "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
