"""Straightforward parsers of whole inputs, to compare the gateway's with: slow, and written from the standards alone.

Nothing here knows how the gateway's parsers work, and nothing is shared with them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass


class Wrong(Exception):
    """The input is not what it should be."""


# WebSocket frames of a client (RFC 6455, 5.2)


@dataclass
class Told:
    """What a client said: the bytes of its data frames, its control frames in order, and the code that ends it."""

    data: bytes
    controls: list[tuple[int, bytes]]
    code: int = 0


def read_frames(said: bytes, limit_bytes: int) -> Told:
    """Read frames until a close, an error or the end; a data frame that is cut off counts as far as it goes."""
    told = Told(b"", [])
    in_message = False
    while len(said) >= 2:
        fin, rsv, kind = said[0] >> 7, said[0] >> 4 & 7, said[0] & 15
        masked, length = said[1] >> 7, said[1] & 127
        is_control = kind >= 8
        wrong = rsv or not masked or kind in (3, 4, 5, 6, 7) or kind > 10
        wrong = wrong or (is_control and (not fin or length > 125))
        wrong = wrong or (not is_control and (kind == 0) != in_message)
        if wrong:
            told.code = 1002
            return told
        if kind == 1:
            told.code = 1003
            return told
        wide = {126: 2, 127: 8}.get(length, 0)
        if len(said) < 2 + wide:
            return told
        if wide:
            length = int.from_bytes(said[2 : 2 + wide], "big")
            if length < {2: 126, 8: 65536}[wide] or length >= 1 << 63:
                told.code = 1002
                return told
            if length > limit_bytes:
                told.code = 1009
                return told
        if len(said) < 6 + wide:
            return told
        mask = said[2 + wide : 6 + wide]
        body = said[6 + wide : 6 + wide + length]
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))
        if not is_control:
            told.data += payload
            in_message = not fin
        if len(body) < length:
            return told
        said = said[6 + wide + length :]
        if kind == 8:
            told.code = judge_close(payload)
            if not told.code:
                told.controls.append((8, payload))
            return told
        if is_control:
            told.controls.append((kind, payload))
    return told


def judge_close(payload: bytes) -> int:
    """Return the code that a close frame is answered with; 0 where it is good (RFC 6455, 7.4)."""
    if len(payload) == 1:
        return 1002
    if payload:
        code = int.from_bytes(payload[:2], "big")
        named = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011}
        if code not in named and not 3000 <= code < 5000:
            return 1002
        try:
            payload[2:].decode("utf-8")
        except UnicodeDecodeError:
            return 1007
    return 0


# chunked bodies (RFC 9112, 7.1)


def read_chunks(said: bytes) -> tuple[bytes, bytes | None]:
    """Return the payload, and what follows the body, or None where it has not ended.

    Raises:
        Wrong: It can't become one.
    """
    payload = b""
    while True:
        line, found, rest = said.partition(b"\n")
        if not found:
            return payload, None
        if not line.endswith(b"\r") or len(line) > 4095:
            raise Wrong("a line")
        digits, _, extension = line[:-1].partition(b";")
        if not 1 <= len(digits) <= 15 or any(byte not in b"0123456789abcdefABCDEF" for byte in digits):
            raise Wrong("a size")
        if any(byte != 9 and (byte < 32 or byte == 127) for byte in extension):
            raise Wrong("an extension")
        count = int(digits, 16)
        if count == 0:
            break
        payload += rest[:count]
        if len(rest) < count:
            return payload, None
        said = rest[count:]
        if said[:1] not in (b"", b"\r") or (len(said) > 1 and said[:2] != b"\r\n"):
            if b"\n" in said or len(said) > 4096:
                raise Wrong("an end")
            return payload, None  # told at the end of its line
        if len(said) < 2:
            return payload, None
        said = said[2:]
    trailers = 0
    while True:
        line, found, rest = rest.partition(b"\n")
        if not found:
            return payload, None
        if not line.endswith(b"\r") or len(line) > 4095:
            raise Wrong("a line")
        if line == b"\r":
            return payload, rest
        name, colon, value = line[:-1].partition(b":")
        trailers += len(line) - 1
        token = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        if not colon or not name or any(byte not in token for byte in name) or trailers > 16384:
            raise Wrong("a trailer")
        if any(byte != 9 and (byte < 32 or byte == 127) for byte in value):
            raise Wrong("a trailer")


# what a client of a desktop says (RFC 6143, 7.5; rfbproto)

EXTENDED = 0xC0A1E5CE
TEXT, CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = 1, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28
SIZES = {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 250: 4}


def split_rfb(said: bytes) -> list[bytes]:
    """Return the whole messages that follow a handshake.

    Raises:
        Wrong: There is no such message; ``args`` has what came before it.
    """
    found: list[bytes] = []
    while said:
        size = _measure(said, found)
        if len(said) < size:
            break
        found.append(said[:size])
        said = said[size:]
    return found


def _measure(said: bytes, found: list[bytes]) -> int:
    kind = said[0]
    padded = said + bytes(12)
    if kind in SIZES:
        return SIZES[kind]
    if kind == 2 and len(said) >= 4:
        count = int.from_bytes(said[2:4], "big")
        if count > 1024:
            raise Wrong(found)
        return 4 + 4 * count
    if kind == 6 and len(said) >= 8:
        length = int.from_bytes(said[4:8], "big", signed=True)
        if abs(length) > 20 << 20 or -4 < length < 0:
            raise Wrong(found)
        return 8 + abs(length)
    if kind == 248 and len(said) >= 9:
        if said[8] > 64:
            raise Wrong(found)
        return 9 + said[8]
    if kind == 251 and len(said) >= 8:
        return 8 + 16 * said[6]
    if kind == 255 and len(said) >= 4:
        if said[1] > 1:
            raise Wrong(found)
        return 12 if said[1] == 0 else 10 if padded[2:4] == b"\0\2" else 4
    if kind not in (2, 6, 248, 251, 255):
        raise Wrong(found)
    return 1 << 40


def filter_rfb(message: bytes, view_only: bool, limit_in: int | None, limit_out: int | None) -> bytes:
    """Return what may go on of one message.

    Raises:
        Wrong: It is not to be understood.
    """
    kind = message[0]
    if kind == 2:
        wanted = [one for (one,) in struct.iter_unpack(">I", message[4:]) if one != 0xFFFFFEC4]
        if limit_out is not None or view_only:
            wanted = [one for one in wanted if one != EXTENDED] + [EXTENDED]
        return b"\2\0" + struct.pack(">H", len(wanted)) + b"".join(struct.pack(">I", one) for one in wanted)
    if view_only:
        return message if kind in (0, 3, 150, 248) else b""
    if kind != 6:
        return message
    length = int.from_bytes(message[4:8], "big", signed=True)
    if length >= 0:
        return message if limit_in is None or (limit_in > 0 and length <= limit_in) else b""
    flags = int.from_bytes(message[8:12], "big")
    action = flags & 0xFF000000
    if action & CAPS:
        return message if limit_out is None else make_capabilities(action, limit_out)
    if action == PROVIDE:
        if limit_in is None or limit_in == 0:
            return message if limit_in is None else b""
        return message if _is_small(message, flags, limit_in) else EMPTY
    if action == NOTIFY:
        return b"" if limit_in == 0 else message
    if action == REQUEST:
        return message if limit_out is None else b""
    if action == PEEK:
        return message
    raise Wrong("an action")


def make_capabilities(action: int, limit_out: int) -> bytes:
    """Return the capabilities that are told to the server."""
    flags = CAPS | NOTIFY | TEXT | (action & (REQUEST | PEEK)) | (PROVIDE if limit_out else 0)
    return b"\6\0\0\0" + struct.pack(">iII", -8, flags, limit_out + 1 if limit_out else 0)


_NOTHING = zlib.compress(b"\0\0\0\1\0")
EMPTY = b"\6\0\0\0" + struct.pack(">iI", -4 - len(_NOTHING), PROVIDE | TEXT) + _NOTHING


def _is_small(message: bytes, flags: int, limit: int) -> bool:
    if flags & 0xFFFF != TEXT:
        return False
    one = zlib.decompressobj()
    try:
        text = one.decompress(message[12:], limit + 1024)
    except zlib.error:
        head = _inflate_what_goes(message[12:])
        if len(head) >= 4 and int.from_bytes(head[:4], "big") > limit + 1:
            return False
        raise Wrong("not compressed") from None
    if len(text) < 4:
        if one.unused_data or len(message) - 12 > 1024:
            raise Wrong("without a size")
        return False
    size = int.from_bytes(text[:4], "big")
    if size > limit + 1:
        return False
    if len(text) - 4 > size or one.unused_data or one.unconsumed_tail:
        raise Wrong("longer than it says")
    return True


def _inflate_what_goes(data: bytes) -> bytes:
    one, out = zlib.decompressobj(), b""
    try:
        for at in range(len(data)):
            out += one.decompress(data[at : at + 1])
    except zlib.error:
        pass
    return out


# terminals (docs/protocol.md)


def read_terminal(said: bytes) -> bytes:
    """Return what a viewer's client may say.

    Raises:
        Wrong: It said something else.
    """
    out = b""
    while len(said) >= 5:
        kind, length = said[:1], int.from_bytes(said[1:5], "big")
        if length > 1 << 20 or kind not in b"air" or (kind == b"a" and length != 8):
            raise Wrong("a frame")
        if kind == b"a" and len(said) >= 13:
            out += said[:13]
        said = said[5 + length :]
    return out
