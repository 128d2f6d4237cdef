"""Connections to the portal and to apps: Unix sockets with their read buffer, kept for requests of the same key.

It knows no address but the portal's: a connection to an app is a descriptor that somebody else has opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from portico.errors import Unavailable
from portico.gateway.connection import READ_BYTES, Connection, PlainConnection
from portico.gateway.head import find_head_end

IDLE_S: Final = 20.0
IDLE_PER_KEY: Final = 32
IDLE_IN_ALL: Final = 1024


class Wire:
    """A connection with what was read of it and not used yet."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.buffer = b""

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        return await self.connection.read()

    async def read_head(self, limit_bytes: int) -> bytes:
        """Return the next whole head; empty where the other end has closed before it began.

        Raises:
            Refusal: It can't be a head; see find_head_end.
            ConnectionResetError: The other end closed within it.

        """
        while not (end := find_head_end(self.buffer, limit_bytes)):
            data = await self.connection.read(READ_BYTES)
            if not data:
                if self.buffer:
                    raise ConnectionResetError("closed within a head")
                return b""
            self.buffer += data
        head, self.buffer = self.buffer[:end], self.buffer[end:]
        return head


class Upstream(Wire):
    """A connection to whoever answers requests of ``key``. ``used`` once it has carried an exchange."""

    def __init__(self, sock: socket.socket, key: str) -> None:
        self.plain = PlainConnection(sock)
        super().__init__(self.plain)
        self.key = key
        self.used = False
        self.idle_since = 0.0

    def is_usable(self) -> bool:
        """Return whether it is open and silent, as a connection between two requests should be."""
        return not self.buffer and not self.plain.has_ended()

    def close(self) -> None:
        """Close at once."""
        self.plain.close()


class Pool:
    """Idle connections by key. A key names a way; a way that was cut has none."""

    def __init__(self) -> None:
        self._idle: dict[str, list[Upstream]] = {}
        self._count = 0

    def take(self, key: str) -> Upstream | None:
        """Return an idle connection that is still open."""
        idle = self._idle.get(key, [])
        while idle:
            upstream = idle.pop()
            self._count -= 1
            if upstream.is_usable():
                return upstream
            upstream.close()
        self._idle.pop(key, None)
        return None

    def give(self, upstream: Upstream) -> None:
        """Keep a connection whose last answer is complete."""
        idle = self._idle.setdefault(upstream.key, [])
        if len(idle) >= IDLE_PER_KEY or self._count >= IDLE_IN_ALL or upstream.buffer:
            upstream.close()
            return
        upstream.used = True
        upstream.idle_since = asyncio.get_running_loop().time()
        idle.append(upstream)
        self._count += 1

    def drop(self, key: str) -> None:
        """Close all idle connections of a way."""
        for upstream in self._idle.pop(key, []):
            self._count -= 1
            upstream.close()

    def sweep(self) -> None:
        """Close what was idle for long, or has been closed at its other end."""
        oldest = asyncio.get_running_loop().time() - IDLE_S
        for key, idle in list(self._idle.items()):
            kept = [upstream for upstream in idle if upstream.idle_since > oldest and upstream.is_usable()]
            for upstream in set(idle) - set(kept):
                upstream.close()
                self._count -= 1
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]

    def close(self) -> None:
        """Close all."""
        for key in list(self._idle):
            self.drop(key)


async def open_portal(path: str) -> Upstream:
    """Connect to the portal.

    Raises:
        Unavailable: It is not there.

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except OSError as error:
        sock.close()
        raise Unavailable("Portico is restarting.", why="Its pages are away for a moment.", retry_after_s=2) from error
    return Upstream(sock, "portal")


def open_descriptor(fd: int, key: str = "") -> Upstream:
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
    return Upstream(sock, key)
