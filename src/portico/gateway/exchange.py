"""One request to the portal or to an app, and its answer: heads rendered anew, bodies streamed with back-pressure.

It decides nothing about who may go where. Nothing of either side is kept beyond one read, and what the client did not
take yet. Everything happens in answer to an event of one of the two ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from portico.gateway import websocket as ws
from portico.gateway.body import LAST_CHUNK, Body, render_chunk
from portico.gateway.end import READ_BYTES, End
from portico.gateway.flow import Flow
from portico.gateway.forward import render_switching
from portico.gateway.head import (
    Framing,
    Refusal,
    Request,
    Response,
    find_head_end,
    get,
    get_tokens,
    parse_response,
    render_status_line,
)
from portico.gateway.upstream import Upstream

if TYPE_CHECKING:
    from portico.gateway.client import Client

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_ANSWER_HEAD_BYTES: Final = 64 * 1024
_INTERIM_ANSWERS: Final = 8
MEMO_BYTES: Final = 4 * 1024
"""A longer head, of a request or an answer, is not kept with its connection."""

RenderAnswer = Callable[[Response], bytes]


class Exchange:
    """A request on its way.

    Args:
        client: Whose it is.
        upstream: Where it goes; closed here unless its answer was taken whole.
        lines: The request's headers as sent on, rendered, without framing.
        render_answer: From an answer to the lines of its headers that the client gets, without framing.
        limit_bytes: Largest body; None for no limit.
        answer_s: From the end of the request until the answer begins.
        tags: What it lives by; empty for the portal's own pages.
        retry: Called instead of an end, where a kept connection had ended and the request may be sent again.
    """

    __slots__ = (
        *("_answer_s", "_body", "_body_taken", "_buffer", "_client", "_flow", "_interim", "_lines"),
        *(
            "_is_over",
            "_keep",
            "_limit_bytes",
            "_rechunk",
            "_render_answer",
            "_request",
            "_response",
            "_retry",
            "_sent_all",
            "_upstream",
        ),
        *("_answer_body", "_render_answer", "answered", "tags"),
    )
    is_stream = False

    def __init__(
        self,
        client: Client,
        request: Request,
        upstream: Upstream,
        lines: bytes,
        render_answer: RenderAnswer,
        limit_bytes: int | None,
        answer_s: float,
        tags: frozenset[str],
        retry: Callable[[], None],
    ) -> None:
        self._client, self._request, self._upstream = client, request, upstream
        self._lines, self._render_answer = lines, render_answer
        self._limit_bytes, self._answer_s, self._retry = limit_bytes, answer_s, retry
        self.tags = tags
        self.answered = False  # whether anything was sent to the client
        self._body: Body | None = None  # of the request, while it is being sent
        self._body_taken = True
        self._sent_all = True  # whether the upstream has taken the request, as far as it was read
        self._buffer = b""  # of the answer, what was read and not used
        self._interim = 0
        self._response: Response | None = None
        self._answer_body: Body | None = None
        self._flow: Flow | None = None
        self._rechunk = self._keep = self._is_over = False
        upstream.owner = self

    # the request

    def start(self) -> None:
        """Send the head.

        Raises:
            Refusal: It can't be served.
        """
        request, framing = self._request, b"\r\n"
        if request.framing is Framing.CHUNKED:
            framing = b"Transfer-Encoding: chunked\r\n\r\n"
        elif request.framing is Framing.LENGTH or request.method in ("POST", "PUT", "PATCH"):
            framing = b"Content-Length: %d\r\n\r\n" % request.length
        if self._limit_bytes is not None and request.length > self._limit_bytes:
            self._upstream.close()
            raise Refusal(413, f"the limit is {self._limit_bytes >> 20} MiB")
        gateway = self._client.gateway
        if self.tags:
            gateway.routes.add(self)
        self._client.deadline = gateway.plane.now + self._answer_s
        if request.framing is not Framing.NONE:
            self._body, self._body_taken = Body(request.framing, request.length), False
        try:
            line = f"{request.method} {request.target} HTTP/1.1\r\n".encode("ascii")
            self._upstream.send(line + self._lines + framing)
        except OSError:
            self._on_no_answer()
            return
        if self._body is not None:
            self._client.deadline = gateway.plane.now + gateway.limits.body_stall_s
            if request.expects_continue:
                self._client.end.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.pump_body()

    @property
    def wants_body(self) -> bool:
        """Whether the client's bytes are this request's."""
        return not self._body_taken

    @property
    def waits_for_body(self) -> bool:
        """Whether it is the client that does not go on, rather than an upstream that takes nothing."""
        return self._body is not None and self._upstream.out is None

    def pump_body(self) -> None:
        """Send on what has come of the request's body."""
        body, client, upstream = self._body, self._client, self._upstream
        if client.end.is_broken and (body is None or upstream.out is not None):  # nothing is read now
            client.close()
            return
        try:
            while body is not None and not self._is_over and upstream.out is None:
                data = client.take()
                if data is None:
                    return
                if not data:
                    client.close()
                    return
                payload, rest = body.feed(data)
                if rest:
                    client.put_back(rest)
                if self._limit_bytes is not None and body.received > self._limit_bytes:
                    raise Refusal(413, f"the limit is {self._limit_bytes >> 20} MiB")
                client.gateway.metrics.in_bytes += len(payload)
                client.deadline = client.gateway.plane.now + client.gateway.limits.body_stall_s
                chunked = self._request.framing is Framing.CHUNKED
                out = render_chunk(payload) if chunked and payload else payload
                if body.done:
                    self._body, self._body_taken = None, True
                    if self._response is None:
                        client.deadline = client.gateway.plane.now + self._answer_s
                    else:
                        client.deadline = client.never
                    if chunked:
                        out += LAST_CHUNK
                if out and not self._push(out):
                    return
                if self._body_taken:
                    client.look_ahead()
                    return
                if client.end.must_yield():
                    return
        except Refusal as refusal:
            self.fail(refusal)
        except OSError:
            client.close()

    def _push(self, out: bytes) -> bool:
        """Send to the upstream; return whether it takes more of the request. Its answer may come in any case."""
        try:
            self._upstream.send(out)
        except OSError:
            self.on_broken(self._upstream)
            return False
        return True

    # events of the upstream

    def on_readable(self, end: End) -> None:
        """Take what has come of the answer."""
        try:
            if self._response is None:
                self._read_head()
            else:
                self.pump_answer()
        except Refusal as refusal:
            self.fail(refusal)
        except OSError:
            self._on_no_answer()

    def on_writable(self, end: End) -> None:
        """Send more of the request."""
        self.pump_body()

    def on_broken(self, end: End) -> None:
        """Send no more; the answer may still come."""
        self._body = None
        end.drop_kept()
        end.readable = True
        self.on_readable(end)

    def _on_no_answer(self) -> None:
        """Deal with an upstream that has closed too early."""
        if self._is_over:
            return
        if self.answered:
            self._client.close()
            return
        upstream = self._upstream
        may_retry = self._request.method in IDEMPOTENT and self._request.framing is Framing.NONE
        if upstream.used and may_retry and not self._buffer and not self._interim:
            self._leave()
            upstream.close()
            self._retry()
        else:
            self.fail(Refusal(502, "it closed the connection"))

    # the answer's head

    def _read_head(self) -> None:
        upstream = self._upstream
        while upstream.readable:
            data = upstream.recv(READ_BYTES)
            if data is None:
                return
            if not data:
                self._on_no_answer()
                return
            self._buffer = self._buffer + data if self._buffer else data
            while (response := self._parse_head()) is not None:
                if response.status >= 200 or response.status == 101:
                    self._begin(response)
                    return
                self._interim += 1
                if self._interim >= _INTERIM_ANSWERS:
                    raise Refusal(502, "too many interim answers")

    def _parse_head(self) -> Response | None:
        try:
            end = find_head_end(self._buffer, _ANSWER_HEAD_BYTES)
        except Refusal:
            raise Refusal(502, "malformed answer") from None
        if not end:
            return None
        head, self._buffer = self._buffer[:end], self._buffer[end:]
        memo, method = self._upstream.memo, self._request.method
        if memo is not None and memo[0] == head and memo[1] == method:
            return memo[2]
        response = parse_response(head, method)
        if response.status >= 200 and end <= MEMO_BYTES:
            self._upstream.memo = head, method, response, self._render(response)
        if response.status == 101 and not self._request.upgrade:
            raise Refusal(502, "it switched protocols unasked")
        return response

    def _render(self, response: Response) -> bytes:
        """Return the first line and the headers as the client gets them, without framing."""
        return render_status_line(response.status) + self._render_answer(response)

    def _begin(self, response: Response) -> None:
        if response.status == 101:
            self._switch(response)
            return
        request, client = self._request, self._client
        memo = self._upstream.memo
        head = memo[3] if memo is not None and memo[2] is response else self._render(response)
        framing = response.framing
        self._response = response
        self._answer_body = body = Body(framing, response.length)
        self._rechunk = framing in (Framing.CHUNKED, Framing.CLOSE) and request.minor == 1
        keep = request.keep_alive and self._body_taken and not request.upgrade and not client.gateway.closing
        if self._rechunk:
            head += b"Transfer-Encoding: chunked\r\n"
        elif framing is Framing.LENGTH:
            head += b"Content-Length: %d\r\n" % response.length
        elif framing is not Framing.NONE:
            keep = False
        elif request.method == "HEAD":
            if length := get(response.headers, b"content-length"):
                head += b"Content-Length: %b\r\n" % length
        elif response.status not in (204, 304):
            head += b"Content-Length: 0\r\n"
        if not keep:
            head += b"Connection: close\r\n"
        elif request.minor == 0:
            head += b"Connection: keep-alive\r\n"
        self._keep = keep
        client.deadline = client.never
        out = head + b"\r\n" + self._feed()
        if body.done:
            self._finish(out)
            return
        self._say(out)
        if self._upstream.readable:
            self.pump_answer()

    def _feed(self) -> bytes:
        """Return the payload that was read already, as it goes to the client.

        Raises:
            Refusal: It is malformed.
        """
        body = self._answer_body
        assert body is not None
        if not self._buffer or body.done:
            return b""
        try:
            payload, self._buffer = body.feed(self._buffer)
        except Refusal as refusal:
            raise Refusal(502, f"answer: {refusal.reason}") from None
        return render_chunk(payload) if payload and self._rechunk else payload

    def _say(self, out: bytes) -> None:
        """Send to the client, which may be gone."""
        self.answered = True
        self._client.gateway.metrics.out_bytes += len(out)
        try:
            self._client.end.send(out)
        except OSError:
            self._client.close()

    # the answer's body

    def pump_answer(self) -> None:
        """Send on what has come of the answer's body, while the client takes it.

        Raises:
            Refusal: It is malformed.
            OSError: The upstream broke.
        """
        response, body, upstream, client = self._response, self._answer_body, self._upstream, self._client.end
        if response is None or body is None:
            return
        if response.framing is Framing.LENGTH:
            self._pump_length(body)
            return
        while upstream.readable and client.out is None and not self._is_over:
            data = upstream.recv(READ_BYTES)
            if data is None:
                return
            if not data:
                if response.framing is not Framing.CLOSE:
                    raise ConnectionResetError("the answer was cut")
                self._finish(b"")
                return
            self._buffer = data
            out = self._feed()
            if body.done:
                self._finish(out)
                return
            if out:
                self._say(out)
            if upstream.must_yield():
                return

    def _pump_length(self, body: Body) -> None:
        if self._flow is None:
            self._flow = Flow(self._client.gateway.plane, self._upstream, self._client.end)
        try:
            moved = self._flow.move(body.left)
        except OSError:
            self._client.close()  # either end: the answer can't be completed
            return
        body.left -= moved
        self._client.gateway.metrics.out_bytes += moved
        if not body.left:
            self._finish(b"")
        elif self._flow.is_over:
            raise ConnectionResetError("the answer was cut")

    def _finish(self, out: bytes) -> None:
        response = self._response
        assert response is not None
        if self._rechunk:
            out += LAST_CHUNK
        if out:
            self._say(out)
        if self._is_over:
            return
        self._leave()
        if response.reusable and self._body_taken and not self._buffer:
            self._client.gateway.pool.give(self._upstream)
        else:
            self._upstream.close()
        self._client.on_answered(self._keep)

    # a WebSocket of the app's own

    def _switch(self, response: Response) -> None:
        accepts = (
            get(response.headers, b"sec-websocket-accept")
            == ws.compute_accept(self._request.get(b"sec-websocket-key")).encode()
        )
        if not accepts or get_tokens(response.headers, b"upgrade") != [b"websocket"]:
            raise Refusal(502, "malformed WebSocket handshake of the app")
        self._say(render_status_line(101) + render_switching(response) + b"\r\n" + self._buffer)
        if not self._is_over:
            self._leave()
            self._client.become_tunnel(self._upstream, self.tags)

    # its end

    def end(self, code: int, reason: str) -> None:
        """End it as if the client had gone: what it lived by was taken back."""
        self._client.close()

    def abandon(self) -> None:
        """End it, because the client has ended."""
        if not self._is_over:
            self._leave()
            self._upstream.close()

    def fail(self, refusal: Refusal) -> None:
        """End it with a refusal, or by cutting off an answer that has begun."""
        if self._is_over:
            return
        if self.answered:
            self._client.close()
            return
        self._leave()
        self._upstream.close()
        self._client.on_failed(refusal)

    def _leave(self) -> None:
        self._is_over = True
        if self.tags:
            self._client.gateway.routes.remove(self)
