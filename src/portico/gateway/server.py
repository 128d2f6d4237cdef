"""The gateway's connections: parse, ask, carry. It has no database, no scheduler and no pages of its own.

Everything that faces the network is bounded: heads in size and time, bodies towards the portal in size, connections
in number, in all and per address. What comes from a client about who and where it is (Forwarded and such) is dropped,
unless a configured proxy says it.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import ssl
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from portico import wire
from portico.errors import PorticoError, Unavailable
from portico.gateway import bridge, http
from portico.gateway import websocket as ws
from portico.gateway.filters import make_filter
from portico.gateway.routes import Decision, Routes
from portico.gateway.upstream import Pool, Upstream, open_descriptor, open_path

log = logging.getLogger(__name__)

HEAD_S: Final = 10.0
IDLE_S: Final = 75.0
BODY_S: Final = 60.0
PORTAL_BODY_LIMIT_BYTES: Final = 16 << 20
CONNECTIONS: Final = 20_000
CONNECTIONS_PER_ADDRESS: Final = 512
READ_BYTES: Final = 256 * 1024
ENTRY_PATH: Final = "/_portico/"
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_OWN_COOKIES: Final = ("portico", "__host-portico", "__secure-portico")


@dataclass(frozen=True)
class Listening:
    """What one public listener serves: ``portal``, ``apps``, or both, told apart by the Host header."""

    portal_hosts: frozenset[str]
    app_hosts: frozenset[str]
    apps_domain: str
    scheme: str
    trusted_proxies: frozenset[str]

    def find_listener(self, host: str) -> str:
        """Return which of the two a Host header means; empty for neither. Exact, after lower-casing."""
        host = host.lower()
        if host in self.portal_hosts:
            return "portal"
        if host in self.app_hosts:
            return "apps"
        if self.apps_domain:
            label, _, rest = host.partition(".")
            if rest == self.apps_domain and label.isalnum():
                return "apps"
        return ""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as far as we believe it."""

    address: str
    scheme: str


class Gateway:
    """Serves connections; one for all listeners of the process."""

    def __init__(self, portal_path: str, routes: Routes) -> None:
        self._portal_path = portal_path
        self._routes = routes
        self._pool = Pool()
        self._by_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0.0
        routes.on_cut = self._drop_ways
        self.closing = False

    def _drop_ways(self, tags: frozenset[str]) -> None:
        for tag in tags:
            kind, _, name = tag.partition(":")
            if kind == "session":
                self._pool.drop(name)

    async def sweep(self) -> None:
        """Close idle upstream connections, until cancelled."""
        while True:
            await asyncio.sleep(10)
            self._pool.sweep()

    async def close(self, timeout_s: float) -> None:
        """End what is under way: requests have ``timeout_s``, then all is cut."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, listening: Listening, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        task = asyncio.current_task()
        assert task is not None
        name = writer.get_extra_info("peername")
        address = str(name[0]) if name else ""
        if len(self._tasks) >= CONNECTIONS or self._by_address[address] >= CONNECTIONS_PER_ADDRESS:
            self._log_refusal(address, "too many connections")
            writer.transport.abort()
            return
        self._tasks.add(task)
        self._by_address[address] += 1
        try:
            await _Connection(self, listening, reader, writer, address).run()
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), 2)

    def _log_refusal(self, address: str, why: str) -> None:
        if time.monotonic() - self._refused > 0.1:  # a flood of refusals is no flood of lines
            self._refused = time.monotonic()
            log.info("refused %s: %s", address, why[:100])

    async def take_portal(self) -> Upstream:
        """Return a connection to the portal."""
        return self._pool.take("portal") or await open_path(self._portal_path)

    async def take_app(self, decision: Decision) -> Upstream:
        """Return a connection to the decision's app."""
        key = str(decision.answer["key"])
        if decision.fds:
            return await open_descriptor(decision.fds.pop(0), key)
        return self._pool.take(key) or await open_descriptor(await self._routes.connect(key), key)

    def give(self, upstream: Upstream) -> None:
        """Take a connection back for the next request."""
        self._pool.give(upstream)

    @property
    def routes(self) -> Routes:
        """Whom to ask."""
        return self._routes

    def refuse(self, address: str, why: str) -> None:
        """Log a refusal."""
        self._log_refusal(address, why)


