"""A stream: an app's bytes as the binary messages of a WebSocket that the gateway itself speaks (RFC 6455).

Towards the client a frame is as large as what the app had ready. Towards the app nothing is written that a filter has
not let through. A stream that is idle has no task, no buffer and no timer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from typing import TYPE_CHECKING, Final

from portico.gateway import websocket as ws
from portico.gateway.end import READ_BYTES, End
from portico.gateway.filters import Filter, Refused
from portico.gateway.flow import LEAST_BYTES, adapt
from portico.gateway.plane import HEADROOM_BYTES

if TYPE_CHECKING:
    from portico.gateway.server import Gateway

CLOSE_S: Final = 0.4
"""What sending a close frame, and then waiting for the client's, may take: a cut has 1 s in all."""
SLOW_S: Final = 0.02
"""A client that once took nothing for so long is at the end of a slow link."""
UNSENT_BYTES: Final = 16 * 1024
"""What the kernel then keeps for it that is not on its way yet. More waits in the app, which has newer pictures to say
instead; the kernel's own measure is megabytes of old ones. A fast client is spared this: it costs throughput."""


class Stream:
    """One stream, after the handshake.

    Args:
        client: Where frames go and come from.
        app: A connection to the app.
        viewer: What the client may say, and what is said in its place.
        kind: The protocol inside, for counting.
        tags: What it lives by.
        household: Whom its connection counts for.
    """

    __slots__ = (
        *("_app", "_client", "_control", "_filter", "_frames", "_gateway", "_goodbye", "_is_closing", "_is_leaving"),
        *("_portion", "_waits_since", "deadline", "household", "kind", "tags"),
    )
    is_stream = True
    is_idle = False

    def __init__(
        self, gateway: Gateway, client: End, app: End, viewer: Filter, kind: str, tags: frozenset[str], household: str
    ) -> None:
        self._gateway, self._client, self._app, self._filter = gateway, client, app, viewer
        self.kind, self.tags, self.household = kind, tags, household
        self._frames = ws.FrameReader()
        self._portion = LEAST_BYTES
        self._waits_since = math.inf  # for the client to take something; -inf once it is known to be slow
        self._control: dict[int, bytes] | None = None  # the latest ping and pong that wait: never more (5.5.3)
        self._goodbye = b""  # the close frame that waits
        self._is_closing = False
        self._is_leaving = False  # the client has said goodbye, and the app has yet to take what was said before
        self.deadline = gateway.plane.now + gateway.limits.ping_s
        client.owner = app.owner = self

    def start(self, said: bytes) -> None:
        """Begin with what the client has said right behind its handshake."""
        self._gateway.metrics.open(self.kind)
        self._gateway.routes.add(self)
        self._app.readable = True
        if said:
            self._take(said)
        if not self._is_closing and not self._client.closed:
            self.on_readable(self._client)
        if not self._is_closing and not self._app.closed:
            self.on_readable(self._app)

    # from either side

    def on_readable(self, end: End) -> None:
        """Carry what has come."""
        try:
            if end is self._client:
                self._carry_in()
            elif self._is_leaving:
                self._drop_out()
            else:
                self._carry_out()
        except OSError:
            self._on_lost(end)

    def on_writable(self, end: End) -> None:
        """Go on with what waited for this end to take bytes."""
        if end is self._app:
            if self._is_leaving:
                self._app.shutdown_write()
            elif self._client.readable:
                self.on_readable(self._client)
            return
        if self._gateway.plane.now - self._waits_since > SLOW_S and self._waits_since > 0:
            self._keep_short()
        try:
            if self._control and not self._goodbye:
                self._flush_control()
            if self._goodbye and self._client.out is None:
                goodbye, self._goodbye = self._goodbye, b""
                self._client.send(goodbye)
        except OSError:
            self.close()
            return
        if not self._is_closing and self._app.readable and self._client.out is None:
            self.on_readable(self._app)

    def on_broken(self, end: End) -> None:
        """End it."""
        if end is self._app and not self._is_leaving:
            self._hear_out()
        else:
            self._on_lost(end)

    def _on_lost(self, end: End) -> None:
        if end is self._app and self._is_leaving:
            self._on_left()
        elif end is self._app and not self._is_closing:
            self.end(ws.NORMAL, "the app has ended")
        else:
            self.close()

    # towards the app

    def _carry_in(self) -> None:
        client, app = self._client, self._app
        if client.is_broken and app.out is not None and not self._is_leaving:  # nothing is read now
            self.close()
            return
        while client.readable and (self._is_closing or app.out is None) and not self._is_leaving:
            data = client.recv(READ_BYTES)
            if data is None:
                return
            if not data:
                self.close()
                return
            self._take(data)
            if client.must_yield():
                return

    def _take(self, data: bytes) -> None:
        try:
            if (payload := self._frames.read_one(data)) is not None:
                if not self._is_closing:
                    self._give(payload)
                return
            for frame in self._frames.feed(data):
                if frame.kind == ws.CLOSE:
                    self._on_close()
                    return
                if self._is_closing:
                    continue
                if frame.kind == ws.BINARY:
                    self._give(frame.payload)
                elif frame.kind == ws.PING:
                    self._send_control(ws.PONG, frame.payload)
        except ws.ProtocolError as error:
            self._fail(error.code, str(error))
        except Refused as error:
            self._gateway.count_refusal("viewer")
            self._fail(ws.POLICY, str(error))

    def _give(self, payload: bytes) -> None:
        allowed = self._filter.feed(payload)
        try:
            if allowed:
                self._app.send(allowed)
            self._gateway.metrics.in_bytes += len(payload)
        except (BrokenPipeError, ConnectionResetError):
            self._hear_out()
        except OSError:
            self.end(ws.NORMAL, "the app has ended")

    def _hear_out(self) -> None:
        """Let the client have what an app that takes no more has said before, and then its end."""
        self._app.drop_kept()
        self._app.readable = True
        self.on_readable(self._app)

    def _on_close(self) -> None:
        """Answer the client's close frame, or take it as the answer to ours; either way it is over (7.1.1)."""
        if self._is_closing:
            if not self._goodbye:
                self.close()
            return
        self._is_leaving = True
        asyncio.get_running_loop().call_later(CLOSE_S, self._on_left)
        if self._app.out is None:
            self._app.shutdown_write()

    def _on_left(self) -> None:
        """Say goodbye to the client: the app has ended its side, or won't."""
        if self._is_closing or self._client.closed:
            return
        self.end(ws.NORMAL, "")
        if not self._client.closed and self._client.out is None:
            self._linger()

    def _drop_out(self) -> None:
        """Take what the app still says, for nobody: an app that can't write may not read either."""
        buffer = self._gateway.plane.buffer
        while self._app.readable:
            size = self._app.recv_into(buffer)
            if size is None or self._app.must_yield():
                return
            if not size:
                self._on_left()

    def _fail(self, code: int, reason: str) -> None:
        if self._is_closing:  # it says nonsense instead of goodbye
            self.close()
        else:
            self.end(code, reason)

    # towards the client

    def _carry_out(self) -> None:
        client, app = self._client, self._app
        buffer = self._gateway.plane.buffer
        while app.readable and client.out is None and not self._is_closing:
            size = app.recv_into(buffer[HEADROOM_BYTES : HEADROOM_BYTES + self._portion])
            if size is None:
                return
            if not size:
                self.end(ws.NORMAL, "the app has ended")
                return
            try:
                self._filter.hear(buffer[HEADROOM_BYTES : HEADROOM_BYTES + size])
            except Refused as error:
                self._gateway.count_refusal("viewer")
                self.end(ws.POLICY, str(error))
                return
            if size < 126:
                begin = HEADROOM_BYTES - 2
                buffer[begin], buffer[begin + 1] = 0x80 | ws.BINARY, size
            else:
                header = ws.render_header(ws.BINARY, size)
                begin = HEADROOM_BYTES - len(header)
                buffer[begin:HEADROOM_BYTES] = header  # right before the payload: one frame, one call
            try:
                taken = client.send(buffer[begin : HEADROOM_BYTES + size])
            except OSError:
                self.close()
                return
            self._gateway.metrics.out_bytes += size
            self._portion = adapt(self._portion, size, taken)
            if not taken and self._waits_since > 0:
                self._waits_since = self._gateway.plane.now
            if app.must_yield():
                return

    def _keep_short(self) -> None:
        self._waits_since = -math.inf
        with contextlib.suppress(OSError):  # of a Unix socket
            self._client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def _send_control(self, kind: int, payload: bytes) -> None:
        self._control = (self._control or {}) | {kind: ws.render_frame(kind, payload)}
        if self._client.out is None:
            try:
                self._flush_control()
            except OSError:
                self.close()

    def _flush_control(self) -> None:
        while self._control and self._client.out is None:
            _, frame = self._control.popitem()
            self._client.send(frame)
        if not self._control:
            self._control = None

    # its life

    def on_deadline(self) -> None:
        """Ping a client that is silent, and give up one that was silent for too long."""
        plane, limits = self._gateway.plane, self._gateway.limits
        if self._is_closing:
            self.close()
            return
        silent_s = plane.now - self._client.heard
        if silent_s > limits.dead_s:
            self.close()
            return
        self.deadline = plane.now + limits.ping_s
        if silent_s > limits.ping_s / 2:
            self._send_control(ws.PING, b"")

    def end(self, code: int, reason: str) -> None:
        """End it with a close frame, in well below a second; a client that does not take it gets none."""
        if self._is_closing or self._client.closed:
            return
        self._is_closing = True
        self._app.close()
        self._gateway.routes.remove(self)
        self.deadline = math.inf
        asyncio.get_running_loop().call_later(CLOSE_S, self._on_no_answer)
        frame = ws.render_close(code, reason)
        if self._client.out is not None:
            self._goodbye = frame
            return
        try:
            self._client.send(frame)
        except OSError:
            self.close()

    def _on_no_answer(self) -> None:
        """Close without the client's goodbye; once more so much time where ours has just got through."""
        if not self._client.closed:
            self._linger()

    def _linger(self) -> None:
        """Let the client have what was sent: closing with bytes unread would send RST, which overtakes it."""
        self._client.shutdown_write()
        if not self._client.readable:
            self.close()
            return
        try:
            while self._client.readable and self._client.recv() and not self._client.must_yield():
                pass
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Close at once."""
        if not self._client.closed:
            self._client.close()
            self._app.close()
            self._gateway.metrics.close(self.kind)
            self._gateway.routes.remove(self)
            self._gateway.forget(self)
