"""One byte stream, plain or TLS, with back-pressure: a write returns once the kernel (or TLS) has taken the bytes.

Plain sockets are used without an asyncio transport, because splice(2) needs their descriptors, and because a
transport keeps buffers that nobody bounds. Only one task may read, and only one may write, at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

READ_BYTES: Final = 64 * 1024
_TURN_BYTES: Final = 1024 * 1024
_CALL_COST_BYTES: Final = 8 * 1024


class Connection(Protocol):
    """What both kinds can do."""

    heard: float  # when the other end last gave a sign of life, in the loop's time
    fd: int  # for splice(2), or -1 where that can't be used

    async def read(self, limit: int = READ_BYTES) -> bytes:
        """Return the next bytes; empty at the end."""

    async def write(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of ``data``; ``more`` says that the rest of it follows at once (MSG_MORE, send(2))."""

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call ``on_gone`` once when the other end closes; not while somebody reads. Bytes that come end the watch."""

    def unwatch(self) -> None:
        """End the watch."""

    def shutdown_write(self) -> bool:
        """Tell the other end that nothing follows; False where that can't be said without closing (TLS)."""

    def close(self) -> None:
        """Close at once; whoever waits gets OSError."""

    async def finish(self, timeout_s: float) -> None:
        """Close so that the other end gets what was written, even while it still sends."""


class PlainConnection:
    """A TCP or Unix stream socket, owned from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._waiters: dict[bool, asyncio.Future[None]] = {}  # True: until it can be written to
        self._turn = 0
        self._closed = False
        self.fd = sock.fileno()
        self.heard = self._loop.time()

    async def read(self, limit: int = READ_BYTES) -> bytes:
        """Return the next bytes; empty at the end."""
        while True:
            try:
                data = self._sock.recv(limit)
            except (BlockingIOError, InterruptedError):
                await self.wait_readable()
                continue
            self.heard = self._loop.time()
            await self.take_turn(len(data))
            return data

    async def write(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of ``data``."""
        flags = socket.MSG_MORE if more else 0
        try:
            sent = self._sock.send(data, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):
            return
        view = memoryview(data)[sent:]
        while view:
            await self.wait_writable()
            with contextlib.suppress(BlockingIOError, InterruptedError):
                view = view[self._sock.send(view, flags) :]

    async def wait_readable(self) -> None:
        """Wait until a read returns something."""
        waiter = self._wait(writing=False)
        self._loop.add_reader(self.fd, _set, waiter)
        try:
            await waiter
        finally:
            self._waiters.pop(False, None)
            if not self._closed:
                self._loop.remove_reader(self.fd)

    async def wait_writable(self) -> None:
        """Wait until a write is taken, which is a sign of life too: the other end has taken what waited."""
        waiter = self._wait(writing=True)
        self._loop.add_writer(self.fd, _set, waiter)
        try:
            await waiter
            self.heard = self._loop.time()
        finally:
            self._waiters.pop(True, None)
            if not self._closed:
                self._loop.remove_writer(self.fd)

    async def take_turn(self, moved_bytes: int) -> None:
        """Let others run after a megabyte or so: bytes that are always ready would never yield by themselves."""
        self._turn += moved_bytes + _CALL_COST_BYTES
        if self._turn > _TURN_BYTES:
            self._turn = 0
            await asyncio.sleep(0)

    def has_ended(self) -> bool:
        """Return whether the other end has closed, or has sent something, of a connection that should be silent."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass
        return True

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call ``on_gone`` once when the other end closes."""
        if not self._closed and False not in self._waiters:
            self._loop.add_reader(self.fd, self._look, on_gone)

    def unwatch(self) -> None:
        """End the watch."""
        if not self._closed and False not in self._waiters:
            self._loop.remove_reader(self.fd)

    def _look(self, on_gone: Callable[[], None]) -> None:
        try:
            data = self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._loop.remove_reader(self.fd)
        if not data:
            on_gone()

    def shutdown_write(self) -> bool:
        """Tell the other end that nothing follows."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        """Close at once."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        self._sock.close()
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(ConnectionAbortedError("closed here"))

    async def finish(self, timeout_s: float) -> None:
        """Send FIN and drop what still comes: closing with bytes unread would send RST, which overtakes our answer."""
        try:
            self.unwatch()
            self.shutdown_write()
            async with asyncio.timeout(timeout_s):
                while await self.read():
                    pass
        except (OSError, TimeoutError):
            pass
        finally:
            self.close()

    def _wait(self, *, writing: bool) -> asyncio.Future[None]:
        if self._closed:
            raise ConnectionAbortedError("closed here")
        waiter = self._waiters[writing] = self._loop.create_future()
        return waiter


class _TlsProtocol(asyncio.StreamReaderProtocol):
    on_gone: Callable[[], None] | None = None

    def eof_received(self) -> bool | None:
        self._tell()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell()
        super().connection_lost(exc)

    def _tell(self) -> None:
        if self.on_gone is not None:
            told, self.on_gone = self.on_gone, None
            told()


class TlsConnection:
    """A TLS connection in asyncio's hands; made by :func:`open_tls`."""

    fd = -1

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: _TlsProtocol) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer, self._protocol = reader, writer, protocol
        self.heard = self._loop.time()
        writer.transport.set_write_buffer_limits(high=READ_BYTES)

    async def read(self, limit: int = READ_BYTES) -> bytes:
        """Return the next bytes; empty at the end."""
        data = await self._reader.read(limit)
        self.heard = self._loop.time()
        return data

    async def write(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of ``data``, as far as TLS buffers at most 64 KiB of it."""
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > READ_BYTES:
            await self._writer.drain()
            self.heard = self._loop.time()
        if self._writer.transport.is_closing():
            raise ConnectionResetError("closed by the other end")

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call ``on_gone`` once when the other end closes."""
        self._protocol.on_gone = on_gone
        if self._reader.at_eof() or self._writer.transport.is_closing():
            self._protocol._tell()

    def unwatch(self) -> None:
        """End the watch."""
        self._protocol.on_gone = None

    def shutdown_write(self) -> bool:
        """Return False: asyncio's TLS can't close one direction."""
        return False

    def close(self) -> None:
        """Close at once."""
        self.unwatch()
        self._writer.transport.abort()

    async def finish(self, timeout_s: float) -> None:
        """Close after what was written, with a close_notify."""
        self.unwatch()
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.close()
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            self._writer.transport.abort()


async def open_tls(sock: socket.socket, context: ssl.SSLContext, handshake_s: float) -> TlsConnection:
    """Take over an accepted TCP socket and shake hands.

    Raises:
        OSError: The handshake failed (ssl.SSLError is one) or took too long.

    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_BYTES, loop=loop)
    protocol = _TlsProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=context, ssl_handshake_timeout=handshake_s, ssl_shutdown_timeout=2
    )
    return TlsConnection(reader, asyncio.StreamWriter(transport, protocol, reader, loop), protocol)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
