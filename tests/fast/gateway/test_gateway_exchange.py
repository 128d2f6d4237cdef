"""Requests through a real gateway, over TCP, to a portal and to apps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from gateway_rig import (
    SESSION,
    Rig,
    answering,
    echo_bytes,
    read_request,
    resident_bytes,
    serve_echo,
    until,
)

from portico.errors import Forbidden
from portico.gateway.limits import Limits

PATH = f"/s/{SESSION}/".encode()


def run(body: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), Rig(**options) as rig:
            await body(rig)

    asyncio.run(main())


# the portal's listener


def test_a_page_comes_from_the_portal_and_the_connection_is_kept() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(b"GET /a?b=c HTTP/1.1\r\nHost: HOST\r\nCookie: portico=x\r\n\r\n") as raw:
            for _ in range(3):
                reply = await raw.answer()
                assert reply.status == 200
                raw.send(b"GET /a?b=c HTTP/1.1\r\nHost: HOST\r\nCookie: portico=x\r\n\r\n")
            assert (await raw.answer()).body.startswith(b"GET /a?b=c HTTP/1.1\r\n")
            assert b"Cookie: portico=x\r\n" in reply.body
        assert rig.portal.http_connections == 1

    run(body)


def test_what_a_client_claims_about_itself_is_replaced() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(
            b"GET / HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-For: 1.2.3.4\r\nX-Portico-Listener: apps\r\n"
            b"X_Portico_Listener: apps\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 1.2.3.4\r\n"
            b"Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Kept: yes\r\n\r\n"
        ) as raw:
            text = (await raw.answer()).body.decode().lower()
        assert "1.2.3.4" not in text and "x-secret" not in text and "te:" not in text and "upgrade" not in text
        assert "x-portico-listener: portal\r\n" in text and text.count("portico") == 1
        assert "x-forwarded-for: 127.0.0.1\r\n" in text and "x-forwarded-proto: http\r\n" in text
        assert "x-kept: yes" in text

    run(body)


def test_a_trusted_proxy_is_believed() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(
            b"GET / HTTP/1.1\r\nHost: HOST\r\nX-Forwarded-For: 6.6.6.6, 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
        ) as raw:
            text = (await raw.answer()).body.decode()
        assert "X-Forwarded-For: 1.2.3.4\r\n" in text and "X-Forwarded-Proto: https\r\n" in text

    run(body, trusted=frozenset({"127.0.0.1"}))


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost", "localhost:1", "HOST.", "HOST.evil.example", "xHOST", ""]
)
def test_another_host_is_misdirected(host: str) -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) as raw:
            assert (await raw.answer()).status == 421
        assert rig.portal.http_connections == 0

    run(body)


def test_bodies_both_ways_with_length_and_in_chunks() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(b"POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello") as raw:
            assert (await raw.answer()).body.endswith(b"\r\n\r\nhello")
            raw.send(
                b"POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n"
            )
            raw.send(b"GET /pipelined HTTP/1.1\r\nHost: HOST\r\n\r\n")
            assert (await raw.answer()).body.endswith(b"\r\n\r\nabcde")
            assert (await raw.answer()).body.startswith(b"GET /pipelined")

    run(body)


def test_continue_is_said_before_the_body() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(
            b"PUT /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        ) as raw:
            assert (await raw.answer()).status == 100
            raw.send(b"ok")
            reply = await raw.answer()
            assert reply.body.endswith(b"\r\n\r\nok") and b"expect" not in reply.body.lower()

    run(body)


@pytest.mark.parametrize("framing", [b"Content-Length: 2000000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_beyond_the_limit_is_refused(framing: bytes) -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(b"POST /a HTTP/1.1\r\nHost: HOST\r\n" + framing + b"\r\n") as raw:
            raw.send(b"%x\r\n" % 2_000_000 + b"x" * 1_100_000)
            reply = await raw.answer()
            assert reply.status == 413 and reply.all("connection") == ["close"]
            await raw.rest()

    run(body, limits=Limits(portal_body_bytes=1 << 20))


def test_http_1_0_and_head() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(b"GET / HTTP/1.0\r\nHost: HOST\r\n\r\n") as raw:
            assert (await raw.answer()).all("connection") == ["close"]
            assert await raw.rest() == b""
        async with rig.exchange(b"HEAD / HTTP/1.1\r\nHost: HOST\r\n\r\nGET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as raw:
            reply = await raw.answer(head_only=True)
            assert reply.all("content-length") == ["17"]
            assert (await raw.answer()).status == 200

    run(body)


def test_a_portal_that_is_away_gets_a_page_that_retries() -> None:
    async def body(rig: Rig) -> None:
        await rig.portal.stop()
        for apps in (False, True):
            async with rig.exchange(b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=apps) as raw:
                reply = await raw.answer()
                assert reply.status == 503 and reply.all("retry-after") and b"http-equiv=refresh" in reply.body
                assert reply.all("cache-control") == ["no-store"]
        await rig.portal.start()
        async with rig.exchange(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as raw:
            assert (await raw.answer()).status == 200
        await until(lambda: len(rig.portal.hellos) == 2)

    run(body)


def test_a_kept_connection_that_the_portal_closed_is_replaced() -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        await read_request(reader)  # and is gone in the middle of the second

    async def body(rig: Rig) -> None:
        rig.portal.respond = closing
        async with rig.exchange(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as raw:
            for _ in range(4):
                assert (await raw.answer()).body == b"ok"
                raw.send(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n")
            await raw.answer()
            raw.send(b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nx")
            assert (await raw.answer()).status == 502  # it may have been carried out: never sent twice

    run(body)


def test_a_kept_connection_that_has_ended_is_not_used_for_what_cannot_be_sent_twice() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async def body(rig: Rig) -> None:
        rig.portal.respond = once
        async with rig.exchange(b"") as raw:
            for _ in range(3):
                raw.send(b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nx")
                assert (await raw.answer()).status == 200
                await until(lambda: not rig.portal._http.open)
        assert rig.portal.http_connections == 3

    run(body)


# apps


def test_an_app_gets_no_secret_of_ours_and_sets_none() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: portico=evil\r\nSet-Cookie: __Host-portico=evil; Path=/\r\n"
            b"Set-Cookie: PORTICO-app-x=evil\r\nSet-Cookie: =portico=evil\r\nSet-Cookie: _xsrf=1; Domain=localhost; Path=/\r\n"
            b'Clear-Site-Data: "*"\r\nX-Portico-Listener: portal\r\nService-Worker-Allowed: /\r\n'
            b"Content-Length: %d\r\n\r\n%b" % (len(head), head)
        )
        await writer.drain()

    async def body(rig: Rig) -> None:
        await rig.route_http(app)
        async with rig.exchange(
            b"GET " + PATH + b"x?q=secret HTTP/1.1\r\nHost: HOST\r\nOrigin: http://HOST\r\nAuthorization: token t\r\n"
            b"Cookie: a=1; portico-app-kabc=s; __Host-portico=s; portico=s; b=2\r\nX-Portico-Listener: portal\r\n\r\n",
            apps=True,
        ) as raw:
            reply = await raw.answer()
        text = reply.body.decode()
        assert "Cookie: a=1; b=2\r\n" in text and "=s" not in text.replace("q=secret", "") and "token" not in text
        assert (
            f"Host: localhost:{rig.apps_port}\r\n" in text and f"Origin: http://localhost:{rig.apps_port}\r\n" in text
        )
        assert "x-portico" not in text.lower()
        assert reply.all("set-cookie") == ["_xsrf=1; Path=/"]
        for name in ("clear-site-data", "x-portico-listener", "service-worker-allowed"):
            assert not reply.all(name)
        asked = rig.portal.asked[0]
        assert asked["target"] == f"/s/{SESSION}/x" and asked["method"] == "GET" and asked["upgrade"] is False
        assert asked["headers"]["origin"] == f"http://localhost:{rig.apps_port}" and asked["listener"] == "apps"

    run(body)


def test_a_decision_is_kept_for_exactly_what_it_was_made_for() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_http(serve_echo, cache_s=60)

        async def ask(headers: bytes = b"", path: bytes = PATH + b"x", method: bytes = b"GET") -> int:
            async with rig.exchange(
                method + b" " + path + b" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n" + headers + b"\r\n",
                apps=True,
            ) as raw:
                assert (await raw.answer()).status == 200
            return len(rig.portal.asked)

        assert await ask(b"Cookie: portico-app=1\r\n") == 1
        assert await ask(b"Cookie: portico-app=1\r\n", PATH + b"y?z") == 1
        assert await ask(b"Cookie: portico-app=2\r\n") == 2
        assert await ask(b"Cookie: portico-app=1\r\nOrigin: http://evil\r\n") == 3
        assert await ask(b"Cookie: portico-app=1\r\n", b"/s/kzzzzzzzzzz1/") == 4
        assert await ask(b"Cookie: portico-app=1\r\nSec-Fetch-Site: cross-site\r\n") == 5
        assert await ask(b"Cookie: portico-app=1\r\n", method=b"DELETE") == 6
        await rig.portal.cut("sign-in:1")
        assert await ask(b"Cookie: portico-app=1\r\n") == 7

    run(body)


def test_connections_to_an_app_are_kept_and_asked_for() -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_http(serve_echo, cache_s=60)
        request = b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n"
        async with rig.exchange(request, apps=True) as one:
            await one.answer()
            one.send(request)
            await one.answer()
        assert (app.connections, rig.portal.connects) == (1, [])
        await asyncio.gather(*(ask_once(rig, request) for _ in range(8)))
        assert 1 < app.connections <= 8 and set(rig.portal.connects) == {SESSION}
        await rig.portal.cut(f"session:{SESSION}")
        await until(lambda: app.open == 0, what="all connections to the app closed")

    async def ask_once(rig: Rig, request: bytes) -> None:
        async with rig.exchange(request, apps=True) as raw:
            assert (await raw.answer()).status == 200

    run(body)


def test_an_answer_and_an_error_of_the_portal_are_given() -> None:
    async def body(rig: Rig) -> None:
        rig.portal.way = {"kind": "answer", "status": 401, "headers": {"X-Why": "é"}, "body": "sign in"}
        request = b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n"
        async with rig.exchange(request, apps=True) as raw:
            reply = await raw.answer()
            assert (reply.status, reply.body, reply.all("x-why")) == (401, b"sign in", ["é"])

            async def refuse(request: Any) -> Any:
                raise Forbidden("<b>No.</b>", why="Because.")

            rig.portal.decide = refuse
            raw.send(request)
            reply = await raw.answer()
            assert reply.status == 403 and b"&lt;b&gt;No." in reply.body and b"Because." in reply.body

            async def mumble(request: Any) -> Any:
                return {"kind": "http", "tags": "x"}, []

            rig.portal.decide = mumble
            raw.send(request)
            assert (await raw.answer()).status == 502

    run(body)


ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: 1\r\n\r\n",
        False,
    ),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nhello", True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: a\r\n\r\nhello", True),
    "early hints": (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_ways_in_which_an_answer_ends(name: str, version: bytes) -> None:
    async def body(rig: Rig) -> None:
        await rig.route_http(answering(ANSWERS[name][0], close=ANSWERS[name][1]))
        async with rig.exchange(b"GET " + PATH + b" HTTP/" + version + b"\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            reply = await raw.answer()
            assert (reply.status, reply.body) == (200, b"hello")
            assert version == b"1.1" or not reply.all("transfer-encoding")

    run(body)


BROKEN = {
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 O",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "switching unasked": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "hints for ever": b"HTTP/1.1 103 Early\r\n\r\n" * 50,
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_app_that_answers_nonsense_is_a_bad_gateway(name: str) -> None:
    async def body(rig: Rig) -> None:
        await rig.route_http(answering(BROKEN[name], close=True))
        async with rig.exchange(b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            assert (await raw.answer()).status == 502

    run(body)


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ],
)
def test_a_cut_answer_is_never_taken_for_a_whole_one(cut: bytes) -> None:
    async def body(rig: Rig) -> None:
        await rig.route_http(answering(cut, close=True))
        request = b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"
        async with rig.exchange(request, apps=True) as raw:
            rest = await raw.rest()
            assert rest.startswith((b"HTTP/1.1 200", b"HTTP/1.1 502")) and not rest.endswith(b"0\r\n\r\n")
            assert not (b" 200 " in rest and b" 502 " in rest)

    run(body)


def test_an_early_answer_ends_an_upload() -> None:
    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 3\r\n\r\nno!")
        await writer.drain()
        await asyncio.sleep(0.2)

    async def body(rig: Rig) -> None:
        await rig.route_http(impatient)
        async with rig.exchange(
            b"POST " + PATH + b" HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 100_000,
            apps=True,
        ) as raw:
            reply = await raw.answer()
            assert (reply.status, reply.body, reply.all("connection")) == (413, b"no!", ["close"])

    run(body)


def test_large_bodies_both_ways_in_little_memory() -> None:
    size = 64 << 20

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            got = 0
            while got < size:
                got += len(await reader.read(1 << 20))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            block = bytes(range(256)) * 256
            for _ in range(size // len(block)):
                writer.write(block)
                await writer.drain()
        await writer.drain()

    async def body(rig: Rig) -> None:
        await rig.route_http(mirror)
        before = resident_bytes()
        async with rig.exchange(
            b"POST " + PATH + b" HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n" % size, apps=True
        ) as raw:
            for _ in range(64):
                raw.writer.write(bytes(1 << 20))
                await raw.writer.drain()
            assert (await raw.answer(20)).body == b"ok"
        async with rig.exchange(b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            await raw.reader.readuntil(b"\r\n\r\n")
            got, block = 0, bytes(range(256)) * 256
            while got < size:
                assert await raw.reader.readexactly(len(block)) == block
                got += len(block)
        assert resident_bytes() - before < 48 << 20  # reader's and writer's buffers of this test are in it

    run(body)


def test_events_arrive_at_once_and_end_with_the_client() -> None:
    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            data = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0.05)
        await reader.read()  # then silent, until the connection ends

    async def body(rig: Rig) -> None:
        app = await rig.route_http(events)
        async with rig.exchange(b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            await raw.reader.readuntil(b"\r\n\r\n")
            for number in range(3):
                begin = time.monotonic()
                assert await raw.reader.readuntil(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
                assert time.monotonic() - begin < 1
        await until(lambda: app.open == 0, 1, "the app learned that its client has gone")

    run(body)


def test_a_client_that_leaves_while_an_app_thinks_is_noticed() -> None:
    async def thinking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async def body(rig: Rig) -> None:
        app = await rig.route_http(thinking)
        async with rig.exchange(b"POST " + PATH + b" HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nx", apps=True):
            await until(lambda: app.open)
        await until(lambda: app.open == 0, 1)

    run(body)


def test_a_cut_ends_a_download_and_what_is_waiting() -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_http(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"))
        async with rig.exchange(b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            await raw.reader.readuntil(b"\r\n\r\nx")
            assert await rig.portal.cut("user:bob") == 0
            await rig.portal.cut("user:alice")
            assert await raw.rest(1) == b""
            await until(lambda: app.open == 0, 1)

    run(body)


def test_a_decision_from_before_a_cut_is_not_followed() -> None:
    async def body(rig: Rig) -> None:
        app = await rig.route_http(serve_echo)
        decide = rig.portal.decide

        async def slow(request: Any) -> Any:
            if len(rig.portal.asked) == 1:
                decision = await decide(request)
                await rig.portal.cut("user:alice")
                return decision
            return {"kind": "answer", "status": 403, "headers": {}, "body": "no more"}, []

        rig.portal.decide = slow
        async with rig.exchange(b"GET " + PATH + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            assert (await raw.answer()).status == 403
        await until(lambda: app.open == 0, 1)

    run(body)


# limits and the end


def test_a_slow_head_and_an_idle_connection_end() -> None:
    async def body(rig: Rig) -> None:
        async with rig.exchange(b"GET / HTTP/1.1\r\nHo") as raw:
            assert b" 408 " in await raw.rest(3)
        async with rig.exchange(b"") as raw:
            assert await raw.rest(3) == b""
        async with rig.exchange(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as raw:
            await raw.answer()
            assert await raw.rest(3) == b""

    run(body, limits=Limits(head_s=0.2, idle_s=0.2))


def test_connections_are_limited_per_address() -> None:
    async def body(rig: Rig) -> None:
        kept = [await rig.open() for _ in range(3)]
        await until(lambda: len(rig.gateway._clients) == 3)
        async with rig.exchange(b"") as raw:
            assert (await raw.rest()).startswith(b"HTTP/1.1 503 ")
        for raw in kept:
            await raw.close()
        await until(lambda: not rig.gateway._clients)
        async with rig.exchange(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as raw:
            assert (await raw.answer()).status == 200

    run(body, limits=Limits(connections_per_address=3))


def test_closing_finishes_what_is_in_flight_and_nothing_else() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(0.3)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async def body(rig: Rig) -> None:
        rig.portal.respond = slow
        idle = await rig.open()
        async with rig.exchange(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n") as raw:
            await until(lambda: rig.portal.http_connections)
            begin = time.monotonic()
            await rig.gateway.close()
            assert 0.1 < time.monotonic() - begin < 30, "it waited for the answer, and no longer than for that"
            reply = await raw.answer()
            assert (reply.body, reply.all("connection")) == (b"ok", ["close"])
        assert await idle.rest() == b""
        await idle.close()

    run(body, limits=Limits(close_s=60))


def test_an_app_that_is_a_stream_needs_an_upgrade() -> None:
    async def body(rig: Rig) -> None:
        await rig.route_stream(echo_bytes)
        async with rig.exchange(b"GET /x HTTP/1.1\r\nHost: HOST\r\n\r\n", apps=True) as raw:
            assert (await raw.answer()).status == 502

    run(body)
