"""A terminal that outlives every page: holds a PTY and the end of its output, for clients on a Unix socket.

docs/protocol.md, "Terminal", is normative. Run inside the session's job as the user:

    python -I terminal.py --socket PATH -- /bin/bash -l

It is one file that needs nothing else of Portico, and Python 3.9: it is copied into jobs on other machines.

It answers only processes of its own uid. A client that does not keep up is disconnected and attaches again at the
offset it had; the program in the terminal never waits for a client.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import pty
import selectors
import signal
import socket
import struct
import termios
import time
from collections.abc import Sequence
from typing import Final

RING_BYTES: Final = 2 << 20
BACKLOG_BYTES: Final = 4 << 20
FRAME_LIMIT_BYTES: Final = 1 << 20
CLIENT_LIMIT: Final = 32
FAREWELL_S: Final = 2.0
"""How long clients have to read the end after the program ended."""

_HEAD: Final = struct.Struct(">cI")


class ProtocolError(Exception):
    """A client said something that the protocol does not know."""


def render_frame(kind: bytes, payload: bytes) -> bytes:
    """Return one frame."""
    return _HEAD.pack(kind, len(payload)) + payload


class FrameReader:
    """Takes bytes cut anywhere, returns whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Return the (kind, payload) of each frame that ``data`` completes.

        Raises:
            ProtocolError: A frame is larger than FRAME_LIMIT_BYTES.

        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            if length > FRAME_LIMIT_BYTES:
                raise ProtocolError("a frame is too large")
            if len(self._buffer) < _HEAD.size + length:
                break
            frames.append((kind, bytes(self._buffer[_HEAD.size : _HEAD.size + length])))
            del self._buffer[: _HEAD.size + length]
        return frames


class Ring:
    """The last ``limit`` bytes of a stream, numbered from its beginning."""

    def __init__(self, limit: int = RING_BYTES) -> None:
        self._limit = limit
        self._data = bytearray()
        self.end = 0

    @property
    def begin(self) -> int:
        """The offset of the oldest byte held."""
        return self.end - len(self._data)

    def add(self, data: bytes) -> None:
        """Append, and forget what is too old; in large steps, as each one moves all that is kept."""
        self._data += data
        self.end += len(data)
        if len(self._data) > self._limit + self._limit // 8:
            del self._data[: len(self._data) - self._limit]

    def read(self, offset: int) -> tuple[int, bytes]:
        """Return where output goes on for somebody who has seen all before ``offset``, and that output.

        An offset from the future (of another terminal) and one too old both begin with the oldest line held.
        """
        if self.begin <= offset <= self.end:
            return offset, bytes(self._data[offset - self.begin :])
        start = 0
        if self.begin > 0:  # do not begin in the middle of a line, where an escape sequence may be cut
            start = self._data.find(b"\n", 0, 65536) + 1
        return self.begin + start, bytes(self._data[start:])


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = FrameReader()
        self.waiting = bytearray()
        self.attached = False


