"""Connections to the portal and to apps: Unix sockets, kept for requests of the same key while they are silent.

It knows no address but the portal's: a connection to an app is a descriptor that somebody else has opened.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from typing import Final

from portico.errors import TooMany, Unavailable
from portico.gateway.end import End, Owner
from portico.gateway.head import Response
from portico.gateway.plane import Plane

PORTAL: Final = "portal"
IDLE_S: Final = 20.0
IDLE_PER_KEY: Final = 32
IDLE_IN_ALL: Final = 1024


class Upstream(End):
    """A connection to whoever answers requests of ``key``. ``used`` once it has carried an exchange.

    ``memo`` is the last answer's head and what was made of it: apps give many answers with the very same one.
    """

    __slots__ = ("_pool", "idle_since", "key", "memo", "used")

    def __init__(self, plane: Plane, sock: socket.socket, pool: Pool, key: str) -> None:
        self.key = key
        self.used = False
        self.memo: tuple[bytes, str, Response, bytes] | None = None
        self.idle_since = 0.0
        self._pool = pool
        super().__init__(plane, sock, pool)

    def close(self) -> None:
        """Close at once."""
        if not self.closed:
            self._pool.forget(self)
            super().close()


class Pool:
    """Makes and keeps connections by key. A key names a way; a way that was cut has none.

    Args:
        portal_path: The portal's HTTP socket.
        limit_per_key: Connections that may be open at once for one key, other than the portal's.
    """

    def __init__(self, plane: Plane, portal_path: str, limit_per_key: int) -> None:
        self._plane = plane
        self._portal_path = portal_path
        self._limit_per_key = limit_per_key
        self._idle: dict[str, list[Upstream]] = {}
        self._count = 0
        self._open: Counter[str] = Counter()

    def take(self, key: str, *, surely: bool) -> Upstream | None:
        """Return an idle connection that is open, as far as is known; with ``surely`` the kernel is asked too."""
        idle = self._idle.get(key)
        while idle:
            upstream = idle.pop()
            self._count -= 1
            if not upstream.readable and not (surely and upstream.has_ended()):
                return upstream
            upstream.close()
        return None

    def give(self, upstream: Upstream) -> None:
        """Keep a connection whose last answer is complete."""
        idle = self._idle.setdefault(upstream.key, [])
        if len(idle) >= IDLE_PER_KEY or self._count >= IDLE_IN_ALL or upstream.out is not None or upstream.readable:
            upstream.close()
            return
        upstream.used = True
        upstream.idle_since = self._plane.now
        upstream.owner = self
        idle.append(upstream)
        self._count += 1

    def open_portal(self, owner: Owner) -> Upstream | None:
        """Connect to the portal; None where it is too busy to accept, so that a later try may do.

        Raises:
            Unavailable: It is not there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self._portal_path)
        except BlockingIOError:  # its backlog is full (unix(7))
            sock.close()
            return None
        except OSError as error:
            sock.close()
            raise Unavailable(
                "Portico is restarting.", why="Its pages are away for a moment.", retry_after_s=2
            ) from error
        return self._make(sock, PORTAL, owner)

    def check(self, key: str) -> None:
        """Refuse one more connection for ``key`` where it has its share.

        Raises:
            TooMany: See there.
        """
        if self._open[key] >= self._limit_per_key:
            raise TooMany("This session answers too many requests at once.", hint="Try again.", retry_after_s=2)

    def open_descriptor(self, fd: int, key: str, owner: Owner) -> Upstream:
        """Take over a connected descriptor.

        Raises:
            Unavailable: It is no stream socket.
        """
        sock = None
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=fd)
        if sock is None or sock.type != socket.SOCK_STREAM:
            if sock is not None:
                sock.close()
            raise Unavailable("The way to the app is broken.", why="The portal handed over no stream socket.")
        return self._make(sock, key, owner)

    def _make(self, sock: socket.socket, key: str, owner: Owner) -> Upstream:
        upstream = Upstream(self._plane, sock, self, key)
        upstream.owner = owner
        self._open[key] += 1
        return upstream

    def forget(self, upstream: Upstream) -> None:
        """Count a connection that is being closed no more."""
        self._open[upstream.key] -= 1
        if not self._open[upstream.key]:
            del self._open[upstream.key]

    def drop(self, key: str) -> None:
        """Close all idle connections of a way."""
        for upstream in self._idle.pop(key, []):
            self._count -= 1
            upstream.close()

    def sweep(self) -> None:
        """Close what was idle for long."""
        oldest = self._plane.now - IDLE_S
        for key, idle in list(self._idle.items()):
            kept = [upstream for upstream in idle if upstream.idle_since > oldest]
            for upstream in idle:
                if upstream.idle_since <= oldest:
                    upstream.close()
                    self._count -= 1
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]

    def close(self) -> None:
        """Close all that are idle."""
        for key in list(self._idle):
            self.drop(key)

    # as the owner of those that are idle: each was to be silent

    def on_readable(self, end: End) -> None:
        """Close a connection that has ended, or that speaks unasked."""
        assert isinstance(end, Upstream)
        idle = self._idle.get(end.key, [])
        if end in idle:
            idle.remove(end)
            self._count -= 1
            end.close()

    def on_writable(self, end: End) -> None:
        """Nothing is kept by an idle one."""

    def on_broken(self, end: End) -> None:
        """Close it."""
        self.on_readable(end)
