"""Moves bytes from one connection to another without looking at them, zero-copy where both are plain sockets.

splice(2) moves pages from a socket into a pipe and out to another socket. Only bulk takes that way: a read that
filled the ordinary buffer shows it. A pipe is borrowed while bytes are in it and no longer, so an idle connection
has none, and a hundred slow ones can't hold more than the pool has. Without a free pipe, bytes go by recv and send.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import Any, Final

from portico.gateway.connection import READ_BYTES, Connection, PlainConnection

PIPE_BYTES: Final = 1024 * 1024
PIPES: Final = 32
"""32 pipes of 1 MiB: half of what the kernel lets one unprivileged user have (fs.pipe-user-pages-soft, 64 MiB)."""

HALF_CLOSED_S: Final = 60.0
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


@dataclass(frozen=True)
class Pipe:
    """Both ends of a pipe, and how much it holds."""

    reading: int
    writing: int
    size: int


class Pipes:
    """The pipes of this process: a bounded pool, made on demand."""

    def __init__(self, limit: int = PIPES) -> None:
        self._free: list[Pipe] = []
        self._left = limit

    def take(self) -> Pipe | None:
        """Return an empty pipe, or None where all are in use."""
        if self._free:
            return self._free.pop()
        if not self._left:
            return None
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # no descriptors left: the ordinary way needs none
            return None
        self._left -= 1
        try:
            size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # EPERM: this user's pipes have reached the kernel's limit
            size = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
        return Pipe(reading, writing, size)

    def give(self, pipe: Pipe, *, empty: bool) -> None:
        """Take a pipe back; one with bytes left in it is closed."""
        if empty:
            self._free.append(pipe)
            return
        self._left += 1
        os.close(pipe.reading)
        os.close(pipe.writing)

    def close(self) -> None:
        """Close the pipes that nobody uses."""
        while self._free:
            self.give(self._free.pop(), empty=False)


def can_splice(source: Connection, target: Connection) -> bool:
    """Return whether bytes can move from one to the other within the kernel."""
    return source.fd >= 0 and target.fd >= 0


def fill(pipe: Pipe, source: Connection, limit: int) -> int | None:
    """Move what ``source`` has into an empty pipe; return how much, 0 at the end, None where nothing is there yet."""
    try:
        return os.splice(source.fd, pipe.writing, min(limit, pipe.size), flags=_FLAGS)
    except BlockingIOError:
        return None


async def drain(pipe: Pipe, target: PlainConnection, size: int) -> None:
    """Move ``size`` bytes out of a pipe that holds them; waits while the target takes none."""
    while size:
        try:
            size -= os.splice(pipe.reading, target.fd, size, flags=_FLAGS)
        except BlockingIOError:
            await target.wait_writable()


async def move(source: Connection, target: Connection, pipes: Pipes, limit: int | None = None) -> int:
    """Move bytes until the end or until ``limit``; return how many. Nothing is read while the target takes nothing.

    Raises:
        OSError: Either connection broke.

    """
    moved = 0
    bulk = False
    while limit is None or moved < limit:
        left = PIPE_BYTES if limit is None else limit - moved
        pipe = pipes.take() if bulk and can_splice(source, target) else None
        if pipe is None:
            data = await source.read(min(READ_BYTES, left))
            if not data:
                break
            await target.write(data)
            size = len(data)
        else:
            assert isinstance(source, PlainConnection) and isinstance(target, PlainConnection)
            filled, empty = fill(pipe, source, left), False
            try:
                if filled:
                    await drain(pipe, target, filled)
                empty = True
            finally:
                pipes.give(pipe, empty=empty)
            if filled is None:
                await source.wait_readable()
                continue
            if not filled:
                break
            source.heard = asyncio.get_running_loop().time()
            await source.take_turn(filled)
            size = filled
        moved += size
        bulk = size >= READ_BYTES
    return moved


class Tunnel:
    """Two connections after an upgrade that an app has accepted: bytes both ways until both ends, or one for long."""

    def __init__(self, client: Connection, app: Connection, pipes: Pipes) -> None:
        self._client, self._app, self._pipes = client, app, pipes
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, code: int, reason: str) -> None:
        """End it at once. What is inside is not ours to know, so there is no close frame and no code."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def run(self) -> None:
        """Carry; both are closed at the end."""
        tasks = [
            asyncio.create_task(self._carry(self._client, self._app)),
            asyncio.create_task(self._carry(self._app, self._client)),
        ]
        try:
            both: list[asyncio.Future[Any]] = [*tasks]
            await asyncio.wait([*both, self._ended], return_when=asyncio.FIRST_COMPLETED)
            left = [task for task in both if not task.done()]
            if left and not self._ended.done() and all(task.result() for task in tasks if task.done()):
                await asyncio.wait([*left, self._ended], timeout=HALF_CLOSED_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._ended.cancel()
            self._app.close()
            self._client.close()

    async def _carry(self, source: Connection, target: Connection) -> bool:
        """Carry one way until its end; return whether the other way may go on."""
        with contextlib.suppress(OSError):
            await move(source, target, self._pipes)
            return target.shutdown_write()
        return False
