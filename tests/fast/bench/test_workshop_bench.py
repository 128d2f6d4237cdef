"""The workshop's viewer reads what a server may send, in whatever pieces; its frames and plans come through whole."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "bench"))

from workshop_bench.clients import Visit, parse_plan, render_plan  # noqa: E402
from workshop_bench.connection import Frames, Way  # noqa: E402
from workshop_bench.person import COLUMNS, ROWS, Terminal  # noqa: E402
from workshop_bench.rfb import (  # noqa: E402
    COPY_RECT,
    CURSOR,
    DESKTOP_NAME,
    EXTENDED_DESKTOP_SIZE,
    LAST_RECT,
    RAW,
    TIGHT,
    BadServer,
    Rect,
    Viewer,
)

HELLO = (
    b"RFB 003.008\n\x01\x01" + bytes(4) + struct.pack(">HH16sI", 640, 480, b"", 4) + b"desk"
)  # version, security None, its result, ServerInit
CONTINUOUS = b"\x96"
FENCE = struct.pack(">B3xIB", 248, 1 << 31 | 7, 3) + b"abc"


def make_update(*rects: tuple[int, int, int, int, int, bytes], count: int = -1) -> bytes:
    head = struct.pack(">BxH", 0, len(rects) if count < 0 else count)
    return head + b"".join(struct.pack(">HHHHi", *rect[:5]) + rect[5] for rect in rects)


class Seen:
    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.updates: list[list[Rect]] = []
        self.viewer = Viewer(self.said.append, self.updates.append)


TIGHT_BODIES = {
    "fill": (50, 20, b"\x80rgb"),
    "jpeg": (50, 20, b"\x90\x81\x01" + bytes(129)),
    "copy, deflated": (50, 20, b"\x00\x05" + bytes(5)),
    "copy, too small to deflate": (3, 1, b"\x00" + bytes(9)),
    "palette of two": (9, 4, b"\x40\x01\x01" + bytes(6) + bytes(8)),
    "palette of three": (4, 4, b"\x40\x01\x02" + bytes(9) + b"\x07" + bytes(7)),
    "gradient": (4, 4, b"\x50\x02\x09" + bytes(9)),
    "three bytes of length": (640, 480, b"\x00\x80\x80\x01" + bytes(1 << 14)),
}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_reads_all_that_it_asks_for_in_any_pieces(size: int) -> None:
    seen = Seen()
    updates = [make_update((1, 2, width, height, TIGHT, body)) for width, height, body in TIGHT_BODIES.values()]
    stream = (
        HELLO
        + CONTINUOUS
        + FENCE
        + b"".join(updates)
        + make_update((0, 0, 2, 2, RAW, bytes(16)), (5, 6, 7, 8, COPY_RECT, bytes(4)))
        + make_update((0, 0, 9, 2, CURSOR, bytes(9 * 2 * 4 + 4)), (0, 0, 0, 0, DESKTOP_NAME, b"\0\0\0\x02ab"))
        + make_update((0, 0, 800, 600, EXTENDED_DESKTOP_SIZE, b"\x01" + bytes(3 + 16)))
        + make_update((9, 9, 1, 1, RAW, bytes(4)), (0, 0, 0, 0, LAST_RECT, b""), count=0xFFFF)
        + b"\x02"  # bell
        + struct.pack(">B3xI", 3, 5)
        + b"hello"
        + make_update((3, 3, 1, 1, RAW, bytes(4)))
    )
    for at in range(0, len(stream), size):
        seen.viewer.feed(stream[at : at + size])
    assert seen.updates[: len(updates)] == [[Rect(1, 2, width, height)] for width, height, _ in TIGHT_BODIES.values()]
    assert seen.updates[len(updates) :] == [
        [Rect(0, 0, 2, 2), Rect(5, 6, 7, 8)], [], [], [Rect(9, 9, 1, 1)], [Rect(3, 3, 1, 1)],
    ]  # fmt: skip
    assert (seen.viewer.width, seen.viewer.height) == (800, 600)
    assert struct.pack(">B3xIB", 248, 3, 3) + b"abc" in seen.said  # the fence, without what we do not know
    assert seen.said[-1] != struct.pack(">BBHHHH", 3, 1, 0, 0, 800, 600)  # nothing asked: they come by themselves


def test_asks_after_each_update_where_they_do_not_come_by_themselves() -> None:
    seen = Seen()
    seen.viewer.feed(HELLO)
    assert seen.said[-1] == struct.pack(">BBHHHH", 3, 0, 0, 0, 640, 480)
    seen.viewer.feed(make_update((0, 0, 1, 1, RAW, bytes(4))))
    assert seen.said[-1] == struct.pack(">BBHHHH", 3, 1, 0, 0, 640, 480)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400\r\n", HELLO + b"\x63", HELLO + make_update((0, 0, 1, 1, 5, b"")),
     HELLO + make_update((0, 0, 9, 9, TIGHT, b"\xa0")), HELLO + make_update((0, 0, 9, 9, TIGHT, b"\x40\x03"))],
)  # fmt: skip
def test_says_what_is_no_rfb(said: bytes) -> None:
    with pytest.raises(BadServer):
        Seen().viewer.feed(said)


def test_frames_of_every_length_in_any_pieces() -> None:
    wanted = [(2, b"x" * 5), (9, b""), (2, b"y" * 300), (2, b"z" * 70_000)]
    stream = b"\x82\x05" + wanted[0][1] + b"\x89\x00" + b"\x82\x7e\x01\x2c" + wanted[2][1]
    stream += b"\x82\x7f" + (70_000).to_bytes(8, "big") + wanted[3][1]
    for size in (1, 999, 1 << 20):
        frames, found = Frames(), []
        for at in range(0, len(stream), size):
            found += frames.feed(stream[at : at + size])
        assert found == wanted


def test_a_terminals_cells_are_inside_it() -> None:
    terminal = Terminal(60, 85, 644, 412)
    assert terminal.find_cell(0, 0) == (66, 95)
    assert terminal.find_cell(COLUMNS - 1, ROWS - 1) == (698, 486)
    x, y = terminal.find_cell(3, 0)
    assert Rect(x - 4, y - 8, 8, 17).covers(x, y) and not Rect(x + 1, y, 8, 17).covers(x, y)


def test_a_plan_comes_through_whole() -> None:
    visits = [Visit(3, Way(8000, "/x", "Cookie: a=b\r\n"), Terminal(1, 2, 3, 4), "1/3", 5.0, 6.5)]
    assert parse_plan(render_plan(visits)) == visits
