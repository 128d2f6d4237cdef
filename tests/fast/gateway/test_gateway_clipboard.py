"""A site's clipboard policy without I/O: what an owner's client may say of texts, and what is said in its place."""

from __future__ import annotations

import os
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portico import wire
from portico.errors import PorticoError
from portico.gateway.clipboard import Clipboard, render_capabilities, render_message, render_text
from portico.gateway.filters import EXTENDED_CLIPBOARD, Filter, PassAll, Refused, RfbFilter, make_filter
from portico.gateway.routes import Way, parse_decision

HELLO = b"RFB 003.008\n\x01\x00"
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE, TEXT = 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1
WAY = {"kind": "stream", "protocol": "rfb", "view_only": False, "tags": ["user:alice"]}
KEY = struct.pack(">BBxxI", 4, 1, 0x61)


def owner(clipboard: Clipboard) -> Filter:
    """Return an owner's filter behind the handshake."""
    one = RfbFilter(view_only=False, clipboard=clipboard)
    one.hear(b"RFB 003.008\n")
    one.feed(HELLO)
    return one


def feed(one: Filter, data: bytes, step: int = 1 << 30) -> bytes:
    return b"".join(one.feed(data[at : at + step]) for at in range(0, len(data), step))


def plain(text: bytes) -> bytes:
    return struct.pack(">B3xI", 6, len(text)) + text


def ask(action: int) -> bytes:
    return render_message(action | TEXT)


def deflate(data: bytes) -> bytes:
    """As noVNC does: flushed, not finished."""
    one = zlib.compressobj()
    return one.compress(data) + one.flush(zlib.Z_SYNC_FLUSH)


def test_an_owner_without_limits_is_not_looked_at() -> None:
    assert isinstance(make_filter("rfb", False, Clipboard()), PassAll)
    assert isinstance(make_filter("pty", False, Clipboard(0, 0)), PassAll)
    assert isinstance(make_filter("rfb", False, Clipboard(0, None)), RfbFilter)
    with pytest.raises(Refused):
        make_filter("spice", False, Clipboard(0, None))


@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_nothing_goes_in_where_that_is_forbidden(step: int) -> None:
    one = owner(Clipboard(in_bytes=0))
    said = [plain(b"hello"), ask(NOTIFY), KEY, render_text(b"hello"), KEY, plain(b""), ask(REQUEST), ask(PEEK)]
    assert feed(one, b"".join(said), step) == KEY + KEY + ask(REQUEST) + ask(PEEK)


@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_a_text_that_is_too_large_goes_in_empty(step: int) -> None:
    one = owner(Clipboard(in_bytes=5))
    fits, beyond = b"hello", b"hello!"
    assert feed(one, plain(fits) + KEY + plain(beyond) + KEY, step) == plain(fits) + KEY + KEY
    assert feed(one, ask(NOTIFY) + KEY, step) == ask(NOTIFY) + KEY
    good = render_message(PROVIDE | TEXT, deflate(struct.pack(">I", 6) + fits + b"\0"))
    assert feed(one, good + KEY + render_text(fits), step) == good + KEY + render_text(fits)
    for bad in (
        render_text(beyond),
        render_text(b"x" * 10_000_000),
        render_message(PROVIDE | TEXT),
        render_message(PROVIDE | TEXT, deflate(b"\0\0")),
        render_message(PROVIDE | 2, deflate(struct.pack(">I", 1) + b"\0")),
        render_message(PROVIDE | 3, deflate(struct.pack(">I", 1) + b"\0" + struct.pack(">I", 1) + b"x")),
    ):
        assert feed(one, bad + KEY, step) == render_text(b"") + KEY


@pytest.mark.parametrize("step", [1, 7, 1 << 30])
@pytest.mark.parametrize(
    "message",
    [
        render_message(PROVIDE | TEXT, deflate(struct.pack(">I", 3) + b"much more than it says\0")),
        render_message(PROVIDE | TEXT, zlib.compress(struct.pack(">I", 2) + b"a\0") + b"behind"),
        render_message(PROVIDE | TEXT, b"not compressed at all"),
        render_message(PROVIDE | TEXT, zlib.compress(b"")[:2] + b"\0\0\0\xff\xff" * 1000),
        render_message(TEXT),
        render_message(NOTIFY | PROVIDE | TEXT),
        struct.pack(">B3xi", 6, -3) + b"abc" + bytes(9),
    ],
)
def test_texts_that_are_not_what_they_say_end_the_stream(message: bytes, step: int) -> None:
    with pytest.raises(Refused):
        feed(owner(Clipboard(in_bytes=5)), message, step)


def test_a_bomb_costs_nothing() -> None:
    one = owner(Clipboard(in_bytes=1 << 20))
    bomb = render_message(PROVIDE | TEXT, zlib.compress(struct.pack(">I", 100) + bytes(50_000_000)))
    with pytest.raises(Refused):
        feed(one, bomb, 4096)


