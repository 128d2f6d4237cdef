"""What a client may say in a stream: filters for viewers and for a site's clipboard policy, without I/O.

noVNC's own view-only flag is good will; these are not. They parse the few bytes that tell one message from the next
(RFC 6143, 7.5, and the rfbproto wiki for extensions), never a picture, and what they do not know ends the stream.
What they keep between two calls is bounded by the largest message that has to be seen whole, 4 KiB.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from portico.gateway import clipboard as clip
from portico.gateway.clipboard import Clipboard

SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, KEY, POINTER, CUT_TEXT = 0, 2, 3, 4, 5, 6
CONTINUOUS_UPDATES, FENCE, XVP, SET_DESKTOP_SIZE, QEMU = 150, 248, 250, 251, 255

RAW, EXTENDED_MOUSE_BUTTONS, EXTENDED_CLIPBOARD = 0, -316, 0xC0A1E5CE - (1 << 32)
"""Encodings that matter here. With ExtendedMouseButtons a pointer message has two lengths; it is never let through."""

ENCODING_LIMIT: Final = 1024
TEXT_LIMIT_BYTES: Final = 20 << 20
FRAME_LIMIT_BYTES: Final = 1 << 20

_FENCE_LIMIT_BYTES: Final = 64
_SIZES: Final = {SET_PIXEL_FORMAT: 20, UPDATE_REQUEST: 10, KEY: 8, POINTER: 6, CONTINUOUS_UPDATES: 10, XVP: 4}
_LOOKING: Final = frozenset({SET_PIXEL_FORMAT, UPDATE_REQUEST, CONTINUOUS_UPDATES, FENCE})
"""Messages that change nothing in the desktop, and so are a viewer's."""


class Refused(Exception):
    """The client said something that no client of its kind says."""


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
    """For the owner, where the site says nothing about clipboards."""

    __slots__ = ()

    def hear(self, data: bytes | memoryview) -> None:
        """Look at nothing."""

    def feed(self, data: bytes) -> bytes:
        """Return the same."""
        return data


