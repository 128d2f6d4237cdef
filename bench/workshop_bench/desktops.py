"""The seats: accounts, a desktop each, started a few at a time as an organiser would, with a terminal on it.

The desktops are Portico's sessions. The classical set-up reaches the same ones, at the same Unix sockets.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workshop_bench.connection import Way
from workshop_bench.person import PROMPT, TERMINAL_GEOMETRY, Terminal

AT_ONCE: Final = 4
"""So many desktops are on their way up at a time: more on two cores only make each of them slower."""
ASK_S: Final = 0.25
READY_S: Final = 180.0
MEMORY_GB: Final = 1.0
TITLE: Final = "workshop"
SETTLED_WINDOWS: Final = {"desktop-xfce": 2, "desktop-light": 1}
"""Windows of the desktop's own (backdrop and panel; a first terminal). Before they are there, others are moved."""


NOWHERE: Final = Terminal(0, 0, 0, 0)


@dataclass
class Seat:
    """One user with a desktop.

    Args:
        number: From 0.
        person: What tests call a Person: signed in, at a browser.
        name: The POSIX account's.
        session: The desktop's session.
        socket: Where the desktop listens.
        env: How X clients reach it.
        terminal: Where the terminal is.
        windows: Ids of the windows on it then, the terminal's among them.
        ready_s: From asking for the desktop until the terminal was on it.
    """

    number: int
    person: Any
    name: str
    session: str = ""
    socket: str = ""
    env: dict[str, str] | None = None
    terminal: Terminal = NOWHERE
    windows: frozenset[str] = frozenset()
    ready_s: float = 0.0

    def find_way(self, portico: Any, *, in_browser: bool = False) -> Way:
        """Return how the seat's browser reaches the desktop through Portico: a client of ours, or a real one."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.person.http.cookies.items())
        page = f"{portico.url}/sessions/{self.session}" if in_browser else ""
        headers = f"Cookie: {cookies}\r\nOrigin: {portico.url}\r\n"
        return Way(portico.port, f"/sessions/{self.session}/stream", headers, page)

    def run(self, *argv: str) -> str:
        """Return what an X client says, as the seat's user; empty where it fails."""
        account = pwd.getpwnam(self.name)
        done = subprocess.run(
            argv, env=self.env, cwd=account.pw_dir, user=account.pw_uid, group=account.pw_gid, extra_groups=[],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def list_windows(self) -> set[str]:
        """Return the ids of the windows that the window manager has, which no other X client would be given."""
        return set(re.findall(r"0x[0-9a-f]+", self.run("xprop", "-root", "_NET_CLIENT_LIST")))


def start_all(portico: Any, seats: list[Seat], app: str, stopping: threading.Event) -> float:
    """Start every seat's desktop; return how long it took until the last one had its terminal.

    Args:
        portico: What tests call a RunningPortico.
        seats: Theirs is filled in.
        app: Id of the desktop in the catalog.
        stopping: Once it is set, no further one is begun, and those on the way are given up.
    """
    begin = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(_start, portico, seat, app, stopping) for seat in seats]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return time.monotonic() - begin


def _start(portico: Any, seat: Seat, app: str, stopping: threading.Event) -> None:
    begin = time.monotonic()
    answer = seat.person.http.post(f"/e/workshop/apps/{app}")
    if answer.status_code != 303:
        raise RuntimeError(f"seat {seat.number}: {app} was not started: {answer.status_code} {answer.text[:500]}")
    seat.session = answer.headers["location"].rpartition("/")[2]

    def is_ready() -> bool:
        session = seat.person.get(seat.session)
        if session["state"] == "ended":
            raise RuntimeError(f"seat {seat.number} has ended: {session}")
        return bool(session["state"] == "ready")

    _wait(is_ready, f"seat {seat.number}: its session", stopping)
    seat.socket = str(portico.run_dir / f"users/{pwd.getpwnam(seat.name).pw_uid}/{seat.session}/app.sock")
    _wait(lambda: _find_env(seat), f"seat {seat.number}: its display", stopping)
    settled = SETTLED_WINDOWS.get(app, 1)
    _wait(lambda: len(seat.list_windows()) >= settled, f"seat {seat.number}: its windows", stopping)
    _open_terminal(seat)
    _wait(lambda: _find_terminal(seat), f"seat {seat.number}: its terminal", stopping)
    seat.windows = frozenset(seat.list_windows())
    seat.ready_s = time.monotonic() - begin


def _wait(condition: Any, what: str, stopping: threading.Event) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        if stopping.wait(ASK_S) or time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come" + (": stopped" if stopping.is_set() else ""))


def _find_env(seat: Seat) -> bool:
    """Learn from a process of the session how X clients reach its display."""
    mark = f"PORTICO_SESSION={seat.session}".encode()
    uid = pwd.getpwnam(seat.name).pw_uid
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not process.name.isdigit() or process.stat().st_uid != uid:
                continue
            entries = (process / "environ").read_bytes().split(b"\0")
            if mark in entries and any(entry.startswith(b"DISPLAY=") for entry in entries):
                pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
                seat.env = {name: value for name, _, value in pairs}
                return True
    return False


def _open_terminal(seat: Seat) -> None:
    """Put the terminal on the desktop that the seat's person types into; an event's start command will do that."""
    account = pwd.getpwnam(seat.name)
    subprocess.Popen(
        ["xterm", "-T", TITLE, "-geometry", TERMINAL_GEOMETRY, "-fa", "monospace", "-fs", "10", "-sk", "-e",
         "bash", "--norc"],
        env={**(seat.env or {}), "PS1": PROMPT}, cwd=account.pw_dir, user=account.pw_uid, group=account.pw_gid,
        extra_groups=[], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def _find_terminal(seat: Seat) -> bool:
    """Learn where the terminal is, once it is shown and no longer moved."""
    said = seat.run("xwininfo", "-name", TITLE)
    numbers = [
        int(found[1])
        for name in ("Absolute upper-left X", "Absolute upper-left Y", "Width", "Height")
        if (found := re.search(rf"{name}:\s+(-?\d+)", said))
    ]
    if len(numbers) < 4 or "IsViewable" not in said:
        return False
    before, seat.terminal = seat.terminal, Terminal(*numbers)
    return before == seat.terminal
