"""One byte stream, plain or TLS, with back-pressure: a write returns once the kernel (or TLS) has taken the bytes.

Plain sockets are used without an asyncio transport, because a transport allocates for each read and keeps buffers
that nobody bounds. Only one task may read, and only one may write, at a time.
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
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._watcher: Callable[[], None] | None = None
        self._is_registered = False
        self._is_drained = True  # the last read took all there was, so another one would mostly find nothing
        self._turn = 0
        self._closed = False
        self._fd = sock.fileno()
        self.heard = self._loop.time()

    async def read(self, limit: int = READ_BYTES) -> bytes:
        """Return the next bytes; empty at the end."""
        while True:
            await self.wait_for_bytes()
            try:
                data = self._sock.recv(limit)
            except (BlockingIOError, InterruptedError):
                self._is_drained = True
                continue
            self._is_drained = len(data) < limit
            self.heard = self._loop.time()
            await self.take_turn(len(data))
            return data

    async def wait_for_bytes(self) -> None:
        """Wait until there is something to read, or the end."""
        if self._is_drained:
            await self.wait_readable()

    async def read_into(self, view: memoryview) -> int:
        """Read into ``view``; return how much, 0 at the end."""
        while True:
            await self.wait_for_bytes()
            try:
                size = self._sock.recv_into(view)
            except (BlockingIOError, InterruptedError):
                self._is_drained = True
                continue
            self._is_drained = size < len(view)
            self.heard = self._loop.time()
            await self.take_turn(size)
            return size

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
        self._check_open()
        self._reader = self._loop.create_future()
        if not self._is_registered:
            self._loop.add_reader(self._fd, self._on_readable)
            self._is_registered = True
        try:
            await self._reader
        finally:
            self._reader = None

    async def wait_writable(self) -> None:
        """Wait until a write is taken, which is a sign of life too: the other end has taken what waited."""
        self._check_open()
        self._writer = self._loop.create_future()
        self._loop.add_writer(self._fd, _set, self._writer)
        try:
            await self._writer
            self.heard = self._loop.time()
        finally:
            self._writer = None
            if not self._closed:
                self._loop.remove_writer(self._fd)

    def _on_readable(self) -> None:
        """Wake who waits. Registered until nobody does, so that a quiet exchange costs no epoll_ctl(2) at all."""
        if self._reader is not None:
            _set(self._reader)
            return
        self._unregister()
        if self._watcher is not None:
            self._look()

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
        if not self._closed:
            self._watcher = on_gone
            if not self._is_registered:
                self._loop.add_reader(self._fd, self._on_readable)
                self._is_registered = True

    def unwatch(self) -> None:
        """End the watch."""
        self._watcher = None

    def _look(self) -> None:
        try:
            data = self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        told, self._watcher = self._watcher, None
        if not data and told is not None:
            told()

    def _unregister(self) -> None:
        if self._is_registered:
            self._is_registered = False
            self._loop.remove_reader(self._fd)

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
        self._watcher = None
        self._unregister()
        self._loop.remove_writer(self._fd)
        self._sock.close()
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
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

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionAbortedError("closed here")


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
        with contextlib.suppress(AttributeError):  # Python 3.11: abort() of a transport that has closed by itself
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
            self.close()


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
