"""WebSocket frames without I/O (RFC 6455), for a server that carries bytes: binary messages, cut anywhere."""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass
from typing import Final

FRAME_LIMIT_BYTES: Final = 1 << 20
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, POLICY, TOO_BIG = 1000, 1001, 1002, 1003, 1008, 1009
CUT: Final = 4001
"""Ours: what the stream lived by was taken back."""


class ProtocolError(Exception):
    """The peer broke the protocol; ``code`` closes the connection."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Frame:
    """A frame of the client, unmasked."""

    kind: int
    payload: bytes


def compute_accept(key: str) -> str:
    """Return the Sec-WebSocket-Accept that belongs to a Sec-WebSocket-Key (4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324 - the RFC's


def is_key(key: str) -> bool:
    """Return whether a Sec-WebSocket-Key is 16 bytes in base64 (4.2.1)."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


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
    return render_frame(CLOSE, struct.pack(">H", code) + reason.encode()[:120])


def unmask(data: bytes, mask: bytes) -> bytes:
    """Return data XOR the repeated mask (5.3), as one big integer: no loop over bytes."""
    if not data:
        return data
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")


class FrameReader:
    """Takes the client's bytes cut anywhere, returns whole frames; data frames have BINARY as their kind."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fragmented = False
        self._closed = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes. Behind a close frame there is nothing (5.5.1).

        Raises:
            ProtocolError: A frame is malformed, unmasked, too large or of a kind that we do not take.
        """
        self._buffer += data
        frames: list[Frame] = []
        while not self._closed and (frame := self._take()):
            frames.append(frame)
            self._closed = frame.kind == CLOSE
        return frames

    def _take(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        final, kind, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        self._check(first, second, final, kind, length)
        at = 2
        if length == 126:
            if len(buffer) < 4:
                return None
            (length,), at = struct.unpack_from(">H", buffer, 2), 4
            if length < 126:
                raise ProtocolError(PROTOCOL_ERROR, "the length is not minimal")
        elif length == 127:
            if len(buffer) < 10:
                return None
            (length,), at = struct.unpack_from(">Q", buffer, 2), 10
            if length < 1 << 16:
                raise ProtocolError(PROTOCOL_ERROR, "the length is not minimal")
        if length > FRAME_LIMIT_BYTES:
            raise ProtocolError(TOO_BIG, "the frame is too large")
        if len(buffer) < at + 4 + length:
            return None
        payload = unmask(bytes(buffer[at + 4 : at + 4 + length]), bytes(buffer[at : at + 4]))
        del buffer[: at + 4 + length]
        if kind == CLOSE:
            _check_close(payload)
            return Frame(CLOSE, payload)
        if kind in (PING, PONG):
            return Frame(kind, payload)
        self._fragmented = not final
        return Frame(BINARY, payload)

    def _check(self, first: int, second: int, final: bool, kind: int, length: int) -> None:
        if first & 0x70:
            raise ProtocolError(PROTOCOL_ERROR, "a reserved bit is set")
        if not second & 0x80:
            raise ProtocolError(PROTOCOL_ERROR, "a client's frame is not masked")
        if kind in (CLOSE, PING, PONG):
            if not final or length > 125:
                raise ProtocolError(PROTOCOL_ERROR, "a control frame is fragmented or too long")
        elif kind == TEXT:
            raise ProtocolError(UNSUPPORTED, "only binary messages are taken")
        elif kind not in (CONTINUATION, BINARY):
            raise ProtocolError(PROTOCOL_ERROR, "an unknown kind of frame")
        elif (kind == CONTINUATION) != self._fragmented:
            raise ProtocolError(PROTOCOL_ERROR, "fragments in the wrong order")


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
        raise ProtocolError(1007, "the close reason is not UTF-8") from None