@pytest.mark.parametrize("limit", [0, 5])
def test_nothing_goes_out_that_the_server_was_not_told(limit: int) -> None:
    one = RfbFilter(view_only=False, clipboard=Clipboard(out_bytes=limit))
    one.hear(b"RFB 003.008\n")
    told = render_capabilities(0, limit)
    encodings = struct.pack(">BxHii", 2, 2, 0, EXTENDED_CLIPBOARD)
    assert feed(one, HELLO, 1) == HELLO + encodings + told
    assert (PROVIDE & struct.unpack_from(">I", told, 8)[0] == 0) is (limit == 0)
    assert struct.unpack_from(">I", told, 12)[0] == (limit + 1 if limit else 0)
    assert feed(one, ask(REQUEST) + KEY, 3) == KEY
    claims = render_message(CAPS | REQUEST | PEEK | NOTIFY | PROVIDE | TEXT | 2, struct.pack(">II", 1 << 24, 1 << 24))
    for claim in (claims, render_message(CAPS | REQUEST | PEEK)):
        assert feed(one, claim + KEY, 5) == render_capabilities(REQUEST | PEEK, limit) + KEY
    without = struct.pack(">BxHi", 2, 1, 7)
    assert feed(one, without, 1) == struct.pack(">BxHii", 2, 2, 7, EXTENDED_CLIPBOARD)
    assert feed(one, plain(b"in") + ask(NOTIFY) + render_text(b"in"), 2) == plain(b"in") + ask(NOTIFY) + render_text(
        b"in"
    )


def test_a_larger_pointer_message_is_never_agreed_on() -> None:
    one = owner(Clipboard(in_bytes=0))
    assert feed(one, struct.pack(">BxHii", 2, 2, -316, 16)) == struct.pack(">BxHi", 2, 1, 16)


OWNERS = {
    "key": KEY,
    "pointer": struct.pack(">BBHH", 5, 255, 2, 3),
    "QEMU key": struct.pack(">BBHII", 255, 0, 1, 0x61, 30),
    "QEMU audio": struct.pack(">BBHBBI", 255, 1, 2, 3, 2, 44100),
    "size": struct.pack(">BxHHBx", 251, 1, 1, 2) + bytes(32),
    "xvp": bytes([250, 0, 1, 2]),
    "pixel format": bytes(20),
    "update": bytes([3]) + bytes(9),
    "fence": struct.pack(">B3xIB", 248, 1, 5) + b"fence",
    "encodings": struct.pack(">BxHii", 2, 2, 7, 16),
    "text": plain(b"text"),
    "longer text": plain(b"some longer text"),
    "provided": render_text(b"text"),
    "notice": ask(NOTIFY),
    "request": ask(REQUEST),
}


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(list(OWNERS)), max_size=12),
    st.integers(1, 60),
    st.sampled_from([Clipboard(4, None), Clipboard(None, 4), Clipboard(0, 0), Clipboard(0, None), Clipboard(4, 4)]),
)
def test_an_owner_is_understood_wherever_it_is_cut(names: list[str], step: int, clipboard: Clipboard) -> None:
    limit_in, limit_out = clipboard.in_bytes, clipboard.out_bytes
    expected = b""
    for name in names:
        message = OWNERS[name]
        if name == "encodings" and limit_out is not None:
            message = struct.pack(">BxHiii", 2, 3, 7, 16, EXTENDED_CLIPBOARD)
        elif name == "longer text":
            message = message if limit_in is None else b""
        elif name in ("text", "provided", "notice"):
            message = b"" if limit_in == 0 else message
        elif name == "request":
            message = message if limit_out is None else b""
        expected += message
    assert feed(owner(clipboard), b"".join(OWNERS[name] for name in names), step) == expected


def test_what_the_portal_says_of_clipboards() -> None:
    def parse(**more: object) -> Way:
        decision = parse_decision(wire.Packet(WAY | more, [0]))
        assert isinstance(decision, Way)
        return decision

    assert parse().clipboard == Clipboard() == parse(clipboard={}).clipboard
    assert parse(clipboard={"in": 0, "out": 5}).clipboard == Clipboard(0, 5)
    assert parse(clipboard={"out": 7}).clipboard == Clipboard(None, 7)
    for wrong in ([], "both", {"in": -1}, {"in": True}, {"in": 1.5}, {"in": None}, {"inwards": 0}, {"out": 1 << 31}):
        reading, writing = os.pipe()
        with pytest.raises(PorticoError):
            parse_decision(wire.Packet(WAY | {"clipboard": wrong}, [reading]))
        with pytest.raises(BrokenPipeError):  # the descriptor is closed
            os.write(writing, b"x")
        os.close(writing)
