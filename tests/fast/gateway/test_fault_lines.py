"""The lines of the other tests misbehave as they say, on TCP and on Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from faults import HONEST, Delayed, HalfClosed, Line, Reset, Silent, Slow, Split, Stalled, Torn, Vice
from gateway_rig import until

HELLO = b"hello, world"


class Peer:
    """The far end: keeps what it hears, says HELLO once it has heard something, and waits for the end."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.end = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.heard.append(data)
                writer.write(HELLO)
            self.end = "closed"
        except ConnectionError:
            self.end = "reset"
        writer.close()


@contextlib.asynccontextmanager
async def calling(
    kind: str, folder: Path, there: Vice, back: Vice = HONEST
) -> AsyncIterator[tuple[Peer, Line, asyncio.StreamReader, asyncio.StreamWriter]]:
    peer = Peer()
    target: Path | int = folder / "peer.sock"
    if kind == "unix":
        server = await asyncio.start_unix_server(peer.serve, str(target))
    else:
        server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
        target = server.sockets[0].getsockname()[1]
    async with server, Line(target, there, back) as line:
        sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        sock.connect(str(line.path) if kind == "unix" else ("127.0.0.1", line.port))
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            yield peer, line, reader, writer
        finally:
            writer.transport.abort()


Body = Callable[[Peer, Line, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(body: Body, kind: str, folder: Path, there: Vice, back: Vice = HONEST) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), calling(kind, folder, there, back) as ends:
            await body(*ends)

    asyncio.run(main())


both_kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


@both_kinds
@pytest.mark.parametrize(
    "vice", [HONEST, Slow(), Slow(step=5), Delayed(), Split(seed=1), Split(seed=2, most=2)], ids=repr
)
def test_all_arrives_and_the_end_too(kind: str, vice: Vice, tmp_path: Path) -> None:
    async def body(peer: Peer, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await until(lambda: b"".join(peer.heard) == HELLO)
        if vice == Slow():
            assert len(peer.heard) > 1
        writer.write_eof()
        assert (await reader.read()).startswith(HELLO) and peer.end == "closed"
        assert line.passed[0] == len(HELLO) and not line.struck.is_set()

    run(body, kind, tmp_path, vice, vice)


@both_kinds
@pytest.mark.parametrize("make", [Silent, Stalled, HalfClosed, Torn, Reset, partial(Reset, turns=9)])
def test_what_comes_behind_the_fifth_byte(kind: str, make: Callable[[int], Vice], tmp_path: Path) -> None:
    vice = make(5)

    async def body(peer: Peer, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await line.struck.wait()
        if isinstance(vice, Reset):
            with contextlib.suppress(ConnectionResetError):  # on a Unix socket the break may come as an end
                assert await reader.read() == b""
            await until(lambda: peer.end)
            assert kind == "unix" or peer.end == "reset" or vice.turns == 0
        elif isinstance(vice, Torn):
            assert await reader.read() == b"" or peer.heard
            await until(lambda: peer.end == "closed")
        elif isinstance(vice, HalfClosed):
            assert await reader.read() == HELLO  # the other direction goes on
            assert peer.end == "closed"
        else:
            assert await reader.readexactly(len(HELLO)) == HELLO
            assert not peer.end
        assert HELLO[:5].startswith(b"".join(peer.heard))
        if isinstance(vice, Stalled):
            vice.until.set()
            await until(lambda: b"".join(peer.heard) == HELLO)

    run(body, kind, tmp_path, vice)


@both_kinds
def test_a_vice_ends_only_its_own_direction(kind: str, tmp_path: Path) -> None:
    async def body(peer: Peer, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        assert await reader.read() == HELLO[:3]
        writer.write(HELLO)
        await until(lambda: b"".join(peer.heard) == HELLO * 2)

    run(body, kind, tmp_path, HONEST, HalfClosed(3))


def test_a_stalled_line_stops_whoever_speaks(tmp_path: Path) -> None:
    async def body(peer: Peer, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(16 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await writer.drain()
        assert len(b"".join(peer.heard)) <= 100

    run(body, "tcp", tmp_path, Stalled(100))
