"""A viewer's side of RFB 3.8 (RFC 6143) as a value: bytes in, updates and answers out; never a socket.

It asks as noVNC does, so that a server has the same work and a bridge carries the same bytes: Tight with JPEG,
continuous updates, fences. Of a rectangle it wants to know where it is, not what is in it: where one ends can be told
without inflating anything, and sixty viewers fit beside what they measure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

RAW: Final = 0
COPY_RECT: Final = 1
TIGHT: Final = 7
DESKTOP_SIZE: Final = -223
LAST_RECT: Final = -224
CURSOR: Final = -239
DESKTOP_NAME: Final = -307
EXTENDED_DESKTOP_SIZE: Final = -308
FENCE: Final = -312
CONTINUOUS_UPDATES: Final = -313
JPEG_QUALITY_6: Final = -26
COMPRESS_LEVEL_2: Final = -254

ASKED: Final = (
    COPY_RECT, TIGHT, RAW, JPEG_QUALITY_6, COMPRESS_LEVEL_2, DESKTOP_SIZE, LAST_RECT, EXTENDED_DESKTOP_SIZE, FENCE,
    CONTINUOUS_UPDATES, DESKTOP_NAME, CURSOR,
)  # fmt: skip
"""Encodings in noVNC's order, without those that TigerVNC does not send to whom takes Tight."""

_TIGHT_FILL, _TIGHT_JPEG, _TIGHT_FILTER = 8, 9, 4
_PALETTE, _GRADIENT = 1, 2
_SMALLEST_DEFLATED: Final = 12  # bytes; less is sent as it is (rfbproto, Tight)
_FENCE_ASKS: Final = 1 << 31
_FENCE_FLAGS_KNOWN: Final = 0b11


class Rect(NamedTuple):
    """Where pixels have changed."""

    x: int
    y: int
    width: int
    height: int

    def covers(self, x: int, y: int) -> bool:
        """Return whether a pixel is in it."""
        return self.x <= x < self.x + self.width and self.y <= y < self.y + self.height


class BadServer(Exception):
    """The server, or what is between, said something that is not RFB."""


Steps = Generator[int, bytes, None]
"""Asks for so many bytes, and gets them."""


