"""One client connection: request after request, each judged, asked for, and carried, until one of them ends it.

It has a task only while the portal is asked. What becomes a stream or a tunnel is none of its business any more, and it
goes away then.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from portico import wire
from portico.errors import PorticoError, Refused, Unavailable
from portico.gateway import filters, forward, pages
from portico.gateway import websocket as ws
from portico.gateway.end import End
from portico.gateway.exchange import IDEMPOTENT, MEMO_BYTES, Exchange, RenderAnswer
from portico.gateway.head import (
    Framing,
    Header,
    Refusal,
    Request,
    find_head_end,
    get_tokens,
    parse_request,
    parse_request_like,
    render_response,
)
from portico.gateway.listening import Listening, Peer
from portico.gateway.routes import SAFE, Answer, Context, Way, make_context
from portico.gateway.stream import Stream
from portico.gateway.tunnel import Tunnel
from portico.gateway.upstream import PORTAL, Upstream

if TYPE_CHECKING:
    from portico.gateway.server import Gateway

log = logging.getLogger(__name__)

PORTAL_PATHS: Final = ("/_portico/", "/static/")
"""What the portal serves on the apps' origin: the way in, and the style of its pages."""

LOOK_AHEAD_BYTES: Final = 64 * 1024
_LINGER_S: Final = 1.0
_BUSY_TRIES: Final = 50
_BUSY_S: Final = 0.02
_TOLD: Final = (b"cookie", b"origin", b"sec-fetch-site", b"authorization")
"""Headers that the portal decides by."""


class _Memo:
    """The last request's fields, and what was made of them. ``request`` and ``line`` are those of the last request."""

    __slots__ = ("app_lines", "asked", "ends", "fields", "line", "request")

    def __init__(self, line: bytes, fields: bytes, request: Request) -> None:
        self.line, self.fields, self.request = line, fields, request
        self.ends: tuple[str, Peer] | None = None
        self.asked: tuple[Context, dict[str, Any]] | None = None
        self.app_lines: bytes | None = None


