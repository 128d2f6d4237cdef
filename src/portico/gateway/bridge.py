"""Moves bytes: between a WebSocket and an app's socket, and between two sockets after a proxied upgrade.

Back-pressure end to end: nothing is read from one side before the other has taken what was read last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from portico.gateway import websocket as ws
from portico.gateway.filters import Filter, Refused
from portico.gateway.upstream import Upstream

READ_BYTES: Final = 256 * 1024
PING_S: Final = 25.0
DEAD_S: Final = 75.0


async def run_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: Upstream, client_filter: Filter
) -> None:
    """Carry a stream until either side ends. The WebSocket handshake is done; both sides are closed by the caller."""
    heard = time.monotonic()

    async def to_app() -> tuple[int, str]:
        nonlocal heard
        frames = ws.FrameReader()
        while data := await reader.read(READ_BYTES):
            heard = time.monotonic()
            for frame in frames.feed(data):
                if frame.kind == ws.BINARY:
                    if allowed := client_filter.feed(frame.payload):
                        app.writer.write(allowed)
                elif frame.kind == ws.PING:
                    writer.write(ws.render_frame(ws.PONG, frame.payload))
                elif frame.kind == ws.CLOSE:
                    return ws.NORMAL, ""
            await app.writer.drain()
        return 0, ""

    async def to_client() -> tuple[int, str]:
        while data := await app.reader.read(READ_BYTES):
            writer.write(ws.render_header(ws.BINARY, len(data)))
            writer.write(data)
            await writer.drain()
        return ws.NORMAL, "the app has ended"

    async def keep_alive() -> tuple[int, str]:
        while time.monotonic() - heard < DEAD_S:
            await asyncio.sleep(PING_S)
            writer.write(ws.render_frame(ws.PING, b""))
        return 0, ""

    tasks = [asyncio.ensure_future(task()) for task in (to_app, to_client, keep_alive)]
    code, reason = 0, ""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                code, reason = task.result()
            except ws.ProtocolError as error:
                code, reason = error.code, str(error)
            except Refused as error:
                code, reason = ws.POLICY, str(error)
            except OSError:
                code = 0
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if code:
        await say_goodbye(writer, code, reason)


async def say_goodbye(writer: asyncio.StreamWriter, code: int, reason: str) -> None:
    """Send a close frame, and wait a moment until it is out."""
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        writer.write(ws.render_close(code, reason))
        await asyncio.wait_for(writer.drain(), 1)


async def run_pipe(
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter], app: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Carry bytes both ways, untouched, until either side ends."""

    async def move(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()

    tasks = [
        asyncio.ensure_future(move(client[0], app[1])),
        asyncio.ensure_future(move(app[0], client[1])),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(asyncio.gather(client[1].drain(), app[1].drain()), 1)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
