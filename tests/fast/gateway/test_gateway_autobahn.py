"""What the Autobahn test suite asks of a WebSocket server, of our streams, through a real gateway with an echo app.

The suite itself (PyPI autobahntestsuite 25.10.1) needs Python 2 and mostly sends text, which a stream refuses. So this
is its list of cases, each by its number there, with binary messages in the place of text. A stream is bytes: what comes
back is compared as bytes, however it is cut into messages. 12 and 13 are about compression, which is not offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass, field

import pytest
from frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, UPGRADE, make_close, make_frame, read_server_frame
from gateway_rig import Rig, until

HELLO = b"Hello, world!"
RAW = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
GREEK = "κόσμε".encode()
KIB, MIB = 1 << 10, 1 << 20
NORMAL, PROTOCOL, UNSUPPORTED, INVALID, TOO_BIG = 1000, 1002, 1003, 1007, 1009


@dataclass
class Case:
    """One case.

    Args:
        what: What is sent.
        parts: The bytes, part by part; each is given time to be read alone where ``alone``.
        echo: What the app must get, and, unless the connection fails, the client too.
        pongs: The pongs that are answered; of several at once the gateway may answer the last only (5.5.3).
        close: The close code that the server sends; 1000 where the client closes as it should.
        alone: Whether the parts come apart.
        chop: In pieces of so many bytes.
        closes: Whether there is a close among the parts.
    """

    what: str
    parts: list[bytes]
    echo: bytes = b""
    pongs: list[bytes] = field(default_factory=list)
    close: int = NORMAL
    alone: bool = False
    chop: int = 0
    closes: bool = False


def binary(payload: bytes, **more: int) -> bytes:
    return make_frame(BINARY, payload, **more)  # type: ignore[arg-type]


def first(payload: bytes) -> bytes:
    return make_frame(BINARY, payload, final=False)


def middle(payload: bytes) -> bytes:
    return make_frame(CONTINUATION, payload, final=False)


def last(payload: bytes) -> bytes:
    return make_frame(CONTINUATION, payload)


def ping(payload: bytes = b"") -> bytes:
    return make_frame(PING, payload)


def fragments(payload: bytes, size: int) -> bytes:
    """Return a message in fragments of one size."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    return first(parts[0]) + b"".join(middle(part) for part in parts[1:-1]) + last(parts[-1])


def frames(payload: bytes) -> bytes:
    """Return messages of the largest frame that is taken."""
    return b"".join(binary(payload[at : at + MIB]) for at in range(0, len(payload), MIB))


CASES: dict[str, Case] = {}

# 1: framing
for number, size in enumerate([0, 125, 126, 127, 128, 65535, 65536], 1):
    CASES[f"1.1.{number}"] = Case(f"text of {size} bytes", [make_frame(TEXT, b"*" * size)], close=UNSUPPORTED)
    CASES[f"1.2.{number}"] = Case(f"binary of {size} bytes", [binary(b"\xfe" * size)], b"\xfe" * size)
CASES["1.1.8"] = Case("text in chops", [make_frame(TEXT, b"*" * 65536)], close=UNSUPPORTED, chop=997)
CASES["1.2.8"] = Case("binary of 65536 bytes in chops", [binary(b"\xfe" * 65536)], b"\xfe" * 65536, chop=997)

# 2: pings and pongs
CASES |= {
    "2.1": Case("ping without payload", [ping()], pongs=[b""]),
    "2.2": Case("ping with text", [ping(HELLO)], pongs=[HELLO]),
    "2.3": Case("ping with bytes that are not UTF-8", [ping(RAW)], pongs=[RAW]),
    "2.4": Case("ping of 125 bytes", [ping(b"\xfe" * 125)], pongs=[b"\xfe" * 125]),
    "2.5": Case("ping of 126 bytes", [ping(b"\xfe" * 126)], close=PROTOCOL),
    "2.6": Case("ping of 125 bytes, byte by byte", [ping(b"\xfe" * 125)], pongs=[b"\xfe" * 125], chop=1),
    "2.7": Case("pong that nobody asked for", [make_frame(PONG)]),
    "2.8": Case("such a pong with payload", [make_frame(PONG, HELLO)]),
    "2.9": Case("such a pong, then a ping", [make_frame(PONG, HELLO) + ping(b"ping payload")], pongs=[b"ping payload"]),
    "2.10": Case(
        "ten pings", [ping(b"payload-%d" % n) for n in range(10)], pongs=[b"payload-%d" % n for n in range(10)]
    ),
    "2.11": Case(
        "ten pings, byte by byte",
        [ping(b"payload-%d" % n) for n in range(10)],
        pongs=[b"payload-%d" % n for n in range(10)],
        chop=1,
    ),
}

