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
from typing import Any, Final, Protocol

from portico.gateway.client import Client
from portico.gateway.end import End, TlsEnd
from portico.gateway.limits import Limits
from portico.gateway.listening import Listening, find_household, normalise_address
from portico.gateway.metrics import Metrics
from portico.gateway.plane import Acceptor, get_plane
from portico.gateway.routes import Routes
from portico.gateway.upstream import Pool
from portico.gateway.websocket import GOING_AWAY

log = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE: Final = 64
_SWEEP_MOST_S: Final = 1.0
_REFUSALS_PER_S: Final = 20.0
UNSENT_BYTES: Final = 512 * 1024
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Connected(Protocol):
    """What a client's connection is being used for: requests, a stream, or a tunnel."""

    household: str
    deadline: float

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream or tunnel."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""

    def on_deadline(self) -> None:
        """Take notice that ``deadline`` is over."""

    def close(self) -> None:
        """Close at once."""


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
        metrics: Where everything is counted.
    """

    def __init__(
        self, portal_path: str, routes: Routes, limits: Limits | None = None, metrics: Metrics | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.plane = get_plane()
        self.routes = routes
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.pool = Pool(self.plane, portal_path, self.limits.app_connections)
        self.closing = False  # every answer is its connection's last
        self.ending = False
        self._refusals = Refusals()
        self._by_household: Counter[str] = Counter()
        self._clients: set[Connected] = set()
        self._emptied = asyncio.Event()
        routes.on_drop = self.pool.drop

    # connections from browsers

    async def listen(self, listening: Listening, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections until cancelled."""
        tune(listener, self.limits)
        acceptor = Acceptor(self.plane, listener)
        try:
            while True:
                await acceptor.wait()
                try:
                    for _ in range(_ACCEPTED_AT_ONCE):
                        sock, name = listener.accept()
                        self._take(listening, sock, normalise_address(str(name[0])), tls)
                except BlockingIOError:
                    pass
                except OSError as error:  # EMFILE and the like: connections wait in the backlog meanwhile
                    self.tell_refusal("everybody", f"accept: {error.strerror}", "accept")
                    await asyncio.sleep(0.2)
        finally:
            acceptor.close()

    def _take(self, listening: Listening, sock: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        household = find_household(address)
        too_many = self._by_household[household] >= self.limits.connections_per_address
        if len(self._clients) >= self.limits.connections or (too_many and not listening.trusts(address)):
            self.tell_refusal(address, "too many connections", "connections")
            with contextlib.suppress(OSError), sock:
                if tls is None:
                    sock.setblocking(False)
                    sock.send(_FULL)
            return
        client = Client(self, listening, address, household)
        try:
            if tls is None:
                client.end = End(self.plane, sock, client)
            else:
                client.end = TlsEnd(self.plane, sock, client, tls, self.metrics.tls_handshake.observe)
        except (OSError, ValueError):  # it is gone already
            sock.close()
            return
        self._clients.add(client)
        self._by_household[household] += 1
        self.metrics.connections += 1

    def replace(self, client: Connected, other: Connected) -> None:
        """Take ``other`` for ``client``, whose connection it has taken over."""
        self._clients.remove(client)
        self._clients.add(other)

    def forget(self, client: Connected) -> None:
        """Forget a connection that has been closed."""
        self._clients.discard(client)
        self._by_household[client.household] -= 1
        if not self._by_household[client.household]:
            del self._by_household[client.household]
        if not self._clients:
            self._emptied.set()

    # what is told

    def tell_refusal(self, address: str, why: str, reason: str) -> None:
        """Log and count a refusal; ``why`` never holds anything that was sent, ``reason`` is one of few words."""
        self.metrics.refusals[reason] += 1
        self._refusals.tell(address, why)

    def count_refusal(self, reason: str) -> None:
        """Count a refusal that its stream is told of."""
        self.metrics.refusals[reason] += 1

    def render_metrics(self) -> dict[str, Any]:
        """Return what is counted, as a JSON value."""
        return self.metrics.render(len(self._clients))

    # life

    async def sweep(self) -> None:
        """Keep the times of all connections, until cancelled: one walk over them instead of a timer for each."""
        limits = self.limits
        times = (limits.head_s, limits.idle_s, limits.body_stall_s, limits.ping_s, limits.dead_s, limits.app_answer_s)
        interval_s = min(_SWEEP_MOST_S, min(times) / 4)
        while True:
            began = self.loop.time()
            self.plane.slowest_s = 0.0
            await asyncio.sleep(interval_s)
            self.metrics.lag.observe(max(0.0, self.loop.time() - began - interval_s))
            now = self.loop.time()
            for one in [one for one in self._clients if one.deadline <= now]:
                one.on_deadline()
            self.pool.sweep()

    async def drain(self, timeout_s: float) -> None:
        """Let what is under way end by itself: requests with their answer, streams when they end.

        A connection without a request has ``next_request_s`` for one: a front server's may be on its way already.
        """
        self.closing = True
        for one in self._clients:
            if one.is_idle:
                one.deadline = min(one.deadline, self.plane.now + self.limits.next_request_s)
        await self._wait_until_empty(timeout_s)

    async def close(self) -> None:
        """End what is under way: idle connections and streams at once, requests in flight within ``close_s``."""
        self.closing = self.ending = True
        self.routes.end_streams(GOING_AWAY, "the gateway is restarting")
        for one in list(self._clients):
            if one.is_idle:
                one.close()
        await self._wait_until_empty(self.limits.close_s)
        for one in list(self._clients):
            one.close()
        self.pool.close()

    async def _wait_until_empty(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._clients:
                    self._emptied.clear()
                    await self._emptied.wait()


def tune(listener: socket.socket, limits: Limits) -> None:
    """Send small things at once, keep little, and notice who is gone or takes nothing for ``dead_s`` (tcp(7)).

    On Linux what is accepted inherits all of it, which saves four calls for each connection.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(limits.dead_s)))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.dead_s * 1000))