class Viewer:
    """One connection, after its WebSocket is open.

    Args:
        say: Takes what is to be sent, a message at a time.
        on_update: Takes an update's rectangles, once all of it is there.
    """

    def __init__(self, say: Callable[[bytes], None], on_update: Callable[[list[Rect]], None]) -> None:
        self.width = self.height = 0
        self._say = say
        self._on_update = on_update
        self._said = bytearray()
        self._steps = self._read_all()
        self._wanted = next(self._steps)
        self._continuous = False

    def feed(self, data: bytes) -> None:
        """Take bytes of the server.

        Raises:
            BadServer: They are no RFB.
        """
        said = self._said
        said += data
        at, size = 0, len(said)
        while size - at >= self._wanted:
            piece = bytes(said[at : at + self._wanted])
            at += self._wanted
            self._wanted = self._steps.send(piece)
        del said[:at]

    def press(self, key: int) -> None:
        """Press and release a key (X11 keysym)."""
        self.hold(key, True)
        self.hold(key, False)

    def hold(self, key: int, down: bool) -> None:
        """Press a key, or release it."""
        self._say(struct.pack(">BBxxI", 4, down, key))

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        """Move the pointer there, with a mask of pressed buttons."""
        self._say(struct.pack(">BBHH", 5, buttons, x, y))

    def _read_all(self) -> Steps:
        yield from self._shake_hands()
        readers = {0: self._read_update, 1: self._read_colours, 3: self._read_clipboard, 248: self._read_fence}
        while True:
            kind = (yield 1)[0]
            if kind in readers:
                yield from readers[kind]()
            elif kind == 150:  # EndOfContinuousUpdates: the first one says that the server has them
                self._continuous = True
                self._say(struct.pack(">BBHHHH", 150, 1, 0, 0, self.width, self.height))
            elif kind != 2:  # the bell has no body
                raise BadServer(f"message {kind}")

    def _shake_hands(self) -> Steps:
        if not (version := (yield 12)).startswith(b"RFB 003."):
            raise BadServer(f"version {version!r}")
        self._say(b"RFB 003.008\n")
        kinds = yield (yield 1)[0]
        if 1 not in kinds:
            raise BadServer(f"security types {kinds!r}")
        self._say(b"\x01")
        if (result := (yield 4)) != bytes(4):
            raise BadServer(f"security result {result!r}")
        self._say(b"\x01")  # shared
        self.width, self.height, _, length = struct.unpack(">HH16sI", (yield 24))
        yield length
        # 32 bit, depth 24, little endian, true colour, 8 bits each at 0, 8, 16: noVNC's (7.5.1)
        self._say(struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 0, 8, 16))
        self._say(struct.pack(f">BxH{len(ASKED)}i", 2, len(ASKED), *ASKED))
        self._request(incremental=False)

    def _request(self, *, incremental: bool) -> None:
        self._say(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def _read_update(self) -> Steps:
        rects: list[Rect] = []
        (count,) = struct.unpack(">xH", (yield 3))
        while count:
            count -= 1
            x, y, width, height, encoding = struct.unpack(">HHHHi", (yield 12))
            if encoding == LAST_RECT:
                break
            if encoding == TIGHT:
                yield from _skip_tight(width, height)
            elif encoding == RAW:
                yield width * height * 4
            elif encoding == COPY_RECT:
                yield 4
            else:
                yield from self._read_pseudo(width, height, encoding)
                continue
            rects.append(Rect(x, y, width, height))
        if not self._continuous:
            self._request(incremental=True)
        self._on_update(rects)

    def _read_pseudo(self, width: int, height: int, encoding: int) -> Steps:
        if encoding == CURSOR:
            yield width * height * 4 + (width + 7) // 8 * height
        elif encoding == DESKTOP_NAME:
            (length,) = struct.unpack(">I", (yield 4))
            yield length
        elif encoding in (DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE):
            if encoding == EXTENDED_DESKTOP_SIZE:
                yield (yield 4)[0] * 16
            self.width, self.height = width, height
        else:
            raise BadServer(f"encoding {encoding}, which was not asked for")

    def _read_colours(self) -> Steps:
        (count,) = struct.unpack(">3xH", (yield 5))
        yield count * 6

    def _read_clipboard(self) -> Steps:
        (length,) = struct.unpack(">3xI", (yield 7))
        yield length

    def _read_fence(self) -> Steps:
        flags, length = struct.unpack(">3xIB", (yield 8))
        payload = yield length
        if flags & _FENCE_ASKS:
            self._say(struct.pack(">B3xIB", 248, flags & _FENCE_FLAGS_KNOWN, length) + payload)


def _skip_tight(width: int, height: int) -> Steps:
    """Read one rectangle of the Tight encoding (rfbproto, "Tight Encoding"), 3 bytes a pixel."""
    kind = (yield 1)[0] >> 4
    if kind == _TIGHT_FILL:
        yield 3
        return
    if kind == _TIGHT_JPEG:
        yield from _skip_counted()
        return
    if kind > _TIGHT_JPEG:
        raise BadServer(f"Tight, kind {kind}")
    size = width * height * 3
    if kind & _TIGHT_FILTER:
        name = (yield 1)[0]
        if name == _PALETTE:
            colours = (yield 1)[0] + 1
            yield colours * 3
            size = (width + 7) // 8 * height if colours == 2 else width * height
        elif name > _GRADIENT:
            raise BadServer(f"Tight, filter {name}")
    if size < _SMALLEST_DEFLATED:
        yield size
    else:
        yield from _skip_counted()


def _skip_counted() -> Steps:
    """Read what has its length before it: one to three bytes, seven bits each but the last one's eight."""
    length = 0
    for shift in (0, 7, 14):
        byte = (yield 1)[0]
        length |= (byte if shift == 14 else byte & 0x7F) << shift
        if byte < 0x80:
            break
    yield length
