"""The door of a desktop for viewers that want a password: it lets in who knows it, and copies bytes.

Run by the desktop's own job, as its user, beside an Xtigervnc with both security types (None,VncAuth):

    python -I vnc_door.py --desktop SOCKET --passwords FILE

It listens on SOCKET.password, 0600, and speaks the beginning of RFB (RFC 6143, 7.1) to both: of the desktop it asks
for VNC Authentication, and to the viewer it offers nothing else. The check is Xtigervnc's, and so is what the view-only
password may do; the door has no cryptography. It has what Xtigervnc can't have, to whom all Unix sockets are one peer:
a limit on guesses that locks nobody else out. Who connects by another way than this door is not its business.

It is one file that needs nothing else of Portico, and Python 3.9: it is copied into jobs on other machines.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

SUFFIX = ".password"
GREETING = b"RFB 003.008\n"
VNC_AUTH = 2
CHALLENGE_BYTES = 16
REASON_LIMIT_BYTES = 1024
CHUNK_BYTES = 64 * 1024
SPEAK_S = 10.0
PERSON_S = 120.0
"""How long somebody may take to type a password."""
LOOK_S = 1.0
"""How often is looked whether the passwords are still those that viewers came in with."""
GUESSES = 5
GUESS_S = 10.0
"""So many wrong passwords at once, and one more for each of so many seconds: some 9,000 a day of 2e14."""
STRANGERS = 8
VIEWERS = 32

Stamp = tuple[int, int, int]
_VERSION = re.compile(rb"RFB (\d{3})\.(\d{3})\n")


class Refused(Exception):
    """A viewer is not let in; the text is for its person."""


class Guesses:
    """How many wrong passwords may still be tried. One is taken before it is known whether it is wrong."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left, self._at = float(GUESSES), clock()

    def take(self) -> None:
        """Take one.

        Raises:
            Refused: There is none now.
        """
        with self._lock:
            now = self._clock()
            self._left, self._at = min(GUESSES, self._left + (now - self._at) / GUESS_S), now
            if self._left < 1:
                wait_s = int((1 - self._left) * GUESS_S) + 1
                raise Refused(f"Too many wrong passwords. Try again in {wait_s} s.")
            self._left -= 1

    def give_back(self) -> None:
        """Give one back: the password was right."""
        with self._lock:
            self._left += 1


def parse_version(line: bytes) -> int:
    """Return which of RFB 3.3, 3.7 and 3.8 a viewer speaks, as 3, 7 or 8.

    Some say other numbers: macOS 3.889, older ones 3.4 to 3.6, which mean 3.3 (7.1.1).

    Raises:
        Refused: It is none.
    """
    found = _VERSION.fullmatch(line)
    if found is None or int(found[1]) != 3:
        raise Refused("Only RFB 3.3 to 3.8 are spoken here.")
    minor = int(found[2])
    return 8 if minor >= 8 else 7 if minor == 7 else 3


def render_reason(text: str) -> bytes:
    """Return a text with its length (7.1.2)."""
    data = text.encode()[:REASON_LIMIT_BYTES]
    return struct.pack(">I", len(data)) + data


def receive(sock: socket.socket, size: int, timeout_s: float = SPEAK_S) -> bytes:
    """Return exactly so many bytes.

    Raises:
        OSError: They did not come in time, or the connection ended.
    """
    deadline = time.monotonic() + timeout_s
    data = b""
    while len(data) < size:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionError("the connection ended")
        data += part
    return data


def send(sock: socket.socket, data: bytes) -> None:
    """Send all of it within SPEAK_S.

    Raises:
        OSError: It was not taken.
    """
    sock.settimeout(SPEAK_S)
    sock.sendall(data)


def receive_reason(sock: socket.socket) -> str:
    """Return a text that comes with its length, cut where it is long."""
    (size,) = struct.unpack(">I", receive(sock, 4))
    return receive(sock, min(size, REASON_LIMIT_BYTES)).decode(errors="replace")


def ask_desktop(desktop: socket.socket) -> bytes:
    """Choose VNC Authentication of a desktop; return its challenge (7.2.2).

    Raises:
        Refused: It has none.
        OSError: It does not answer.
    """
    if parse_version(receive(desktop, len(GREETING))) != 8:
        raise Refused("The desktop speaks no RFB 3.8.")
    send(desktop, GREETING)
    types = receive(desktop, receive(desktop, 1)[0])
    if not types:
        raise Refused(receive_reason(desktop))
    if VNC_AUTH not in types:
        raise Refused("This desktop takes no VNC password.")
    send(desktop, bytes([VNC_AUTH]))
    return receive(desktop, CHALLENGE_BYTES)


