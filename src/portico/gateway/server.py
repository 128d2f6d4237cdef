"""The gateway's public connections: parse, ask, carry. It has no database, no scheduler and no pages of its own.

Everything that faces the network is bounded (:mod:`portico.gateway.limits`). What a client says about who and where
it is (Forwarded and such) is dropped, unless a configured proxy says it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from typing import Final

from portico.gateway.bridge import Buffers
from portico.gateway.client import Client
from portico.gateway.connection import Connection, PlainConnection, open_tls
from portico.gateway.limits import Limits
from portico.gateway.listening import Listening, find_household, normalise_address
from portico.gateway.routes import Routes, Way
from portico.gateway.upstream import Pool, Upstream, open_descriptor, open_portal
from portico.gateway.websocket import GOING_AWAY

log = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE: Final = 64
_SWEEP_S: Final = 5.0
_REFUSALS_PER_S: Final = 20.0
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Refusals:
    """Tells the log of what is refused: one short line each, in words of ours, and no flood of them."""

    def __init__(self) -> None:
        self._allowance, self._at, self._left_out = _REFUSALS_PER_S, 0.0, 0

    def tell(self, address: str, why: str) -> None:
        """Log that ``address`` was refused; ``why`` never holds anything that it sent."""
        now = asyncio.get_running_loop().time()
        self._allowance = min(_REFUSALS_PER_S, self._allowance + (now - self._at) * _REFUSALS_PER_S)
        self._at = now
        if self._allowance < 1:
            self._left_out += 1
            return
        self._allowance -= 1
        more = f" ({self._left_out} more were left out)" if self._left_out else ""
        self._left_out = 0
        line = "".join(c if c.isprintable() else "?" for c in why[:100])  # an error's words come from elsewhere
        log.info("refused %s: %s%s", address[:64], line, more)


class Gateway:
    """Serves connections; one for all listeners of the process.

    Args:
        portal_path: The portal's HTTP socket.
        routes: Whom to ask.
        limits: Sizes and times.

    """

    def __init__(self, portal_path: str, routes: Routes, limits: Limits | None = None) -> None:
        self.routes = routes
        self.limits = limits or Limits()
        self.buffers = Buffers()
        self.refusals = Refusals()
        self.closing = False
        self._portal_path = portal_path
        self._pool = Pool()
        routes.on_drop = self._pool.drop
        self._by_household: Counter[str] = Counter()
        self._clients: dict[asyncio.Task[None], Client | None] = {}

    # connections from browsers

    async def listen(self, listening: Listening, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        waiting = asyncio.Event()
        loop.add_reader(listener.fileno(), waiting.set)
        try:
            while True:
                await waiting.wait()
                waiting.clear()
                try:
                    for _ in range(_ACCEPTED_AT_ONCE):
                        sock, name = listener.accept()
                        self._take(listening, sock, normalise_address(str(name[0])), tls)
                except BlockingIOError:
                    pass
                except OSError as error:  # EMFILE and the like: connections wait in the backlog meanwhile
                    self.refusals.tell("everybody", f"accept: {error.strerror}")
                    await asyncio.sleep(0.2)
        finally:
            loop.remove_reader(listener.fileno())

    def _take(self, listening: Listening, sock: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        household = find_household(address)
        too_many = self._by_household[household] >= self.limits.connections_per_address
        if len(self._clients) >= self.limits.connections or (too_many and not listening.trusts(address)):
            self.refusals.tell(address, "too many connections")
            with contextlib.suppress(OSError), sock:
                if tls is None:
                    sock.setblocking(False)
                    sock.send(_FULL)
            return
        task = asyncio.get_running_loop().create_task(self._serve(listening, sock, address, tls))
        self._clients[task] = None
        self._by_household[household] += 1

        def forget(task: asyncio.Task[None]) -> None:
            del self._clients[task]
            self._by_household[household] -= 1
            if not self._by_household[household]:
                del self._by_household[household]

        task.add_done_callback(forget)

    async def _serve(self, listening: Listening, sock: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        connection: Connection | None = None
        task = asyncio.current_task()
        assert task is not None
        try:
            _tune(sock, self.limits)
            connection = PlainConnection(sock) if tls is None else await open_tls(sock, tls, self.limits.head_s)
            client = self._clients[task] = Client(self, listening, connection, address)
            await client.run()
        except OSError:
            pass  # it went away, or never spoke TLS
        except asyncio.CancelledError:
            if not self.closing:
                raise
        except Exception:  # a defect of ours ends one connection, and is told
            log.exception("a connection failed")
        finally:
            if connection is None:
                sock.close()
            else:
                connection.close()

    # connections to those who answer

    async def take_portal(self) -> Upstream:
        """Return a connection to the portal.

        Raises:
            Unavailable: It is away.

        """
        return self._pool.take("portal") or await open_portal(self._portal_path)

    async def take_app(self, way: Way) -> Upstream:
        """Return a connection to the app of a way.

        Raises:
            PorticoError: There is none.

        """
        if (fd := way.take_descriptor()) >= 0:
            return open_descriptor(fd, way.key)
        return self._pool.take(way.key) or open_descriptor(await self.routes.connect(way), way.key)

    def give(self, upstream: Upstream) -> None:
        """Take a connection back for the next request."""
        self._pool.give(upstream)

    # life

    async def sweep(self) -> None:
        """Close idle upstream connections, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._pool.sweep()

    async def close(self) -> None:
        """End what is under way: idle connections and streams at once, requests in flight within ``drain_s``."""
        self.closing = True
        self.routes.end_streams(GOING_AWAY, "the gateway is restarting")
        for task, client in self._clients.items():
            if client is None or client.is_idle:
                task.cancel()
        if self._clients:
            await asyncio.wait(list(self._clients), timeout=self.limits.drain_s)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._pool.close()


def _tune(sock: socket.socket, limits: Limits) -> None:
    """Send small things at once, and notice a client that is gone or takes nothing for ``dead_s`` (tcp(7))."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(limits.dead_s)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.dead_s * 1000))