class RfbFilter:
    """Parses what the client of a desktop says, and lets through what it may.

    A viewer may look: no key, pointer, clipboard, resize or power message goes through. An owner may do all that, and
    the clipboard within its limits. What is copied in the desktop is kept back by what the server is told in the
    client's name (extended clipboard, rfbproto): TigerVNC sends a notice instead of a text then, and the request that
    may follow is dropped here. A server that does not know that extension sends its clipboard to everybody.

    Args:
        view_only: Whether it is a viewer, whose clipboard is empty both ways.
        clipboard: An owner's limits.
    """

    __slots__ = (
        *("_clipboard", "_heard", "_is_passing", "_left", "_provided", "_rest", "_stage", "_view_only"),
        "_opening",
    )

    def __init__(self, view_only: bool, clipboard: Clipboard = clip.ANY) -> None:
        self._view_only = view_only
        self._clipboard = Clipboard(0, 0) if view_only else clipboard
        self._heard = b""
        self._rest = b""  # the beginning of a message that has to be seen whole
        self._left = 0  # bytes of a text that are still to come
        self._is_passing = False  # whether they go on
        self._provided: clip.Provided | None = None  # what measures them
        self._opening = b""  # what goes before them, once it is known that they go on
        self._stage = 0

    def hear(self, data: bytes | memoryview) -> None:
        """Read the server's version: with 3.3 nothing that follows would mean what it means here (7.1.2).

        Raises:
            Refused: It is not 3.7 or 3.8.
        """
        if len(self._heard) < 12:
            self._heard += bytes(data[: 12 - len(self._heard)])
            is_spoken = self._heard.startswith(b"RFB 003.") and self._heard[8:] >= b"007\n"
            if len(self._heard) == 12 and not is_spoken:
                raise Refused("only RFB 3.7 and 3.8 are spoken")

    def feed(self, data: bytes) -> bytes:
        """Return what goes on; see Filter."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        out: list[bytes] = []
        at = begin = 0  # data[begin:at] goes on as it is
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                if self._provided is not None:
                    out += [data[begin:at], self._measure(data[at : at + step])]
                    begin = at + step
                elif not self._is_passing:
                    out.append(data[begin:at])
                    begin = at + step
                at += step
                continue
            size = self._find_size(data, at)
            if at + size > len(data):
                break
            if self._stage == 3 and self._is_plain(data[at]):
                at += size
                continue
            out += [data[begin:at], self._take(data[at : at + size])]
            begin = at = at + size
        if at < len(data):
            out.append(data[begin:at])
            self._rest = data[at:]
            return b"".join(out)
        if not begin:
            return data
        out.append(data[begin:at])
        return b"".join(out)

    def _is_plain(self, kind: int) -> bool:
        """Return whether messages of this kind go on as they are."""
        return kind in _LOOKING or (not self._view_only and kind not in (SET_ENCODINGS, CUT_TEXT))

    def _find_size(self, data: bytes, at: int) -> int:
        """Return how long the message at ``at`` is, without a text that it carries; more than is there if unknown yet.

        Raises:
            Refused: There is no such message.
        """
        if self._stage < 3:
            return (12, 1, 1)[self._stage]
        kind, have = data[at], len(data) - at
        size = _SIZES.get(kind, 0)
        if size:
            return size
        if kind == SET_ENCODINGS:
            if have < 4:
                return 4
            (count,) = struct.unpack_from(">H", data, at + 2)
            if count > ENCODING_LIMIT:
                raise Refused("too many encodings")
            return 4 + 4 * int(count)
        if kind == CUT_TEXT:
            if have < 8:
                return 8
            (length,) = struct.unpack_from(">i", data, at + 4)
            if abs(length) > TEXT_LIMIT_BYTES or -4 < length < 0:
                raise Refused("a clipboard is too long, or too short")
            return 12 if length < 0 else 8  # negative: the extended clipboard, whose flags come first
        if kind == FENCE:
            if have >= 9 and data[at + 8] > _FENCE_LIMIT_BYTES:
                raise Refused("a fence is too long")
            return 9 if have < 9 else 9 + data[at + 8]
        if kind == SET_DESKTOP_SIZE:
            return 8 if have < 8 else 8 + 16 * data[at + 6]
        if kind == QEMU:
            if have < 4:
                return 4
            if data[at + 1] == 0:  # a key with its scan code
                return 12
            if data[at + 1] == 1:  # audio: on, off, or its format
                return 10 if data[at + 2 : at + 4] == b"\0\2" else 4
            raise Refused("an unknown QEMU message")
        raise Refused(f"an unknown message {kind}")

    def _take(self, message: bytes) -> bytes:
        """Return what goes on in the place of a message."""
        if self._stage < 3:
            return self._take_handshake(message)
        if message[0] == SET_ENCODINGS:
            wanted = struct.unpack_from(f">{(len(message) - 4) // 4}i", message, 4)
            kept = [one for one in wanted if one != EXTENDED_MOUSE_BUTTONS]
            if self._clipboard.out_bytes is not None:  # whatever the client wants: else texts come in the old way
                kept = [*(one for one in kept if one != EXTENDED_CLIPBOARD), EXTENDED_CLIPBOARD]
            return _render_encodings(kept)
        if message[0] != CUT_TEXT:
            return b""  # of a viewer
        (length,) = struct.unpack_from(">i", message, 4)
        if length >= 0:
            self._left = length
            limit = self._clipboard.in_bytes
            self._is_passing = limit is None or 0 < limit >= length  # where none may go in, not even an empty one
            return message if self._is_passing else b""
        self._left = -length - 4
        self._is_passing = False
        return b"" if self._view_only else self._take_extended(message)

    def _take_handshake(self, message: bytes) -> bytes:
        self._stage += 1
        if self._stage == 1:
            if len(self._heard) < 12:
                raise Refused("the client spoke before the server")
            if message not in (b"RFB 003.008\n", b"RFB 003.007\n"):
                raise Refused("only RFB 3.7 and 3.8 are spoken")
        elif self._stage == 2:
            if message != b"\x01":
                raise Refused("only the security type None is known")
        else:
            if self._view_only:  # shared, whatever it says: it must not end the owner's connection (7.3.1)
                message = b"\x01"
            if self._clipboard.out_bytes is not None:
                message += _render_encodings([RAW, EXTENDED_CLIPBOARD])
                message += clip.render_capabilities(0, self._clipboard.out_bytes)
        return message

    def _take_extended(self, message: bytes) -> bytes:
        """Return what goes on in the place of the head of an extended clipboard's message (rfbproto)."""
        (flags,) = struct.unpack_from(">I", message, 8)
        limit_in, limit_out = self._clipboard.in_bytes, self._clipboard.out_bytes
        action = flags & clip.ACTIONS
        if action & clip.CAPABILITIES:
            if limit_out is not None:
                return clip.render_capabilities(action, limit_out)
            self._is_passing = True
        elif action == clip.PROVIDE:
            if limit_in:
                self._provided, self._opening = clip.Provided(flags, limit_in), message
                return b"" if self._left else self._end_text()
            self._is_passing = limit_in is None
        elif action == clip.NOTIFY:
            self._is_passing = limit_in != 0
        elif action == clip.REQUEST:
            self._is_passing = limit_out is None
        elif action == clip.PEEK:
            self._is_passing = True
        else:
            raise Refused("an unknown message of the clipboard")
        return message if self._is_passing else b""

    def _measure(self, part: bytes) -> bytes:
        assert self._provided is not None
        try:
            out = self._provided.feed(part)
        except clip.Malformed as error:
            raise Refused(str(error)) from None
        if out:
            opening, self._opening = self._opening, b""
            out = opening + out
        return out if self._left else out + self._end_text()

    def _end_text(self) -> bytes:
        """Return what goes on behind a text: something in its place, if nothing of it went on."""
        opening, self._opening, self._provided = self._opening, b"", None
        return clip.NOTHING if opening else b""


