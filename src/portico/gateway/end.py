"""One end of a connection: a non-blocking stream socket, plain or TLS, that keeps at most what it could not send.

Whoever owns an end reads from it only while the other side takes what was read: that is all the back-pressure there is,
and it is enough, because nothing here reads by itself.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from portico.gateway.plane import ENDING, READ, WRITE, Plane

READ_BYTES: Final = 64 * 1024
_RECORD_BYTES: Final = 16 * 1024  # a TLS record's (RFC 8446, 5.1): what OpenSSL may ask to be given again
_TURN_BYTES: Final = 1024 * 1024
_CALL_COST_BYTES: Final = 4 * 1024
KEPT_ALWAYS_BYTES: Final = 32 * 1024
"""What an end may keep even where all of them together keep too much."""


class Owner(Protocol):
    """Who uses an end. Each call may close it."""

    def on_readable(self, end: End) -> None:
        """There is something to read, or the end of it."""

    def on_writable(self, end: End) -> None:
        """All that was kept has been sent."""

    def on_broken(self, end: End) -> None:
        """What was kept can't be sent any more."""


class End:
    """A socket, owned from now on.

    ``readable`` is true while a read may return something; ``out`` is what was not taken yet, or None; ``heard`` is
    when the other end last gave a sign of life (the plane's time). ``is_broken`` once the kernel has given it up: for
    owners that do not read now, and would not learn of it. What it said before may still be there.
    """

    __slots__ = (
        *("_ending", "_fd", "_plane", "_turn", "_waits", "closed", "heard", "is_broken", "out", "owner", "readable"),
        "sock",
    )

    def __init__(self, plane: Plane, sock: socket.socket, owner: Owner) -> None:
        sock.setblocking(False)
        self._plane = plane
        self.sock = sock
        self._fd = sock.fileno()
        self.owner = owner
        self.out: memoryview | None = None
        self.readable = False
        self.closed = self.is_broken = False
        self.heard = plane.now
        self._turn = 0  # bytes moved since others had theirs
        self._waits = False  # for the next turn
        self._ending = False  # whether the end was seen to come, for which there is no event but the one that said so
        plane.attach(self._fd, self)

    # reading

    def recv(self, limit: int = READ_BYTES) -> bytes | None:
        """Return the next bytes, b"" at the end, None where there is nothing now.

        Raises:
            OSError: The connection broke.
        """
        try:
            data = self.sock.recv(limit)
        except (BlockingIOError, InterruptedError):
            self.readable = False
            return None
        size = len(data)
        if 0 < size < limit and not self._ending:  # all there was (epoll(7), question 9)
            self.readable = False
        self.heard = self._plane.now
        self._turn += size + _CALL_COST_BYTES
        return data

    def recv_into(self, view: memoryview) -> int | None:
        """Read into ``view``; return how much, 0 at the end, None where there is nothing now.

        Raises:
            OSError: The connection broke.
        """
        try:
            size = self.sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            self.readable = False
            return None
        if 0 < size < len(view) and not self._ending:
            self.readable = False
        self.heard = self._plane.now
        self._turn += size + _CALL_COST_BYTES
        return size

    def has_ended(self) -> bool:
        """Return whether the other end has closed, or has sent something, of a connection that should be silent."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass
        return True

    def must_yield(self) -> bool:
        """Return whether others have their turn now, and arrange for the next one.

        Bytes that are always ready would never yield by themselves.
        """
        if self._turn < _TURN_BYTES:
            return False
        if not self._waits:
            self._waits = True
            self._plane.give_turn(self)
        return True

    # writing

    def send(self, data: bytes | memoryview) -> bool:
        """Send, and keep what is not taken at once; return whether all was taken.

        Raises:
            OSError: The connection broke.
        """
        if self.out is not None:
            self._keep(memoryview(b"".join((self.out, data))))
            return False
        sent = self._push(data)
        if sent == len(data):
            return True
        self._keep(memoryview(bytes(data[sent:])))
        self._plane.change(self._fd, READ | WRITE)
        return False

    def _keep(self, out: memoryview) -> None:
        """Keep what was not taken.

        Raises:
            OSError: All ends together keep more than there is room for, and this one more than a little.
        """
        plane = self._plane
        plane.kept_bytes += len(out) - (len(self.out) if self.out is not None else 0)
        self.out = out
        if plane.kept_bytes > plane.kept_most_bytes and len(out) > KEPT_ALWAYS_BYTES:
            raise OSError(errno.ENOBUFS, "too much waits for clients that are too slow")

    def drop_kept(self) -> None:
        """Forget what was not taken: it can't be sent any more."""
        if self.out is not None:
            self._plane.kept_bytes -= len(self.out)
            self.out = None

    def _push(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def shutdown_write(self) -> bool:
        """Tell the other end that nothing follows; False where that can't be said without closing (TLS)."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        """Close at once."""
        if not self.closed:
            self.closed = True
            self.readable = False
            self.drop_kept()
            self._plane.detach(self._fd)
            self.sock.close()

    # events

    def on_event(self, mask: int) -> None:
        """Send what was kept, and tell the owner."""
        if mask == select.EPOLLIN and not self._waits:  # mostly
            self.readable = True
            self._turn = 0
            self.owner.on_readable(self)
            return
        if mask & WRITE and self.out is not None and not self._flush():
            return
        if mask & ~WRITE:
            self.readable = True
            if mask & ENDING:
                self._ending = True
                if mask & select.EPOLLERR:
                    self.is_broken = True
            if not self._waits:
                self._turn = 0
                self.owner.on_readable(self)

    def on_turn(self) -> None:
        """Tell the owner again."""
        self._waits = False
        self._turn = 0
        if not self.closed and self.readable:
            self.owner.on_readable(self)

    def _flush(self) -> bool:
        """Send what was kept; return whether the end is still there."""
        assert self.out is not None
        try:
            sent = self._push(self.out)
        except OSError:
            self.owner.on_broken(self)
            return not self.closed
        if sent:
            self.heard = self._plane.now  # it has taken what waited
        if sent < len(self.out):
            self._plane.kept_bytes -= sent
            self.out = self.out[sent:]
            return True
        self.drop_kept()
        self._plane.change(self._fd, READ)
        self.owner.on_writable(self)
        return not self.closed


class TlsEnd(End):
    """An end that speaks TLS, by OpenSSL on the socket itself. Its owner hears nothing before the handshake is done."""

    __slots__ = ("_began", "_on_shaken", "shaken")

    def __init__(
        self,
        plane: Plane,
        sock: socket.socket,
        owner: Owner,
        context: ssl.SSLContext,
        on_shaken: Callable[[float], None],
    ) -> None:
        sock.setblocking(False)
        wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.shaken = False
        self._on_shaken = on_shaken  # gets how long it took, in seconds
        self._began = plane.now
        super().__init__(plane, wrapped, owner)

    def recv(self, limit: int = READ_BYTES) -> bytes | None:
        """See End. A record ends a read, so only OpenSSL's word says that there is nothing more."""
        try:
            data = self.sock.recv(limit)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self.readable = False
            return None
        self.heard = self._plane.now
        self._turn += len(data) + _CALL_COST_BYTES
        return data

    def recv_into(self, view: memoryview) -> int | None:
        """See End; as many records as fit."""
        size = 0
        while size < len(view):
            try:
                got = self.sock.recv_into(view[size:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self.readable = False
                break
            except OSError:
                if size:  # the next read says it again
                    break
                raise
            if not got:
                break
            size += got
        if not size and not self.readable:
            return None
        self.heard = self._plane.now
        self._turn += size + _CALL_COST_BYTES
        return size

    def has_ended(self) -> bool:
        """Return False: TLS has no peeking; a write or read says it."""
        return False

    def _push(self, data: bytes | memoryview) -> int:
        sent = 0
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while sent < len(data):
                sent += self.sock.send(data[sent : sent + _RECORD_BYTES])
        return sent

    def shutdown_write(self) -> bool:
        """Say close_notify (RFC 8446, 6.1), behind which nothing may follow; what still comes may be read."""
        assert isinstance(self.sock, ssl.SSLSocket)
        with contextlib.suppress(OSError, ValueError):
            self.sock.unwrap()
        return False

    def on_event(self, mask: int) -> None:
        """Shake hands first."""
        if not self.shaken:
            assert isinstance(self.sock, ssl.SSLSocket)
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                return
            except ssl.SSLWantWriteError:
                self._plane.change(self._fd, READ | WRITE)
                return
            except (OSError, ValueError):
                self.owner.on_broken(self)
                return
            self.shaken = True
            self._on_shaken(self._plane.now - self._began)
            self._plane.change(self._fd, READ | WRITE if self.out is not None else READ)
            mask |= select.EPOLLIN | WRITE  # what came with the handshake has no event of its own
        super().on_event(mask)
