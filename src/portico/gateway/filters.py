"""What a viewer may say: filters for the client's side of a shared stream, without I/O.

noVNC's own view-only flag is good will; these are not. They parse the few bytes that tell one message from the next
(RFC 6143, 7.5, and the rfbproto wiki for extensions), never a picture, and what they do not know ends the stream.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, KEY, POINTER, CUT_TEXT = 0, 2, 3, 4, 5, 6
CONTINUOUS_UPDATES, FENCE, XVP, SET_DESKTOP_SIZE, GII, QEMU = 150, 248, 250, 251, 253, 255

RAW, EXTENDED_MOUSE_BUTTONS, EXTENDED_CLIPBOARD = 0, -316, 0xC0A1E5CE - (1 << 32)
"""Encodings that matter here. With ExtendedMouseButtons a pointer message has two lengths; a viewer needs none."""

ENCODING_LIMIT: Final = 1024
TEXT_LIMIT_BYTES: Final = 20 << 20
FRAME_LIMIT_BYTES: Final = 1 << 20


class Refused(Exception):
    """The viewer said something that no viewer says."""


class Filter(Protocol):
    """Takes what the client sent, cut anywhere; returns what the app may see of it."""

    def hear(self, data: bytes | memoryview) -> None:
        """Take what the app sends, before the client gets it.

        Raises:
            Refused: The stream must end.
        """

    def feed(self, data: bytes) -> bytes:
        """Return what goes on.

        Raises:
            Refused: The stream must end.
        """


class PassAll:
    """For the owner."""

    def hear(self, data: bytes | memoryview) -> None:
        """Look at nothing."""

    def feed(self, data: bytes) -> bytes:
        """Return the same."""
        return data


class RfbViewer:
    """Lets a viewer of a desktop look: no key, pointer, clipboard, resize or power message goes through.

    What the owner copies stays away from viewers too: the server is told, in the viewer's name, of a clipboard with
    notices and without room for any text (extended clipboard, rfbproto), so TigerVNC sends a notice and waits for a
    request, which is dropped here. A server that does not know that extension sends its clipboard to everybody.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._heard = bytearray()
        self._skip = 0
        self._stage = "version"

    def hear(self, data: bytes | memoryview) -> None:
        """Read the server's version: with 3.3 nothing that follows would mean what it means here (7.1.2).

        Raises:
            Refused: It is not 3.7 or 3.8.
        """
        if len(self._heard) < 12:
            self._heard += data[: 12 - len(self._heard)]
            is_spoken = self._heard.startswith(b"RFB 003.") and self._heard[8:] >= b"007\n"
            if len(self._heard) == 12 and not is_spoken:
                raise Refused("only RFB 3.7 and 3.8 are spoken")

    def feed(self, data: bytes) -> bytes:
        """Return what goes on; see Filter."""
        out = bytearray()
        if self._skip:  # a long text is dropped as it comes, never kept
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        self._buffer += data
        while self._buffer and not self._skip:
            taken = self._take_handshake(out) if self._stage != "messages" else self._take_message(out)
            if not taken:
                break
        return bytes(out)

    def _take_handshake(self, out: bytearray) -> bool:
        if self._stage == "version":
            if len(self._buffer) < 12:
                return False
            if len(self._heard) < 12:
                raise Refused("the viewer spoke before the server")
            if bytes(self._buffer[:12]) not in (b"RFB 003.008\n", b"RFB 003.007\n"):
                raise Refused("only RFB 3.7 and 3.8 are spoken")
            self._pass(out, 12)
            self._stage = "security"
        elif self._stage == "security":
            if self._buffer[0] != 1:
                raise Refused("only the security type None is known")
            self._pass(out, 1)
            self._stage = "init"
        else:
            out += b"\x01"  # shared, whatever the viewer says: it must not end the owner's connection (7.3.1)
            out += _render_encodings([RAW, EXTENDED_CLIPBOARD]) + _NO_CLIPBOARD
            del self._buffer[:1]
            self._stage = "messages"
        return True

    def _take_message(self, out: bytearray) -> bool:
        kind, have = self._buffer[0], len(self._buffer)
        if kind == SET_PIXEL_FORMAT:
            return self._take_fixed(out, 20, passes=True)
        if kind in (UPDATE_REQUEST, CONTINUOUS_UPDATES):
            return self._take_fixed(out, 10, passes=True)
        if kind == KEY:
            return self._take_fixed(out, 8, passes=False)
        if kind == POINTER:
            return self._take_fixed(out, 6, passes=False)
        if kind == XVP:
            return self._take_fixed(out, 4, passes=False)
        if kind == SET_ENCODINGS:
            if have < 4:
                return False
            (count,) = struct.unpack_from(">H", self._buffer, 2)
            if count > ENCODING_LIMIT:
                raise Refused("too many encodings")
            return self._take_encodings(out, count)
        if kind == FENCE:
            if have < 9:
                return False
            if self._buffer[8] > 64:
                raise Refused("a fence is too long")
            return self._take_fixed(out, 9 + self._buffer[8], passes=True)
        if kind == CUT_TEXT:
            if have < 8:
                return False
            (length,) = struct.unpack_from(">i", self._buffer, 4)  # negative: the extended clipboard
            if abs(length) > TEXT_LIMIT_BYTES:
                raise Refused("a clipboard is too long")
            return self._drop(8 + abs(length))
        if kind == SET_DESKTOP_SIZE:
            return have >= 8 and self._drop(8 + 16 * self._buffer[6])
        if kind == QEMU:
            return self._take_qemu(out)
        raise Refused(f"an unknown message {kind}")

    def _take_encodings(self, out: bytearray, count: int) -> bool:
        if len(self._buffer) < 4 + 4 * count:
            return False
        wanted = list(struct.unpack_from(f">{count}i", self._buffer, 4))
        kept = [one for one in wanted if one not in (EXTENDED_MOUSE_BUTTONS, EXTENDED_CLIPBOARD)]
        out += _render_encodings([*kept, EXTENDED_CLIPBOARD])
        del self._buffer[: 4 + 4 * count]
        return True

    def _take_qemu(self, out: bytearray) -> bool:
        if len(self._buffer) < 4:
            return False
        if self._buffer[1] == 0:  # a key with its scan code
            return self._take_fixed(out, 12, passes=False)
        if self._buffer[1] == 1:  # audio: on, off, or its format
            (operation,) = struct.unpack_from(">H", self._buffer, 2)
            return self._take_fixed(out, 10 if operation == 2 else 4, passes=False)
        raise Refused("an unknown QEMU message")

    def _take_fixed(self, out: bytearray, size: int, *, passes: bool) -> bool:
        if len(self._buffer) < size:
            return False
        if passes:
            self._pass(out, size)
        else:
            del self._buffer[:size]
        return True

    def _pass(self, out: bytearray, size: int) -> None:
        out += self._buffer[:size]
        del self._buffer[:size]

    def _drop(self, size: int) -> bool:
        dropped = min(size, len(self._buffer))
        del self._buffer[:dropped]
        self._skip = size - dropped
        return True


