"""Traffic of every kind through a gateway, on a line that may misbehave, with a bystander who must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from faults import HONEST, Line, Vice
from frames import BINARY, UPGRADE, make_close, make_frame
from gateway_rig import KEY, SESSION, App, Handler, Json, Rig, connect_app, read_request, until

from portico.gateway.client import Client
from portico.gateway.limits import Limits
from portico.gateway.websocket import compute_accept

OTHER = "kbystander12"
BODY = bytes(range(32, 127)) * 2
REQUEST = b"POST /s/" + SESSION.encode() + b"/ HTTP/1.1\r\nHost: HOST\r\n"
INIT = struct.pack(">HH16xI", 800, 600, 4) + b"desk"
RFB_KEY = struct.pack(">BBxxI", 4, 1, 0x61)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: " + compute_accept(KEY).encode() + b"\r\n\r\n"
)
BOUND_S = 20.0
"""What anything here may take at most; nothing should come near it."""


async def stop(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# apps


async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a body with the same one, framed in the same way."""
    while True:
        head, body = await read_request(reader)
        if b"chunked" in head:
            parts = b"".join(b"%x\r\n%b\r\n" % (len(BODY) // 2, body[at : at + 95]) for at in range(0, len(body), 95))
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept an upgrade, and send back what comes."""
    await read_request(reader)
    writer.write(SWITCHING)
    await echo(reader, writer)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def desktop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Shake hands (RFC 6143, 7.1 to 7.3), and send back what comes."""
    for said, size in ((b"RFB 003.008\n", 12), (b"\1\1", 1), (bytes(4), 1)):
        writer.write(said)
        await reader.readexactly(size)
    writer.write(INIT)
    await echo(reader, writer)


async def terminal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer attach with start, and input with output (docs/protocol.md, Terminal)."""
    while True:
        kind, length = struct.unpack(">cI", await reader.readexactly(5))
        data = await reader.readexactly(length)
        writer.write(b"s" + struct.pack(">IQQ", 16, 0, 0) if kind == b"a" else b"o" + struct.pack(">I", length) + data)
        await writer.drain()


# what is said through the gateway, and what is understood of its answer


@dataclass
class Heard:
    """What a client has understood so far."""

    status: int = 0
    payload: bytes = b""
    code: int = 0


def read_answers(data: bytes) -> Heard:
    """Read answers to HTTP requests; the payload is all their bodies, as far as they are there."""
    heard = Heard()
    while (end := data.find(b"\r\n\r\n")) >= 0:
        head, data = data[:end], data[end + 4 :]
        heard.status = int(head.split(b" ", 2)[1])
        if heard.status == 101:
            heard.payload = data
            break
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            heard.payload += data[: int(length[1])]
            data = data[int(length[1]) :]
            continue
        while line := re.match(rb"([0-9a-f]+)\r\n", data):
            size = int(line[1], 16)
            heard.payload += data[line.end() : line.end() + size]
            data = data[line.end() + size + 2 :]
            if not size:
                break
        else:
            break
    return heard


def read_stream(data: bytes) -> Heard:
    """Read a stream: what its binary frames hold, and its close code."""
    heard = read_answers(data)
    if heard.status != 101:
        return heard
    data, heard.payload = heard.payload, b""
    while len(data) >= 2:
        size, begin = data[1], 2
        if size > 125:
            begin = 4 if size == 126 else 10
            size = int.from_bytes(data[2:begin], "big")
        payload, whole = data[begin : begin + size], len(data) >= begin + size
        if data[0] == 0x80 | BINARY:
            heard.payload += payload
        elif data[0] == 0x88 and whole:
            heard.code = int.from_bytes(payload[:2], "big")
        data = data[begin + size :]
    return heard


@dataclass(frozen=True)
class Traffic:
    """A conversation: what is said, step by step, and the status and payload that each step must have led to."""

    way: Json
    app: Handler
    steps: tuple[tuple[bytes, int, bytes], ...]
    read: Callable[[bytes], Heard]


def send_frame(payload: bytes) -> bytes:
    return make_frame(BINARY, payload)


def terminal_frame(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack(">I", len(payload)) + payload


HTTP = {"kind": "http", "key": SESSION, "prefix": f"/s/{SESSION}/", "cache_s": 0}
STREAM = {"kind": "stream", "view_only": False}
STARTED = terminal_frame(b"s", bytes(16))
CHUNKED = (
    REQUEST + b"Transfer-Encoding: chunked\r\n\r\n" + b"5f\r\n%b\r\n5f;x\r\n%b\r\n0\r\n\r\n" % (BODY[:95], BODY[95:])
)
POST = REQUEST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GREETING = b"RFB 003.008\n"

TRAFFIC = {
    "exchange": Traffic(HTTP, mirror, ((POST, 200, BODY),), read_answers),
    "again": Traffic({**HTTP, "cache_s": 60}, mirror, ((POST, 200, BODY), (CHUNKED, 200, BODY * 2)), read_answers),
    "websocket": Traffic(HTTP, switch, ((UPGRADE, 101, b""), (send_frame(BODY), 101, send_frame(BODY))), read_answers),
    "rfb": Traffic(
        {**STREAM, "protocol": "rfb", "clipboard": {"in": 1000}},
        desktop,
        (
            (UPGRADE, 101, GREETING),
            (send_frame(GREETING), 101, GREETING + b"\1\1"),
            (send_frame(b"\1"), 101, GREETING + b"\1\1" + bytes(4)),
            (send_frame(b"\1"), 101, GREETING + b"\1\1" + bytes(4) + INIT),
            (send_frame(RFB_KEY * 4), 101, GREETING + b"\1\1" + bytes(4) + INIT + RFB_KEY * 4),
        ),
        read_stream,
    ),
    "pty": Traffic(
        {**STREAM, "protocol": "pty"},
        terminal,
        (
            (UPGRADE + send_frame(terminal_frame(b"a", bytes(8))), 101, STARTED),
            (send_frame(terminal_frame(b"i", b"make\n")), 101, STARTED + terminal_frame(b"o", b"make\n")),
        ),
        read_stream,
    ),
}


class Visitor:
    """A client that says what a traffic says, on whatever line."""

    def __init__(self, traffic: Traffic, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._traffic, self._reader, self._writer = traffic, reader, writer
        self.steps = traffic.steps
        self.received = b""
        self.has_ended = False
        self._news = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(65536):
                self.received += data
                self._news.set()
        self.has_ended = True
        self._news.set()

    @property
    def heard(self) -> Heard:
        return self._traffic.read(self.received)

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def play(self, before_last: Callable[[], None] = lambda: None) -> str:
        """Say all of it; return how it ended: `whole`, the status of a refusal, a close code, or `cut`."""
        for number, (said, status, payload) in enumerate(self.steps, 1):
            if number == len(self.steps):
                before_last()
            with contextlib.suppress(OSError):
                self._writer.write(said)
            while (heard := self.heard).payload != payload or heard.status != status:
                if heard.status >= 400:  # whether or not the connection is kept
                    return str(heard.status)
                if self.has_ended:
                    assert payload.startswith(heard.payload), "what came is not what was sent"
                    return str(heard.code or "cut")
                if heard.code:
                    self._writer.write(make_close())
                self._news.clear()
                await self._news.wait()
        return "whole"

    def reset(self) -> None:
        """Go without a word, and without having read or said all: RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def leave(self) -> None:
        await stop(self._listening)
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Bystander:
    """Another user's stream, whose echo never stops."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.rounds = 0

    async def _talk(self) -> None:
        async with self._rig.websocket("/bystander", apps=True) as stream:
            while True:
                said = b"%d" % self.rounds
                await stream.send(said)
                got = b""
                while len(got) < len(said):
                    got += await stream.recv()
                assert got == said
                self.rounds += 1

    async def __aenter__(self) -> Bystander:
        self._talking = asyncio.create_task(self._talk())
        await self.goes_on()
        return self

    async def __aexit__(self, *ended: object) -> None:
        await stop(self._talking)

    async def goes_on(self, rounds: int = 5) -> None:
        """Wait for so many more echoes."""
        wanted = self.rounds + rounds
        while self.rounds < wanted:
            assert not self._talking.done(), self._talking.exception()
            await asyncio.sleep(0)


@dataclass
class Scene:
    """A gateway with a bystander, an app, and a line at one of two places."""

    rig: Rig
    traffic: Traffic
    place: str
    app: App
    line: Line
    bystander: Bystander
    passed_before_last: list[int] = field(default_factory=list)

    async def visit(self) -> Visitor:
        port = self.line.port if self.place == "client" else self.rig.apps_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        host = f"localhost:{self.rig.apps_port}".encode()
        steps = tuple((said.replace(b"HOST", host), *more) for said, *more in self.traffic.steps)
        return Visitor(replace(self.traffic, steps=steps), reader, writer)

    @contextlib.asynccontextmanager
    async def visiting(self) -> AsyncIterator[Visitor]:
        """Visit, and go; afterwards nothing may be left of it."""
        before = self.take_stock()
        visitor = await self.visit()
        try:
            yield visitor
        finally:
            await visitor.leave()
            await self.line.drop()
        await self.bystander.goes_on(1)
        self.rig.gateway.pool.drop(SESSION)
        for _ in range(50):  # mostly it is true within a few turns
            if self.take_stock() == before:
                return
            await asyncio.sleep(0)
        try:
            await until(lambda: self.take_stock() == before, BOUND_S)
        except TimeoutError:
            assert self.take_stock() == before, "something is left"

    def find_clients(self) -> list[Client]:
        """Return the connections that are no streams; the bystander's is one."""
        return [one for one in self.rig.gateway._clients if isinstance(one, Client)]

    def take_stock(self) -> dict[str, Any]:
        """Count all that a connection takes."""
        gateway = self.rig.gateway
        return {
            "connections": len(gateway._clients),
            "by address": dict(gateway._by_household),
            "bytes kept": gateway.plane.kept_bytes,
            "served by the plane": len(gateway.plane._served),
            "to apps": dict(gateway.pool._open),
            "idle to apps": gateway.pool._count,
            "what lives": len(self.rig.routes._live),
            "streams of a tag": dict(self.rig.routes._carried),
            "streams": +gateway.metrics.live,
            "at the app": self.app.open,
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    async def play(self, there: Vice = HONEST, back: Vice = HONEST) -> str:
        """Play the whole traffic on a line with these vices, and return how it ended."""
        self.line.there, self.line.back = there, back
        async with self.visiting() as visitor, asyncio.timeout(BOUND_S):
            return await visitor.play(lambda: self.passed_before_last.extend(self.line.passed))

    async def measure(self) -> tuple[list[int], list[int]]:
        """Return how many bytes pass on an honest line: before the last step, and in all."""
        self.line.passed[:] = self.passed_before_last[:] = 0, 0
        self.passed_before_last.clear()
        assert await self.play() == "whole"
        return self.passed_before_last, list(self.line.passed)


@contextlib.asynccontextmanager
async def set_up(traffic: Traffic, place: str, limits: Limits | None = None, **line: Any) -> AsyncIterator[Scene]:
    async with Rig(limits) as rig:
        app = await rig.add_app(traffic.app)
        other = await rig.add_app(echo, OTHER)
        theirs = {**STREAM, "protocol": "pty", "tags": ["user:bob", f"session:{OTHER}"]}
        ours = {**traffic.way, "tags": ["user:alice", f"session:{SESSION}"]}

        async def decide(request: Json) -> tuple[Json, list[int]]:
            if request["target"] == "/bystander":
                return theirs, [connect_app(other.path)]
            return ours, [connect_app(rig.portal.apps[SESSION])]

        rig.portal.decide = decide
        async with Line(rig.apps_port if place == "client" else app.path, **line) as bad:
            if place == "app":
                rig.portal.apps[SESSION] = bad.path
            async with Bystander(rig) as bystander:
                yield Scene(rig, traffic, place, app, bad, bystander)


def run(
    body: Callable[[Scene], Awaitable[None]],
    traffic: Traffic,
    place: str,
    limits: Limits | None = None,
    **line: Any,
) -> None:
    async def main() -> None:
        async with asyncio.timeout(50), set_up(traffic, place, limits, **line) as scene:
            await body(scene)

    asyncio.run(main())
