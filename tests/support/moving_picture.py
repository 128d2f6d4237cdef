"""An X client that shows ever new pictures like photographs, and answers each key at once: ``moving_picture.py [FPS]``.

It speaks the X11 protocol itself (X.Org's "X Window System Protocol", version 11), so that it needs nothing but Python
and an Xauthority file. On the left is a field whose colour changes with each key; what a key takes to be seen can so be
measured beside a screen that never rests.
"""

from __future__ import annotations

import math
import os
import random
import select
import socket
import struct
import sys
import time
from pathlib import Path

WIDTH, HEIGHT, FIELD, PICTURES, STRIP = 960, 600, 120, 8, 60
COLOURS = (0xD02020, 0x20A040, 0x2050D0, 0xD0B020)
WINDOW, CONTEXT, FIELD_CONTEXT = 1, 2, 3


def make_picture(seed: int) -> bytes:
    """Return pixels, 4 bytes each: soft shapes with grain, which no encoding packs well without loss."""
    chance = random.Random(seed)
    waves = [(chance.uniform(0.005, 0.05), chance.uniform(0.005, 0.05), chance.uniform(0, 6)) for _ in range(3)]
    width = WIDTH - FIELD
    columns = [[127 * math.sin(a * x + c) for x in range(width)] for a, _, c in waves]
    grain = chance.randbytes(1 << 16)
    out = bytearray(width * HEIGHT * 4)
    at = 0
    for y in range(HEIGHT):
        rows = [math.cos(b * y) for _, b, _ in waves]
        noise = chance.randrange(1 << 15)
        for x in range(width):
            one = grain[noise + x] >> 3
            for colour in range(3):
                out[at + colour] = (int(columns[colour][x] * rows[colour]) + 128 + one) & 0xFF
            at += 4
    return bytes(out)


class Display:
    """A connection to the X server that DISPLAY and XAUTHORITY name."""

    def __init__(self) -> None:
        number = os.environ["DISPLAY"].rpartition(":")[2].partition(".")[0]
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(f"/tmp/.X11-unix/X{number}")
        name, data = find_cookie(number)
        request = struct.pack("<BxHHHHxx", 0x6C, 11, 0, len(name), len(data)) + pad(name) + pad(data)
        self.sock.sendall(request)
        status, length = struct.unpack("<BxHHH", self.read(8))[0::3]
        body = self.read(length * 4)
        if status != 1:
            raise SystemExit(f"the X server refuses: {body!r}")
        self.base = struct.unpack_from("<I", body, 4)[0]
        (vendor,) = struct.unpack_from("<H", body, 16)
        formats = body[21]
        screen = 32 + (vendor + 3) // 4 * 4 + 8 * formats
        self.root = struct.unpack_from("<I", body, screen)[0]
        self.depth = body[screen + 38]

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise SystemExit("the X server has ended")
            data += part
        return data

    def send(self, opcode: int, detail: int, body: bytes) -> None:
        """Send a request; its length is counted in units of 4 bytes."""
        body = pad(body)
        self.sock.sendall(struct.pack("<BBH", opcode, detail, 1 + len(body) // 4) + body)


def find_cookie(number: str) -> tuple[bytes, bytes]:
    """Return the name and data of the authorisation for a display; empty where there is none."""
    path = Path(os.environ.get("XAUTHORITY") or Path.home() / ".Xauthority")
    data, at = path.read_bytes() if path.exists() else b"", 0
    while at < len(data):
        parts = []
        at += 2
        for _ in range(4):
            (length,) = struct.unpack_from(">H", data, at)
            parts.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        if parts[1] in (b"", number.encode()):
            return parts[2], parts[3]
    return b"", b""


def pad(data: bytes) -> bytes:
    """Fill up to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def main() -> None:
    """Show pictures until the X server ends."""
    fps = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    display = Display()
    window, context, field = (display.base | number for number in (WINDOW, CONTEXT, FIELD_CONTEXT))
    events = 0x1 | 0x8000  # KeyPress, Exposure
    display.send(
        1,
        display.depth,
        struct.pack("<IIhhHHHHIIII", window, display.root, 0, 0, WIDTH, HEIGHT, 0, 1, 0, 0xA00, 1, events),
    )  # CreateWindow: override-redirect, so that no window manager moves it
    display.send(55, 0, struct.pack("<III", context, window, 0))
    display.send(55, 0, struct.pack("<IIII", field, window, 4, COLOURS[0]))
    display.send(8, 0, struct.pack("<I", window))
    pictures = [make_picture(seed) for seed in range(PICTURES)]
    row = (WIDTH - FIELD) * 4
    shown = keys = 0
    due = time.monotonic()
    while True:
        ready, _, _ = select.select([display.sock], [], [], max(0.0, due - time.monotonic()))
        if ready:
            event = display.read(32)
            kind = event[0] & 0x7F
            if kind == 2:
                keys += 1
                display.send(56, 0, struct.pack("<III", field, 4, COLOURS[keys % len(COLOURS)]))
            if kind in (2, 12):
                display.send(70, 0, struct.pack("<IIhhHH", window, field, 0, 0, FIELD, HEIGHT))
            continue
        if not shown:  # once it is there, whatever else is: the keys are for this window
            display.send(42, 1, struct.pack("<II", window, 0))
        due += 1 / fps
        picture = pictures[shown % PICTURES]
        shown += 1
        for y in range(0, HEIGHT, STRIP):
            head = struct.pack("<IIHHhhBBxx", window, context, WIDTH - FIELD, STRIP, FIELD, y, 0, display.depth)
            display.send(72, 2, head + picture[y * row : (y + STRIP) * row])


if __name__ == "__main__":
    main()