class _Connection:
    """One client connection: request after request, until one closes it."""

    def __init__(
        self,
        gateway: Gateway,
        listening: Listening,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: str,
    ) -> None:
        self._gateway = gateway
        self._listening = listening
        self._reader = reader
        self._writer = writer
        self._address = address
        self._answered = False

    async def run(self) -> None:
        """Serve."""
        idle_s = HEAD_S
        while not self._gateway.closing:
            self._answered = False
            try:
                head = await self._read_head(idle_s)
                if head is None:
                    return
                if not await self._serve(head):
                    return
            except http.BadMessage as error:
                self._gateway.refuse(self._address, str(error))
                if not self._answered:
                    await self._say(error.status, "This request is not understood.", str(error))
                return
            except PorticoError as error:
                if self._answered:
                    return
                await self._say(503, error.message, error.why, retry=True)
                return
            idle_s = IDLE_S

    async def _read_head(self, idle_s: float) -> http.Head | None:
        """Return the next request's head, or None at the end; a first byte has ``idle_s``, all of it HEAD_S more."""
        try:
            first = await asyncio.wait_for(self._reader.readexactly(1), idle_s)
            while first in (b"\r", b"\n"):  # an empty line before a request is ignored (RFC 9112, 2.2)
                first = await asyncio.wait_for(self._reader.readexactly(1), HEAD_S)
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            return None
        try:
            rest = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), HEAD_S)
        except asyncio.LimitOverrunError as error:
            raise http.BadMessage("the head is too large", 431) from error
        except TimeoutError as error:
            raise http.BadMessage("the head came too slowly", 408) from error
        if len(rest) > http.HEAD_LIMIT_BYTES:
            raise http.BadMessage("the head is too large", 431)
        return http.parse_request(first + rest)

    async def _serve(self, head: http.Head) -> bool:
        """Serve one request; return whether another may follow."""
        hosts = head.get_all("host")
        if len(hosts) != 1:
            raise http.BadMessage("there must be one Host header")
        listener = self._listening.find_listener(hosts[0])
        if not listener:
            await self._say(421, "This server is not known by that name.", "The address in the browser is another.")
            return False
        peer = self._find_peer(head)
        target = head.first[1]
        upgrade = head.upgrade == "websocket"
        if head.upgrade and not upgrade:
            head = http.Head(head.first, head.version, head.headers, head.length, head.keep_alive)
        if upgrade:
            self._check_upgrade(head)
        is_portals = target.startswith(ENTRY_PATH) if listener == "apps" else not upgrade
        if is_portals:
            return await self._proxy_portal(head, listener, peer)
        decision = await self._ask(head, listener, peer, hosts[0].lower(), upgrade)
        try:
            if decision.kind == "answer":
                return await self._give_answer(head, decision)
            if decision.kind == "stream" and upgrade:
                await self._stream(head, decision)
                return False
            if decision.kind == "http":
                return await self._proxy_app(head, decision, upgrade)
            raise Unavailable("The portal's answer is not understood.")
        finally:
            wire.close_all(decision.fds)

    def _find_peer(self, head: http.Head) -> Peer:
        scheme = self._listening.scheme
        if self._address in self._listening.trusted_proxies:
            forwarded = [part.strip() for value in head.get_all("x-forwarded-for") for part in value.split(",")]
            proto = head.get("x-forwarded-proto", scheme)
            return Peer(forwarded[-1][:64] if forwarded else self._address, "https" if proto == "https" else "http")
        return Peer(self._address, scheme)

    @staticmethod
    def _check_upgrade(head: http.Head) -> None:
        keys = head.get_all("sec-websocket-key")
        ok = head.first[0] == "GET" and head.version == "1.1" and len(keys) == 1 and ws.is_key(keys[0])
        if not ok or head.get_all("sec-websocket-version") != ["13"] or head.length != 0:
            raise http.BadMessage("this is no WebSocket handshake (RFC 6455, 4.2.1)")

    async def _ask(self, head: http.Head, listener: str, peer: Peer, host: str, upgrade: bool) -> Decision:
        wanted = ("cookie", "origin", "sec-fetch-site")
        headers = {name: "; ".join(values) for name in wanted if (values := head.get_all(name))}
        request: dict[str, Any] = {
            "listener": listener,
            "method": head.first[0],
            "target": head.first[1].partition("?")[0],
            "host": host,
            "scheme": peer.scheme,
            "address": peer.address,
            "upgrade": upgrade,
            "headers": headers,
        }
        parts = request["target"].split("/", 3)
        cache_key = None
        if listener == "apps" and not upgrade and len(parts) == 4:
            safe = "safe" if head.first[0] in ("GET", "HEAD") else "unsafe"
            values = [headers.get(name, "-") for name in wanted]
            cache_key = (host, parts[1], parts[2], safe, *values)
        return await self._gateway.routes.route(request, cache_key)

    # answers of our own

    async def _say(self, status: int, what: str, why: str = "", *, retry: bool = False) -> None:
        body = (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(what)}</title>"
            + ("<meta http-equiv=refresh content=3>" if retry else "")
            + f"<h1>{html.escape(what)}</h1><p>{html.escape(why)}</p>"
            + (
                "<p>This page tries again by itself. What runs goes on.</p>"
                if retry
                else "<p><a href=/>To the portal</a></p>"
            )
        ).encode()
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *([("Retry-After", "2")] if retry else []),
        ]
        self._answered = True
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write(http.render_head(f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", headers) + body)
            await asyncio.wait_for(self._writer.drain(), 5)

    async def _give_answer(self, head: http.Head, decision: Decision) -> bool:
        status, body = int(decision.answer["status"]), str(decision.answer["body"]).encode()
        self._gateway.refuse(self._address, f"{status} by the portal")
        headers = [(str(k), str(v)) for k, v in dict(decision.answer["headers"]).items()]
        headers += [("Content-Length", str(len(body))), ("Connection", "close")]
        self._answered = True
        self._writer.write(http.render_head(f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", headers))
        if head.first[0] != "HEAD":
            self._writer.write(body)
        await asyncio.wait_for(self._writer.drain(), 5)
        return False

    # streams

    async def _stream(self, head: http.Head, decision: Decision) -> None:
        app = await open_descriptor(decision.fds.pop(0), "")
        cut = asyncio.Event()
        try:
            with self._gateway.routes.register(decision.tags, cut.set):
                offered = [
                    part.strip() for value in head.get_all("sec-websocket-protocol") for part in value.split(",")
                ]
                headers = [
                    ("Upgrade", "websocket"),
                    ("Connection", "Upgrade"),
                    ("Sec-WebSocket-Accept", ws.compute_accept(head.get("sec-websocket-key"))),
                    *([("Sec-WebSocket-Protocol", "binary")] if "binary" in offered else []),
                ]
                self._answered = True
                self._writer.write(http.render_head("HTTP/1.1 101 Switching Protocols", headers))
                client_filter = make_filter(str(decision.answer["protocol"]), decision.answer["view_only"] is not False)
                moving = asyncio.ensure_future(bridge.run_stream(self._reader, self._writer, app, client_filter))
                await _until_cut(moving, cut)
                if cut.is_set():
                    await bridge.say_goodbye(self._writer, ws.CUT, "taken back")
        finally:
            app.close()

    # proxied requests

    async def _proxy_portal(self, head: http.Head, listener: str, peer: Peer) -> bool:
        if head.length is not None and head.length > PORTAL_BODY_LIMIT_BYTES:
            raise http.BadMessage("the body is too large", 413)
        headers = [
            *_drop_claims(http.drop_hop_by_hop(head)),
            ("X-Portico-Listener", listener),
            ("X-Forwarded-For", peer.address),
            ("X-Forwarded-Proto", peer.scheme),
        ]
        while True:
            try:
                upstream = await self._gateway.take_portal()
            except OSError as error:
                raise Unavailable("Portico is restarting.", why="Its pages are away for a moment.") from error
            try:
                return await self._exchange(head, headers, upstream, PORTAL_BODY_LIMIT_BYTES)
            except _Stale:
                continue

    async def _proxy_app(self, head: http.Head, decision: Decision, upgrade: bool) -> bool:
        headers = _hide_cookies(_drop_claims(http.drop_hop_by_hop(head)))
        headers = [(name, value) for name, value in headers if name.lower() != "authorization"]
        cut = asyncio.Event()
        with self._gateway.routes.register(decision.tags, cut.set):
            while True:
                upstream = await self._gateway.take_app(decision)
                try:
                    if upgrade:
                        moving: asyncio.Future[Any] = asyncio.ensure_future(self._upgrade(head, headers, upstream))
                    else:
                        moving = asyncio.ensure_future(self._exchange(head, headers, upstream, None, app=True))
                    done = await _until_cut(moving, cut)
                    return bool(done) and not upgrade and not cut.is_set()
                except _Stale:
                    continue
                finally:
                    if cut.is_set() or upgrade:
                        upstream.close()

    async def _upgrade(self, head: http.Head, headers: http.Headers, upstream: Upstream) -> bool:
        lines = [*headers, ("Upgrade", "websocket"), ("Connection", "Upgrade")]
        upstream.writer.write(http.render_head(f"GET {head.first[1]} HTTP/1.1", lines))
        answer = await _read_answer(upstream, "GET")
        filtered = _filter_set_cookies(http.drop_hop_by_hop(answer))
        self._answered = True
        if answer.first[0] != "101" or answer.upgrade != "websocket":
            body = await _read_small_body(upstream, answer)
            filtered = [(n, v) for n, v in filtered if n.lower() != "content-length"]
            filtered += [("Content-Length", str(len(body))), ("Connection", "close")]
            self._writer.write(http.render_head(f"HTTP/1.1 {answer.first[0]} {answer.first[1]}", filtered) + body)
            await self._writer.drain()
            return False
        filtered += [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        self._writer.write(http.render_head("HTTP/1.1 101 Switching Protocols", filtered))
        await bridge.run_pipe((self._reader, self._writer), (upstream.reader, upstream.writer))
        return False

    async def _exchange(
        self, head: http.Head, headers: http.Headers, upstream: Upstream, limit: int | None, *, app: bool = False
    ) -> bool:
        """Carry a request and its answer; return whether the client's connection can be used again.

        Raises:
            _Stale: The kept upstream connection had ended; nothing was carried, so another one may be tried.
        """
        method, target = head.first
        lines = [*headers, ("Connection", "keep-alive")]
        if head.length is None:
            lines.append(("Transfer-Encoding", "chunked"))
        has_body = head.length != 0
        may_retry = not upstream.fresh and not has_body and method in _IDEMPOTENT
        sending: asyncio.Future[None] | None = None
        try:
            upstream.writer.write(http.render_head(f"{method} {target} HTTP/1.1", lines))
            if has_body:
                if head.get("expect").lower() == "100-continue":
                    self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                sending = asyncio.ensure_future(self._send_body(head, upstream, limit))
            answer = await self._await_answer(upstream, method, sending)
        except (OSError, asyncio.IncompleteReadError, http.BadMessage) as error:
            if sending:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            upstream.close()
            if may_retry and not isinstance(error, http.BadMessage):
                raise _Stale from error
            if isinstance(error, http.BadMessage) and error.status != 502:
                raise
            raise http.BadMessage("the program behind this page did not answer properly", 502) from error
        try:
            return await self._give(head, answer, upstream, sending, app=app)
        finally:
            if sending and not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _await_answer(self, upstream: Upstream, method: str, sending: asyncio.Future[None] | None) -> http.Head:
        answering = asyncio.ensure_future(_read_answer(upstream, method))
        try:
            if sending:
                both: set[asyncio.Future[Any]] = {answering, sending}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not answering.done() and (error := sending.exception()):
                    raise error
            return await answering
        finally:
            answering.cancel()

    async def _send_body(self, head: http.Head, upstream: Upstream, limit: int | None) -> None:
        sent = 0
        if head.length is not None:
            while sent < head.length:
                data = await asyncio.wait_for(self._reader.read(min(READ_BYTES, head.length - sent)), BODY_S)
                if not data:
                    raise asyncio.IncompleteReadError(b"", head.length - sent)
                sent += len(data)
                upstream.writer.write(data)
                await upstream.writer.drain()
            return
        chunks = http.ChunkedReader()
        while not chunks.done:
            # Byte by byte would be exact and slow; what is read too much belongs to a next request, which we refuse.
            data = await asyncio.wait_for(self._reader.read(READ_BYTES), BODY_S)
            if not data:
                raise asyncio.IncompleteReadError(b"", None)
            body = chunks.feed(data)
            sent += len(body)
            if limit is not None and sent > limit:
                raise http.BadMessage("the body is too large", 413)
            if body:
                upstream.writer.write(http.render_chunk(body))
                await upstream.writer.drain()
        if chunks.rest:
            raise http.BadMessage("a request must wait for the answer to the one before")
        upstream.writer.write(http.LAST_CHUNK)
        await upstream.writer.drain()

    async def _give(
        self, head: http.Head, answer: http.Head, upstream: Upstream, sending: asyncio.Future[None] | None, *, app: bool
    ) -> bool:
        headers = http.drop_hop_by_hop(answer)
        if app:
            headers = _filter_set_cookies(headers)
        keep = head.keep_alive and not self._gateway.closing and (sending is None or sending.done())
        rechunk = answer.length in (None, -1) and head.version == "1.1"
        if answer.length in (None, -1):
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            keep = keep and rechunk
            if rechunk:
                headers.append(("Transfer-Encoding", "chunked"))
        headers.append(("Connection", "keep-alive" if keep else "close"))
        self._answered = True
        self._writer.write(http.render_head(f"HTTP/1.1 {answer.first[0]} {answer.first[1]}", headers))
        complete = False
        try:
            await self._give_body(answer, upstream, rechunk)
            complete = True
        finally:
            if complete and answer.keep_alive and (sending is None or (sending.done() and not sending.exception())):
                self._gateway.give(upstream)
            else:
                upstream.close()
        return keep

    async def _give_body(self, answer: http.Head, upstream: Upstream, rechunk: bool) -> None:
        left = answer.length
        chunks = http.ChunkedReader() if left is None else None
        while left != 0 and not (chunks and chunks.done):
            size = READ_BYTES if left in (None, -1) else min(READ_BYTES, left or 0)
            data = await upstream.reader.read(size)
            if not data:
                if left == -1:
                    break
                self._writer.transport.abort()  # the client must not take a cut answer for a whole one
                raise asyncio.IncompleteReadError(b"", None)
            body = chunks.feed(data) if chunks else data
            if left is not None and left > 0:
                left -= len(data)
            if body:
                self._writer.write(http.render_chunk(body) if rechunk else body)
                await self._writer.drain()
        if rechunk:
            self._writer.write(http.LAST_CHUNK)
        await self._writer.drain()


class _Stale(Exception):
    """A kept connection had ended before anything was carried."""


async def _until_cut(moving: asyncio.Future[Any], cut: asyncio.Event) -> Any:
    """Wait for ``moving``, or cancel it once ``cut`` is set; return its result, or None."""
    cutting = asyncio.ensure_future(cut.wait())
    try:
        await asyncio.wait({moving, cutting}, return_when=asyncio.FIRST_COMPLETED)
        if moving.done():
            return moving.result()
        return None
    finally:
        cutting.cancel()
        if not moving.done():
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)


async def _read_answer(upstream: Upstream, method: str) -> http.Head:
    while True:
        try:
            data = await upstream.reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as error:
            raise http.BadMessage("the answer's head is too large", 502) from error
        head = http.parse_response(data, method)
        if not head.first[0].startswith("1") or head.first[0] == "101":
            return head


async def _read_small_body(upstream: Upstream, answer: http.Head) -> bytes:
    if answer.length is None:
        chunks, body = http.ChunkedReader(), b""
        while not chunks.done and len(body) < 1 << 20 and (data := await upstream.reader.read(READ_BYTES)):
            body += chunks.feed(data)
        return body
    return await upstream.reader.read(answer.length) if answer.length > 0 else b""


def _drop_claims(headers: http.Headers) -> http.Headers:
    """Drop what only a proxy of ours may say, and what was for us alone."""
    dropped = ("x-portico-", "x-forwarded-", "x-real-ip", "x-sendfile", "x-accel-")
    return [
        (name, value)
        for name, value in headers
        if not name.lower().startswith(dropped) and name.lower() not in ("forwarded", "expect")
    ]


def _is_own_cookie(name: str) -> bool:
    return name.strip().lower().startswith(_OWN_COOKIES)


def _hide_cookies(headers: http.Headers) -> http.Headers:
    """Drop our cookies: they are not the app's business."""
    kept: http.Headers = []
    for name, value in headers:
        if name.lower() == "cookie":
            value = "; ".join(p.strip() for p in value.split(";") if not _is_own_cookie(p.partition("=")[0]))
            if not value:
                continue
        kept.append((name, value))
    return kept


def _filter_set_cookies(headers: http.Headers) -> http.Headers:
    """Drop cookies that an app sets in our name, and Domain from the others: no app sets one beyond its own host."""
    kept: http.Headers = []
    for name, value in headers:
        if name.lower() == "set-cookie":
            parts = [part.strip() for part in value.split(";")]
            if _is_own_cookie(parts[0].partition("=")[0]):
                continue
            value = "; ".join(part for part in parts if part.partition("=")[0].strip().lower() != "domain")
        kept.append((name, value))
    return kept


_REASONS: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
