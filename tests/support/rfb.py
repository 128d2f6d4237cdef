"""A small RFB client (RFC 6143) that looks: raw pixels, keys and pointer, over anything with ``sendall`` and ``recv``.

For tests and benchmarks. It decodes Raw only, which every server must be able to send (RFC 6143, 7.7).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

RAW, DESKTOP_SIZE = 0, -223


class Stream(Protocol):
    """What an RfbClient needs of a connection."""

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``."""

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""


class WebSocketStream:
    """A WebSocket (websockets.sync) as a stream of bytes."""

    def __init__(self, connection: object) -> None:
        self._connection = connection
        self._rest = memoryview(b"")

    def sendall(self, data: bytes) -> None:
        """Send one binary message."""
        self._connection.send(data)  # type: ignore[attr-defined]

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes of the next message."""
        while not self._rest:
            message = self._connection.recv(timeout=20)  # type: ignore[attr-defined]
            self._rest = memoryview(message if isinstance(message, bytes) else message.encode())
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)


class RfbClient:
    """One viewer. ``pixels`` is the framebuffer, 4 bytes a pixel, little-endian 0x00RRGGBB."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.version = self._read(12)
        stream.sendall(b"RFB 003.008\n")
        kinds = self._read(self._read(1)[0])
        assert 1 in kinds, f"security type None is not offered: {kinds!r}"
        stream.sendall(b"\x01")
        assert self._read(4) == b"\0\0\0\0", "security handshake failed"
        self.clipboard: list[bytes] = []
        self.clipboard_messages: list[bytes] = []
        stream.sendall(b"\x01")  # shared
        self.width, self.height = struct.unpack(">HH", self._read(4))
        self._read(16)
        self.name = self._read(struct.unpack(">I", self._read(4))[0]).decode()
        self.pixels = bytearray(self.width * self.height * 4)
        # 32 bit, depth 24, little endian, true colour, 8 bits each at 16, 8, 0 (7.5.1)
        stream.sendall(struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        stream.sendall(struct.pack(">BxHii", 2, 2, RAW, DESKTOP_SIZE))

    def request(self, *, incremental: bool = True) -> None:
        """Ask for an update of the whole framebuffer."""
        self._stream.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def take(self) -> bool:
        """Read one message of the server; return whether it changed pixels."""
        kind = self._read(1)[0]
        if kind == 0:
            return self._take_update()
        if kind == 1:
            self._read(3)
            _, colours = struct.unpack(">HH", self._read(4))
            self._read(colours * 6)
        elif kind == 3:
            self._read(3)
            (length,) = struct.unpack(">i", self._read(4))  # negative: the extended clipboard's messages
            (self.clipboard if length >= 0 else self.clipboard_messages).append(self._read(abs(length)))
        elif kind != 2:  # bell has no body
            raise AssertionError(f"unknown message {kind} of the server")
        return False

    def press(self, key: int) -> None:
        """Press and release a key (X11 keysym)."""
        for down in (1, 0):
            self._stream.sendall(struct.pack(">BBxxI", 4, down, key))

    def hold(self, key: int, *, down: bool) -> None:
        """Press a key and leave it so, or release it."""
        self._stream.sendall(struct.pack(">BBxxI", 4, down, key))

    def type(self, text: str) -> None:
        """Type Latin-1 text; a newline is Return."""
        for character in text:
            self.press(0xFF0D if character == "\n" else ord(character))

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        """Move the pointer, with a mask of pressed buttons."""
        self._stream.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    def cut(self, text: str) -> None:
        """Offer text as the clipboard (Latin-1)."""
        data = text.encode("latin-1")
        self._stream.sendall(struct.pack(">B3xI", 6, len(data)) + data)

    def say_extended(self, flags: int, payload: bytes = b"") -> None:
        """Send a message of the extended clipboard."""
        self._stream.sendall(struct.pack(">B3xiI", 6, -4 - len(payload), flags) + payload)

    def wait(self, condition: Callable[[RfbClient], bool], timeout_s: float) -> float:
        """Take updates until ``condition``; return the seconds it took.

        Raises:
            TimeoutError: It did not come true in time, as far as updates arrived.
        """
        begin = time.monotonic()
        self.request(incremental=False)
        while True:
            if self.take():
                if condition(self):
                    return time.monotonic() - begin
                self.request()
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError(f"not so within {timeout_s} s")

    def count_colours(self, limit: int = 4096) -> int:
        """Return how many colours are on the screen, at most ``limit``."""
        view = memoryview(bytes(self.pixels)).cast("I")
        seen: set[int] = set()
        for pixel in view[:: max(1, len(view) // 100_000)]:
            seen.add(pixel & 0xFFFFFF)
            if len(seen) >= limit:
                break
        return len(seen)

    def _take_update(self) -> bool:
        self._read(1)
        changed = False
        for _ in range(struct.unpack(">H", self._read(2))[0]):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            if encoding == DESKTOP_SIZE:
                self.width, self.height = width, height
                self.pixels = bytearray(width * height * 4)
                continue
            assert encoding == RAW, f"encoding {encoding} was not asked for"
            data = self._read(width * height * 4)
            for row in range(height):
                at = ((y + row) * self.width + x) * 4
                self.pixels[at : at + width * 4] = data[row * width * 4 : (row + 1) * width * 4]
            changed = changed or width * height > 0
        return changed

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._stream.recv(min(size, 1 << 20))
            if not part:
                raise ConnectionError("the server closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def connect_unix(path: str, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket that may not be there yet.

    Raises:
        TimeoutError: It was not there in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        try:
            sock.connect(path)
            return sock
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not there within {timeout_s} s") from error
            time.sleep(0.002)
