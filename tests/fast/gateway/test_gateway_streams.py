"""Streams and proxied WebSockets through a real gateway, against an independent WebSocket client."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import KEY, SESSION, Raw, Rig, echo_bytes, read_request, resident_bytes, until
from websockets.asyncio.server import serve, unix_serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from portico.gateway import server
from portico.gateway.flow import LEAST_BYTES
from portico.gateway.limits import Limits
from portico.gateway.stream import UNSENT_BYTES
from portico.gateway.websocket import compute_accept

UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: HOST\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n\r\n"
)
SIOCOUTQNSD = 0x894B
"""Bytes that the kernel has not sent yet (linux/sockios.h)."""


def run(body: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), Rig(**options) as rig:
            await body(rig)

    asyncio.run(main())


def frame(
    kind: int, payload: bytes = b"", *, final: bool = True, mask: bytes | None = b"abcd", extra: int = 0
) -> bytes:
    """Return a client's frame."""
    head = bytes([(0x80 if final else 0) | extra | kind])
    flag = 0x80 if mask is not None else 0
    if len(payload) < 126:
        head += bytes([flag | len(payload)])
    elif len(payload) < 1 << 16:
        head += struct.pack(">BH", flag | 126, len(payload))
    else:
        head += struct.pack(">BQ", flag | 127, len(payload))
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


async def read_frame(raw: Raw, timeout_s: float = 5) -> tuple[int, bytes]:
    async with asyncio.timeout(timeout_s):
        first, length = await raw.reader.readexactly(2)
        if length == 126:
            (length,) = struct.unpack(">H", await raw.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await raw.reader.readexactly(8))
        return first & 15, await raw.reader.readexactly(length)


@contextlib.asynccontextmanager
async def opened(rig: Rig, behind: bytes = b""):  # type: ignore[no-untyped-def]
    async with rig.exchange(UPGRADE + behind) as raw:
        assert (await raw.answer(head_only=True)).status == 101
        yield raw


def test_bytes_go_both_ways() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with rig.websocket() as ws:
            assert ws.subprotocol == "binary"
            for size in (1, 125, 126, 65535, 65536, 300_000):
                data = os.urandom(size)
                await ws.send(data)
                got = b""
                while len(got) < size:
                    got += await asyncio.wait_for(ws.recv(), 5)
                assert got == data
        async with rig.websocket(subprotocols=None) as ws:
            assert ws.subprotocol is None
            await ws.send([b"frag", b"men", b"ted"])
            got = b""
            while len(got) < 10:
                got += await asyncio.wait_for(ws.recv(), 5)
            assert got == b"fragmented"
        asked = rig.portal.asked[0]
        assert asked["upgrade"] is True and asked["target"] == "/stream" and asked["listener"] == "portal"

    run(body)