# 3: reserved bits
CASES |= {
    "3.1": Case("RSV 1", [binary(HELLO, rsv=1)], close=PROTOCOL),
    "3.2": Case("RSV 2 behind a good message", [binary(HELLO) + binary(HELLO, rsv=2) + ping()], HELLO, close=PROTOCOL),
    "3.3": Case("RSV 3, apart", [binary(HELLO), binary(HELLO, rsv=3), ping()], HELLO, close=PROTOCOL, alone=True),
    "3.4": Case("RSV 4, byte by byte", [binary(HELLO) + binary(HELLO, rsv=4) + ping()], HELLO, close=PROTOCOL, chop=1),
    "3.5": Case("RSV 5", [binary(RAW, rsv=5)], close=PROTOCOL),
    "3.6": Case("RSV 6 in a ping", [make_frame(PING, HELLO, rsv=6)], close=PROTOCOL),
    "3.7": Case("RSV 7 in a close", [make_frame(CLOSE, rsv=7)], close=PROTOCOL),
}

# 4: opcodes
for section, start in (("4.1", 3), ("4.2", 11)):
    for number in range(1, 6):
        bad = make_frame(start + number - 1, b"" if number in (1, 3) else b"reserved opcode payload")
        before = binary(HELLO) if number > 2 else b""
        CASES[f"{section}.{number}"] = Case(
            f"opcode {start + number - 1}",
            [before + bad + ping()],
            HELLO if before else b"",
            close=PROTOCOL,
            chop=number == 5,
        )

# 5: fragmentation
ONE, TWO = b"fragment1", b"fragment2"
for number, kind in (("5.1", PING), ("5.2", PONG)):
    CASES[number] = Case("control frame in fragments", [make_frame(kind, ONE, final=False) + last(TWO)], close=PROTOCOL)
for numbers, parts, case in [
    (("5.3", "5.4", "5.5"), [first(ONE), last(TWO)], Case("two fragments", [], ONE + TWO)),
    (
        ("5.6", "5.7", "5.8"),
        [first(ONE), ping(b"ping payload"), last(TWO)],
        Case("a ping between fragments", [], ONE + TWO, [b"ping payload"]),
    ),
    (("5.9", "5.10", "5.11"), [last(ONE), binary(HELLO)], Case("nothing to continue", [], close=PROTOCOL)),
    (("5.12", "5.13", "5.14"), [middle(ONE), binary(HELLO)], Case("nothing to go on with", [], close=PROTOCOL)),
]:
    for name, alone, chop in zip(numbers, (False, True, False), (0, 0, 1), strict=True):
        whole = parts if alone else [b"".join(parts)]
        CASES[name] = Case(case.what, whole, case.echo, case.pongs, case.close, alone, chop)
CASES |= {
    "5.15": Case(
        "a message in fragments, then a third",
        [first(ONE) + last(TWO) + middle(b"fragment3") + binary(b"fragment4")],
        ONE + TWO,
        close=PROTOCOL,
    ),
    "5.16": Case("open continuation first", [(middle(ONE) + first(TWO) + last(b"3")) * 2], close=PROTOCOL),
    "5.17": Case("final continuation first", [(last(ONE) + first(TWO) + last(b"3")) * 2], close=PROTOCOL),
    "5.18": Case("both fragments with an opcode", [first(ONE) + binary(TWO)], ONE, close=PROTOCOL),
}
for name, alone in (("5.19", False), ("5.20", True)):
    CASES[name] = Case(
        "five fragments with pings between",
        [
            first(b"1") + middle(b"2") + ping(b"pongme 1!"),
            middle(b"3") + middle(b"4") + ping(b"pongme 2!") + last(b"5"),
        ],
        b"12345",
        [b"pongme 1!", b"pongme 2!"],
        alone=alone,
    )

# 6: UTF-8. Text is refused whatever is in it, at its first frame; in binary no byte is looked at.
for name, text in {
    "6.1.1": b"",
    "6.2.1": "Hello-µ@ßöäüàá-UTF-8!!".encode(),
    "6.3.1": GREEK + b"\xed\xa0\x80edited",
    "6.4.1": GREEK + b"\xf4\x90\x80\x80edited",
    "6.5.1": b"hello\x24world",
    "6.7.1": b"\x00",
    "6.8.1": b"\xf8\x88\x80\x80\x80",
    "6.11.5": b"\xf4\x90\x80\x80",
    "6.12.1": b"\x80",
    "6.18.1": b"\xc0\xaf",
    "6.21.1": b"\xed\xa0\x80",
    "6.23.1": b"\xef\xbf\xbe",
}.items():
    CASES[f"{name} text"] = Case("text", [make_frame(TEXT, text)], close=UNSUPPORTED)
    CASES[f"{name} binary"] = Case("the same bytes as binary", [binary(text)], text)
