"""WebSocket frames without I/O (RFC 6455), for a server that carries bytes: binary messages, cut anywhere."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

FRAME_LIMIT_BYTES: Final = 1 << 20
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED = 1000, 1001, 1002, 1003
INVALID_DATA, POLICY, TOO_BIG = 1007, 1008, 1009
CUT: Final = 4001
"""Ours: what the stream lived by was taken back."""


class ProtocolError(Exception):
    """The peer broke the protocol; ``code`` closes the connection."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Frame(NamedTuple):
    """A frame of the client, unmasked, or a part of one: the parts of a data frame come as they arrive."""

    kind: int
    payload: bytes


def compute_accept(key: str) -> str:
    """Return the Sec-WebSocket-Accept that belongs to a Sec-WebSocket-Key (4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324 - the RFC's


def render_frame(kind: int, payload: bytes) -> bytes:
    """Return a whole frame of the server, which is not masked (5.1)."""
    return render_header(kind, len(payload)) + payload


def render_header(kind: int, length: int) -> bytes:
    """Return the header of a frame with FIN set (5.2)."""
    if length < 126:
        return struct.pack(">BB", 0x80 | kind, length)
    if length < 1 << 16:
        return struct.pack(">BBH", 0x80 | kind, 126, length)
    return struct.pack(">BBQ", 0x80 | kind, 127, length)


def render_close(code: int, reason: str = "") -> bytes:
    """Return a close frame; its payload has 125 bytes at most (5.5)."""
    text = reason.encode()[:120].decode(errors="ignore")  # never half a character
    return render_frame(CLOSE, struct.pack(">H", code) + text.encode())


def unmask(data: bytes, mask: bytes) -> bytes:
    """Return data XOR the repeated mask (5.3), as one big integer: no loop over bytes."""
    if not data:
        return data
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")


class FrameReader:
    """Takes the client's bytes cut anywhere; data frames come in parts with BINARY as their kind, control frames whole.

    Between two calls it keeps less than a control frame, 131 bytes, however large frames are.
    """

    __slots__ = ("_closed", "_fragmented", "_left", "_mask", "_pending")

    def __init__(self) -> None:
        self._pending = b""  # a header or control frame that is not there whole
        self._left = 0  # bytes of a data frame that are still to come
        self._mask = b""  # theirs, beginning with the next byte's
        self._fragmented = False
        self._closed = False

    def read_one(self, data: bytes) -> bytes | None:
        """Return the payload of ``data`` where that is exactly one short binary message, which is what a key press is.

        None where it is anything else: it has to be fed then.
        """
        size = len(data) - 6
        if not 0 < size < 126 or data[0] != 0x80 | BINARY or data[1] != 0x80 | size:
            return None
        if self._left or self._pending or self._fragmented or self._closed:
            return None
        mask = (data[2:6] * 32)[:size]
        return (int.from_bytes(data[6:], "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield what ``data`` completes, up to what breaks the protocol. Behind a close frame there is nothing (5.5.1).

        Raises:
            ProtocolError: While being iterated: a frame is malformed, unmasked, too large or of a kind not taken.
        """
        data, self._pending = self._pending + data, b""
        at = 0
        while at < len(data) and not self._closed:
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                mask, turn = self._mask, len(part) % 4
                self._mask = mask[turn:] + mask[:turn]
                yield Frame(BINARY, unmask(part, mask))
                continue
            header = _parse_header(data, at, self._fragmented)
            if header is None:
                break
            first, begin, length = header
            kind = first & 0x0F
            if kind < CLOSE:
                self._fragmented = not first & 0x80
                self._mask, self._left, at = data[begin - 4 : begin], length, begin
                continue
            if len(data) < begin + length:
                break
            at = begin + length
            payload = unmask(data[begin:at], data[begin - 4 : begin])
            if kind == CLOSE:
                _check_close(payload)
                self._closed = True
            yield Frame(kind, payload)
        if not self._closed:
            self._pending = data[at:]


def _parse_header(data: bytes, at: int, fragmented: bool) -> tuple[int, int, int] | None:
    """Return the first byte of the frame at ``at``, where its payload begins, and its length; None if unknown yet.

    Raises:
        ProtocolError: See FrameReader.feed.
    """
    have = len(data) - at
    if have < 2:
        return None
    first, second = data[at], data[at + 1]
    kind, length, size = first & 0x0F, second & 0x7F, 2
    if first & 0x70:
        raise ProtocolError(PROTOCOL_ERROR, "a reserved bit is set")
    if not second & 0x80:
        raise ProtocolError(PROTOCOL_ERROR, "a client's frame is not masked")
    if kind in (CLOSE, PING, PONG):
        if not first & 0x80 or length > 125:
            raise ProtocolError(PROTOCOL_ERROR, "a control frame is fragmented or too long")
    elif kind not in (CONTINUATION, TEXT, BINARY):
        raise ProtocolError(PROTOCOL_ERROR, "an unknown kind of frame")
    elif (kind == CONTINUATION) != fragmented:
        raise ProtocolError(PROTOCOL_ERROR, "fragments in the wrong order")
    elif kind == TEXT:
        raise ProtocolError(UNSUPPORTED, "only binary messages are taken")
    if length > 125:
        size = 4 if length == 126 else 10
        if have < size:
            return None
        length = int.from_bytes(data[at + 2 : at + size], "big")
        if length >> 63:
            raise ProtocolError(PROTOCOL_ERROR, "the length is negative")
        if length < (126 if size == 4 else 1 << 16):
            raise ProtocolError(PROTOCOL_ERROR, "the length is not minimal")
        if length > FRAME_LIMIT_BYTES:
            raise ProtocolError(TOO_BIG, "the frame is too large")
    return (first, at + size + 4, length) if have >= size + 4 else None


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    if len(payload) == 1:
        raise ProtocolError(PROTOCOL_ERROR, "half a close code")
    (code,) = struct.unpack_from(">H", payload)
    if not (1000 <= code <= 1011 and code not in (1004, 1005, 1006)) and not 3000 <= code <= 4999:
        raise ProtocolError(PROTOCOL_ERROR, "an invalid close code")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "the close reason is not UTF-8") from None
