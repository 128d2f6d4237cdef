"""WebSocket frames of a client (RFC 6455), right or wrong as a test says them."""

from __future__ import annotations

import asyncio
import struct

from gateway_rig import KEY

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: HOST\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n\r\n"
)


def make_frame(
    kind: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    mask: bytes | None = b"\x37\xfa\x21\x3d",
    rsv: int = 0,
    length_bytes: int = 0,
) -> bytes:
    """Return a frame.

    Args:
        kind: Its opcode, 0 to 15.
        payload: Unmasked.
        final: FIN.
        mask: None for none.
        rsv: The three reserved bits as a number.
        length_bytes: 0 for the shortest form; 2 or 8 for a longer one that is not minimal.
    """
    flag = 0x80 if mask is not None else 0
    size = len(payload)
    form = length_bytes or (0 if size < 126 else 2 if size < 1 << 16 else 8)
    head = bytes([(0x80 if final else 0) | rsv << 4 | kind])
    if form == 0:
        head += bytes([flag | size])
    else:
        head += bytes([flag | (126 if form == 2 else 127)]) + size.to_bytes(form, "big")
    if mask is None:
        return head + payload
    whole = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")


def make_close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return make_frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)


async def read_server_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return kind and payload of the next frame of a server, which must be whole, unmasked and minimal.

    Raises:
        asyncio.IncompleteReadError: There is none.
    """
    first, length = await reader.readexactly(2)
    assert first & 0xF0 == 0x80 and not length & 0x80, (first, length)
    if length == 126:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        assert length > 125
    elif length == 127:
        (length,) = struct.unpack(">Q", await reader.readexactly(8))
        assert length >= 1 << 16
    return first & 15, await reader.readexactly(length)
