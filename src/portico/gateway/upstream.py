"""Connections to the portal and to apps: Unix sockets, kept for the next request of the same way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Final

IDLE_S: Final = 20.0
IDLE_PER_KEY: Final = 16
READ_LIMIT_BYTES: Final = 256 * 1024


@dataclass
class Upstream:
    """A connection to whoever answers. ``fresh`` until a request has used it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    key: str
    fresh: bool = True
    since: float = 0.0

    def close(self) -> None:
        """Close without waiting."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.transport.abort()


class Pool:
    """Idle connections by key. A key names a way; a way that was cut has none."""

    def __init__(self) -> None:
        self._idle: dict[str, list[Upstream]] = {}

    def take(self, key: str) -> Upstream | None:
        """Return an idle connection."""
        idle = self._idle.get(key, [])
        while idle:
            upstream = idle.pop()
            if time.monotonic() - upstream.since < IDLE_S and not upstream.reader.at_eof():
                return upstream
            upstream.close()
        return None

    def give(self, upstream: Upstream) -> None:
        """Keep a connection whose last answer is complete."""
        idle = self._idle.setdefault(upstream.key, [])
        upstream.fresh, upstream.since = False, time.monotonic()
        if len(idle) < IDLE_PER_KEY:
            idle.append(upstream)
        else:
            upstream.close()

    def drop(self, key: str) -> None:
        """Close all idle connections of a way."""
        for upstream in self._idle.pop(key, []):
            upstream.close()

    def sweep(self) -> None:
        """Close what has been idle for long."""
        for key, idle in list(self._idle.items()):
            keep = [u for u in idle if time.monotonic() - u.since < IDLE_S and not u.reader.at_eof()]
            for upstream in idle:
                if upstream not in keep:
                    upstream.close()
            if keep:
                self._idle[key] = keep
            else:
                del self._idle[key]


async def open_path(path: str) -> Upstream:
    """Connect to a listening Unix socket.

    Raises:
        OSError: Nobody listens.
    """
    reader, writer = await asyncio.open_unix_connection(path, limit=READ_LIMIT_BYTES)
    return Upstream(reader, writer, "portal")


async def open_descriptor(fd: int, key: str) -> Upstream:
    """Take over a connected descriptor."""
    sock = socket.socket(fileno=fd)
    try:
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=READ_LIMIT_BYTES)
    except BaseException:
        sock.close()
        raise
    return Upstream(reader, writer, key)
