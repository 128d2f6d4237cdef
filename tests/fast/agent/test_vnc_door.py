"""The door for VNC passwords: its handshake with any viewer and any desktop, its limit on guesses, what it cuts off."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portico.agent import vnc_door
from portico.agent.vnc_door import GUESS_S, GUESSES, STRANGERS, Guesses, Refused, parse_version

CHALLENGE = bytes(range(16))
RIGHT, WRONG = b"R" * 16, b"W" * 16
GREETING = b"RFB 003.008\n"


class Desktop:
    """A server with both security types that takes one response for right, and then echoes; fakes what is named."""

    def __init__(self, path: Path, types: bytes = b"\x01\x02", greeting: bytes = GREETING) -> None:
        self.asked = 0
        self._types, self._greeting = types, greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(50)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, AssertionError):
            sock.sendall(self._greeting)
            assert read(sock, 12) == GREETING
            sock.sendall(bytes([len(self._types)]) + self._types)
            assert read(sock, 1) == b"\x02"
            sock.sendall(CHALLENGE)
            response = read(sock, 16)
            self.asked += 1
            if response != RIGHT:
                sock.sendall(b"\0\0\0\1\0\0\0\x04Nope")
                return
            sock.sendall(b"\0\0\0\0")
            while data := sock.recv(65536):
                sock.sendall(data)


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    assert len(data) == size, f"{data!r} and the end, of {size} bytes"
    return data


class House:
    """A door before a desktop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.desktop = Desktop(folder / "app.sock")
        self.passwords = folder / "vnc-passwords"
        self.passwords.write_bytes(b"x" * 16)
        argv = [sys.executable, "-I", vnc_door.__file__, "--desktop", str(folder / "app.sock"),
                "--passwords", str(self.passwords)]  # fmt: skip
        self.process = subprocess.Popen(argv, cwd="/", stderr=subprocess.PIPE)
        self.path = folder / "app.sock.password"

    def connect(self) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(30)
            try:
                sock.connect(str(self.path))
                return sock
            except OSError:
                sock.close()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.desktop.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    found = House(tmp_path)
    yield found
    found.close()


def greet(sock: socket.socket, version: bytes) -> bytes:
    """Say a version; return the challenge."""
    assert read(sock, 12) == GREETING
    sock.sendall(version)
    if version < b"RFB 003.007":
        assert read(sock, 4) == b"\0\0\0\x02", "the server decides"
    else:
        assert read(sock, 2) == b"\x01\x02", "nothing else is offered"
        sock.sendall(b"\x02")
    return read(sock, 16)


def try_password(house: House, response: bytes, version: bytes = GREETING) -> bytes:
    """Return all that a viewer hears after its response, until the end or for two seconds."""
    with house.connect() as sock:
        assert greet(sock, version) == CHALLENGE
        sock.sendall(response)
        heard = b""
        sock.settimeout(2)
        with contextlib.suppress(TimeoutError):
            while part := sock.recv(1024):
                heard += part
        return heard


VERSIONS = [b"RFB 003.003\n", b"RFB 003.005\n", b"RFB 003.007\n", b"RFB 003.008\n", b"RFB 003.889\n"]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_let_in_with_the_password_and_then_only_copied(house: House, version: bytes) -> None:
    with house.connect() as sock:
        greet(sock, version)
        sock.sendall(RIGHT)
        assert read(sock, 4) == b"\0\0\0\0"
        data = os.urandom(3 << 20)
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        assert read(sock, len(data)) == data
        sender.join()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_password_is_told_as_the_version_has_it(house: House, version: bytes) -> None:
    reason = b"\0\0\0\x04Nope" if version >= GREETING else b""
    assert try_password(house, WRONG, version) == b"\0\0\0\1" + reason


@pytest.mark.parametrize("chosen", [b"\x01", b"\x00", b"\x10", b"\xff"])
def test_nothing_but_the_password_is_taken(house: House, chosen: bytes) -> None:
    with house.connect() as sock:
        read(sock, 12)
        sock.sendall(GREETING)
        read(sock, 2)
        sock.sendall(chosen + b"\x01" * 40)
        assert read(sock, 4) == b"\0\0\0\1"
        assert b"Only VNC Authentication" in read(sock, 44)
    assert house.desktop.asked == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_without_passwords_nobody_is_let_in_and_reads_why(house: House, version: bytes) -> None:
    house.passwords.unlink()
    with house.connect() as sock:
        read(sock, 12)
        sock.sendall(version)
        assert read(sock, 4 if version < b"RFB 003.007" else 1).strip(b"\0") == b""
        (size,) = struct.unpack(">I", read(sock, 4))
        assert b"no VNC password" in read(sock, size)
        assert sock.recv(1) == b""
    assert house.desktop.asked == 0


