"""A whole Portico with two sessions of one user, whose apps are the bench's own, and what opens a stream to each.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_USER: Final = "bench"
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


class Scene:
    """A Portico, a person signed in there, and two sessions of theirs.

    Args:
        portico: What tests call a RunningPortico.
        person: What tests call a Person.
        sessions: Ids, by kind.
    """

    def __init__(self, portico: Any, person: Any, sessions: dict[str, str]) -> None:
        self._portico, self._person, self._sessions = portico, person, sessions
        self.portal = ("127.0.0.1", int(portico.port))
        self.apps = ("127.0.0.1", int(portico.apps_port))
        self.stream_path = f"/sessions/{sessions['rfb']}/stream"
        self.app_path = f"/s/{sessions['websocket']}/"

    def find_socket(self, kind: str) -> str:
        """Return where the app of a session listens."""
        return str(next(self._portico.run_dir.glob(f"users/*/{self._sessions[kind]}/app.sock")))

    def make_stream_headers(self) -> str:
        """Return what the person's browser sends with the handshake of a desktop's stream."""
        cookies = "; ".join(f"{name}={value}" for name, value in self._person.http.cookies.items())
        return f"Cookie: {cookies}\r\nOrigin: {self._portico.url}\r\n"

    def make_app_headers(self) -> str:
        """Go the way of the Connect button (docs/protocol.md); return what an app's page sends with a handshake."""
        import httpx

        page = self._person.http.post(f"/sessions/{self._sessions['websocket']}/connect").raise_for_status().text
        ticket = re.search(r'name="ticket" value="([^"]+)"', page)
        if not ticket:
            raise ValueError("no ticket in the page")
        origin = f"http://localhost:{self.apps[1]}"
        with httpx.Client(base_url=origin, timeout=30) as browser:
            browser.post("/_portico/enter", data={"ticket": ticket[1]}, headers={"Origin": self._portico.url})
            cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        return f"Cookie: {cookies}\r\nOrigin: {origin}\r\n"

    def sign_out(self) -> None:
        """End the person's sign-in."""
        _check(self._person.http.post("/sign-out"))

    def sign_in(self) -> None:
        """Sign the person in again."""
        password = importlib.import_module("running").PASSWORD
        _check(self._person.sign_in(self._portico.get_name(_USER), password))


def _check(answer: Any) -> None:
    if answer.status_code not in (200, 303):
        raise RuntimeError(f"{answer.url}: {answer.status_code}")


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Scene]:
    """Run a Portico, with both sessions ready."""
    load = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    portico = importlib.import_module("running").RunningPortico({"catalog_dirs": [str(_write_catalog(folder))]})
    try:
        portico.start()
        person = portico.user(_USER)
        sessions = {kind: person.start(f"bench-{kind}", cores=1)["id"] for kind in _REACHES}
        for session in sessions.values():
            person.wait(session)
        os.sched_setaffinity(0, load)
        yield Scene(portico, person, sessions)
    finally:
        os.sched_setaffinity(0, load)
        portico.destroy()