class Terminal:
    """The program, its PTY and its clients; :meth:`run` returns when the program has ended and clients know."""

    def __init__(self, listener: socket.socket, argv: Sequence[str]) -> None:
        self._listener = listener
        self._argv = argv
        self._ring = Ring()
        self._clients: set[_Client] = set()
        self._selector = selectors.DefaultSelector()
        self._input = bytearray()
        self._pid = 0
        self._master = -1

    def run(self) -> int:
        """Run the program; return its exit status (128 + n for signal n)."""
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.environ["COLORTERM"] = "truecolor"
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            try:
                os.execvp(self._argv[0], list(self._argv))
            except OSError as error:
                os.write(2, f"{self._argv[0]}: {error.strerror}\r\n".encode())
            os._exit(127)
        self._resize(80, 24)
        os.set_blocking(self._master, False)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._master, selectors.EVENT_READ, self._on_pty)
        while self._master >= 0:
            self._turn(60.0)
        _, status = os.waitpid(self._pid, 0)
        exit_status = os.waitstatus_to_exitcode(status)
        exit_status = exit_status if exit_status >= 0 else 128 - exit_status
        for client in list(self._clients):
            self._queue(client, render_frame(b"e", struct.pack(">I", exit_status)))
        deadline = time.monotonic() + FAREWELL_S
        while any(c.waiting for c in self._clients) and time.monotonic() < deadline:
            self._turn(0.1)
        for client in list(self._clients):
            self._drop(client)
        return exit_status

    def _turn(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            if isinstance(key.data, _Client):
                self._on_client(key.data, events)
            elif key.fd == self._master or key.fileobj is self._listener:
                key.data(events)

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            if _get_peer_uid(sock) != os.geteuid() or len(self._clients) >= CLIENT_LIMIT:
                sock.close()
                return
            sock.setblocking(False)
            client = _Client(sock)
            self._clients.add(client)
            self._selector.register(sock, selectors.EVENT_READ, client)

    def _on_pty(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write_input()
        if events & selectors.EVENT_READ:
            try:
                data = os.read(self._master, 65536)
            except BlockingIOError:
                return
            except OSError as error:  # EIO: nobody has the other side open any more (tty_ioctl(4))
                if error.errno != errno.EIO:
                    raise
                data = b""
            if not data:
                self._selector.unregister(self._master)
                os.close(self._master)
                self._master = -1
                return
            self._ring.add(data)
            frame = render_frame(b"o", data)
            for client in list(self._clients):
                if client.attached:
                    self._queue(client, frame)

    def _on_client(self, client: _Client, events: int) -> None:
        if client not in self._clients:
            return
        if events & selectors.EVENT_WRITE:
            self._flush(client)
        if events & selectors.EVENT_READ and client in self._clients:
            try:
                data = client.sock.recv(65536)
                if not data:
                    self._drop(client)
                    return
                for kind, payload in client.reader.feed(data):
                    self._take(client, kind, payload)
            except BlockingIOError:
                return
            except (OSError, ProtocolError):
                self._drop(client)

    def _take(self, client: _Client, kind: bytes, payload: bytes) -> None:
        if kind == b"a" and len(payload) == 8:
            start, data = self._ring.read(struct.unpack(">Q", payload)[0])
            client.attached = True
            frames = render_frame(b"s", struct.pack(">QQ", start, self._ring.end))
            for at in range(0, len(data), 65536):
                frames += render_frame(b"o", data[at : at + 65536])
            self._queue(client, frames)
        elif kind == b"i":
            if len(self._input) + len(payload) > BACKLOG_BYTES:
                raise ProtocolError("the program does not read its input")
            self._input += payload
            self._write_input()
        elif kind == b"r" and len(payload) == 4:
            self._resize(*struct.unpack(">HH", payload))
        else:
            raise ProtocolError(f"unknown frame {kind!r}")

    def _resize(self, columns: int, rows: int) -> None:
        if self._master >= 0 and columns and rows:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _write_input(self) -> None:
        if self._master < 0:
            return
        try:
            while self._input:
                del self._input[: os.write(self._master, self._input[:65536])]
        except BlockingIOError:
            pass
        except OSError:
            self._input.clear()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._input else 0)
        self._selector.modify(self._master, wanted, self._on_pty)

    def _queue(self, client: _Client, data: bytes) -> None:
        client.waiting += data
        if len(client.waiting) > BACKLOG_BYTES:
            self._drop(client)
            return
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            while client.waiting:
                del client.waiting[: client.sock.send(client.waiting[:262144])]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.waiting else 0)
        self._selector.modify(client.sock, wanted, client)

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._selector.unregister(client.sock)
            client.sock.close()


def _get_peer_uid(sock: socket.socket) -> int:
    """Return the uid at the other end, as the kernel says (SO_PEERCRED, unix(7))."""
    credentials = struct.Struct("3i")
    uid: int = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))[1]
    return uid


def main() -> int:
    """Run a terminal, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True, help="where clients connect")
    parser.add_argument("argv", nargs="+", help="the program and its arguments, behind --")
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o177)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(arguments.socket)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(arguments.socket)
        os.umask(0o077)
        listener.listen(16)
        return Terminal(listener, arguments.argv).run()


if __name__ == "__main__":
    raise SystemExit(main())
