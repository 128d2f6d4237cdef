"""A site's clipboard policy with a real TigerVNC: what is copied where, in both directions and at every size."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import Rig
from rfb import RfbClient
from test_gateway_real_apps import desktop, loop_call, route_desktop, run, viewing

__all__ = ["desktop"]
pytestmark = [pytest.mark.system, pytest.mark.skipif(not shutil.which("xclip"), reason="xclip is not installed")]

TEXT, CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = 1, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28
LIMIT = 1000


class Copying:
    """A client of a desktop that copies as noVNC does: extended clipboard, and asks for what it is told of."""

    def __init__(self, client: RfbClient) -> None:
        self.client = client
        client._stream.sendall(struct.pack(">BxHii", 2, 2, 0, 0xC0A1E5CE - (1 << 32)))
        client.say_extended(CAPS | REQUEST | PEEK | NOTIFY | PROVIDE | TEXT, struct.pack(">I", 20 << 20))
        self.offered = b""
        self.texts: list[bytes] = []
        self.asked = 0  # how often the server wanted our text
        self._seen = 0

    def offer(self, text: bytes) -> None:
        """Say that there is a text here."""
        self.offered = text
        self.client.say_extended(NOTIFY | TEXT)

    def look(self) -> None:
        """Take what has come, and answer it."""
        self.client.wait(lambda client: True, 10)
        for message in self.client.clipboard_messages[self._seen :]:
            (flags,) = struct.unpack(">I", message[:4])
            if flags & CAPS:
                continue
            if flags & NOTIFY and flags & TEXT:
                self.client.say_extended(REQUEST | TEXT)
            elif flags & REQUEST:
                self.asked += 1
                data = struct.pack(">I", len(self.offered) + 1) + self.offered + b"\0"
                self.client.say_extended(PROVIDE | TEXT, zlib.compress(data))
            elif flags & PROVIDE:
                data = zlib.decompressobj().decompress(message[4:])
                self.texts.append(data[4 : 4 + struct.unpack(">I", data[:4])[0]].rstrip(b"\0"))
        self._seen = len(self.client.clipboard_messages)


class Clip:
    """The clipboard of a display, as xclip has it."""

    def __init__(self, display: str) -> None:
        self._env = os.environ | {"DISPLAY": display}

    def write(self, text: bytes) -> None:
        subprocess.run(
            ["xclip", "-i", "-selection", "clipboard"], env=self._env, input=text, timeout=10, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def start_reading(self) -> subprocess.Popen[bytes]:
        argv = ["xclip", "-o", "-selection", "clipboard"]
        return subprocess.Popen(argv, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def with_policy(
    desktop: tuple[Path, str], policy: dict[str, int], body: Callable[[Copying, Clip], None], **more: Any
) -> None:
    """Run ``body`` with a client under a policy."""
    path, display = desktop

    async def story(rig: Rig) -> None:
        rig.loop = asyncio.get_running_loop()  # type: ignore[attr-defined]

        def work() -> None:
            loop_call(rig, route_desktop(rig, path, view_only=False))
            rig.portal.way = rig.portal.way | {"clipboard": policy}
            with viewing(rig) as client:
                client.wait(lambda client: True, 10)
                body(Copying(client), Clip(display))

        await asyncio.to_thread(work)

    run(story)


def copy_out(client: Copying, clip: Clip, text: bytes, arrives: bool) -> None:
    """Copy in the desktop; look whether it arrives here."""
    before = len(client.client.clipboard_messages)
    clip.write(text)
    deadline = time.monotonic() + 15
    while len(client.client.clipboard_messages) == before:  # a text or at least a notice comes
        assert time.monotonic() < deadline
        client.look()
        time.sleep(0.02)
    for _ in range(4):  # and the answer to a request, if there was one
        client.look()
        time.sleep(0.02)
    assert (text in client.texts) is arrives, (len(text), client.texts)
    assert client.client.clipboard == []  # nothing in the old way


def paste_in(client: Copying, clip: Clip, text: bytes) -> bytes:
    """Copy here, paste in the desktop; return what arrives."""
    client.offer(text)
    client.look()
    reading = clip.start_reading()
    deadline = time.monotonic() + 15
    while reading.poll() is None:
        assert time.monotonic() < deadline
        client.look()
        time.sleep(0.02)
    return reading.communicate()[0]


@pytest.mark.parametrize(
    ("policy", "short_arrives", "long_arrives"),
    [({}, True, True), ({"out": LIMIT}, True, False), ({"out": 0}, False, False), ({"in": 0}, True, True)],
)
def test_what_is_copied_in_the_desktop(
    desktop: tuple[Path, str], policy: dict[str, int], short_arrives: bool, long_arrives: bool
) -> None:
    def body(client: Copying, clip: Clip) -> None:
        copy_out(client, clip, b"s" * LIMIT, short_arrives)
        copy_out(client, clip, b"l" * (LIMIT + 1), long_arrives)
        copy_out(client, clip, b"again", short_arrives)
        if long_arrives:
            return
        client.client.say_extended(REQUEST | TEXT)  # and without having been told
        client.client.say_extended(CAPS | REQUEST | TEXT, struct.pack(">I", 20 << 20))
        client.client._stream.sendall(struct.pack(">BxHi", 2, 1, 0))  # no extended clipboard any more
        copy_out(client, clip, b"L" * (LIMIT + 1), arrives=False)

    with_policy(desktop, policy, body)


@pytest.mark.parametrize(
    ("policy", "short", "long"),
    [({}, b"s" * LIMIT, b"l" * 5000), ({"in": LIMIT}, b"s" * LIMIT, b""), ({"out": 0}, b"s" * LIMIT, b"l" * 5000)],
)
def test_what_is_pasted_into_the_desktop(
    desktop: tuple[Path, str], policy: dict[str, int], short: bytes, long: bytes
) -> None:
    def body(client: Copying, clip: Clip) -> None:
        assert paste_in(client, clip, b"s" * LIMIT) == short
        assert paste_in(client, clip, b"l" * 5000) == long
        assert client.asked == 2

    with_policy(desktop, policy, body)


def test_nothing_is_pasted_where_that_is_forbidden(desktop: tuple[Path, str]) -> None:
    def body(client: Copying, clip: Clip) -> None:
        clip.write(b"the desktop's own")
        client.offer(b"from outside")
        client.client.cut("from outside, in the old way")
        client.client.say_extended(PROVIDE | TEXT, zlib.compress(struct.pack(">I", 4) + b"abc\0"))
        for _ in range(4):
            client.look()
        reading = clip.start_reading()
        assert reading.communicate(timeout=10)[0] == b"the desktop's own"
        assert client.asked == 0

    with_policy(desktop, {"in": 0}, body)


def test_the_old_clipboard_is_measured_too(desktop: tuple[Path, str]) -> None:
    def body(client: Copying, clip: Clip) -> None:
        for size, arrives in ((LIMIT, True), (LIMIT + 1, False)):
            clip.write(b"the desktop's own")
            for _ in range(3):
                client.look()
            client.client.cut("x" * size)
            for _ in range(3):
                client.look()
            reading = clip.start_reading()
            assert reading.communicate(timeout=10)[0] == (b"x" * size if arrives else b"the desktop's own")

    with_policy(desktop, {"in": LIMIT}, body)
