"""As much of RFB 3.8 (RFC 6143) as the load needs: a handshake without a password, input, and asking for pictures.

The messages are true ones, so that a gateway may look at what a client says and the load still passes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

VERSION: Final = b"RFB 003.008\n"
SECURITY_TYPES: Final = b"\x01\x01"  # one, and it is None (7.1.2)
SECURITY_NONE: Final = b"\x01"
SECURITY_OK: Final = bytes(4)
SHARED: Final = b"\x01"
SERVER_INIT: Final = (
    struct.pack(">HH16sI", 1280, 800, bytes([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]), 5) + b"bench"
)

POINTER: Final = struct.pack(">BBHH", 5, 0, 640, 400)
"""An input event of 6 bytes (7.5.5), which the bench's app sends back."""

_UPDATE_REQUEST: Final = struct.Struct(">BBHHHH")  # 7.5.3
MESSAGE_BYTES: Final = {5: len(POINTER), 3: _UPDATE_REQUEST.size}

MIB: Final = 1 << 20


def render_bulk_request(mib: int) -> bytes:
    """Return a request for an update, which the bench's app answers with ``mib`` MiB: the width says how many."""
    return _UPDATE_REQUEST.pack(3, 0, 0, 0, mib, 1)


def parse_bulk_request(message: bytes) -> int:
    """Return how many MiB a request for an update means."""
    return int(_UPDATE_REQUEST.unpack(message)[4])


def shake_hands(say: Callable[[bytes], None], read: Callable[[int], bytes]) -> None:
    """Do a client's part of the handshake (7.1 to 7.3).

    Raises:
        ConnectionError: The server says something else.
    """
    for expected, answer in ((VERSION, VERSION), (SECURITY_TYPES, SECURITY_NONE), (SECURITY_OK, SHARED)):
        if (said := read(len(expected))) != expected:
            raise ConnectionError(f"RFB: {said!r} instead of {expected!r}")
        say(answer)
    read(len(SERVER_INIT))