class PtyViewer:
    """Lets a viewer of a terminal look: attach goes through; input and size do not (docs/protocol.md, Terminal)."""

    __slots__ = ("_left", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0  # bytes of input that are still to come, dropped as they do

    def hear(self, data: bytes | memoryview) -> None:
        """Look at nothing."""

    def feed(self, data: bytes) -> bytes:
        """Return what goes on; see Filter."""
        data, self._rest = self._rest + data, b""
        out: list[bytes] = []
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            if len(data) - at < 5:
                break
            kind, length = struct.unpack_from(">cI", data, at)
            if length > FRAME_LIMIT_BYTES:
                raise Refused("a frame is too large")
            if kind in (b"i", b"r"):
                at += 5
                self._left = length
                continue
            if kind != b"a" or length != 8:
                raise Refused("a frame that no viewer sends")
            if len(data) - at < 13:
                break
            out.append(data[at : at + 13])
            at += 13
        self._rest = data[at:]
        return b"".join(out)


def _render_encodings(encodings: list[int]) -> bytes:
    return struct.pack(f">BxH{len(encodings)}i", SET_ENCODINGS, len(encodings), *encodings)


def make_filter(protocol: str, view_only: bool, clipboard: Clipboard = clip.ANY) -> Filter:
    """Return the filter of a stream.

    Args:
        protocol: What is spoken in it.
        view_only: Whether the client may only look.
        clipboard: What else may be copied. A terminal has none of its own: what is pasted there is typed.

    Raises:
        Refused: There is none for this protocol.
    """
    if not view_only and (clipboard.is_unlimited or protocol == "pty"):
        return PassAll()
    if protocol == "rfb":
        return RfbFilter(view_only, clipboard)
    if protocol == "pty":
        return PtyViewer()
    raise Refused(f"there is no viewing of {protocol}")
