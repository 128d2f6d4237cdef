"""A viewer's connection: through a WebSocket (RFC 6455), or on a desktop's own Unix socket. One a seat, in asyncio."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from dataclasses import dataclass
from typing import Final

from gateway_bench.client import render_frame

from workshop_bench.rfb import BadServer, Rect, Viewer

OPEN_S: Final = 30.0

_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


class Lost(ConnectionError):
    """The connection could not be made, or has ended."""


@dataclass(frozen=True)
class Way:
    """How a seat's desktop is reached.

    Args:
        port: On loopback; 0 means the Unix socket ``path``.
        path: Of the WebSocket's handshake.
        headers: More headers of it, complete lines.
        page: For a real browser, the address of its page; empty for a client of ours.
    """

    port: int
    path: str
    headers: str = ""
    page: str = ""


class Frames:
    """A server's frames, as far as they have come: payloads out, nothing masked, nothing in pieces across calls."""

    def __init__(self) -> None:
        self._said = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return (opcode, payload) of all that is complete now."""
        said, at, found = self._said, 0, []
        said += data
        while len(said) - at >= 2:
            size, start = said[at + 1], at + 2
            if size > 125:
                start += 2 if size == 126 else 8
                if len(said) < start:
                    break
                size = int.from_bytes(said[at + 2 : start], "big")
            if len(said) < start + size:
                break
            found.append((said[at] & 15, bytes(said[start : start + size])))
            at = start + size
        del said[:at]
        return found


class Connection(asyncio.Protocol):
    """One viewer that is connected, and what it has seen.

    Args:
        way: Where.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._head = bytearray()
        self._open = not way.port
        self._frames = Frames()
        self._area = 0
        self._waiting: list[tuple[int, int, asyncio.Future[float]]] = []
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.pictured: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.bytes = 0
        self.viewer = Viewer(self._say, self._take_update)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the WebSocket."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._open:
            key = base64.b64encode(os.urandom(16)).decode()
            transport.write(
                f"GET {self._way.path} HTTP/1.1\r\nHost: localhost:{self._way.port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Protocol: binary\r\n{self._way.headers}\r\n".encode()
            )

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self.bytes += len(data)
        try:
            self._hear(data)
        except BadServer as error:
            self._end(f"bad server: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits."""
        self._end(f"closed: {error}" if error else "closed")

    # ours

    async def see(self, x: int, y: int, timeout_s: float) -> float:
        """Return when (time.monotonic) the next update came that covers a pixel.

        Raises:
            Lost: The connection has ended.
            TimeoutError: None came.
        """
        if self.ended.done():
            raise Lost(self.ended.result())
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        entry = (x, y, future)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def close(self) -> None:
        """End it."""
        self._end("closed by us")

    def _hear(self, data: bytes) -> None:
        if not self._open:
            self._head += data
            head, found, rest = bytes(self._head).partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise BadServer(f"no WebSocket: {head[:60]!r}")
            self._open, data = True, rest
        if not self._way.port:
            self.viewer.feed(data)
            return
        for kind, payload in self._frames.feed(data):
            if kind in (0, _BINARY):
                self.viewer.feed(payload)
            elif kind == _PING and self._transport:
                self._transport.write(render_frame(_PONG, payload))
            elif kind == _CLOSE:
                self._end(f"close frame {int.from_bytes(payload[:2], 'big')}")

    def _say(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(render_frame(_BINARY, data) if self._way.port else data)

    def _take_update(self, rects: list[Rect]) -> None:
        now = time.monotonic()
        if not self.pictured.done():
            self._area += sum(rect.width * rect.height for rect in rects)
            if self._area >= self.viewer.width * self.viewer.height:
                self.pictured.set_result(now)
        for entry in [one for one in self._waiting if any(rect.covers(one[0], one[1]) for rect in rects)]:
            self._waiting.remove(entry)
            if not entry[2].done():
                entry[2].set_result(now)

    def _end(self, why: str) -> None:
        if self._transport:
            self._transport.abort()
        if not self.ended.done():
            self.ended.set_result(why)
        for future in [self.pictured, *(one[2] for one in self._waiting)]:
            if not future.done():
                future.set_exception(Lost(why))
                future.exception()  # nobody need wait for it
        self._waiting.clear()


async def connect(way: Way) -> Connection:
    """Return a connection that has its first whole picture.

    Raises:
        Lost: It could not be made.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(way)
    try:
        async with asyncio.timeout(OPEN_S):
            if way.port:
                await loop.create_connection(lambda: connection, "127.0.0.1", way.port)
            else:
                await loop.create_unix_connection(lambda: connection, way.path)
            await connection.pictured
    except (OSError, TimeoutError) as error:
        connection.close()
        raise Lost(str(error) or f"no picture within {OPEN_S:g} s") from error
    return connection
