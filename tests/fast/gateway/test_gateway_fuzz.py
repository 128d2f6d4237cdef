"""The gateway's parsers under inputs that are nearly right, each against an independent reader; and the kept corpus.

``tests/fuzz/fuzz_targets.py`` says what is asked. Coverage-guided fuzzing for longer: ``python tests/fuzz/run.py``.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from frames import make_frame
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).resolve().parents[2] / "fuzz/corpus"
KEPT = [(path.parent.name, path.name) for path in sorted(CORPUS.glob("*/*"))]
BRIEF = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(("target", "name"), KEPT)
def test_what_was_found_once(target: str, name: str) -> None:
    TARGETS[target]((CORPUS / target / name).read_bytes())


def test_every_target_has_a_corpus() -> None:
    assert {target for target, _ in KEPT} == set(TARGETS)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw something that is whole, and perhaps damage it: bytes changed, left out, doubled or put in."""
    data = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        new = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"\r\n", b"\n", b" ", b"\0", b"\xff", b":", b";"]))
        )
        data = data[:at] + new + data[at + draw(st.integers(0, 4)) :]
    return data


NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Cookie", b"Expect", b"X-A", b"TE",
     b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"X-Forwarded-For", b"X_Portico_Listener", b"Authorization"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [b"a", b"", b"3", b"03", b"+3", b"3,3", b"chunked", b"Chunked", b"gzip, chunked", b"close, te", b"upgrade",
         b"websocket", b"keep-alive", b"13", b"dGhlIHNhbXBsZSBub25jZQ==", b"100-continue", b"portico=1; a=2", b"\xe9\t "]
    ),
    st.binary(max_size=8),
)  # fmt: skip


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"CONNECT", b"HEAD"]))
    target = draw(st.sampled_from([b"/", b"/s/x?y=/../", b"*", b"http://a/", b"//a", b"/%2e%2e/", b"/a b"]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    host = [(b"Host", b"a")] if draw(st.booleans()) else []
    lines = [b"%b: %b\r\n" % one for one in [*host, *fields]]
    return b"%b %b %b\r\n%b\r\n" % (method, target, version, b"".join(lines)) + draw(st.binary(max_size=8))


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    names = st.sampled_from([b"Content-Length", b"Transfer-Encoding", b"Connection", b"Set-Cookie", b"Upgrade", b"X"])
    values = st.one_of(VALUES, st.sampled_from([b"a=b; Domain=x; Path=/", b"portico=1", b"=portico=1", b"a=1;domain"]))
    status = draw(st.sampled_from([b"200 OK", b"101 Switching", b"204", b"304 \xe9", b"100 C", b"999 X", b"20 O"]))
    fields = draw(st.lists(st.tuples(names, values), max_size=5))
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"".join(b"%b: %b\r\n" % one for one in fields))


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    out = b""
    for part in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=5)):
        form = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"000000%x"])) % len(part)
        out += form + draw(st.sampled_from([b"", b";a", b" ;a=b", b"\t; x=\xe9"])) + b"\r\n" + part + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"A:\r\nB: \xff\r\n"]))
    return (
        out + draw(st.sampled_from([b"0", b"00", b"0;a"])) + b"\r\n" + trailers + b"\r\n" + draw(st.binary(max_size=6))
    )


@st.composite
def client_frames(draw: st.DrawFn) -> bytes:
    out = b""
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from([0, 0, 2, 2, 2, 9, 10, 8, 1, 3, 11]))
        payload = draw(st.one_of(st.binary(max_size=140), st.sampled_from([bytes(126), bytes(2000), b"\x03\xe8ok"])))
        out += make_frame(
            kind,
            payload,
            final=draw(st.sampled_from([True, True, False])),
            mask=draw(st.sampled_from([b"abcd", b"\0\0\0\0", b"\xff\0\x80\x01", None])),
            rsv=draw(st.sampled_from([0, 0, 0, 0, 1, 4])),
            length_bytes=draw(st.sampled_from([0, 0, 0, 2, 8])) if len(payload) < 126 else 0,
        )
    return out


def _extended(flags: int, payload: bytes = b"") -> bytes:
    return struct.pack(">B3xiI", 6, -4 - len(payload), flags) + payload


@st.composite
def desktop_messages(draw: st.DrawFn) -> bytes:
    text = draw(st.binary(max_size=14))
    size = draw(st.sampled_from([len(text), len(text) + 1, 0, 10, 11, 1 << 31]))
    known = [
        bytes(20), bytes([3]) + bytes(9), bytes([150]) + bytes(9), struct.pack(">BBxxI", 4, 1, 97), b"\5\1\0\2\0\3",
        b"\xfa\0\1\2", struct.pack(">BxHii", 2, 2, -316, 0xC0A1E5CE - (1 << 32)), struct.pack(">BxH", 2, 0),
        struct.pack(">B3xI", 6, len(text)) + text, struct.pack(">B3xIB", 248, 1, 5) + b"fence", b"\xf8\0\0\0\0\0\0\0\0",
        struct.pack(">BxHHBx", 251, 1, 1, 2) + bytes(32), struct.pack(">BBHII", 255, 0, 1, 97, 30), b"\xff\1\0\2abcdef",
        b"\xff\1\0\1", _extended(1 << 24 | 31 << 24 | 1, bytes(4)), _extended(1 << 25 | 1), _extended(1 << 26),
        _extended(1 << 27 | 1), _extended(1 << 27), _extended(1 << 28 | 1, zlib.compress(struct.pack(">I", size) + text)),
        _extended(1 << 28 | 3, zlib.compress(bytes(9))), _extended(1 << 28 | 1), _extended(1 << 28 | 1, text),
        _extended(3 << 27 | 1), _extended(1),
    ]  # fmt: skip
    return b"".join(draw(st.lists(st.sampled_from(known), max_size=6)))


@st.composite
def terminal_frames(draw: st.DrawFn) -> bytes:
    known = [b"a\0\0\0\x08" + bytes(8), b"i\0\0\0\5hello", b"r\0\0\0\4abcd", b"i\0\0\0\0", b"i\0\x10\0\0", b"o\0\0\0\0"]
    return b"".join(draw(st.lists(st.sampled_from(known), max_size=6)))


@BRIEF
@given(damaged(heads()))
def test_heads(data: bytes) -> None:
    TARGETS["head"](data)


@BRIEF
@given(damaged(answers()))
def test_answers(data: bytes) -> None:
    TARGETS["answer"](data)


@BRIEF
@given(damaged(chunks()))
def test_bodies(data: bytes) -> None:
    TARGETS["body"](data)


@BRIEF
@given(damaged(client_frames()))
def test_frames(data: bytes) -> None:
    TARGETS["frames"](data)


@BRIEF
@given(damaged(desktop_messages()))
def test_desktops(data: bytes) -> None:
    TARGETS["rfb"](data)


@BRIEF
@given(damaged(st.sampled_from([b"RFB 003.008\n\1\0" * 2, b"RRFFBB  000033..000088\n\n\1\1\0\0", b"RFB 003.007\n"])))
def test_beginnings_of_desktops(data: bytes) -> None:
    TARGETS["rfb-start"](data)


@BRIEF
@given(damaged(terminal_frames()))
def test_terminals(data: bytes) -> None:
    TARGETS["pty"](data)