class Door:
    """Lets viewers in.

    Args:
        desktop_path: The desktop's socket, in the folder that this process is in.
        passwords_path: The file of the passwords; without one nobody is let in.
    """

    def __init__(self, desktop_path: str, passwords_path: str) -> None:
        self._desktop_path, self._passwords_path = desktop_path, passwords_path
        self._guesses = Guesses()
        self._strangers = threading.BoundedSemaphore(STRANGERS)
        self._viewers: dict[socket.socket, Stamp] = {}
        self._served = 0
        self._lock = threading.Lock()

    def listen(self, listener: socket.socket) -> None:
        """Let in who comes, for ever."""
        while True:
            listener.settimeout(LOOK_S if self._served else None)
            try:
                viewer, _ = listener.accept()
            except TimeoutError:
                self._end_outdated()
                continue
            except OSError:  # no descriptors are left
                time.sleep(0.1)
                continue
            if not is_own(viewer) or len(self._viewers) >= VIEWERS or not self._strangers.acquire(blocking=False):
                viewer.close()
                continue
            with self._lock:
                self._served += 1
            try:
                threading.Thread(target=self._serve, args=(viewer,), daemon=True).start()
            except RuntimeError:  # the session may have no more threads
                self._strangers.release()
                self._leave(viewer)

    def _read_stamp(self) -> Stamp | None:
        try:
            found = os.stat(self._passwords_path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _end_outdated(self) -> None:
        """End what came in with passwords that are good no more."""
        stamp = self._read_stamp()
        with self._lock:
            for viewer, one in self._viewers.items():
                if one != stamp:
                    shut(viewer)

    def _serve(self, viewer: socket.socket) -> None:
        desktop = socket.socket(socket.AF_UNIX)
        try:
            with desktop:
                try:
                    stamp = self._let_in(viewer, desktop)
                finally:
                    self._strangers.release()
                with self._lock:
                    self._viewers[viewer] = stamp
                self._copy(viewer, desktop)
        except (OSError, RuntimeError):
            pass  # either has gone, or the session may have no more threads
        finally:
            self._leave(viewer)

    def _leave(self, viewer: socket.socket) -> None:
        viewer.close()
        with self._lock:
            self._viewers.pop(viewer, None)
            self._served -= 1

    def _let_in(self, viewer: socket.socket, desktop: socket.socket) -> Stamp:
        """Say what is to be said until the viewer is in.

        Raises:
            OSError: It is not.
        """
        send(viewer, GREETING)
        minor = 3
        try:
            minor = parse_version(receive(viewer, len(GREETING)))
            if self._read_stamp() is None:
                raise Refused("This desktop has no VNC password. Make one on its page Ways in.")
            challenge = self._reach(desktop)
        except Refused as error:
            send(viewer, (b"\0" if minor >= 7 else b"\0\0\0\0") + render_reason(str(error)))
            raise ConnectionError(str(error)) from error
        if minor >= 7:
            send(viewer, bytes([1, VNC_AUTH]))
            if receive(viewer, 1)[0] != VNC_AUTH:
                fail(viewer, minor, "Only VNC Authentication is offered here.")
        else:
            send(viewer, struct.pack(">I", VNC_AUTH))
        send(viewer, challenge)
        response = receive(viewer, CHALLENGE_BYTES, PERSON_S)
        stamp = self._read_stamp()
        try:
            self._guesses.take()
        except Refused as error:
            fail(viewer, minor, str(error))
        send(desktop, response)
        (result,) = struct.unpack(">I", receive(desktop, 4))
        if result or stamp is None:
            print("portico: a wrong VNC password", file=sys.stderr, flush=True)
            fail(viewer, minor, receive_reason(desktop) if result else "The passwords were removed.")
        self._guesses.give_back()
        send(viewer, b"\0\0\0\0")
        return stamp

    def _reach(self, desktop: socket.socket) -> bytes:
        desktop.settimeout(SPEAK_S)
        try:
            desktop.connect(self._desktop_path)
            return ask_desktop(desktop)
        except OSError as error:
            raise Refused("The desktop does not answer.") from error

    def _copy(self, viewer: socket.socket, desktop: socket.socket) -> None:
        for sock in (viewer, desktop):
            sock.settimeout(None)
        other = threading.Thread(target=copy, args=(viewer, desktop), daemon=True)
        other.start()
        copy(desktop, viewer)
        other.join()


def fail(viewer: socket.socket, minor: int, reason: str) -> NoReturn:
    """Tell a viewer that it is not let in (7.1.3); 3.8 alone has a reason.

    Raises:
        ConnectionError: Always.
    """
    send(viewer, b"\0\0\0\1" + (render_reason(reason) if minor == 8 else b""))
    raise ConnectionError(reason)


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes one way until either end closes; then both are."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while size := source.recv_into(buffer):
            target.sendall(buffer[:size])
    shut(source)
    shut(target)


def shut(sock: socket.socket) -> None:
    """Have whoever waits for a connection see its end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def is_own(sock: socket.socket) -> bool:
    """Return whether the other end is a process of this user."""
    credentials = struct.Struct("3i")
    peer = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return bool(peer[1] == os.geteuid())


def main() -> None:
    """Listen, until killed with the job."""
    parser = argparse.ArgumentParser(description="Lets VNC viewers in that know the password.")
    parser.add_argument("--desktop", required=True, metavar="SOCKET")
    parser.add_argument("--passwords", required=True, metavar="FILE")
    given = parser.parse_args()
    os.umask(0o177)
    passwords = os.path.abspath(given.passwords)
    folder, name = os.path.split(os.path.abspath(given.desktop))
    os.chdir(folder)  # names in it keep within sun_path's 108 bytes, wherever it is
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name + SUFFIX)
    threading.stack_size(256 * 1024)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name + SUFFIX)
        listener.listen(STRANGERS)
        Door(name, passwords).listen(listener)


if __name__ == "__main__":
    main()