CASES |= {
    "6.1.2": Case("empty text in fragments", [make_frame(TEXT, final=False) + last(b"")], close=UNSUPPORTED),
    "6.1.2 binary": Case("empty fragments", [first(b"") + middle(b"") + last(b"")]),
    "6.1.3 binary": Case("a fragment between empty ones", [first(b"") + middle(b"middle") + last(b"")], b"middle"),
    "6.2.4": Case("binary in fragments of one byte", [fragments(GREEK, 1)], GREEK),
}

# 7: closing
CASES |= {
    "7.1.1": Case("a message, then a close", [binary(HELLO)], HELLO),
    "7.1.2": Case("two closes", [make_close() + make_frame(CLOSE)]),
    "7.1.3": Case("a ping behind a close", [make_close() + ping()]),
    "7.1.4": Case("a message behind a close", [make_close() + binary(HELLO)]),
    "7.1.5": Case("a close between fragments", [first(ONE) + make_close() + last(TWO)], ONE),
    "7.1.6": Case(
        "256 KiB, then a close and a ping", [binary(b"B" * 256 * KIB) + make_close() + ping()], b"B" * 256 * KIB
    ),
    "7.3.1": Case("a close without a code", [make_close(None)]),
    "7.3.2": Case("a close of one byte", [make_frame(CLOSE, b"a")], close=PROTOCOL),
    "7.3.3": Case("a close with a code", [make_close()]),
    "7.3.4": Case("a close with a reason", [make_close(1000, b"Hello World!")]),
    "7.3.5": Case("a close with the longest reason", [make_close(1000, b"*" * 123)]),
    "7.3.6": Case("a close with a reason that is too long", [make_close(1000, b"*" * 124)], close=PROTOCOL),
    "7.5.1": Case("a reason that is not UTF-8", [make_close(1000, GREEK + b"\xed\xa0\x80edited")], close=INVALID),
}
for number, code in enumerate([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999], 1):
    CASES[f"7.7.{number}"] = Case(f"close code {code}", [make_close(code)])
for number, code in enumerate([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999], 1):
    CASES[f"7.9.{number}"] = Case(f"close code {code}", [make_close(code)], close=PROTOCOL)
CASES["7.13.1"] = Case("close code 5000", [make_close(5000)], close=PROTOCOL)
CASES["7.13.2"] = Case("close code 65535", [make_close(65535)], close=PROTOCOL)
for name, case in CASES.items():
    case.closes = name.startswith("7.") and name != "7.1.1"

# 9: limits. 9.1 is text; a frame has 1 MiB at most, so what is longer is several messages.
CASES |= {
    "9.1.1": Case("text of 64 KiB", [make_frame(TEXT, b"*" * 64 * KIB)], close=UNSUPPORTED),
    "9.2.1": Case("binary of 64 KiB", [binary(b"B" * 64 * KIB)], b"B" * 64 * KIB),
    "9.2.2": Case("256 KiB", [binary(b"B" * 256 * KIB)], b"B" * 256 * KIB),
    "9.2.3": Case("1 MiB", [binary(b"B" * MIB)], b"B" * MIB),
    "9.2.4 frame": Case("4 MiB in a frame", [binary(b"B" * 4 * MIB)], close=TOO_BIG),
    "9.2.4": Case("4 MiB", [frames(b"B" * 4 * MIB)], b"B" * 4 * MIB),
    "9.2.6": Case("16 MiB", [frames(b"B" * 16 * MIB)], b"B" * 16 * MIB),
    "9.4.1": Case("1 MiB in fragments of 64 bytes", [fragments(b"B" * MIB, 64)], b"B" * MIB),
    "9.4.4": Case("4 MiB in fragments of 4 KiB", [fragments(b"B" * 4 * MIB, 4 * KIB)], b"B" * 4 * MIB),
    "9.4.8": Case("4 MiB in fragments of 1 MiB", [fragments(b"B" * 4 * MIB, MIB)], b"B" * 4 * MIB),
    "9.6.1": Case("1 MiB in chops of 64 bytes", [binary(b"B" * MIB)], b"B" * MIB, chop=64),
    "9.6.6": Case("1 MiB in chops of 2 KiB", [binary(b"B" * MIB)], b"B" * MIB, chop=2048),
    "9.8.1": Case("1000 empty messages", [binary(b"") * 1000]),
    "9.8.3": Case("1000 messages of 64 bytes", [binary(b"m" * 64) * 1000], b"m" * 64000),
    "9.8.6": Case("200 messages of 16 KiB", [binary(b"m" * 16 * KIB) * 200], b"m" * 200 * 16 * KIB),
}

