"""The gateway's core without I/O: the same is understood wherever it is cut in two, byte by byte, and broken off.

Random cuts are those of test_gateway_fuzz.py; here it is every position, of one example for each core.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from frames import BINARY, CONTINUATION, PING, make_close, make_frame

from portico.gateway import websocket as ws
from portico.gateway.body import Body
from portico.gateway.clipboard import (
    ANY,
    NOTHING,
    NOTIFY,
    PROVIDE,
    TEXT,
    Clipboard,
    Provided,
    render_capabilities,
    render_message,
    render_text,
)
from portico.gateway.filters import EXTENDED_CLIPBOARD, Filter, PtyViewer, RfbFilter
from portico.gateway.head import Framing, find_head_end, parse_request, parse_response
from portico.gateway.lines import LineReader

EVERY_BYTE_OF = 2000


@dataclass
class Read:
    """What a core made of its input so far; ``is_whole`` where it knows the end of what it reads, and has seen it."""

    payload: bytes = b""
    told: list[Any] = field(default_factory=list)
    is_whole: bool = False


def read_request_head(parts: list[bytes]) -> Read:
    buffer = b""
    for at, part in enumerate(parts):
        buffer += part
        if end := find_head_end(buffer, 1000):
            request = parse_request(buffer[:end])
            told = [request.method, request.target, request.get(b"host"), request.framing, request.length]
            return Read(buffer[end:] + b"".join(parts[at + 1 :]), told, True)
    return Read()


def read_answer_heads(parts: list[bytes]) -> Read:
    buffer, read = b"", Read()
    for part in parts:
        buffer += part
        while not read.is_whole and (end := find_head_end(buffer, 1000)):
            response = parse_response(buffer[:end], "GET")
            buffer = buffer[end:]
            read.told.append((response.status, response.framing, response.reusable))
            read.is_whole = response.status >= 200
    read.payload = buffer if read.is_whole else b""
    return read


def reading_body(framing: Framing, length: int = 0) -> Callable[[list[bytes]], Read]:
    def read(parts: list[bytes]) -> Read:
        body, behind, read = Body(framing, length), b"", Read()
        for part in parts:
            payload, rest = body.feed(part)
            read.payload, behind = read.payload + payload, behind + rest
        read.is_whole = body.done
        assert body.received == len(read.payload) and (body.done or not behind)
        read.told = [behind] if behind else []
        return read

    return read


def read_frames(parts: list[bytes]) -> Read:
    reader, read = ws.FrameReader(), Read()
    for part in parts:
        for kind, payload in reader.feed(part):
            if kind == ws.BINARY:
                read.payload += payload
            else:
                read.told.append((kind, payload))
                read.is_whole = kind == ws.CLOSE
    return read


def filtering(make: Callable[[], Filter]) -> Callable[[list[bytes]], Read]:
    def read(parts: list[bytes]) -> Read:
        one = make()
        one.hear(b"RFB 003.008\n")
        return Read(b"".join(one.feed(part) for part in parts))

    return read


def read_text(parts: list[bytes]) -> Read:
    one = Provided(PROVIDE | TEXT, 100)
    return Read(b"".join(one.feed(part) for part in parts))


def read_line(parts: list[bytes]) -> Read:
    reader = LineReader()
    for at, part in enumerate(parts):
        if found := reader.take(part):
            return Read(found[1] + b"".join(parts[at + 1 :]), [found[0]], True)
    return Read()


@dataclass
class Core:
    """A core, an input, and what is to be made of it."""

    read: Callable[[list[bytes]], Read]
    data: bytes
    expected: Read


HELLO = b"RFB 003.008\n\x01\x00"
KEY = struct.pack(">BBxxI", 4, 1, 0x61)
LOOK = bytes([3]) + bytes(9)
FENCE = struct.pack(">B3xIB", 248, 1, 5) + b"fence"
ENCODINGS = struct.pack(">BxHii", 2, 2, 7, 16)
ENCODINGS_TOO = struct.pack(">BxHiii", 2, 3, 7, 16, EXTENDED_CLIPBOARD)
OLD_TEXT = struct.pack(">B3xI", 6, 5) + b"hello"
AUDIO = struct.pack(">BBHBBI", 255, 1, 2, 3, 2, 44100)
SIZE = struct.pack(">BxHHBx", 251, 1, 1, 2) + bytes(32)
NOTICE = render_message(NOTIFY | TEXT)
ATTACH = b"a" + struct.pack(">IQ", 8, 5)
LARGE = bytes(range(256)) * 256
SAID = LOOK + KEY + OLD_TEXT + FENCE + render_text(b"hello") + ENCODINGS + AUDIO + SIZE + NOTICE + KEY + LOOK
TOO_LARGE = render_text(b"hello, but much too long") + KEY + struct.pack(">B3xI", 6, 9) + b"too long!" + KEY


def start_desktop(view_only: bool, out_bytes: int) -> bytes:
    """Return what goes on in the place of HELLO."""
    shared = HELLO[:-1] + bytes([view_only])
    return shared + struct.pack(">BxHii", 2, 2, 0, EXTENDED_CLIPBOARD) + render_capabilities(0, out_bytes)


CORES = {
    "request": Core(
        read_request_head,
        b"POST /a?b HTTP/1.1\r\nHost: h:1\r\nX: y\r\nContent-Length: 7\r\n\r\nbehind\n",
        Read(b"behind\n", ["POST", "/a?b", "h:1", Framing.LENGTH, 7], True),
    ),
    "answer": Core(
        read_answer_heads,
        b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Read(b"0\r\n\r\n", [(103, Framing.NONE, True), (200, Framing.CHUNKED, True)], True),
    ),
    "chunks": Core(
        reading_body(Framing.CHUNKED),
        b'5\r\nhello\r\n00b;a="b"\r\n, my world!\r\n1\r\n\n\r\n0;x\r\nA: b\r\nC:\r\n\r\nGET / HTTP',
        Read(b"hello, my world!\n", [b"GET / HTTP"], True),
    ),
    "length": Core(reading_body(Framing.LENGTH, 5), b"helloGET", Read(b"hello", [b"GET"], True)),
    "until the end": Core(reading_body(Framing.CLOSE), b"hello", Read(b"hello")),
    "frames": Core(
        read_frames,
        make_frame(BINARY, b"to")
        + make_frame(BINARY, b"get", final=False)
        + make_frame(PING, b"ping")
        + make_frame(CONTINUATION, LARGE[:126])
        + make_frame(PING)
        + make_close(1000, "grüß".encode())
        + make_frame(BINARY, b"never"),
        Read(b"toget" + LARGE[:126], [(9, b"ping"), (9, b""), (8, b"\x03\xe8" + "grüß".encode())], True),
    ),
    "a large frame": Core(read_frames, make_frame(BINARY, LARGE), Read(LARGE)),
    "a desktop's viewer": Core(
        filtering(lambda: RfbFilter(view_only=True)),
        HELLO + SAID,
        Read(start_desktop(True, 0) + LOOK + FENCE + ENCODINGS_TOO + LOOK),
    ),
    "a desktop's owner": Core(
        filtering(lambda: RfbFilter(view_only=False, clipboard=Clipboard(5, 9))),
        HELLO + SAID + TOO_LARGE,
        Read(start_desktop(False, 9) + SAID.replace(ENCODINGS, ENCODINGS_TOO) + NOTHING + KEY + KEY),
    ),
    "an owner without limits": Core(
        filtering(lambda: RfbFilter(view_only=False, clipboard=ANY)), HELLO + SAID, Read(HELLO + SAID)
    ),
    "a terminal's viewer": Core(
        filtering(PtyViewer),
        ATTACH + b"i\0\0\0\5hello" + ATTACH + b"r\0\0\0\4abcd" + b"i\0\0\0\0" + ATTACH,
        Read(ATTACH * 3),
    ),
    "a text": Core(read_text, render_text(b"hello")[12:], Read(render_text(b"hello")[12:])),
    "a line": Core(
        read_line, json.dumps({"open": "ö"}).encode() + b"\nbehind\n", Read(b"behind\n", [{"open": "ö"}], True)
    ),
}


def find_positions(data: bytes) -> Iterator[int]:
    """Yield every position; of something large those near its ends, and some between."""
    for at in range(len(data) + 1):
        if min(at, len(data) - at) < EVERY_BYTE_OF // 2 or at % 997 == 0:
            yield at


@pytest.mark.parametrize("name", CORES)
def test_a_cut_changes_nothing_wherever_it_is(name: str) -> None:
    core = CORES[name]
    assert core.read([core.data]) == core.expected
    for at in find_positions(core.data):
        assert core.read([core.data[:at], core.data[at:]]) == core.expected, at
    assert core.read([core.data[at : at + 1] for at in range(len(core.data))]) == core.expected


@pytest.mark.parametrize("name", CORES)
def test_what_is_broken_off_is_a_beginning_and_never_a_whole(name: str) -> None:
    core = CORES[name]
    for at in find_positions(core.data):
        read = core.read([core.data[:at]])
        assert core.expected.payload.startswith(read.payload), at
        if not read.is_whole:
            assert read.told == core.expected.told[: len(read.told)], at
    if core.expected.is_whole:
        ends = [core.read([core.data[:at]]).is_whole for at in find_positions(core.data)]
        assert ends == sorted(ends) and not ends[0], "a whole stays one"


def test_a_servers_version_is_read_wherever_it_is_cut() -> None:
    said = b"RFB 003.008\n\1\1"
    for at in range(len(said) + 1):
        one = RfbFilter(view_only=True)
        one.hear(said[:at])
        one.hear(said[at:])
        assert one.feed(HELLO) == start_desktop(True, 0)