def test_bulk_arrives_whole_and_in_order() -> None:
    size = 96 << 20
    block = hashlib.sha256(b"x").digest() * (1 << 15)

    async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
        writer.close()

    async def body(rig: Rig) -> None:
        await rig.route_stream(source)
        seen, got, largest = hashlib.sha256(), 0, 0
        async with rig.websocket() as ws:
            await ws.send(b"go")
            with contextlib.suppress(ConnectionClosed):
                while True:
                    data = await asyncio.wait_for(ws.recv(), 10)
                    seen.update(data)
                    got, largest = got + len(data), max(largest, len(data))
            assert ws.close_code == 1000
        assert got == size and seen.digest() == hashlib.sha256(block * (size // len(block))).digest()
        assert largest > 65536  # else no large buffer was used

    run(body)


def test_a_slow_client_stops_the_app_and_costs_little() -> None:
    sent = 0

    async def firehose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async def body(rig: Rig) -> None:
        await rig.route_stream(firehose)
        before = resident_bytes()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                raw = await stack.enter_async_context(opened(rig))
                raw.writer.transport.pause_reading()
            last = -1
            while sent != last:
                last = sent
                await asyncio.sleep(0.3)
            assert sent < 20 * (16 << 20)
            assert resident_bytes() - before < 60 << 20
            begin = time.monotonic()
            assert await rig.portal.cut(f"session:{SESSION}") == 20
            await until(lambda: not rig.routes._live, 1.5, "cut, although nobody reads")
            assert time.monotonic() - begin < 1.5

    run(body)


def test_little_waits_in_the_kernel_for_a_slow_client() -> None:
    """What it has not been sent yet waits in the app, which has newer things to say: pictures, or the end of a listing."""

    async def body(rig: Rig) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while True:
                    writer.write(b"x" * (1 << 16))
                    await writer.drain()

        await rig.route_stream(talk, "pty")
        loop, client = asyncio.get_running_loop(), socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        client.setblocking(False)
        with client:
            await loop.sock_connect(client, ("127.0.0.1", rig.port))
            await loop.sock_sendall(client, UPGRADE.replace(b"HOST", f"localhost:{rig.port}".encode()))
            await until(lambda: any(live.is_stream for live in rig.routes._live), what="the stream")
            (stream,) = (live for live in rig.routes._live if live.is_stream)

            def read_unsent() -> int:
                return struct.unpack("i", fcntl.ioctl(stream._client.sock, SIOCOUTQNSD, bytes(4)))[0]  # type: ignore[attr-defined]

            await until(lambda: stream._client.out is not None, what="a client that takes no more")  # type: ignore[attr-defined]
            assert read_unsent() <= 2 * server.UNSENT_BYTES, "for whoever is at the other end"
            taken = 0
            while taken < 3_000_000:
                taken += len(await loop.sock_recv(client, 16 * 1024))
                await asyncio.sleep(0.001)
            assert read_unsent() <= LEAST_BYTES + 2 * UNSENT_BYTES, "for one that is known to be slow"

    run(body)


def test_a_cut_closes_with_its_code_within_a_second() -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_stream(echo_bytes)
        async with rig.websocket() as one, rig.websocket() as two:
            await one.send(b"x")
            await one.recv()
            assert await rig.portal.cut("share:5", "user:bob") == 0
            begin = time.monotonic()
            assert await rig.portal.cut("share:4") == 2
            for ws in (one, two):
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(ws.recv(), 1)
                assert ws.close_code == 4001
            await until(lambda: app.open == 0, 1)
            assert time.monotonic() - begin < 1

    run(body)


def test_a_stream_outlives_the_portal() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with rig.websocket() as ws:
            await rig.portal.stop()
            await ws.send(b"still here")
            assert await asyncio.wait_for(ws.recv(), 2) == b"still here"
            with pytest.raises(InvalidStatus) as refused:
                async with rig.websocket():
                    pass
            assert refused.value.response.status_code == 503
            await rig.portal.start()
            await until(lambda: len(rig.portal.hellos) == 2)
            assert set(rig.portal.hellos[-1]["tags"]) == {"user:alice", f"session:{SESSION}", "share:4"}
            assert await rig.portal.cut("user:alice") == 1
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(ws.recv(), 1)

    run(body)


def test_many_tags_take_several_notices() -> None:
    async def body(rig: Rig) -> None:
        class Quiet:
            is_stream = True

            def __init__(self, tag: str) -> None:
                self.tags = frozenset({tag})

            def end(self, code: int, reason: str) -> None:
                """End nothing."""

        for number in range(5000):
            rig.routes.add(Quiet(f"sign-in:{number}"))
        await rig.portal.stop()
        await rig.portal.start()
        await until(lambda: len(rig.portal.hellos) == 4)
        assert len({tag for hello in rig.portal.hellos for tag in hello["tags"]}) == 5000

    run(body)


def test_the_end_of_the_app_and_of_the_gateway_are_told() -> None:
    async def brief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        await writer.drain()

    async def body(rig: Rig) -> None:
        await rig.route_stream(brief)
        async with rig.websocket() as ws:
            assert await ws.recv() == b"bye"
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1000
        app = await rig.add_app(echo_bytes, "kother")
        rig.portal.app = "kother"
        async with rig.websocket() as ws:
            await until(lambda: app.open)
            closing = asyncio.create_task(rig.gateway.close())
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(ws.recv(), 2)
            assert ws.close_code == 1001
            await closing

    run(body)


def test_pings_and_pongs() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with opened(rig, frame(9, b"early")) as raw:
            assert await read_frame(raw) == (10, b"early")
            raw.send(frame(2, b"da", final=False) + frame(9, b"between") + frame(0, b"ta"))
            got = sorted([await read_frame(raw) for _ in range(2)])
            assert (10, b"between") in got
            assert (await read_frame(raw, 2))[0] in (2, 9, 10)

    run(body, limits=Limits(ping_s=0.1))


def test_a_silent_client_is_pinged_and_then_given_up() -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_stream(echo_bytes)
        async with opened(rig) as raw:
            assert await read_frame(raw) == (9, b"")
            begin = time.monotonic()
            await until(lambda: app.open == 0, 3)
            assert time.monotonic() - begin < 2
        async with rig.websocket() as ws:  # answers pings by itself
            await asyncio.sleep(1)
            await ws.send(b"x")
            assert await ws.recv() == b"x"

    run(body, limits=Limits(ping_s=0.1, dead_s=0.5))


def test_a_flood_of_pings_from_somebody_who_reads_nothing_costs_nothing() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with opened(rig) as raw:
            raw.writer.transport.pause_reading()
            before = resident_bytes()
            flood = frame(9, b"x" * 125) * 1000
            for _ in range(200):
                raw.writer.write(flood)
                await raw.writer.drain()
            assert resident_bytes() - before < 20 << 20

    run(body)


BAD_FRAMES = {
    "not masked": (frame(2, b"x", mask=None), 1002),
    "reserved bit": (frame(2, b"x", extra=0x40), 1002),
    "unknown kind": (frame(3, b"x"), 1002),
    "unknown control": (frame(11), 1002),
    "text": (frame(1, b"x"), 1003),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "begun twice": (frame(2, b"x", final=False) + frame(2, b"y"), 1002),
    "long ping": (frame(9, b"x" * 126), 1002),
    "fragmented ping": (frame(9, final=False), 1002),
    "too large": (b"\x82\xff" + struct.pack(">Q", (1 << 20) + 1) + b"abcd", 1009),
    "sign bit": (b"\x82\xff" + struct.pack(">Q", 1 << 63) + b"abcd", None),
    "length not minimal": (b"\x82\xfe\0\x01abcdx", 1002),
    "half a close code": (frame(8, b"\x03"), 1002),
    "reserved close code": (frame(8, struct.pack(">H", 1005)), 1002),
    "close reason not UTF-8": (frame(8, struct.pack(">H", 1000) + b"\xff"), 1007),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_frames_that_break_the_protocol(name: str) -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_stream(echo_bytes)
        data, code = BAD_FRAMES[name]
        async with opened(rig, data) as raw:
            while (got := await read_frame(raw))[0] == 2:
                pass
            assert got[0] == 8
            (found,) = struct.unpack(">H", got[1][:2])
            assert found == code or (code is None and found in (1002, 1009))
            await raw.close()
        await until(lambda: app.open == 0, 2)

    run(body)


def test_a_close_is_answered() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with opened(rig, frame(8, struct.pack(">H", 1000) + b"bye")) as raw:
            kind, payload = await read_frame(raw)
            assert (kind, payload[:2]) == (8, struct.pack(">H", 1000))
            assert await raw.rest(2) == b""

    run(body)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"GET", b"POST", 400),
        (b"HTTP/1.1", b"HTTP/1.0", 400),
        (b"Version: 13", b"Version: 8", 426),
        (KEY.encode(), b"short", 400),
        (KEY.encode(), KEY.encode() + b"\r\nSec-WebSocket-Key: " + KEY.encode(), 400),
        (b"Sec-WebSocket-Key: " + KEY.encode() + b"\r\n", b"", 400),
        (b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx", 400),
    ],
)
def test_malformed_upgrades_are_refused_before_anybody_is_asked(old: bytes, new: bytes, status: int) -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with rig.exchange(UPGRADE.replace(old, new, 1)) as raw:
            assert (await raw.answer()).status == status
        assert not rig.portal.asked

    run(body)


def test_an_unknown_protocol_cannot_be_viewed() -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_stream(echo_bytes, protocol="spice", view_only=True)
        async with rig.exchange(UPGRADE) as raw:
            assert (await raw.answer()).status == 502
        await until(lambda: app.open == 0)

    run(body)


def test_a_viewer_of_a_terminal_cannot_type() -> None:
    heard = bytearray()

    async def terminal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"output")
        while data := await reader.read(65536):
            heard.extend(data)

    async def body(rig: Rig) -> None:
        app = await rig.route_stream(terminal, protocol="pty", view_only=True)
        attach = b"a" + struct.pack(">IQ", 8, 7)
        async with rig.websocket() as ws:
            assert await ws.recv() == b"output"
            await ws.send(attach + b"i" + struct.pack(">I", 3) + b"rm ")
            await ws.send(b"r" + struct.pack(">IHH", 4, 80, 24) + attach)
            await until(lambda: len(heard) >= 26)
            assert bytes(heard) == attach * 2
            await ws.send(b"z\0\0\0\0")
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1008
        await until(lambda: app.open == 0)

    run(body)