class Client:
    """One connection.

    Args:
        gateway: Whose it is.
        listening: What its listener serves.
        address: Of its other end.
        household: Whom it counts for.
    """

    is_stream = False
    never: Final = math.inf

    def __init__(self, gateway: Gateway, listening: Listening, address: str, household: str) -> None:
        self.gateway = gateway
        self.household = household
        self.deadline = gateway.plane.now + gateway.limits.head_s
        self.end: End
        self._listening = listening
        self._address = address
        self._buffer = b""
        self._ended = False  # whether the client has closed its half
        self._begun = False  # whether the next head has begun
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_lingering = False
        self._is_last = False  # whether the connection ends once all is sent
        self._memo: _Memo | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self._exchange is None and self._task is None and not self._is_last and not self._buffer

    # events of the client's end

    def on_readable(self, end: End) -> None:
        """Take what has come."""
        try:
            if self._is_lingering:
                self._drop()
            elif self._exchange is not None and self._exchange.wants_body:
                self._exchange.pump_body()
            else:
                self.look_ahead()
                self._advance()
        except OSError:
            self.close()

    def on_writable(self, end: End) -> None:
        """Go on with what waited for the client to take bytes."""
        if self._is_last:
            self._linger()
        elif self._exchange is not None:
            exchange = self._exchange
            try:
                exchange.pump_answer()
            except Refusal as refusal:
                exchange.fail(refusal)
            except OSError:
                self.close()
        else:
            self._advance()

    def on_broken(self, end: End) -> None:
        """End."""
        self.close()

    def on_deadline(self) -> None:
        """End what takes too long."""
        self.deadline = self.never
        if self._exchange is not None:
            waits = self._exchange.waits_for_body
            self._exchange.fail(Refusal(408, "the body stopped coming") if waits else Refusal(504, "no answer in time"))
        elif self._buffer and self._task is None and not self._is_last:
            self._refuse(Refusal(408, "the header came too slowly"), None)
        else:
            self.close()

    # bytes of the client

    def take(self) -> bytes | None:
        """Return the next bytes of a request's body; b"" at the end, None where there is nothing now.

        Raises:
            OSError: The connection broke.
        """
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return self.end.recv() if self.end.readable else None

    def put_back(self, data: bytes) -> None:
        """Take what came behind a body."""
        self._buffer = data

    def look_ahead(self) -> None:
        """Read what follows a request, so that a client that leaves is noticed; a bounded amount.

        Raises:
            OSError: The connection broke.
        """
        while self.end.readable and not self._ended and (room := LOOK_AHEAD_BYTES - len(self._buffer)) > 0:
            data = self.end.recv(room)
            if data is None:
                return
            if data:
                self._buffer = self._buffer + data if self._buffer else data
            else:
                self._ended = True
                if not self._buffer or self._request is None:
                    self.close()
        if self.end.is_broken:
            self.close()

    def _advance(self) -> None:
        """Serve what is complete."""
        while not (self.end.closed or self._exchange or self._task or self._is_last) and self.end.out is None:
            request: Request | None = None
            limits = self.gateway.limits
            try:
                if not self._buffer and self._ended:
                    self.close()
                    return
                end = find_head_end(self._buffer, limits.head_bytes)
                if not end:
                    if self._buffer and self._ended:
                        self.close()
                    elif self._buffer and not self._begun:
                        self._begun = True
                        self.deadline = self.gateway.plane.now + limits.head_s
                    return
                head, self._buffer = self._buffer[:end], self._buffer[end:]
                self._begun = False
                self._request = request = self._parse(head)
                self.gateway.metrics.requests += 1
                self._serve(request)
            except Refusal as refusal:
                self._refuse(refusal, request)
            except PorticoError as error:
                self._give_error(error, request)

    # one request

    def _parse(self, head: bytes) -> Request:
        """Return the request of a head. A browser says the same fields again and again: they are looked at once.

        Raises:
            Refusal: See parse_request().
        """
        begin = head.find(b"\n") + 1
        memo = self._memo
        if memo is not None and head[begin:] == memo.fields:
            if head[:begin] == memo.line:
                return memo.request
            request = parse_request_like(head[:begin], memo.request)
            if request is not None:
                memo.line, memo.request = head[:begin], request
                return request
        self._memo = None
        request = parse_request(head)
        if len(head) <= MEMO_BYTES and request.framing is Framing.NONE and not request.upgrade:
            self._memo = _Memo(head[:begin], head[begin:], request)
        return request

    def _find_ends(self, request: Request) -> tuple[str, Peer]:
        """Return which listener a request is for, and whose it is.

        Raises:
            Refusal: Its Host is none of ours.
        """
        memo = self._memo
        if memo is not None and memo.request is request and memo.ends is not None:
            return memo.ends
        listener = self._listening.find_listener(request.get(b"host"))
        if not listener:
            raise Refusal(421, "the Host header")
        ends = listener, self._listening.find_peer(request, self._address)
        if memo is not None and memo.request is request:
            memo.ends = ends
        return ends

    def _describe(self, request: Request, listener: str, peer: Peer) -> tuple[Context, dict[str, Any]]:
        """Return what a decision may depend on, and what the portal is asked."""
        memo = self._memo
        if memo is not None and memo.request is request and memo.asked is not None:
            context, before = memo.asked
            if context[0] is (request.method in SAFE):
                return context, {**before, "method": request.method, "target": request.path}
        asked = _describe(request, listener, peer)
        context = make_context(asked)
        if memo is not None and memo.request is request:
            memo.asked = context, asked
        return context, asked

    def _serve(self, request: Request) -> None:
        listener, peer = self._find_ends(request)
        is_portals = request.path.startswith(PORTAL_PATHS) if listener == "apps" else not request.upgrade
        if is_portals:
            if request.upgrade:
                raise Refusal(400, "no WebSocket here")
            lines = forward.render_for_portal(request, listener=listener, address=peer.address, scheme=peer.scheme)
            self._go_to_portal(request, lines)
            return
        context, asked = self._describe(request, listener, peer)
        way = self.gateway.routes.find_kept(context, asked["target"], self.gateway.plane.now)
        if way is not None:
            self._go_to_app(request, way, peer)
        else:
            self._begin(request, self._ask(request, asked, peer))

    def _go_to_portal(self, request: Request, lines: bytes) -> None:
        pool = self.gateway.pool
        upstream = pool.take(PORTAL, surely=request.method not in IDEMPOTENT) or pool.open_portal(pool)
        if upstream is None:
            self._begin(request, self._wait_for_portal(request, lines))
        else:
            self._go(
                *(
                    request,
                    upstream,
                    lines,
                    forward.render_portal_answer,
                    self.gateway.limits.portal_body_bytes,
                ),
                *(self.gateway.limits.portal_answer_s, frozenset(), lambda: self._go_to_portal(request, lines)),
            )

    def _go_to_app(self, request: Request, way: Way, peer: Peer) -> None:
        upstream = self.gateway.pool.take(way.key, surely=request.method not in IDEMPOTENT)
        if upstream is None:
            self.gateway.pool.check(way.key)
            self._begin(request, self._connect(request, way, peer))
        else:
            self._go_by(request, way, peer, upstream)

    def _go_by(self, request: Request, way: Way, peer: Peer, upstream: Upstream) -> None:
        memo = self._memo
        lines = memo.app_lines if memo is not None and memo.request is request else None
        if lines is None:
            lines = forward.render_for_app(request, address=peer.address, scheme=peer.scheme)
            if memo is not None and memo.request is request:
                memo.app_lines = lines
        self._go(
            *(request, upstream, lines, forward.render_app_answer, None),
            *(self.gateway.limits.app_answer_s, way.tags, lambda: self._go_to_app(request, way, peer)),
        )

    def _go(
        self,
        request: Request,
        upstream: Upstream,
        lines: bytes,
        render_answer: RenderAnswer,
        limit_bytes: int | None,
        answer_s: float,
        tags: frozenset[str],
        again: Callable[[], None],
    ) -> None:
        def retry() -> None:
            self._exchange = None
            self._guard(request, again)

        self._exchange = exchange = Exchange(
            self, request, upstream, lines, render_answer, limit_bytes, answer_s, tags, retry
        )
        try:
            exchange.start()
        except Refusal:
            self._exchange = None
            raise

    # what needs the portal's word

    def _begin(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        """Ask in a task; bytes that come meanwhile wait."""

        async def run() -> None:
            try:
                await work
            except Refusal as refusal:
                self._refuse(refusal, request)
            except PorticoError as error:
                self._give_error(error, request)
            except OSError:
                self.close()
            except Exception:  # a defect of ours ends one connection, and is told
                log.exception("a request failed")
                self.close()
            finally:
                self._task = None
            if not self.end.closed:
                self._advance()

        self.deadline = self.never
        self._task = asyncio.get_running_loop().create_task(run())

    async def _ask(self, request: Request, asked: dict[str, Any], peer: Peer) -> None:
        began = self.gateway.plane.now
        decision = await self.gateway.routes.route(asked)
        try:
            if isinstance(decision, Answer):
                self._give_answer(request, decision)
            elif decision.protocol and request.upgrade:
                self._open_stream(request, decision, began)
            elif decision.protocol:
                raise Refused("This is a stream, and the request asked for no WebSocket.")
            else:
                self.gateway.pool.check(decision.key)
                upstream = self.gateway.pool.open_descriptor(
                    decision.take_descriptor(), decision.key, self.gateway.pool
                )
                self._go_by(request, decision, peer, upstream)
        finally:
            if isinstance(decision, Way) and (fd := decision.take_descriptor()) >= 0:
                wire.close_all([fd])

    async def _connect(self, request: Request, way: Way, peer: Peer) -> None:
        try:
            fd = await self.gateway.routes.connect(way)
        except PorticoError:
            self.gateway.routes.forget(way)
            raise
        self._go_by(request, way, peer, self.gateway.pool.open_descriptor(fd, way.key, self.gateway.pool))

    async def _wait_for_portal(self, request: Request, lines: bytes) -> None:
        for _ in range(_BUSY_TRIES):
            await asyncio.sleep(_BUSY_S)
            if (upstream := self.gateway.pool.open_portal(self.gateway.pool)) is not None:
                self.gateway.pool.give(upstream)
                self._go_to_portal(request, lines)
                return
        raise Unavailable("Portico has too much to do.", why="Its portal takes no more requests.", retry_after_s=2)

    def _guard(self, request: Request, work: Callable[[], None]) -> None:
        try:
            work()
        except Refusal as refusal:
            self._refuse(refusal, request)
        except PorticoError as error:
            self._give_error(error, request)

    # what an exchange says

    def on_answered(self, keep: bool) -> None:
        """Go on after a whole answer."""
        self._exchange = self._request = None
        gateway = self.gateway
        if not keep or gateway.ending:
            self._finish()
            return
        # An answer that promised to take another request may have begun before the gateway drained.
        wait_s = gateway.limits.next_request_s if gateway.closing else gateway.limits.idle_s
        self.deadline = gateway.plane.now + wait_s
        if self._buffer or self._ended:
            self._advance()

    def on_failed(self, refusal: Refusal) -> None:
        """Say that there is no answer."""
        request = self._request
        self._exchange = None
        self._refuse(refusal, request)

    def become_tunnel(self, upstream: Upstream, tags: frozenset[str]) -> None:
        """Go on as a tunnel."""
        self._exchange = None
        tunnel = Tunnel(self.gateway, self.end, upstream, tags, self.household)
        self.gateway.replace(self, tunnel)
        if self._buffer:
            try:
                upstream.send(self._buffer)
            except OSError:
                upstream.readable = True  # its end is to be read
        tunnel.start()

    def _open_stream(self, request: Request, way: Way, began: float) -> None:
        """Go on as a stream."""
        gateway = self.gateway
        try:
            viewer = filters.make_filter(way.protocol, way.view_only, way.clipboard)
        except filters.Refused as refused:
            raise Refused("This can't be looked at.", why=str(refused)) from None
        gateway.routes.refuse_too_many(way.tags)
        app = gateway.pool.open_descriptor(way.take_descriptor(), "", gateway.pool)
        headers: list[Header] = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", ws.compute_accept(request.get(b"sec-websocket-key")).encode()),
        ]
        if b"binary" in get_tokens(request.headers, b"sec-websocket-protocol"):
            headers.append((b"Sec-WebSocket-Protocol", b"binary"))
        try:
            self.end.send(render_response(101, headers))
        except OSError:
            app.close()
            raise
        stream = Stream(gateway, self.end, app, viewer, way.protocol, way.tags, self.household)
        gateway.replace(self, stream)
        gateway.metrics.opening.observe(gateway.loop.time() - began)
        self._is_last = True  # nothing here goes on
        stream.start(self._buffer)

    # what is answered here

    def _refuse(self, refusal: Refusal, request: Request | None) -> None:
        self.gateway.tell_refusal(self._name(request), f"{refusal.status} {refusal.reason}", str(refusal.status))
        headers, body = pages.render_page(refusal.status, refusal.reason)
        self._say(request, refusal.status, [*refusal.headers, *headers], body)

    def _give_error(self, error: PorticoError, request: Request | None) -> None:
        self.gateway.tell_refusal(self._name(request), f"{error.code}: {error.message}", error.code)
        self._say(request, *pages.render_error(error))

    def _give_answer(self, request: Request, answer: Answer) -> None:
        self.gateway.tell_refusal(self._name(request), f"{answer.status} by the portal", "portal")
        encoded = ((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in answer.headers)
        kept = [one for one in encoded if one[0].lower() not in forward.HOP_BY_HOP | {b"content-length"}]
        self._say(request, answer.status, kept, answer.body)

    def _name(self, request: Request | None) -> str:
        """Return whose request it is, for the log."""
        return self._listening.find_peer(request, self._address).address if request else self._address

    def _say(self, request: Request | None, status: int, headers: list[Header], body: bytes) -> None:
        """Answer; another request may follow, unless a body was left unread."""
        if self.end.closed:
            return
        keep = (
            request is not None
            and request.keep_alive
            and request.framing is Framing.NONE
            and not request.upgrade
            and not self.gateway.closing
        )
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        if not keep:
            headers.append((b"Connection", b"close"))
        elif request is not None and request.minor == 0:
            headers.append((b"Connection", b"keep-alive"))
        head = render_response(status, headers)
        try:
            self.end.send(head if request is not None and request.method == "HEAD" else head + body)
        except OSError:
            self.close()
            return
        self._request = None
        self.deadline = self.gateway.plane.now + self.gateway.limits.idle_s
        if not keep:
            self._finish()

    # its end

    def _finish(self) -> None:
        """Close once all is sent."""
        self._is_last = True
        self.deadline = self.gateway.plane.now + self.gateway.limits.dead_s
        if self.end.out is None:
            self._linger()

    def _linger(self) -> None:
        """Send FIN and drop what still comes: closing with bytes unread would send RST, which overtakes our answer."""
        if self.end.closed:
            return
        self._is_lingering = True
        self._buffer = b""
        self.end.shutdown_write()
        self.deadline = self.gateway.plane.now + _LINGER_S
        if self._ended:
            self.close()
        elif self.end.readable:
            self.on_readable(self.end)

    def _drop(self) -> None:
        while self.end.readable:
            data = self.end.recv()
            if data is None:
                return
            if not data:
                self.close()
                return
            if self.end.must_yield():
                return

    def close(self) -> None:
        """Close at once, with all that is under way."""
        if self.end.closed:
            return
        self.end.close()
        if self._exchange is not None:
            self._exchange.abandon()
            self._exchange = None
        if self._task is not None:
            self._task.cancel()
        self.gateway.forget(self)


def _describe(request: Request, listener: str, peer: Peer) -> dict[str, Any]:
    """Return what the portal is asked, without the query, which may hold what is only for the app."""
    headers: dict[str, str] = {}
    for field in request.headers:
        if field.key in _TOLD:
            name, text = field.key.decode(), field[1].decode("latin-1")
            known = headers.get(name)
            headers[name] = f"{known}; {text}" if known is not None else text
    return {
        "listener": listener,
        "method": request.method,
        "target": request.path,
        "host": request.get(b"host").lower(),
        "scheme": peer.scheme,
        "address": peer.address,
        "upgrade": request.upgrade,
        "headers": headers,
    }