def test_guessing_is_slow_however_many_try(house: House) -> None:
    heard: list[bytes] = []

    def guess() -> None:
        for _ in range(10):
            with contextlib.suppress(AssertionError, OSError):  # too many at once are not even greeted
                heard.append(try_password(house, WRONG))

    guessers = [threading.Thread(target=guess) for _ in range(6)]
    begin = time.monotonic()
    for one in guessers:
        one.start()
    for one in guessers:
        one.join()
    took_s = time.monotonic() - begin
    assert len(heard) > GUESSES * 2
    assert GUESSES <= house.desktop.asked <= GUESSES + took_s / GUESS_S
    assert b"Too many wrong passwords. Try again in" in heard[-1]
    assert b"Too many" in try_password(house, RIGHT) or house.desktop.asked > GUESSES


def test_who_says_nothing_keeps_no_viewer_out_that_is_in(house: House) -> None:
    with house.connect() as viewer:
        greet(viewer, GREETING)
        viewer.sendall(RIGHT)
        read(viewer, 4)
        silent = [house.connect() for _ in range(STRANGERS + 20)]
        time.sleep(0.3)
        viewer.sendall(b"still there")
        assert read(viewer, 11) == b"still there"
        for one in silent:
            one.close()
    deadline = time.monotonic() + 20
    while True:  # and when they have gone, others come in
        with contextlib.suppress(AssertionError, OSError):
            assert try_password(house, RIGHT)[:4] == b"\0\0\0\0"
            return
        assert time.monotonic() < deadline


@pytest.mark.parametrize("change", ["removed", "made again"])
def test_viewers_of_earlier_passwords_are_cut_off(house: House, change: str) -> None:
    with house.connect() as viewer:
        greet(viewer, GREETING)
        viewer.sendall(RIGHT)
        read(viewer, 4)
        time.sleep(1.5)
        viewer.sendall(b"x")
        assert read(viewer, 1) == b"x"
        if change == "removed":
            house.passwords.unlink()
        else:
            (house.folder / "new").write_bytes(b"y" * 16)
            (house.folder / "new").rename(house.passwords)
        viewer.settimeout(10)
        assert viewer.recv(1) == b""


def test_the_socket_is_its_users_alone(house: House) -> None:
    house.connect().close()
    assert house.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("types", "greeting", "words"),
    [
        (b"\x01", GREETING, b"takes no VNC password"),
        (b"", GREETING, b""),
        (b"\x01\x02", b"RFB 003.003\n", b"no RFB 3.8"),
        (b"\x01\x02", b"HTTP/1.1 200", b"spoken here"),
    ],
)
def test_another_desktop_than_expected_is_said(tmp_path: Path, types: bytes, greeting: bytes, words: bytes) -> None:
    house = House(tmp_path)
    try:
        house.desktop.close()
        (tmp_path / "app.sock").unlink()
        house.desktop = Desktop(tmp_path / "app.sock", types, greeting)
        with house.connect() as sock:
            read(sock, 12)
            sock.sendall(GREETING)
            assert read(sock, 1) == b"\0"
            (size,) = struct.unpack(">I", read(sock, 4))
            assert words in read(sock, size)
    finally:
        house.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    found = House(tmp_path_factory.mktemp("door"))
    yield found
    found.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=st.one_of(st.sampled_from(VERSIONS), st.binary(max_size=14), st.from_regex(rb"RFB \d{3}\.\d{3}\n\Z")),
    rest=st.lists(st.binary(max_size=40), max_size=4),
)
def test_whatever_a_viewer_says_it_is_never_in_without_the_password(
    lasting: House, version: bytes, rest: list[bytes]
) -> None:
    with lasting.connect() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for part in (version, *rest):
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        heard = b""
        while part := sock.recv(4096):
            heard += part
        assert heard.startswith(GREETING)
        assert heard.partition(CHALLENGE)[2][:4] in (b"", b"\0\0\0\1"), "the desktop has let it in"
        assert len(heard) < 300
    with lasting.connect() as sock:
        assert read(sock, 12) == GREETING, "others are still greeted"


@given(st.binary(max_size=16))
def test_a_version_is_one_of_three_or_refused(line: bytes) -> None:
    with contextlib.suppress(Refused):
        assert parse_version(line) in (3, 7, 8)
        assert line.startswith(b"RFB 003.") and len(line) == 12


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_in_any_stretch_of_time_there_are_few_wrong_guesses(tries: list[tuple[float, bool]]) -> None:
    now = 0.0
    guesses = Guesses(lambda: now)
    wrong: list[float] = []
    for pause_s, is_right in tries:
        now += pause_s
        with contextlib.suppress(Refused):
            guesses.take()
            if is_right:
                guesses.give_back()
            else:
                wrong.append(now)
    for begin in range(len(wrong)):
        for end in range(begin, len(wrong)):
            assert end - begin + 1 <= GUESSES + (wrong[end] - wrong[begin]) / GUESS_S + 1e-6