class PtyViewer:
    """Lets a viewer of a terminal look: attach goes through; input and size do not (docs/protocol.md, Terminal)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def hear(self, data: bytes | memoryview) -> None:
        """Look at nothing."""

    def feed(self, data: bytes) -> bytes:
        """Return what goes on; see Filter."""
        out = bytearray()
        self._buffer += data
        while self._buffer:
            if self._skip:  # input is dropped as it comes, never kept
                dropped = min(self._skip, len(self._buffer))
                self._skip -= dropped
                del self._buffer[:dropped]
                continue
            if len(self._buffer) < 5:
                break
            kind, length = struct.unpack_from(">cI", self._buffer)
            if length > FRAME_LIMIT_BYTES:
                raise Refused("a frame is too large")
            if kind in (b"i", b"r"):
                self._skip = 5 + length
                continue
            if kind != b"a" or length != 8:
                raise Refused("a frame that no viewer sends")
            if len(self._buffer) < 13:
                break
            out += self._buffer[:13]
            del self._buffer[:13]
        return bytes(out)


def _render_encodings(encodings: list[int]) -> bytes:
    return struct.pack(f">BxH{len(encodings)}i", SET_ENCODINGS, len(encodings), *encodings)


_TEXT, _CAPS, _NOTIFY = 1 << 0, 1 << 24, 1 << 27
_NO_CLIPBOARD: Final = struct.pack(">B3xiII", CUT_TEXT, -8, _CAPS | _NOTIFY | _TEXT, 0)
"""Extended clipboard capabilities: notices are taken, and of text 0 bytes without a request."""


def make_filter(protocol: str, view_only: bool) -> Filter:
    """Return the filter of a stream.

    Raises:
        Refused: There is none for a viewer of this protocol.
    """
    if not view_only:
        return PassAll()
    if protocol == "rfb":
        return RfbViewer()
    if protocol == "pty":
        return PtyViewer()
    raise Refused(f"there is no viewing of {protocol}")
