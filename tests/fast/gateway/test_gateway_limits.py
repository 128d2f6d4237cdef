"""What nobody may have too much of: streams, connections to an app, connections that say nothing or very little."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import SESSION, Raw, Rig, until
from websockets.exceptions import InvalidStatus

from portico.gateway.limits import Limits, raise_descriptor_limit

GET = f"GET /s/{SESSION}/slow HTTP/1.1\r\nHost: HOST\r\n\r\n".encode()
CROWD = 1000
UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://HOST\r\n\r\n"
)


def run(work: Coroutine[Any, Any, None], timeout_s: float = 60) -> None:
    async def main() -> None:
        async with asyncio.timeout(timeout_s):
            await work

    asyncio.run(main())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", ["session", "user"])
def test_a_session_and_a_user_have_so_many_streams(kind: str) -> None:
    async def test() -> None:
        async with Rig(Limits(streams_per_tag=((kind, 3),))) as rig:
            await rig.route_stream(echo)
            streams = [await rig.websocket() for _ in range(3)]
            before = count_descriptors()
            for _ in range(5):
                with pytest.raises(InvalidStatus) as caught:
                    await rig.websocket()
                assert caught.value.response.status_code == 429
                assert b"Too many streams" in (caught.value.response.body or b"")
            await until(lambda: count_descriptors() <= before, what="refused streams leave nothing open")
            await streams.pop().close()
            await until(lambda: sum(rig.routes._carried.values()) == 2, what="its place is free")
            streams.append(await rig.websocket())
            for stream in streams:  # those that were there are as before
                await stream.send(b"hello")
                assert await stream.recv() == b"hello"
                await stream.close()

    run(test())


def test_an_app_has_so_many_connections() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readuntil(b"\r\n\r\n"):
                await go.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async with Rig(Limits(app_connections=3)) as rig:
            app = await rig.route_http(slow, cache_s=60)
            async with contextlib.AsyncExitStack() as stack:
                waiting = [await stack.enter_async_context(rig.exchange(GET, apps=True)) for _ in range(3)]
                await until(lambda: app.open == 3, what="three at the app")
                for _ in range(3):
                    async with rig.exchange(GET, apps=True) as refused:
                        answer = await refused.answer()
                        assert answer.status == 429 and answer.all("retry-after"), answer.head
                assert app.open == 3
                go.set()
                for one in waiting:
                    assert (await one.answer()).body == b"ok"
            async with rig.exchange(GET, apps=True) as next_one:
                assert (await next_one.answer()).body == b"ok"

    run(test())


VICES = {
    "silent": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost: loc",
    "head without end": b"GET / HTTP/1.1\r\nHost: HOST\r\nX-More: " + b"a" * 2000,
    "body without end": b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1000000\r\n\r\nabc",
}


@pytest.mark.parametrize("vice", VICES)
def test_a_crowd_that_says_little_is_bounded_and_disturbs_nobody(vice: str) -> None:
    if raise_descriptor_limit(4 * CROWD) < 2 * CROWD:
        pytest.skip("so many descriptors may not be opened here")

    async def test() -> None:
        limits = Limits(head_s=3, idle_s=3, body_stall_s=3, connections_per_address=2 * CROWD)
        async with Rig(limits) as rig:
            await rig.route_stream(echo)
            async with rig.websocket() as stream:
                before = read_memory_bytes()
                crowd = [await rig.open() for _ in range(CROWD)]
                for one in crowd:
                    one.send(VICES[vice])
                await asyncio.sleep(0)
                loop, slowest = asyncio.get_running_loop(), 0.0
                for number in range(50):
                    began = loop.time()
                    await stream.send(b"%d" % number)
                    assert await stream.recv() == b"%d" % number
                    slowest = max(slowest, loop.time() - began)
                assert slowest < 2, "the stream of somebody else goes on"
                # Both ends of each connection, and asyncio's own buffers of the client, are in this process.
                assert read_memory_bytes() - before < CROWD * 64 * 1024
                await until(lambda: len(rig.gateway._clients) == 1, 15, "all but the stream are gone")
                await stream.send(b"still here")
                assert await stream.recv() == b"still here"
                for one in crowd:
                    await one.close()

    run(test())


def test_a_crowd_beyond_an_addresss_share_is_refused_clearly() -> None:
    async def test() -> None:
        async with Rig(Limits(connections_per_address=5)) as rig:
            held: list[Raw] = [await rig.open() for _ in range(5)]
            await until(lambda: len(rig.gateway._clients) == 5)
            for _ in range(5):
                refused = await rig.open()
                assert (await refused.answer()).status == 503
                await refused.close()
            for one in held:
                await one.close()
            await until(lambda: not rig.gateway._clients)
            async with rig.exchange(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as welcome:
                assert (await welcome.answer()).status == 200

    run(test())


def test_what_waits_for_slow_clients_is_bounded_in_all() -> None:
    async def firehose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(1 << 20))
            await writer.drain()

    async def test() -> None:
        async with Rig() as rig:
            await rig.route_stream(echo)
            async with rig.websocket() as good:
                plane = rig.gateway.plane
                plane.kept_most_bytes = 256 * 1024
                app = await rig.add_app(firehose, "b" * 12)
                rig.portal.app = "b" * 12
                slow = []
                for _ in range(20):
                    raw = await rig.open()
                    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
                    raw.send(UPGRADE)
                    slow.append(raw)
                await until(lambda: app.connections == 20, what="all are there")
                for _ in range(100):
                    await good.send(b"x" * 100)
                    assert await good.recv() == b"x" * 100
                    assert plane.kept_bytes <= 20 * 32 * 1024 + 256 * 1024 + 256 * 1024
                for raw in slow:
                    raw.writer.transport.abort()
                await until(lambda: len(rig.gateway._clients) == 1, 10)
                await until(lambda: plane.kept_bytes == 0)

    run(test())


def read_memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
