"""A desktop that never rests, at the other end of a link as one likes it: for tests and benchmarks in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults import Line, Link, Linked

HERE = Path(__file__).parent
BUFFER_BYTES = 16 * 1024
"""What waits in the link itself: what a slow one has not taken yet waits where it comes from."""

LAG = """(timeout) => new Promise((resolve) => {
  const canvas = document.querySelector(".screen canvas"), context = canvas.getContext("2d");
  const look = () => { try { return context.getImageData(40, 300, 1, 1).data.join() } catch { return "" } };
  const begin = performance.now(), before = look();
  porticoDesktop.sendKey(0x61, "KeyA");
  const wait = () => {
    const took = performance.now() - begin;
    if (look() !== before) resolve(took);
    else if (took > timeout) resolve(-1);
    else setTimeout(wait, 5);
  };
  wait();
})"""
"""Presses a key; returns the milliseconds until the colour of moving_picture.py's field has changed."""


class LinkedLine:
    """A line to a port of this machine that all bytes take over a link, in a thread of its own.

    Args:
        port: Where it leads.
    """

    def __init__(self, port: int) -> None:
        self.down, self.up = Link(), Link()  # towards the browser, and from it
        self.port = 0
        self._target = port
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)

    async def _run(self) -> None:
        async with Line(self._target, Linked(self.up), Linked(self.down), buffer_bytes=BUFFER_BYTES) as line:
            self.port = line.port
            self._ready.set()
            await self._ending.wait()

    def __enter__(self) -> LinkedLine:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *rest: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)
        self._loop.close()

    def go(self) -> None:
        """Take the network away."""
        self.down.go()
        self.up.go()

    def come_back(self, *, forgetful: bool = False) -> None:
        """Bring it back."""
        self.down.come_back(forgetful=forgetful)
        self.up.come_back(forgetful=forgetful)


def find_env(session_id: str, uid: int) -> dict[str, str]:
    """Return how X clients reach a session's display; empty where there is none yet."""
    mark = f"PORTICO_SESSION={session_id}".encode()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not process.name.isdigit() or process.stat().st_uid != uid:
                continue
            entries = (process / "environ").read_bytes().split(b"\0")
            if mark in entries and any(entry.startswith(b"DISPLAY=") for entry in entries):
                pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
                return {name: value for name, _, value in pairs}
    return {}


@contextlib.contextmanager
def picture_shown(name: str, session_id: str, fps: float = 15) -> Iterator[subprocess.Popen[bytes]]:
    """Run moving_picture.py on a session's display, as its user."""
    account = pwd.getpwnam(name)
    more: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    code = (HERE / "moving_picture.py").read_text()  # the clone may be nobody else's to read
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(fps)], env=find_env(session_id, account.pw_uid), cwd=account.pw_dir, **more,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_queued_bytes(port: int) -> int:
    """Return what the kernel holds at most for one client of a port, sent or not."""
    said = subprocess.run(
        ["ss", "-tnH", "state", "established", f"sport = :{port}"], capture_output=True, text=True, check=True
    ).stdout
    return max((int(line.split()[1]) for line in said.splitlines()), default=0)
