"""Moves bytes from one connection to another without looking at them.

Bulk goes through large buffers that all connections of the process share: one is borrowed while bytes are in it and no
longer, so it stays in the processor's cache, an idle connection has none, and a hundred slow clients can't hold more
than the pool has. Without a free buffer bytes go in small reads. docs/decisions/0005-gateway-copies.md has why this is
not splice(2).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from portico.gateway.connection import READ_BYTES, Connection, PlainConnection

BUFFER_BYTES: Final = 256 * 1024
"""A little more than what a Unix socket holds by default (net.core.wmem_default, 212,992)."""

BUFFERS: Final = 32
HALF_CLOSED_S: Final = 60.0


class Buffers:
    """The large buffers of this process: a bounded pool, made on demand."""

    def __init__(self, limit: int = BUFFERS) -> None:
        self._free: list[bytearray] = []
        self._left = limit

    @property
    def available(self) -> int:
        """How many may be taken."""
        return len(self._free) + self._left

    def take(self) -> bytearray | None:
        """Return a buffer, or None where all are in use."""
        if self._free:
            return self._free.pop()
        if not self._left:
            return None
        self._left -= 1
        return bytearray(BUFFER_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back."""
        self._free.append(buffer)


async def move(source: Connection, target: Connection, buffers: Buffers, limit: int | None = None) -> int:
    """Move bytes until the end or until ``limit``; return how many. Nothing is read while the target takes nothing.

    Raises:
        OSError: Either connection broke.

    """
    moved = 0
    bulk = False
    while limit is None or moved < limit:
        left = BUFFER_BYTES if limit is None else limit - moved
        buffer = None
        if bulk and isinstance(source, PlainConnection) and isinstance(target, PlainConnection):
            await source.wait_for_bytes()  # first, so that nobody waits with a buffer in hand
            buffer = buffers.take()
        if buffer is None:
            data = await source.read(min(READ_BYTES, left))
            await target.write(data)
            size = len(data)
        else:
            assert isinstance(source, PlainConnection)
            try:
                with memoryview(buffer) as view:
                    size = await source.read_into(view[:left])
                    await target.write(view[:size])
            finally:
                buffers.give(buffer)
        if not size:
            break
        moved += size
        bulk = size >= READ_BYTES
    return moved


class Tunnel:
    """Two connections after an upgrade that an app has accepted: bytes both ways until both ends, or one for long."""

    def __init__(self, client: Connection, app: Connection, buffers: Buffers) -> None:
        self._client, self._app, self._buffers = client, app, buffers
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
            await move(source, target, self._buffers)
            return target.shutdown_write()
        return False
