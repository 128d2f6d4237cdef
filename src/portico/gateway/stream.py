"""A stream: an app's bytes as the binary messages of a WebSocket that the gateway itself speaks (RFC 6455).

Towards the client a frame is as large as what the app had ready. Towards the app nothing is written that a filter has
not let through.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from portico.gateway import websocket as ws
from portico.gateway.bridge import Buffers
from portico.gateway.connection import READ_BYTES, Connection, PlainConnection
from portico.gateway.filters import Filter, Refused
from portico.gateway.limits import Limits

CLOSE_S: Final = 0.4
"""What sending a close frame, and then waiting for the client's, may take: a cut has 1 s in all."""

BROKEN: Final = 0
"""Instead of a close code: the connection is not there to say anything on."""


class Stream:
    """One stream, after the handshake.

    Args:
        client: Where frames go and come from; closed at the end.
        app: A connection to the app; closed at the end.
        said: Bytes of the client that came right behind its handshake.
        viewer: What the client may say, and what is said in its place.
        limits: Times.
        buffers: For bulk.

    """

    def __init__(
        self, client: Connection, app: PlainConnection, said: bytes, viewer: Filter, limits: Limits, buffers: Buffers
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client, self._app, self._said = client, app, said
        self._filter, self._limits, self._buffers = viewer, limits, buffers
        self._ended: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        self._sending = asyncio.Lock()  # a frame is never cut into by another
        self._in_frame = False
        self._client_closed = False
        self._control: dict[int, bytes] = {}  # the latest ping and pong that wait: never more (5.5.3)
        self._flushing: asyncio.Task[None] | None = None

    def end(self, code: int, reason: str) -> None:
        """End it with a close code; :meth:`run` returns within a second."""
        if not self._ended.done():
            self._ended.set_result((code, reason))

    async def run(self) -> None:
        """Carry until either side ends."""
        tasks = [asyncio.create_task(self._carry_in()), asyncio.create_task(self._carry_out())]
        self._ticking = self._loop.call_later(self._limits.ping_s, self._tick)
        code, reason = BROKEN, ""
        try:
            await asyncio.wait([*tasks, self._ended], return_when=asyncio.FIRST_COMPLETED)
            code, reason = self._ended.result() if self._ended.done() else _find_end(tasks)
        finally:
            self.end(code, reason)
            self._ticking.cancel()
            self._app.close()
            for task in [*tasks, *([self._flushing] if self._flushing else [])]:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await self._say_goodbye(code, reason)
            self._client.close()

    async def _carry_in(self) -> tuple[int, str]:
        frames = ws.FrameReader()
        data = self._said
        while True:
            for frame in frames.feed(data):
                if frame.kind == ws.BINARY:
                    if allowed := self._filter.feed(frame.payload):
                        await self._app.write(allowed)
                elif frame.kind == ws.PING:
                    self._send_control(ws.PONG, frame.payload)
                elif frame.kind == ws.CLOSE:
                    self._client_closed = True
                    return ws.NORMAL, ""
            data = await self._client.read()
            if not data:
                return BROKEN, ""

    async def _carry_out(self) -> tuple[int, str]:
        bulk = False
        while True:
            buffer = None
            if bulk and isinstance(self._client, PlainConnection):
                await self._app.wait_for_bytes()  # first, so that nobody waits with a buffer in hand
                buffer = self._buffers.take()
            if buffer is None:
                data = await self._app.read()
                self._filter.hear(data)
                if size := len(data):
                    await self._send_frame(ws.render_frame(ws.BINARY, data))
            else:
                try:
                    with memoryview(buffer) as view:
                        size = await self._app.read_into(view)
                        self._filter.hear(view[:size])
                        if size:
                            await self._send_frame(ws.render_header(ws.BINARY, size), view[:size])
                finally:
                    self._buffers.give(buffer)
            if not size:
                return ws.NORMAL, "the app has ended"
            bulk = size >= READ_BYTES

    async def _send_frame(self, data: bytes, payload: memoryview | None = None) -> None:
        async with self._sending:
            self._in_frame = True
            await self._client.write(data, more=payload is not None)
            if payload is not None:
                await self._client.write(payload)
            self._in_frame = False
        if self._control:
            await self._flush()

    def _send_control(self, kind: int, payload: bytes) -> None:
        self._control[kind] = ws.render_frame(kind, payload)
        if not self._sending.locked() and (self._flushing is None or self._flushing.done()):
            self._flushing = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        with contextlib.suppress(OSError):  # whoever reads learns of it too
            async with self._sending:
                while self._control:
                    _, frame = self._control.popitem()
                    self._in_frame = True
                    await self._client.write(frame)
                    self._in_frame = False

    def _tick(self) -> None:
        if self._ended.done():
            return
        silent_s = self._loop.time() - self._client.heard
        if silent_s > self._limits.dead_s:
            self.end(BROKEN, "")
            return
        if silent_s > self._limits.ping_s / 2:
            self._send_control(ws.PING, b"")
        self._ticking = self._loop.call_later(self._limits.ping_s, self._tick)

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Send a close frame and wait for the client's (7.1.1), unless a frame was cut off or nobody is there."""
        if code == BROKEN or self._in_frame:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._client.write(ws.render_close(code, reason))
            if not self._client_closed:
                async with asyncio.timeout(CLOSE_S):
                    while await self._client.read():
                        pass
            self._client.shutdown_write()


def _find_end(tasks: list[asyncio.Task[tuple[int, str]]]) -> tuple[int, str]:
    """Return close code and reason of the task that has ended."""
    for task in tasks:
        if task.done():
            try:
                return task.result()
            except ws.ProtocolError as error:
                return error.code, str(error)
            except Refused as error:
                return ws.POLICY, str(error)
            except OSError:
                continue
    return BROKEN, ""
