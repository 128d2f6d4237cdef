"""One request to the portal or to an app, and its answer: heads rendered anew, bodies streamed with back-pressure.

It decides nothing about who may go where. Nothing of either side is kept beyond one read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from portico.gateway import websocket as ws
from portico.gateway.body import LAST_CHUNK, Body, render_chunk
from portico.gateway.bridge import Buffers, move
from portico.gateway.forward import make_switching_headers
from portico.gateway.head import (
    Framing,
    Header,
    Refusal,
    Request,
    Response,
    get,
    get_tokens,
    parse_response,
    render_request,
    render_response,
)
from portico.gateway.limits import Limits
from portico.gateway.upstream import Upstream, Wire

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_ANSWER_HEAD_BYTES: Final = 64 * 1024
_INTERIM_ANSWERS: Final = 8


class Stale(Exception):
    """The kept connection had ended before anything was answered, and the request may be sent again."""


class Gone(Exception):
    """The client is away, so there is nobody to answer."""


@dataclass
class Exchange:
    """A request on its way.

    Args:
        client: Where it came from.
        request: Its head.
        upstream: Where it goes; closed here unless its answer was taken whole.
        headers: Of the request as sent on, without framing.
        filter_answer: From the answer's headers to those that the client gets, without framing.
        limit_bytes: Largest body; None for no limit.
        answer_s: Until the answer begins.
        is_closing: Whether the client's connection ends after this exchange in any case.

    """

    client: Wire
    request: Request
    upstream: Upstream
    headers: list[Header]
    filter_answer: Callable[[Sequence[Header]], list[Header]]
    limit_bytes: int | None
    answer_s: float
    is_closing: Callable[[], bool]
    limits: Limits
    buffers: Buffers
    answered: bool = False  # whether anything was sent to the client
    body_taken: bool = False  # whether the request's body was read to its end
    reusable: bool = False  # whether the upstream connection can carry another exchange

    async def carry(self, give: Callable[[Upstream], None]) -> bool:
        """Carry it; return whether the client's connection can carry another one. ``give`` gets the upstream back.

        Raises:
            Stale: See there.
            Gone: See there.
            Refusal: It can't be served; nothing was answered unless ``answered``.
            OSError: One of both broke in the middle of the answer.

        """
        task = asyncio.current_task()
        assert task is not None
        gone = False

        def on_gone() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        sending: asyncio.Task[None] | None = None
        try:
            await self._send_head()
            if self.request.framing is Framing.NONE:
                self.body_taken = True
                self.client.connection.watch(on_gone)
            else:
                sending = asyncio.create_task(self._send_body(on_gone))
            response = await self._read_answer(sending)
            keep = await self._give(response)
        except asyncio.CancelledError:
            if gone and task.uncancel() == 0:
                raise Gone from None
            raise
        finally:
            self.client.connection.unwatch()
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if self.reusable and self.body_taken:
                give(self.upstream)
            else:
                self.upstream.close()
        return keep and self.body_taken

    async def upgrade(self) -> bool:
        """Carry a WebSocket handshake; return whether the app has switched, with its answer already given.

        Raises:
            Refusal: The app's answer is wrong.

        """
        await self._send_head()
        self.body_taken = True
        response = await self._read_answer(None)
        if response.status != 101:
            self.is_closing = lambda: True
            await self._give(response)
            return False
        accepts = (
            get(response.headers, b"sec-websocket-accept")
            == ws.compute_accept(self.request.get(b"sec-websocket-key")).encode()
        )
        if not accepts or get_tokens(response.headers, b"upgrade") != [b"websocket"]:
            raise Refusal(502, "malformed WebSocket handshake of the app")
        self.answered = True
        head = render_response(101, make_switching_headers(response.headers))
        await self.client.connection.write(head + self.upstream.buffer)
        if self.client.buffer:
            await self.upstream.connection.write(self.client.buffer)
        return True

    # the request

    async def _send_head(self) -> None:
        request, headers = self.request, self.headers
        if request.framing is Framing.CHUNKED:
            headers = [*headers, (b"Transfer-Encoding", b"chunked")]
        elif request.framing is Framing.LENGTH or request.method in ("POST", "PUT", "PATCH"):
            headers = [*headers, (b"Content-Length", b"%d" % request.length)]
        if self.limit_bytes is not None and request.length > self.limit_bytes:
            raise Refusal(413, f"the limit is {self.limit_bytes >> 20} MiB")
        with self._closed_means_stale():
            await self.upstream.connection.write(render_request(request.method, request.target, headers))

    async def _send_body(self, on_gone: Callable[[], None]) -> None:
        """Send the request's body on.

        Raises:
            Refusal: It is malformed or too large.
            Gone: The client went away within it.
            OSError: The upstream takes no more; its answer may still come.

        """
        if self.request.expects_continue:
            await self.client.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = Body(self.request.framing, self.request.length)
        chunked = self.request.framing is Framing.CHUNKED
        while not body.done:
            try:
                async with asyncio.timeout(self.limits.body_stall_s):
                    data = await self.client.read()
            except TimeoutError:
                raise Refusal(408, "the body stopped coming") from None
            except OSError:
                raise Gone from None
            if not data:
                raise Gone
            payload, rest = body.feed(data)
            if rest:
                self.client.buffer = rest
            if self.limit_bytes is not None and body.received > self.limit_bytes:
                raise Refusal(413, f"the limit is {self.limit_bytes >> 20} MiB")
            if payload:
                await self.upstream.connection.write(render_chunk(payload) if chunked else payload)
        if chunked:
            await self.upstream.connection.write(LAST_CHUNK)
        self.body_taken = True
        self.client.connection.watch(on_gone)

    # the answer

    async def _read_answer(self, sending: asyncio.Task[None] | None) -> Response:
        try:
            async with asyncio.timeout(self.answer_s):
                if sending is None:
                    return await self._read_final()
                reading = asyncio.create_task(self._read_final())
                try:
                    await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
                    if not reading.done() and isinstance(error := sending.exception(), (Refusal, Gone)):
                        raise error
                    return await reading
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        except TimeoutError:
            raise Refusal(504, "no answer in time") from None

    async def _read_final(self) -> Response:
        for _ in range(_INTERIM_ANSWERS):
            with self._closed_means_stale():
                try:
                    head = await self.upstream.read_head(_ANSWER_HEAD_BYTES)
                except Refusal:
                    raise Refusal(502, "malformed answer") from None
                if not head:
                    raise ConnectionResetError("closed before an answer")
            response = parse_response(head, self.request.method)
            if response.status == 101 and not self.request.upgrade:
                raise Refusal(502, "it switched protocols unasked")
            if response.status >= 200 or response.status == 101:
                return response
        raise Refusal(502, "too many interim answers")

    @contextlib.contextmanager
    def _closed_means_stale(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            may_retry = self.request.method in IDEMPOTENT and self.request.framing is Framing.NONE
            if self.upstream.used and may_retry and not self.upstream.buffer:
                raise Stale from None
            raise Refusal(502, "it closed the connection") from None

    async def _give(self, response: Response) -> bool:
        request, body = self.request, Body(response.framing, response.length)
        headers = self.filter_answer(response.headers)
        rechunk = response.framing in (Framing.CHUNKED, Framing.CLOSE) and request.minor == 1
        keep = request.keep_alive and not self.is_closing() and self.body_taken
        if rechunk:
            headers.append((b"Transfer-Encoding", b"chunked"))
        elif response.framing is Framing.LENGTH:
            headers.append((b"Content-Length", b"%d" % response.length))
        elif response.framing is not Framing.NONE:
            keep = False
        elif request.method == "HEAD":
            if length := get(response.headers, b"content-length"):
                headers.append((b"Content-Length", length))
        elif response.status not in (204, 304):
            headers.append((b"Content-Length", b"0"))
        if not keep:
            headers.append((b"Connection", b"close"))
        elif request.minor == 0:
            headers.append((b"Connection", b"keep-alive"))
        out = render_response(response.status, headers)
        client = self.client.connection
        while True:
            if self.upstream.buffer and not body.done:
                try:
                    payload, self.upstream.buffer = body.feed(self.upstream.buffer)
                except Refusal as refusal:
                    raise Refusal(502, f"answer: {refusal.reason}") from None
                if payload:
                    out += render_chunk(payload) if rechunk else payload
            if body.done:
                break
            if out:
                self.answered = True
                await client.write(out)
                out = b""
            if response.framing is Framing.LENGTH:
                if await move(self.upstream.connection, client, self.buffers, body.left) < body.left:
                    raise ConnectionResetError("the answer was cut")
                break
            self.upstream.buffer = await self.upstream.connection.read()
            if not self.upstream.buffer:
                if response.framing is not Framing.CLOSE:
                    raise ConnectionResetError("the answer was cut")
                break
        if rechunk:
            out += LAST_CHUNK
        if out:
            self.answered = True
            await client.write(out)
        self.reusable = response.reusable and not self.upstream.buffer
        return keep
