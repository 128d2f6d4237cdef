"""Which texts a desktop's clipboard may carry, and how that is enforced in what the client says, without I/O.

What comes in is measured as it passes. What goes out is never looked at: the server is told, in the client's name, how
large a text may be sent unasked (extended clipboard, rfbproto wiki), and is never asked for more. A picture, a file or
rich text does not pass where there is a limit.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

TEXT: Final = 1 << 0
CAPABILITIES, REQUEST, PEEK, NOTIFY, PROVIDE = 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28
FORMATS: Final = 0xFFFF
ACTIONS: Final = 0xFF << 24

_SIZE_BYTES: Final = 4
_UNDECIDED_BYTES: Final = 1024
"""Compressed bytes that are kept until the size of the text is known; zlib needs a dozen."""
_INFLATED_AT_ONCE: Final = 64 * 1024


class Malformed(Exception):
    """A clipboard message is not what it says."""


@dataclass(frozen=True, slots=True)
class Clipboard:
    """The largest text in bytes, 0 for none, None for any: ``in_bytes`` towards the session, ``out_bytes`` from it.

    A text counts as it is sent: in UTF-8 with CR LF at the end of each line, or in Latin-1 where the client knows no
    extended clipboard.
    """

    in_bytes: int | None = None
    out_bytes: int | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether there is nothing to enforce."""
        return self.in_bytes is None and self.out_bytes is None


ANY: Final = Clipboard()
"""No limit."""


def render_message(flags: int, payload: bytes = b"") -> bytes:
    """Return a ClientCutText of the extended clipboard: its length is negative."""
    return struct.pack(">B3xiI", 6, -4 - len(payload), flags) + payload


def render_capabilities(actions: int, out_bytes: int) -> bytes:
    """Return what the client can do, in its name, so that no text above ``out_bytes`` is sent.

    With *provide* and a size TigerVNC sends texts up to that size unasked and only tells of larger ones; without
    *provide* it only tells of all. Without *notify* it would fall back to plain texts of any size.
    """
    actions &= REQUEST | PEEK
    if out_bytes:
        actions |= PROVIDE
    size = out_bytes + 1 if out_bytes else 0  # a zero byte ends it
    return render_message(CAPABILITIES | NOTIFY | actions | TEXT, struct.pack(">I", size))


def render_text(text: bytes) -> bytes:
    """Return a text as the client provides it."""
    return render_message(PROVIDE | TEXT, zlib.compress(struct.pack(">I", len(text) + 1) + text + b"\0"))


NOTHING: Final = render_text(b"")
"""In the place of a text that is too large: whoever waits for it gets an end instead of none."""


class Provided:
    """A text that the client provides, measured while it passes, and never kept.

    Args:
        flags: The message's first four bytes.
        limit_bytes: The largest text.
    """

    __slots__ = ("_inflater", "_is_text", "_kept", "_left", "_limit_bytes", "_size", "is_refused")

    def __init__(self, flags: int, limit_bytes: int) -> None:
        self._is_text = flags & FORMATS == TEXT
        self._limit_bytes = limit_bytes
        self._inflater = zlib.decompressobj()
        self._kept = b""  # compressed bytes, until the size is known
        self._size = b""
        self._left = -1  # bytes of the text that have not come yet; -1 until its size is known
        self.is_refused = not self._is_text

    def feed(self, data: bytes) -> bytes:
        """Return what goes on; nothing until the size is known, and nothing of a text that is too large.

        Raises:
            Malformed: It is longer than it says, or not compressed at all.
        """
        if self.is_refused:
            return b""
        todo = data
        while True:
            # No more than the size at first: what is behind it may be broken, and is nobody's if the text is too large.
            most = _SIZE_BYTES - len(self._size) or _INFLATED_AT_ONCE
            try:
                found = self._inflater.decompress(todo, most)
            except zlib.error:
                raise Malformed("a clipboard that can't be read") from None
            self._measure(found)
            if self.is_refused:
                self._kept = b""
                return b""
            todo = self._inflater.unconsumed_tail  # stale at the end of the stream, where it would be read for ever
            if self._inflater.eof or (not todo and len(found) < most):
                break
        if self._inflater.unused_data:
            raise Malformed("a clipboard with something behind it")
        if self._left < 0:
            self._kept += data
            if len(self._kept) > _UNDECIDED_BYTES:
                raise Malformed("a clipboard without a size")
            return b""
        kept, self._kept = self._kept, b""
        return kept + data

    def _measure(self, found: bytes) -> None:
        if self._left < 0:
            self._size += found
            if len(self._size) == _SIZE_BYTES:
                (self._left,) = struct.unpack(">I", self._size)
                self.is_refused = self._left > self._limit_bytes + 1
            return
        self._left -= len(found)
        if self._left < 0:
            raise Malformed("a clipboard that is longer than it says")
