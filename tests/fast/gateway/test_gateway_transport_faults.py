"""Lines that misbehave, on either side of a real gateway: a bounded end, nothing left over, nobody else disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from faults import Delayed, HalfClosed, Reset, Silent, Slow, Split, Stalled, Torn, Vice
from frames import UPGRADE
from gateway_rig import Handler, read_request, until
from traffic import (
    BODY,
    BOUND_S,
    GREETING,
    REQUEST,
    RFB_KEY,
    SWITCHING,
    TRAFFIC,
    Scene,
    Visitor,
    run,
    send_frame,
    stop,
    terminal_frame,
)

from portico.gateway.limits import Limits


@pytest.fixture(autouse=True)
def no_defect_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


ODD_BUT_WHOLE = {"slow": Slow(), "delayed": Delayed(), "split": Split(seed=7), "split finely": Split(seed=3, most=3)}


@pytest.mark.parametrize("vice", ODD_BUT_WHOLE)
@pytest.mark.parametrize("place", ["client", "app"])
@pytest.mark.parametrize("name", TRAFFIC)
def test_what_arrives_late_or_in_pieces_arrives(name: str, place: str, vice: str) -> None:
    async def body(scene: Scene) -> None:
        assert await scene.play(there=ODD_BUT_WHOLE[vice]) == "whole"
        assert await scene.play(back=ODD_BUT_WHOLE[vice]) == "whole"
        assert await scene.play(ODD_BUT_WHOLE[vice], ODD_BUT_WHOLE[vice]) == "whole"

    run(body, TRAFFIC[name], place)


ENDS: dict[str, Callable[[int], Vice]] = {
    "torn": Torn,
    "half-closed": HalfClosed,
    "reset": Reset,
    "reset later": partial(Reset, turns=20),
}
HANGS: dict[str, Callable[[int], Vice]] = {"silent": Silent, "stalled": Stalled}


def expect_end(name: str, place: str, direction: str) -> str:
    """Return what a client must be told when a line ends in the middle of the last step."""
    if place == "client" or name == "websocket":
        return "cut"  # nobody is there to be told; or what is inside is not ours
    if name in ("rfb", "pty"):
        return "1000"
    return "502" if direction == "there" else "cut"


def expect_hang(name: str, place: str, direction: str) -> str:
    """Return what a client must be told when a line hangs; `waits` where it is for the client to lose patience."""
    if name in ("exchange", "again") and direction == "there":
        return "408" if place == "client" else "504"
    return "waits"


@pytest.mark.parametrize("vice", ENDS)
@pytest.mark.parametrize("direction", ["there", "back"])
@pytest.mark.parametrize("place", ["client", "app"])
@pytest.mark.parametrize("name", TRAFFIC)
def test_a_line_that_ends_halfway_is_told(name: str, place: str, direction: str, vice: str) -> None:
    async def body(scene: Scene) -> None:
        before, in_all = await scene.measure()
        way = ["there", "back"].index(direction)
        middle = (before[way] + in_all[way]) // 2
        assert await scene.play(**{direction: ENDS[vice](middle)}) == expect_end(name, place, direction)
        assert scene.line.struck.is_set()
        await scene.bystander.goes_on()

    run(body, TRAFFIC[name], place)


@pytest.mark.parametrize("vice", HANGS)
@pytest.mark.parametrize("direction", ["there", "back"])
@pytest.mark.parametrize("place", ["client", "app"])
@pytest.mark.parametrize("name", TRAFFIC)
def test_a_line_that_hangs_is_given_up(name: str, place: str, direction: str, vice: str) -> None:
    expected = expect_hang(name, place, direction)

    async def body(scene: Scene) -> None:
        before, in_all = await scene.measure()
        way = ["there", "back"].index(direction)
        setattr(scene.line, direction, HANGS[vice]((before[way] + in_all[way]) // 2))
        async with scene.visiting() as visitor:
            playing = asyncio.create_task(visitor.play())
            async with asyncio.timeout(BOUND_S):
                await scene.line.struck.wait()
                await scene.bystander.goes_on(20)
                if expected != "waits":
                    assert await playing == expected
                    return
            assert not playing.done() and not visitor.has_ended
            if name in ("rfb", "pty"):  # pings look after it
                assert all(math.isfinite(one.deadline) for one in scene.rig.gateway._clients)
            await stop(playing)

    run(body, TRAFFIC[name], place, Limits(body_stall_s=0.6, app_answer_s=0.6) if expected != "waits" else None)


@pytest.mark.parametrize("turns", [0, 20])
@pytest.mark.parametrize("direction", ["there", "back"])
@pytest.mark.parametrize("place", ["client", "app"])
@pytest.mark.parametrize("name", TRAFFIC)
def test_a_reset_at_every_byte_leaves_nothing(name: str, place: str, direction: str, turns: int) -> None:
    async def body(scene: Scene) -> None:
        _, in_all = await scene.measure()
        for at in range(in_all[["there", "back"].index(direction)] + 1):
            ended = await scene.play(**{direction: Reset(at, turns)})
            if place == "client":
                assert ended in ("cut", "whole"), at
            else:
                assert ended in ("502", "cut", "1000", "whole"), at

    run(body, TRAFFIC[name], place)


def test_what_may_be_said_twice_is_said_again_where_a_kept_connection_breaks() -> None:
    get = REQUEST.replace(b"POST", b"GET") + b"\r\n"

    async def body(scene: Scene) -> None:
        before, in_all = await scene.measure()
        for at in range(before[0] + 1, in_all[0] + 1):
            assert await scene.play(there=Reset(at)) == "whole", at
        assert await scene.play(back=Reset(before[1])) == "whole", "nothing of the answer had come"
        assert await scene.play(back=Reset(before[1] + 1)) == "502"

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    steps = ((get, 200, b"x"), (get, 200, b"xx"))
    run(body, replace(TRAFFIC["again"], app=count, steps=steps), "app")


# back-pressure

MUCH = 8 << 20
POURED = {
    "exchange": REQUEST + b"Content-Length: %d\r\n\r\n" % MUCH + bytes(MUCH),
    "websocket": bytes(MUCH),
    "rfb": send_frame(RFB_KEY * 8000) * (MUCH // 64_000),
    "pty": send_frame(bytes(64_000)) * (MUCH // 64_000),
}
KEPT_BYTES = 1 << 20
"""More than one read for either end is never kept."""


@contextlib.asynccontextmanager
async def pouring_in(scene: Scene, name: str) -> AsyncIterator[tuple[Visitor, asyncio.Task[str]]]:
    """Give the app more than it takes: it stops reading where the last step begins."""
    before, _ = await scene.measure()
    scene.line.there = Stalled(before[0])
    last = (POURED[name], 0, b"never")
    scene = replace(scene, traffic=replace(scene.traffic, steps=(*scene.traffic.steps[:-1], last)))
    async with scene.visiting() as visitor:
        playing = asyncio.create_task(visitor.play())
        plane = scene.rig.gateway.plane
        await until(lambda: plane.kept_bytes, BOUND_S, "the gateway keeps what the app does not take")
        await scene.bystander.goes_on(20)
        assert 0 < plane.kept_bytes < KEPT_BYTES and not playing.done()
        yield visitor, playing
        await stop(playing)


@pytest.mark.parametrize("name", POURED)
def test_a_client_that_resets_is_noticed_although_its_app_reads_nothing(name: str) -> None:
    async def body(scene: Scene) -> None:
        async with pouring_in(scene, name) as (visitor, _):
            visitor.reset()
            await until(lambda: len(scene.rig.gateway._clients) == 1, BOUND_S, "the bystander is alone")
            assert scene.rig.gateway.plane.kept_bytes == 0

    run(body, TRAFFIC[name], "app")


def test_a_client_that_resets_is_noticed_although_its_app_has_closed_its_ear() -> None:
    is_deaf, may_go = asyncio.Event(), asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").shutdown(socket.SHUT_RD)  # what it would say may still come
        is_deaf.set()
        await may_go.wait()

    async def body(scene: Scene) -> None:
        async with scene.visiting() as visitor, asyncio.timeout(BOUND_S):
            visitor.say(visitor.steps[0][0][:-50])
            await is_deaf.wait()
            visitor.say(visitor.steps[0][0][-50:-25])
            await scene.bystander.goes_on(20)
            visitor.reset()
            await until(lambda: len(scene.rig.gateway._clients) == 1, BOUND_S, "the bystander is alone")
            may_go.set()

    run(body, replace(TRAFFIC["exchange"], app=deaf), "client")


def test_an_app_that_takes_no_upload_is_to_blame() -> None:
    async def body(scene: Scene) -> None:
        async with pouring_in(scene, "exchange") as (_, playing), asyncio.timeout(BOUND_S):
            assert await playing == "504"

    run(body, TRAFFIC["exchange"], "app", Limits(body_stall_s=0.6))


def pour_behind(said: bytes, *, answers: bool) -> Handler:
    """Return an app that says this and then more than anybody takes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answers:
            await read_request(reader)
        writer.write(said)
        for _ in range(MUCH // 65536):
            writer.write(bytes(65536))
            await writer.drain()

    return handler


POURING = {
    "exchange": pour_behind(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MUCH, answers=True),
    "chunks": pour_behind(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % MUCH, answers=True),
    "websocket": pour_behind(SWITCHING, answers=True),
    "rfb": pour_behind(GREETING, answers=False),
    "pty": pour_behind(b"", answers=False),
}


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("name", POURING)
def test_a_client_that_takes_nothing_costs_little_and_is_given_up(name: str, leaves: bool) -> None:
    first = TRAFFIC[name if name in TRAFFIC else "exchange"]
    traffic = replace(first, app=POURING[name], steps=((first.steps[0][0], 0, b"never"),))

    async def body(scene: Scene) -> None:
        scene.line.back = Stalled(100)
        async with scene.visiting() as visitor:
            playing = asyncio.create_task(visitor.play())
            gateway = scene.rig.gateway
            await until(lambda: gateway.plane.kept_bytes, BOUND_S, "the gateway keeps what the client does not take")
            await scene.bystander.goes_on(20)
            assert 0 < gateway.plane.kept_bytes < KEPT_BYTES
            if not leaves:  # TCP_USER_TIMEOUT is dead_s
                await until(lambda: len(gateway._clients) == 1, BOUND_S, "the gateway has given it up")
                assert gateway.plane.kept_bytes == 0
                await scene.bystander.goes_on()
            await stop(playing)

    run(body, traffic, "client", None if leaves else Limits(dead_s=1), buffer_bytes=8192)


# what an app says last


def test_what_an_app_said_last_arrives_although_its_client_speaks_on() -> None:
    """A program prints a lot and ends; a key that is pressed meanwhile goes nowhere, and takes nothing away."""
    scenes: list[Scene] = []
    said = bytearray()

    async def brief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not scenes[0].rig.gateway.plane.kept_bytes:
            writer.write(bytes(4096))
            said.extend(bytes(4096))
            await asyncio.sleep(0)
        last = terminal_frame(b"o", b"done\n") + terminal_frame(b"e", bytes(4))
        said.extend(last)
        writer.write(last)

    async def body(scene: Scene) -> None:
        scenes.append(scene)
        scene.line.back = stalled = Stalled(100)
        metrics = scene.rig.gateway.metrics
        async with scene.visiting() as visitor:
            visitor.say(visitor.steps[0][0])
            await until(lambda: said[-5:-4] == b"\4" and not scene.app.open, BOUND_S, "all is said")
            key = b"a key" * 1000  # longer than what the bystander says meanwhile
            before = metrics.in_bytes
            visitor.say(send_frame(key))
            await until(lambda: metrics.in_bytes >= before + len(key), BOUND_S, "the gateway has read the key")
            stalled.until.set()
            await until(lambda: visitor.heard.code, BOUND_S, "the end is told")
            assert (visitor.heard.code, visitor.heard.payload == bytes(said)) == (1000, True)

    run(body, replace(TRAFFIC["pty"], app=brief, steps=((UPGRADE, 101, b""),)), "client", buffer_bytes=8192)


def test_an_answer_that_began_before_its_request_ended_has_time() -> None:
    has_all = asyncio.Event()

    async def eager(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:50])
        await reader.readexactly(len(BODY))
        has_all.set()
        await reader.read()  # silent, until the connection ends

    async def body(scene: Scene) -> None:
        async with scene.visiting() as visitor:
            post = visitor.steps[0][0]
            visitor.say(post[:-50])
            await until(lambda: visitor.heard.payload == BODY[:50], BOUND_S, "the answer has begun")
            visitor.say(post[-50:])
            async with asyncio.timeout(BOUND_S):
                await has_all.wait()
            assert [one.deadline for one in scene.find_clients()] == [math.inf]

    run(body, replace(TRAFFIC["exchange"], app=eager), "client")