# WebSockets of an app, passed through


def test_an_apps_own_websocket_is_passed_through(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    async def app(connection: Any) -> None:
        seen["headers"] = connection.request.headers
        async for message in connection:
            await connection.send(message)

    async def body(rig: Rig) -> None:
        await rig.route_http(echo_bytes)
        rig.portal.apps[SESSION] = tmp_path / "ws.sock"
        async with unix_serve(app, str(tmp_path / "ws.sock"), max_size=None, subprotocols=["kernel"]):  # type: ignore[list-item]
            async with rig.websocket(
                f"/s/{SESSION}/api", apps=True, subprotocols=["kernel"], origin=f"http://localhost:{rig.apps_port}",
                additional_headers={"Cookie": f"portico-app-{SESSION}=secret; own=1", "Authorization": "token x"},
            ) as ws:  # fmt: skip
                assert ws.subprotocol == "kernel"
                for message in ("text", b"binary", os.urandom(5_000_000)):
                    await ws.send(message)
                    assert await asyncio.wait_for(ws.recv(), 5) == message
                assert seen["headers"]["Cookie"] == "own=1" and "Authorization" not in seen["headers"]
                assert seen["headers"]["Origin"] == f"http://localhost:{rig.apps_port}"
                begin = time.monotonic()
                assert await rig.portal.cut("sign-in:1") == 1
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(ws.recv(), 1)
                assert time.monotonic() - begin < 1
            async with rig.websocket(f"/s/{SESSION}/api", apps=True, subprotocols=["kernel"]) as ws:
                pass
            assert ws.close_code == 1000
        await until(lambda: not rig.routes._live)

    run(body)


def test_an_app_that_refuses_an_upgrade_is_heard() -> None:
    async def no(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\nSet-Cookie: portico=x\r\n\r\nno")
        await writer.drain()

    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
        await writer.drain()

    async def body(rig: Rig) -> None:
        await rig.route_http(no)
        async with rig.exchange(UPGRADE, apps=True) as raw:
            reply = await raw.answer()
            assert (reply.status, reply.body, reply.all("set-cookie")) == (403, b"no", [])
        await rig.add_app(liar, "kliar")
        rig.portal.app = "kliar"
        async with rig.exchange(UPGRADE, apps=True) as raw:
            assert (await raw.answer()).status == 502

    run(body)


def test_half_closed_tunnels_deliver_what_is_left() -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        accept = compute_accept(KEY).encode()
        writer.write(
            b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
            + accept
            + b"\r\n\r\n"
        )
        data = await reader.read()  # until the client's half is closed
        writer.write(b"after the end: " + data)
        await writer.drain()

    async def body(rig: Rig) -> None:
        app = await rig.route_http(late)
        async with rig.exchange(UPGRADE + b"right behind", apps=True) as raw:
            await raw.answer(head_only=True)
            raw.send(b", more")
            raw.writer.write_eof()
            assert await raw.rest() == b"after the end: right behind, more"
        await until(lambda: app.open == 0 and not rig.routes._live)

    run(body)


def test_the_client_library_is_independent() -> None:
    """The peers of these tests speak to each other without the gateway too; else the tests above would show nothing."""

    async def main() -> None:
        async def app(connection: Any) -> None:
            async for message in connection:
                await connection.send(message)

        async with serve(app, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            raw = Raw(reader, writer, f"127.0.0.1:{port}")
            raw.send(UPGRADE + frame(2, b"hi"))
            assert (await raw.answer(head_only=True)).status == 101
            assert await read_frame(raw) == (2, b"hi")
            await raw.close()

    asyncio.run(main())
