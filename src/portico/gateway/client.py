"""One client connection: request after request, each judged, asked for, and carried, until one of them ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from portico import wire
from portico.errors import PorticoError, Refused
from portico.gateway import filters, forward, pages
from portico.gateway import websocket as ws
from portico.gateway.bridge import Tunnel
from portico.gateway.connection import Connection
from portico.gateway.exchange import Exchange, Gone, Stale
from portico.gateway.head import Framing, Header, Refusal, Request, get_tokens, parse_request, render_response
from portico.gateway.listening import Listening, Peer
from portico.gateway.routes import Answer, Way
from portico.gateway.stream import Stream
from portico.gateway.upstream import Upstream, Wire, open_descriptor

if TYPE_CHECKING:
    from portico.gateway.server import Gateway

PORTAL_PATHS: Final = ("/_portico/", "/static/")
"""What the portal serves on the apps' origin: the way in, and the style of its pages."""

_FINISH_S: Final = 1.0
_TOLD: Final = (b"cookie", b"origin", b"sec-fetch-site", b"authorization")
"""Headers that the portal decides by."""


class Client:
    """One connection.

    Args:
        gateway: Whose it is.
        listening: What its listener serves.
        connection: To the client; the caller closes it.
        address: Of its other end.

    """

    def __init__(self, gateway: Gateway, listening: Listening, connection: Connection, address: str) -> None:
        self._gateway = gateway
        self._listening = listening
        self._wire = Wire(connection)
        self._address = address
        self._answered = False
        self.is_idle = True

    async def run(self) -> None:
        """Serve until the connection is to be closed."""
        wait_s = self._gateway.limits.head_s
        keep = True
        while keep and not self._gateway.closing:
            self._answered = False
            request: Request | None = None
            try:
                request = await self._read_request(wait_s)
                if request is None:
                    return
                keep = await self._serve(request)
                wait_s = self._gateway.limits.idle_s
            except Refusal as refusal:
                self._gateway.refusals.tell(self._address, f"{refusal.status} {refusal.reason}")
                if self._answered:
                    return
                headers, body = pages.render_page(refusal.status, refusal.reason)
                keep = await self._say(request, refusal.status, [*refusal.headers, *headers], body)
            except PorticoError as error:
                self._gateway.refusals.tell(self._address, f"{error.code}: {error.message}")
                if self._answered:
                    return
                keep = await self._say(request, *pages.render_error(error))
            except Gone:
                return
        await self._wire.connection.finish(_FINISH_S)

    async def _read_request(self, wait_s: float) -> Request | None:
        """Return the next request's head, or None at the end; its first byte has ``wait_s``, all of it ``head_s``."""
        limits = self._gateway.limits
        self.is_idle = not self._wire.buffer
        try:
            if not self._wire.buffer:
                async with asyncio.timeout(wait_s):
                    self._wire.buffer = await self._wire.read()
            self.is_idle = False
            async with asyncio.timeout(limits.head_s):
                head = await self._wire.read_head(limits.head_bytes)
        except TimeoutError:
            if self._wire.buffer:
                raise Refusal(408, "the header came too slowly") from None
            return None
        return parse_request(head) if head else None

    async def _serve(self, request: Request) -> bool:
        """Serve one request; return whether another may follow."""
        listener = self._listening.find_listener(request.get(b"host"))
        if not listener:
            raise Refusal(421, "the Host header")
        peer = self._listening.find_peer(request, self._address)
        path = request.path
        is_portals = path.startswith(PORTAL_PATHS) if listener == "apps" else not request.upgrade
        if is_portals:
            if request.upgrade:
                raise Refusal(400, "no WebSocket here")
            return await self._carry_to_portal(request, listener, peer)
        decision = await self._gateway.routes.route(_describe(request, listener, peer))
        if isinstance(decision, Answer):
            return await self._give_answer(request, decision)
        try:
            if decision.protocol and request.upgrade:
                await self._open_stream(request, decision)
                return False
            if decision.protocol:
                raise Refused("This is a stream, and the request asked for no WebSocket.")
            return await self._carry_to_app(request, decision, peer)
        finally:
            wire.close_all([fd] if (fd := decision.take_descriptor()) >= 0 else [])

    # what others answer

    async def _carry_to_portal(self, request: Request, listener: str, peer: Peer) -> bool:
        headers = forward.make_portal_headers(request, listener=listener, address=peer.address, scheme=peer.scheme)
        limits = self._gateway.limits
        while True:
            exchange = self._make_exchange(request, await self._gateway.take_portal(), headers)
            exchange.filter_answer = forward.make_portal_answer_headers
            exchange.limit_bytes, exchange.answer_s = limits.portal_body_bytes, limits.portal_answer_s
            with contextlib.suppress(Stale):
                return await self._carry(exchange)

    async def _carry_to_app(self, request: Request, way: Way, peer: Peer) -> bool:
        headers = forward.make_app_headers(request, address=peer.address, scheme=peer.scheme)
        while True:
            with self._cancelled_by_cut(way):
                try:
                    upstream = await self._gateway.take_app(way)
                except PorticoError:
                    self._gateway.routes.forget(way)
                    raise
                exchange = self._make_exchange(request, upstream, headers)
                with contextlib.suppress(Stale):
                    if not request.upgrade:
                        return await self._carry(exchange)
                    await self._open_tunnel(exchange, way)
                    return False

    def _make_exchange(self, request: Request, upstream: Upstream, headers: list[Header]) -> Exchange:
        return Exchange(
            client=self._wire,
            request=request,
            upstream=upstream,
            headers=headers,
            filter_answer=forward.make_app_answer_headers,
            limit_bytes=None,
            answer_s=self._gateway.limits.app_answer_s,
            is_closing=lambda: self._gateway.closing,
            limits=self._gateway.limits,
            buffers=self._gateway.buffers,
        )

    async def _carry(self, exchange: Exchange) -> bool:
        try:
            return await exchange.carry(self._gateway.give)
        finally:
            self._answered = exchange.answered

    @contextlib.contextmanager
    def _cancelled_by_cut(self, way: Way) -> Iterator[None]:
        """Let a cut end what runs inside as if the client had gone."""
        task = asyncio.current_task()
        assert task is not None
        was_cut = False

        def end(code: int, reason: str) -> None:
            nonlocal was_cut
            if not was_cut:
                was_cut = True
                task.cancel()

        try:
            with self._gateway.routes.register(way.tags, end, is_stream=False):
                yield
        except asyncio.CancelledError:
            if was_cut and task.uncancel() == 0:
                raise Gone from None
            raise

    # streams

    async def _open_tunnel(self, exchange: Exchange, way: Way) -> None:
        try:
            try:
                switched = await exchange.upgrade()
            finally:
                self._answered = exchange.answered
            if switched:
                tunnel = Tunnel(self._wire.connection, exchange.upstream.connection, self._gateway.buffers)
                with self._gateway.routes.register(way.tags, tunnel.end, is_stream=True):
                    await tunnel.run()
        finally:
            exchange.upstream.close()

    async def _open_stream(self, request: Request, way: Way) -> None:
        try:
            viewer = filters.make_filter(way.protocol, way.view_only, way.clipboard)
        except filters.Refused as refused:
            raise Refused("This can't be looked at.", why=str(refused)) from None
        app = open_descriptor(way.take_descriptor())
        headers: list[Header] = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", ws.compute_accept(request.get(b"sec-websocket-key")).encode()),
        ]
        if b"binary" in get_tokens(request.headers, b"sec-websocket-protocol"):
            headers.append((b"Sec-WebSocket-Protocol", b"binary"))
        self._answered = True
        connection = self._wire.connection
        stream = Stream(connection, app.plain, self._wire.buffer, viewer, self._gateway.limits, self._gateway.buffers)
        try:
            with self._gateway.routes.register(way.tags, stream.end, is_stream=True):
                await connection.write(render_response(101, headers))
                await stream.run()
        finally:
            app.close()

    # what is answered here

    async def _give_answer(self, request: Request, answer: Answer) -> bool:
        self._gateway.refusals.tell(self._address, f"{answer.status} by the portal")
        encoded = ((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in answer.headers)
        kept = [one for one in encoded if one[0].lower() not in forward.HOP_BY_HOP | {b"content-length"}]
        return await self._say(request, answer.status, kept, answer.body)

    async def _say(self, request: Request | None, status: int, headers: list[Header], body: bytes) -> bool:
        """Answer; return whether another request may follow, which it may not where a body was left unread."""
        keep = (
            request is not None
            and request.keep_alive
            and request.framing is Framing.NONE
            and not request.upgrade
            and not self._gateway.closing
        )
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        if not keep:
            headers.append((b"Connection", b"close"))
        elif request is not None and request.minor == 0:
            headers.append((b"Connection", b"keep-alive"))
        head = render_response(status, headers)
        async with asyncio.timeout(self._gateway.limits.head_s):
            await self._wire.connection.write(head if request is not None and request.method == "HEAD" else head + body)
        return keep


def _describe(request: Request, listener: str, peer: Peer) -> dict[str, Any]:
    """Return what the portal is asked, without the query, which may hold what is only for the app."""
    headers = {
        name.decode(): "; ".join(value.decode("latin-1") for key, value in request.headers if key.lower() == name)
        for name in _TOLD
        if any(key.lower() == name for key, _ in request.headers)
    }
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