# 10: the server's own cutting
CASES["10.1.1"] = Case("65536 bytes in fragments of 1300", [fragments(b"*" * 65536, 1300)], b"*" * 65536)

# What the suite does not ask
CASES |= {
    "not masked": Case("a frame without a mask", [make_frame(BINARY, HELLO, mask=None)], close=PROTOCOL),
    "mask of zeros": Case("a mask that changes nothing", [make_frame(BINARY, HELLO, mask=bytes(4))], HELLO),
    "16 bit for 125": Case("a length in more bytes than needed", [binary(b"x" * 125, length_bytes=2)], close=PROTOCOL),
    "64 bit for 125": Case("a length in 8 bytes", [binary(b"x" * 125, length_bytes=8)], close=PROTOCOL),
    "64 bit for 65535": Case("a length in 8 bytes", [binary(b"x" * 65535, length_bytes=8)], close=PROTOCOL),
    "negative": Case("the sign bit of a length", [b"\x82\xff" + struct.pack(">Q", 1 << 63) + HELLO], close=PROTOCOL),
    "1 MiB and one byte": Case("a frame too large", [b"\x82\xff" + struct.pack(">Q", MIB + 1) + HELLO], close=TOO_BIG),
    "16 bit ping": Case("a ping with a long form", [make_frame(PING, b"x", length_bytes=2)], close=PROTOCOL),
    "text inside": Case("text between fragments", [first(ONE) + make_frame(TEXT, TWO)], ONE, close=PROTOCOL),
}


class Conversation:
    """What a client hears."""

    def __init__(self) -> None:
        self.echoed, self.pongs = bytearray(), list[bytes]()
        self.close: int | None = None

    async def hear(self, reader: asyncio.StreamReader) -> None:
        """Take frames until the server says goodbye."""
        while self.close is None:
            kind, payload = await read_server_frame(reader)
            if kind == BINARY:
                self.echoed += payload
            elif kind == PONG:
                self.pongs.append(payload)
            else:
                assert kind == CLOSE, kind
                self.close = struct.unpack(">H", payload[:2])[0]

    def has(self, case: Case) -> bool:
        """Return whether all that is asked for has come."""
        return self.echoed == case.echo and self.pongs[-1:] == case.pongs[-1:]


async def say(writer: asyncio.StreamWriter, case: Case) -> None:
    """Send a case's bytes, and take no offence if the server stops listening."""
    with contextlib.suppress(ConnectionError):
        for part in case.parts:
            for at in range(0, len(part), case.chop or len(part) or 1):
                writer.write(part[at : at + (case.chop or len(part))])
                await (asyncio.sleep(0) if case.chop == 1 else writer.drain())
            await writer.drain()
            if case.alone:
                await asyncio.sleep(0.01)


async def play(rig: Rig, case: Case) -> None:
    got = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            got.extend(data)
            writer.write(data)
            await writer.drain()

    app = await rig.route_stream(echo)
    async with rig.exchange(UPGRADE) as raw:
        assert (await raw.answer(head_only=True)).status == 101
        heard = Conversation()
        hearing = asyncio.create_task(heard.hear(raw.reader))
        saying = asyncio.create_task(say(raw.writer, case))
        if case.close == NORMAL and not case.closes:
            await saying
            await until(lambda: heard.has(case), 20, "an echo of all that was sent, and the last pong")
            raw.writer.write(make_close())
        await asyncio.wait_for(hearing, 20)
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        with contextlib.suppress(OSError):  # reset, where it did not read all that was sent
            raw.writer.write(make_close(heard.close))
            raw.writer.write_eof()
            assert await raw.reader.read() == b""  # nothing follows its goodbye
    assert heard.close == case.close
    assert case.echo.startswith(bytes(heard.echoed))
    assert heard.pongs == [one for one in case.pongs if one in heard.pongs]
    await until(lambda: got == case.echo and not app.open, 5, "the app has got it all, and no more")


@pytest.mark.parametrize("name", CASES)
def test_autobahn(name: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), Rig() as rig:
            await play(rig, CASES[name])

    asyncio.run(main())
