"""What a viewer may say, without I/O: each message, cut anywhere, and noise."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portico.gateway import websocket as ws
from portico.gateway.filters import EXTENDED_CLIPBOARD, Filter, PassAll, PtyViewer, Refused, RfbFilter, make_filter

HELLO = b"RFB 003.008\n" + b"\x01" + b"\x00"
FORCED = (
    b"RFB 003.008\n\x01\x01"
    + struct.pack(">BxHii", 2, 2, 0, EXTENDED_CLIPBOARD)
    + struct.pack(">B3xiII", 6, -8, 0x09000001, 0)
)
"""Shared, whatever was asked; and a clipboard that takes notices only."""

ENCODINGS = struct.pack(">BxH3i", 2, 3, 7, -316, 16)
PASSED = {
    "pixel format": (bytes([0]) + bytes(19),) * 2,
    "encodings": (ENCODINGS, struct.pack(">BxH3i", 2, 3, 7, 16, EXTENDED_CLIPBOARD)),
    "no encodings": (struct.pack(">BxH", 2, 0), struct.pack(">BxHi", 2, 1, EXTENDED_CLIPBOARD)),
    "update request": (bytes([3]) + bytes(9),) * 2,
    "continuous updates": (bytes([150]) + bytes(9),) * 2,
    "fence": (struct.pack(">B3xIB", 248, 1, 5) + b"fence",) * 2,
}
DROPPED = {
    "key": struct.pack(">BBxxI", 4, 1, 0x61),
    "pointer": struct.pack(">BBHH", 5, 1, 2, 3),
    "text": struct.pack(">B3xI", 6, 5) + b"hello",
    "empty text": struct.pack(">B3xI", 6, 0),
    "extended text": struct.pack(">B3xiI", 6, -9, 1 << 28 | 1) + b"\x04\0\0\0\1",
    "size": struct.pack(">BxHHBx", 251, 1, 1, 2) + bytes(32),
    "xvp": bytes([250, 0, 1, 2]),
    "QEMU key": struct.pack(">BBHII", 255, 0, 1, 0x61, 30),
    "QEMU audio on": struct.pack(">BBH", 255, 1, 0),
    "QEMU audio format": struct.pack(">BBHBBI", 255, 1, 2, 3, 2, 44100),
}


def viewer() -> RfbFilter:
    one = RfbFilter(view_only=True)
    one.hear(b"RFB 003.008\n")
    return one


def feed(one: Filter, data: bytes, step: int) -> bytes:
    return b"".join(one.feed(data[at : at + step]) for at in range(0, len(data), step))


@settings(max_examples=200)
@given(st.lists(st.sampled_from([*PASSED, *DROPPED]), max_size=12), st.integers(1, 50))
def test_only_looking_goes_through_wherever_it_is_cut(names: list[str], step: int) -> None:
    said = b"".join(PASSED[name][0] if name in PASSED else DROPPED[name] for name in names)
    expected = b"".join(PASSED[name][1] for name in names if name in PASSED)
    assert feed(viewer(), HELLO + said, step) == FORCED + expected


@pytest.mark.parametrize(
    "data",
    [
        b"RFB 003.003\n",
        b"RFB 003.889\n",
        b"GET / HTTP/1",
        b"RFB 003.008\n\x02",
        b"RFB 003.008\n\x13",
        HELLO + bytes([1]),
        HELLO + bytes([7]),
        HELLO + bytes([252, 0, 0, 0]),
        HELLO + bytes([255, 7, 0, 0]),
        HELLO + struct.pack(">BxH", 2, 1025),
        HELLO + struct.pack(">B3xIB", 248, 1, 65),
        HELLO + struct.pack(">B3xi", 6, -(2**31)),
        HELLO + struct.pack(">B3xi", 6, 2**31 - 1),
    ],
)
def test_what_no_viewer_says_ends_the_stream(data: bytes) -> None:
    for step in (1, len(data)):
        with pytest.raises(Refused):
            feed(viewer(), data, step)


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.006\n", b"RFB 004.000\n", b"SSH-2.0-serv"])
def test_a_server_of_another_version_cannot_be_viewed(version: bytes) -> None:
    one = RfbFilter(view_only=True)
    with pytest.raises(Refused):
        for at in range(12):
            one.hear(version[at : at + 1])


def test_nobody_speaks_before_the_server() -> None:
    with pytest.raises(Refused):
        RfbFilter(view_only=True).feed(HELLO)
    one = viewer()
    one.hear(b"anything at all")


def test_a_long_text_is_dropped_as_it_comes() -> None:
    one = viewer()
    one.feed(HELLO + struct.pack(">B3xI", 6, 10_000_000))
    for _ in range(10):
        assert one.feed(bytes([4]) * 1_000_000) == b""
        assert len(one._rest) == 0
    assert one.feed(PASSED["update request"][0]) == PASSED["update request"][1]


@given(st.binary(max_size=400), st.integers(1, 20))
def test_noise_never_becomes_input(noise: bytes, step: int) -> None:
    whole, parts = viewer(), viewer()
    try:
        out = feed(whole, HELLO + noise, len(HELLO + noise))
    except Refused:
        with pytest.raises(Refused):
            feed(parts, HELLO + noise, step)
        return
    assert feed(parts, HELLO + noise, step) == out
    _assert_harmless(out.removeprefix(FORCED))


def _assert_harmless(data: bytes) -> None:
    """Parse as a server does; fail at anything but looking."""
    while data:
        kind = data[0]
        assert kind in (0, 2, 3, 150, 248)
        size = {0: 20, 3: 10, 150: 10}.get(kind, 0)
        if kind == 2:
            size = 4 + 4 * struct.unpack_from(">H", data, 2)[0]
        elif kind == 248:
            size = 9 + data[8]
        assert len(data) >= size
        data = data[size:]


# terminals

ATTACH = b"a" + struct.pack(">IQ", 8, 5)


@given(
    st.lists(st.sampled_from([ATTACH, b"i\0\0\0\5hello", b"r\0\0\0\4abcd", b"i\0\0\0\0"]), max_size=10),
    st.integers(1, 30),
)
def test_a_terminals_viewer_attaches_and_nothing_else(frames: list[bytes], step: int) -> None:
    assert feed(PtyViewer(), b"".join(frames), step) == ATTACH * frames.count(ATTACH)


@pytest.mark.parametrize("data", [b"o\0\0\0\0", b"a\0\0\0\7aaaaaaa", b"i\0\x10\0\1", b"\0\0\0\0\0"])
def test_what_no_terminals_viewer_says(data: bytes) -> None:
    with pytest.raises(Refused):
        PtyViewer().feed(data)


@given(st.binary(max_size=200))
def test_noise_at_a_terminal(noise: bytes) -> None:
    one = PtyViewer()
    try:
        out = feed(one, noise, 3)
    except Refused:
        return
    assert len(out) % 13 == 0 and all(out[at] == 97 for at in range(0, len(out), 13)) and len(one._rest) < 13


def test_which_filter_is_used() -> None:
    assert isinstance(make_filter("rfb", False), PassAll) and isinstance(make_filter("anything", False), PassAll)
    assert isinstance(make_filter("rfb", True), RfbFilter) and isinstance(make_filter("pty", True), PtyViewer)
    with pytest.raises(Refused):
        make_filter("spice", True)


# WebSocket frames


def mask(kind: int, payload: bytes, key: bytes, final: bool = True) -> bytes:
    head = bytes([(0x80 if final else 0) | kind])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 1 << 16:
        head += struct.pack(">BH", 0xFE, len(payload))
    else:
        head += struct.pack(">BQ", 0xFF, len(payload))
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.booleans()), max_size=6),
    st.integers(1, 60),
)
def test_frames_are_the_same_wherever_they_are_cut(parts: list[tuple[bytes, bytes, bool]], step: int) -> None:
    data = b""
    for payload, key, with_ping in parts:
        half = len(payload) // 2
        data += (
            mask(2, payload[:half], key, False)
            + (mask(9, b"p", key) if with_ping else b"")
            + mask(0, payload[half:], key)
        )
    reader, got, pings = ws.FrameReader(), b"", 0
    for at in range(0, len(data), step):
        for frame in reader.feed(data[at : at + step]):
            got += frame.payload if frame.kind == ws.BINARY else b""
            pings += frame.kind == ws.PING
    assert got == b"".join(part[0] for part in parts) and pings == sum(part[2] for part in parts)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 1 << 20])
def test_frames_of_every_size(size: int) -> None:
    payload = bytes(size)
    frames = list(ws.FrameReader().feed(mask(2, payload, b"\1\2\3\4")))
    assert frames == ([ws.Frame(ws.BINARY, payload)] if size else [])
    assert ws.render_frame(ws.BINARY, payload).endswith(payload)


def test_the_example_of_the_standard() -> None:
    assert ws.compute_accept("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
    (frame,) = ws.FrameReader().feed(bytes.fromhex("8985 37fa213d 7f9f4d5158"))  # 5.7, with a ping's opcode
    assert frame == ws.Frame(ws.PING, b"Hello")
    assert ws.render_frame(ws.BINARY, bytes(256))[:4] == bytes.fromhex("827e0100")  # 5.7
    assert ws.render_header(ws.BINARY, 65536) == bytes.fromhex("827f0000000000010000")


@given(
    st.one_of(
        st.binary(max_size=140),
        st.builds(
            lambda payload, mask, first: bytes((first, 0x80 | min(len(payload), 127))) + mask + payload,
            *(st.binary(max_size=130), st.binary(min_size=4, max_size=4)),
            st.sampled_from([0x82, 0x02, 0x81, 0x89, 0xC2, 0x80]),
        ),
    )
)
def test_what_is_read_as_one_message_is_one(data: bytes) -> None:
    payload = ws.FrameReader().read_one(data)
    if payload is not None:
        assert list(ws.FrameReader().feed(data)) == [ws.Frame(ws.BINARY, payload)]
    half = ws.FrameReader()
    list(half.feed(b"\x82\x85"))
    assert half.read_one(b"\x82\x81aaaab") is None


def test_a_key_press_is_read_as_one_message() -> None:
    assert ws.FrameReader().read_one(b"\x82\x83abcd" + ws.unmask(b"key", b"abcd")) == b"key"


@given(st.binary(max_size=200))
def test_noise_breaks_no_frame_reader(noise: bytes) -> None:
    try:
        list(ws.FrameReader().feed(noise))
    except ws.ProtocolError as error:
        assert error.code in (1002, 1003, 1007, 1009)
