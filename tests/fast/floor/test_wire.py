"""portico.wire: messages, descriptors, and what happens when the other end misbehaves."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico import wire
from portico.errors import BY_CODE, NotFound, PorticoError, Refused, Unavailable, from_wire


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.settimeout(5)
    right.settimeout(5)
    yield left, right
    left.close()
    right.close()


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_message_arrives_with_its_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    reader, writer = os.pipe()
    wire.send(left, {"op": "take"}, [writer])
    os.close(writer)
    packet = wire.receive(right)
    assert packet is not None
    assert packet.body == {"op": "take"}
    os.write(packet.fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    assert not os.get_inheritable(packet.fds[0])
    wire.close_all([reader, *packet.fds])


def test_the_largest_message_fits_the_default_socket_buffer(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    body = {"text": "x" * (wire.MESSAGE_LIMIT_BYTES - len('{"text":""}'))}
    wire.send(left, body)
    packet = wire.receive(right)
    assert packet is not None
    assert packet.body == body


def test_a_larger_message_is_refused_by_the_sender(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(Refused):
        wire.send(pair[0], {"text": "x" * wire.MESSAGE_LIMIT_BYTES})


def test_a_cut_message_is_refused_and_its_descriptors_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    before = count_fds()
    socket.send_fds(left, [b"{" + b" " * (wire.MESSAGE_LIMIT_BYTES + 10) + b"}"], [0, 1])
    with pytest.raises(Refused):
        wire.receive(right)
    assert count_fds() == before


def test_more_descriptors_than_allowed_are_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    before = count_fds()
    socket.send_fds(left, [b"{}"], [0] * (wire.DESCRIPTOR_LIMIT + 4))
    with pytest.raises(Refused):
        wire.receive(right)
    assert count_fds() == before


@given(st.binary(max_size=200))
def test_parse_takes_any_bytes(data: bytes) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(wire.parse(data), dict)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(Refused):
        wire.parse(b"[" * 100_000)


def test_closing_is_told_from_an_empty_object(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    wire.send(left, {})
    left.close()
    assert wire.receive(right) == ({}, [])
    assert wire.receive(right) is None


@given(
    st.sampled_from(sorted(BY_CODE)),
    st.text(max_size=40),
    st.text(max_size=40),
)
def test_errors_survive_the_wire(code: str, message: str, why: str) -> None:
    error = from_wire({"code": code, "message": message, "why": why})
    again = from_wire(wire.parse(wire.render(error.to_wire())))
    assert (type(again), again.message, again.why) == (type(error), message, why)
    assert again.code == code


def test_credentials_are_the_kernels(pair: tuple[socket.socket, socket.socket]) -> None:
    assert wire.get_credentials(pair[0]) == (os.getpid(), os.getuid(), os.getgid())


async def echo(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
    if op == "missing":
        raise NotFound("There is no such thing.", hint="Look elsewhere.")
    if op == "slow":
        await asyncio.sleep(30)
    if op == "defect":
        raise ZeroDivisionError("oops")
    return {"op": op, **args}, fds


def run_with_channels(test: Any) -> Any:
    async def main() -> Any:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking, answering = wire.Channel(left, name="echo"), wire.Channel(right, echo)
        try:
            return await asyncio.wait_for(test(asking, answering), 20)
        finally:
            asking.close()
            answering.close()

    return asyncio.run(main())


def test_many_requests_at_once_each_get_their_own_answer() -> None:
    async def test(asking: wire.Channel, _: wire.Channel) -> None:
        answers = await asyncio.gather(*(asking.ask("n", {"n": n, "pad": "x" * 10_000}) for n in range(200)))
        assert [packet.body["n"] for packet in answers] == list(range(200))

    run_with_channels(test)


def test_descriptors_go_there_and_back_and_none_stays_open() -> None:
    async def test(asking: wire.Channel, _: wire.Channel) -> None:
        before = count_fds()
        for _round in range(50):
            reader, writer = os.pipe()
            packet = await asking.ask("back", {}, [writer])
            os.write(packet.fds[0], b"x")
            assert os.read(reader, 1) == b"x"
            wire.close_all([reader, *packet.fds])
        assert count_fds() == before

    run_with_channels(test)


def test_an_error_comes_back_as_itself() -> None:
    async def test(asking: wire.Channel, _: wire.Channel) -> None:
        with pytest.raises(NotFound, match="no such thing") as caught:
            await asking.ask("missing")
        assert caught.value.hint == "Look elsewhere."

    run_with_channels(test)


def test_a_defect_of_the_handler_reaches_the_log_and_the_peer() -> None:
    async def test(asking: wire.Channel, _: wire.Channel) -> None:
        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context))
        with pytest.raises(PorticoError, match="defect failed"):
            await asking.ask("defect")
        assert isinstance(seen[0]["exception"], ZeroDivisionError)

    run_with_channels(test)


def test_silence_ends_after_the_timeout_and_the_channel_goes_on() -> None:
    async def test(asking: wire.Channel, _: wire.Channel) -> None:
        with pytest.raises(Unavailable, match="does not answer"):
            await asking.ask("slow", timeout_s=0.05)
        assert (await asking.ask("after")).body == {"op": "after"}

    run_with_channels(test)


def test_whoever_waits_learns_that_the_other_end_died() -> None:
    async def test(asking: wire.Channel, answering: wire.Channel) -> None:
        waiting = asyncio.ensure_future(asking.ask("slow"))
        await asyncio.sleep(0.05)
        answering.close()
        with pytest.raises(Unavailable, match="closed"):
            await waiting
        await asyncio.wait_for(asking.wait_closed(), 5)
        with pytest.raises(Unavailable):
            await asking.ask("more")

    run_with_channels(test)


def test_rubbish_closes_the_channel() -> None:
    async def main() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = wire.Channel(right, echo)
        left.send(b"\xff\xfe not json")
        await asyncio.wait_for(channel.wait_closed(), 5)
        left.close()

    asyncio.run(main())


def test_a_flood_that_nobody_reads_waits_and_does_not_grow() -> None:
    async def main() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = wire.Channel(left)
        tasks = [asyncio.ensure_future(channel.notify("n", {"pad": "x" * 50_000})) for _ in range(100)]
        await asyncio.sleep(0.1)
        waiting = sum(not task.done() for task in tasks)
        assert waiting > 90, "the socket's own buffer holds a few; the rest must wait"
        channel.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, Unavailable) for result in results) == waiting
        right.close()

    asyncio.run(main())


def test_nobody_listens(tmp_path: Any) -> None:
    async def main() -> None:
        with pytest.raises(Unavailable, match="broker is not running"):
            await wire.connect(str(tmp_path / "no.sock"), name="broker")

    asyncio.run(main())


def test_listen_has_its_mode_at_once(tmp_path: Any) -> None:
    path = str(tmp_path / "x.sock")
    with wire.listen(path, 0o600):
        assert os.stat(path).st_mode & 0o777 == 0o600
    with wire.listen(path, 0o666):  # replaces the stale one
        assert os.stat(path).st_mode & 0o777 == 0o666


def test_an_answer_that_comes_as_its_asker_is_cancelled_leaves_no_descriptor() -> None:
    async def main() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking, answering = wire.Channel(left), wire.Channel(right, give)
        take = asking._take

        def take_and_cancel(packet: wire.Packet) -> None:
            take(packet)
            task.cancel()  # the answer is there, and nobody has woken yet

        asking._take = take_and_cancel  # type: ignore[method-assign]
        before = count_fds()
        task = asyncio.create_task(asking.ask("give"))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert count_fds() == before
        asking.close()
        answering.close()

    async def give(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer:
        return {}, [os.open("/dev/null", os.O_RDONLY)]

    asyncio.run(main())
