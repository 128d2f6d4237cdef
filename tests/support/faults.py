"""Lines that misbehave: what stands between two ends of a connection, with a vice for each direction.

A vice is named by what it does, and is a value: what it does with the same bytes is always the same. Positions are
counted in bytes of its direction, from the beginning of each connection. No vice knows what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

CHUNK_BYTES = 64 * 1024
PACKET_BYTES = 1400
TICK_S = 0.002
"""Less than this nobody waits: asyncio's clock is no finer."""
_RESET = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The end that bytes were meant for takes none any more."""


class Vice(Protocol):
    """What happens to the bytes of one direction."""

    async def carry(self, pipe: Pipe) -> None:
        """Carry them until this direction is over."""


@dataclass(frozen=True)
class Honest:
    """Passes everything on, and the end too."""

    async def carry(self, pipe: Pipe) -> None:
        while data := await pipe.take():
            await pipe.give(data)
        pipe.finish()


HONEST = Honest()


@dataclass(frozen=True)
class Slow:
    """Passes on ``step`` bytes at a time; others have their turn, and ``pause_s``, between."""

    step: int = 1
    pause_s: float = 0.0

    async def carry(self, pipe: Pipe) -> None:
        while data := await pipe.take():
            for at in range(0, len(data), self.step):
                await pipe.give(data[at : at + self.step])
                await asyncio.sleep(self.pause_s)
        pipe.finish()


class Link:
    """A network that all connections share, in one direction: so many bytes a second, which may be changed; or away.

    Args:
        bytes_per_s: Its rate.
    """

    def __init__(self, bytes_per_s: float = math.inf) -> None:
        self.bytes_per_s = bytes_per_s
        self.is_away = False
        self.losses = 0
        self._free_at = 0.0

    def go(self) -> None:
        """Be away from now on: nothing arrives, and nobody is told."""
        self.is_away = True

    def come_back(self, *, forgetful: bool = False) -> None:
        """Be there again; a forgetful network carries nothing more of earlier connections, and tells nobody."""
        self.losses += forgetful
        self.is_away = False

    async def spend(self, size: int) -> None:
        """Wait for as long as these bytes take."""
        while self.is_away:
            await asyncio.sleep(0.02)
        at = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, at) + size / self.bytes_per_s
        if self._free_at - at > TICK_S:
            await asyncio.sleep(self._free_at - at)


@dataclass(frozen=True)
class Linked:
    """Passes everything on over a link, a packet at a time."""

    link: Link

    async def carry(self, pipe: Pipe) -> None:
        losses = self.link.losses
        while data := await pipe.take(PACKET_BYTES):
            await self.link.spend(len(data))
            if self.link.losses != losses:
                await asyncio.Event().wait()
            await pipe.give(data)
        pipe.finish()


@dataclass(frozen=True)
class Delayed:
    """Holds back for a while whatever comes, and the end too."""

    by_s: float = 0.02

    async def carry(self, pipe: Pipe) -> None:
        while data := await pipe.take():
            await asyncio.sleep(self.by_s)
            await pipe.give(data)
        await asyncio.sleep(self.by_s)
        pipe.finish()


@dataclass(frozen=True)
class Split:
    """Passes everything on in pieces of 1 to ``most`` bytes, cut by chance, the same for the same ``seed``."""

    seed: int = 1
    most: int = 23

    async def carry(self, pipe: Pipe) -> None:
        chance = random.Random(self.seed)
        while data := await pipe.take(chance.randint(1, self.most)):
            await pipe.give(data)
            await asyncio.sleep(0)
        pipe.finish()


@dataclass(frozen=True)
class Silent:
    """Swallows everything behind the first ``after`` bytes, and the end too."""

    after: int = 0

    async def carry(self, pipe: Pipe) -> None:
        if await pipe.carry(self.after):
            pipe.strike()
            await pipe.swallow()


@dataclass(frozen=True)
class Stalled:
    """Reads nothing behind the first ``after`` bytes, ``until`` it may: back-pressure stops whoever speaks on."""

    after: int = 0
    until: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False)

    async def carry(self, pipe: Pipe) -> None:
        if await pipe.carry(self.after):
            pipe.strike()
            await self.until.wait()
            await HONEST.carry(pipe)


@dataclass(frozen=True)
class HalfClosed:
    """Ends this direction behind ``after`` bytes (SHUT_WR) and swallows the rest; the other direction goes on."""

    after: int = 0

    async def carry(self, pipe: Pipe) -> None:
        if await pipe.carry(self.after):
            pipe.strike()
            pipe.finish()
            await pipe.swallow()


@dataclass(frozen=True)
class Torn:
    """Ends both directions behind ``after`` bytes, in order: each end reads what was sent to it, and then the end."""

    after: int = 0

    async def carry(self, pipe: Pipe) -> None:
        if await pipe.carry(self.after):
            pipe.strike()
            pipe.hang_up()
            await pipe.swallow()


@dataclass(frozen=True)
class Reset:
    """Breaks the connection behind ``after`` bytes, for both ends: RST (SO_LINGER 0).

    A Unix socket has no RST; there, closing what was not read to its end says ECONNRESET.

    Args:
        turns: Of the event loop between the last byte and the break; with none they arrive together.
    """

    after: int = 0
    turns: int = 0

    async def carry(self, pipe: Pipe) -> None:
        left, data = self.after, b""
        while left and (data := await pipe.take(left)):
            left -= len(data)
            if left:
                await pipe.give(data)
        if left:
            pipe.finish()
            return
        await pipe.seize()  # before the last bytes: it takes a turn
        pipe.strike()
        if data:
            await pipe.give(data)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        pipe.reset()


class Pipe:
    """One direction of a connection, as a vice has it in its hands."""

    def __init__(self, connection: _Connection, source: socket.socket, target: socket.socket, way: int) -> None:
        self._connection, self._source, self._target, self._way = connection, source, target, way
        self._loop = asyncio.get_running_loop()

    async def take(self, limit: int = CHUNK_BYTES) -> bytes:
        """Return what has come, b"" at the end; a connection that broke is broken for the other end too."""
        try:
            return await self._loop.sock_recv(self._source, limit)
        except ConnectionError:
            await self.seize()
            self.reset()
            return b""

    async def give(self, data: bytes) -> None:
        """Pass on.

        Raises:
            Gone: Nobody takes it.
        """
        view = memoryview(data)
        try:
            with contextlib.suppress(BlockingIOError):  # at once where there is room, without a turn for others
                view = view[self._target.send(view) :]
            if view:
                await self._loop.sock_sendall(self._target, view)
        except OSError:
            raise Gone from None
        self._connection.line.passed[self._way] += len(data)

    async def carry(self, count: int) -> bool:
        """Pass on so many bytes; False where there were not so many, and the end was passed on."""
        while count and (data := await self.take(count)):
            await self.give(data)
            count -= len(data)
        if count:
            self.finish()
        return not count

    async def swallow(self) -> None:
        """Read to the end, for nobody."""
        with contextlib.suppress(OSError):
            while await self._loop.sock_recv(self._source, CHUNK_BYTES):
                pass

    def finish(self) -> None:
        """Say that nothing follows."""
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Say so in both directions."""
        for sock in (self._source, self._target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    async def seize(self) -> None:
        """Stop the other direction, so that nobody reads or writes the two sockets."""
        await self._connection.stop_others(self._way)

    def reset(self) -> None:
        """Break the connection; after ``seize``."""
        for sock in (self._source, self._target):
            with contextlib.suppress(OSError):  # a Unix socket has it too, to no effect
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()

    def strike(self) -> None:
        """Tell that the vice has shown itself."""
        self._connection.line.struck.set()


class _Connection:
    """Two sockets, and a task for each direction."""

    def __init__(self, line: Line, near: socket.socket, far: socket.socket) -> None:
        self.line = line
        self._socks = near, far
        pipes = Pipe(self, near, far, 0), Pipe(self, far, near, 1)
        vices = line.there, line.back
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(self._carry(vice, pipe)) for vice, pipe in zip(vices, pipes, strict=True)]

    async def _carry(self, vice: Vice, pipe: Pipe) -> None:
        try:
            await vice.carry(pipe)
        except Gone:
            await pipe.swallow()

    async def run(self) -> None:
        """Wait for both directions, and close."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._socks:
            sock.close()

    async def stop_others(self, way: int) -> None:
        """Stop the direction that is not ``way``."""
        other = self._tasks[1 - way]
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

    def drop(self) -> None:
        """Let go of both directions."""
        for task in self._tasks:
            task.cancel()


class Line:
    """Listens, and connects each connection to ``target`` through two vices. They may be changed; later ones have them.

    Args:
        target: A Unix socket's path, or a TCP port on loopback; this listens on the same kind (``path``, ``port``).
        there: For what the one says that connects.
        back: For what the target says.
        buffer_bytes: Receive buffers of TCP, where little is to be on its way.
    """

    def __init__(self, target: Path | int, there: Vice = HONEST, back: Vice = HONEST, *, buffer_bytes: int = 0) -> None:
        self.there, self.back = there, back
        self.passed = [0, 0]  # bytes that arrived, there and back, of all connections
        self.struck = asyncio.Event()
        self._target, self._buffer_bytes = target, buffer_bytes
        self._running: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()

    async def __aenter__(self) -> Self:
        self._listener = self._make_socket()
        if isinstance(self._target, Path):
            self.path = self._target.with_suffix(".line")
            self._listener.bind(str(self.path))
        else:
            self._listener.bind(("127.0.0.1", 0))
            self.port: int = self._listener.getsockname()[1]
        self._listener.listen(100)
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        await self.drop()
        self._listener.close()
        if isinstance(self._target, Path):
            self.path.unlink()

    async def drop(self) -> None:
        """Close all connections."""
        while self._running:
            for connection in self._connections:
                connection.drop()
            await asyncio.wait(self._running, timeout=0.05)  # one that is just being made is dropped the next time

    def _make_socket(self) -> socket.socket:
        is_unix = isinstance(self._target, Path)
        sock = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        sock.setblocking(False)
        if not is_unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        return sock

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            task = loop.create_task(self._serve(near))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _serve(self, near: socket.socket) -> None:
        far = self._make_socket()
        target = str(self._target) if isinstance(self._target, Path) else ("127.0.0.1", self._target)
        try:
            await asyncio.get_running_loop().sock_connect(far, target)
        except BaseException:
            near.close()
            far.close()
            raise
        connection = _Connection(self, near, far)
        self._connections.add(connection)
        await connection.run()
        self._connections.remove(connection)
