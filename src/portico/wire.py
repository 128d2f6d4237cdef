"""Messages between Portico's processes: JSON objects, with file descriptors beside them, on Unix SEQPACKET sockets.

SOCK_SEQPACKET keeps the bounds of a message, so there is no framing of ours to get wrong, and descriptors
(SCM_RIGHTS, unix(7)) arrive with the very message they belong to. docs/protocol.md is normative for what is said.

Three shapes:

    request       {"id": 7, "op": "connect", "args": {...}}
    answer        {"id": 7, "ok": {...}}  or  {"id": 7, "error": {"code": ..., "message": ...}}
    notice        {"op": "cut", "args": {...}}              (no id, no answer)

This module never interprets an operation.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from portico.errors import PorticoError, Refused, Unavailable, from_wire

Json = dict[str, Any]

MESSAGE_LIMIT_BYTES = 120 * 1024
"""Largest message. Linux's default socket buffer (net.core.wmem_default, 212,992) must hold one with its overhead."""

DESCRIPTOR_LIMIT = 4
"""Most descriptors in one message; the kernel's own limit is SCM_MAX_FD = 253."""

_UCRED = struct.Struct("3i")


class Credentials(NamedTuple):
    """Who is at the other end, as the kernel says (SO_PEERCRED, unix(7)): those of the time of connect(2)."""

    pid: int
    uid: int
    gid: int


class Packet(NamedTuple):
    """One message and the descriptors that came with it; whoever takes the packet owns them."""

    body: Json
    fds: list[int]


def get_credentials(sock: socket.socket) -> Credentials:
    """Return who is at the other end of a connected Unix socket."""
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def render(body: Json) -> bytes:
    """Return ``body`` as the bytes of one message.

    Raises:
        Refused: It would be larger than MESSAGE_LIMIT_BYTES.

    """
    data = json.dumps(body, separators=(",", ":")).encode()
    if len(data) > MESSAGE_LIMIT_BYTES:
        raise Refused(f"A message of {len(data)} bytes is too large.", why=f"The limit is {MESSAGE_LIMIT_BYTES}.")
    return data


def parse(data: bytes) -> Json:
    """Return the JSON object in one message.

    Raises:
        Refused: It is not a JSON object in UTF-8.

    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("A message is not JSON.") from None
    if not isinstance(body, dict):
        raise Refused("A message is not a JSON object.")
    return body


def send(sock: socket.socket, body: Json, fds: Sequence[int] = ()) -> None:
    """Send one message with copies of ``fds``; the caller keeps and closes its own.

    Raises:
        Refused: The message is too large.
        OSError: The other end is gone, or the socket's timeout has passed.

    """
    data = render(body)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Packet | None:
    """Return the next message, or None where the other end has closed. Descriptors are close-on-exec.

    Raises:
        Refused: The message was cut, or is not a JSON object; its descriptors are closed.
        OSError: As recvmsg(2).

    """
    rights_size = socket.CMSG_SPACE(DESCRIPTOR_LIMIT * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MESSAGE_LIMIT_BYTES + 1, rights_size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Refused("A message was too large and was cut.")
        return Packet(parse(data), list(fds))
    except Refused:
        close_all(fds)
        raise


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever state they are in."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def seal(data: bytes) -> int:
    """Return a descriptor of memory that holds ``data`` and can't be changed (memfd_create(2), fcntl(2) F_ADD_SEALS).

    So pass what is too large for a message, or no text.
    """
    fd = os.memfd_create("portico", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_sealed(fd: int, limit_bytes: int) -> bytes:
    """Return what :func:`seal` put behind a descriptor; the caller closes it.

    A file, pipe or file system of the sender's own, which could make the reader wait, has no such seals.

    Raises:
        Refused: It is something else, or larger than ``limit_bytes``.

    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise Refused("A descriptor came that is not sealed memory.")
    size = os.fstat(fd).st_size
    if size > limit_bytes:
        raise Refused(f"An answer of {size} bytes is too large.", why=f"The limit is {limit_bytes}.")
    data = bytearray()
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return bytes(data)


def call(sock: socket.socket, op: str, args: Json | None = None, fds: Sequence[int] = ()) -> Packet:
    """Ask, and wait for the answer: one request at a time on this socket, within the socket's timeout.

    Returns:
        The ``ok`` object of the answer and its descriptors.

    Raises:
        PorticoError: As the other end answered; Unavailable where it has closed.

    """
    send(sock, {"id": 0, "op": op, "args": args or {}}, fds)
    packet = receive(sock)
    if packet is None:
        raise Unavailable("The other process closed the connection.", why=f"It was asked to {op!r}.")
    return _unwrap(packet)


def _unwrap(packet: Packet) -> Packet:
    if (error := packet.body.get("error")) is not None:
        close_all(packet.fds)
        raise from_wire(error if isinstance(error, dict) else {})
    ok = packet.body.get("ok")
    return Packet(ok if isinstance(ok, dict) else {}, packet.fds)


def _close_answer(future: asyncio.Future[Packet]) -> None:
    """Close the descriptors of an answer that came in the very turn in which it was given up."""
    if future.done() and not future.cancelled() and future.exception() is None:
        close_all(future.result().fds)


Answer = tuple[Json, Sequence[int]]
Handler = Callable[[str, Json, list[int]], Awaitable[Answer | None]]


class Channel:
    """One end of a connection in an asyncio program: asks, answers and notices, many at a time.

    Descriptors given to :meth:`ask` or returned by a handler are closed here after they were sent, because
    handing one over is what this is for. Back-pressure: a send that would block waits; a handler that is slow
    delays only its own answer.

    Args:
        sock: A connected SEQPACKET socket; owned from now on.
        handler: Called for each request and notice with (op, args, descriptors), which it then owns. What it
            returns is the answer; for a notice, None. A PorticoError it raises becomes the answer's error.
        name: Of the other end, for messages.

    """

    def __init__(self, sock: socket.socket, handler: Handler | None = None, *, name: str = "peer") -> None:
        sock.setblocking(False)
        self.credentials = get_credentials(sock)
        self.name = name
        self._sock = sock
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.Future[Packet]] = {}
        self._next_id = 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._send_lock = asyncio.Lock()
        self._closed = asyncio.Event()
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def closed(self) -> bool:
        """Whether either end has closed."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until either end has closed."""
        await self._closed.wait()

    async def ask(
        self, op: str, args: Json | None = None, fds: Sequence[int] = (), *, timeout_s: float = 10.0
    ) -> Packet:
        """Send a request and return its answer, whose descriptors the caller then owns.

        Raises:
            PorticoError: As the other end answered; Unavailable where it is gone or silent for ``timeout_s``.

        """
        request_id, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[Packet] = self._loop.create_future()
        self._pending[request_id] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._send({"id": request_id, "op": op, "args": args or {}}, fds)
                return _unwrap(await future)
        except asyncio.CancelledError:
            _close_answer(future)
            raise
        except TimeoutError:
            _close_answer(future)
            raise Unavailable(f"The {self.name} does not answer.", why=f"{op!r} took over {timeout_s:g} s.") from None
        finally:
            self._pending.pop(request_id, None)

    async def notify(self, op: str, args: Json | None = None) -> None:
        """Send a notice, which has no answer.

        Raises:
            Unavailable: The other end is gone.

        """
        await self._send({"op": op, "args": args or {}})

    def close(self) -> None:
        """Close this end; whoever waits for an answer gets Unavailable."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(Unavailable(f"The {self.name} closed the connection."))
        self._pending.clear()
        for task in self._tasks:
            task.cancel()

    async def _send(self, body: Json, fds: Sequence[int] = ()) -> None:
        try:
            async with self._send_lock:
                while True:
                    if self.closed:
                        raise Unavailable(f"The {self.name} closed the connection.")
                    try:
                        send(self._sock, body, fds)
                        return
                    except BlockingIOError:
                        await self._wait_writable()
                    except OSError as error:
                        if error.errno == errno.ENOBUFS:
                            await asyncio.sleep(0.01)
                            continue
                        self.close()
                        raise Unavailable(f"The {self.name} closed the connection.", why=str(error)) from error
        finally:
            close_all(fds)

    async def _wait_writable(self) -> None:
        writable = self._loop.create_future()

        def set_writable() -> None:
            if not writable.done():
                writable.set_result(None)

        fd = self._sock.fileno()
        self._loop.add_writer(fd, set_writable)
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({writable, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            if not self.closed:
                self._loop.remove_writer(fd)

    def _on_readable(self) -> None:
        for _ in range(64):  # then let others have their turn; level-triggered, so we are called again
            try:
                packet = receive(self._sock)
            except (BlockingIOError, InterruptedError):
                return
            except (OSError, PorticoError):
                self.close()
                return
            if packet is None:
                self.close()
                return
            self._take(packet)
            if self.closed:
                return

    def _take(self, packet: Packet) -> None:
        body, fds = packet
        if "op" in body:
            task = self._loop.create_task(self._handle(body, fds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._pending.pop(body["id"], None) if isinstance(body.get("id"), int) else None
        if future is None or future.done():  # it was given up
            close_all(fds)
            return
        future.set_result(packet)

    async def _handle(self, body: Json, fds: list[int]) -> None:
        request_id, op, args = body.get("id"), body.get("op"), body.get("args")
        answer_fds: Sequence[int] = ()
        try:
            if self._handler is None or not isinstance(op, str) or not isinstance(args, dict):
                close_all(fds)
                raise Refused("This request is not understood here.")
            ok, answer_fds = await self._handler(op, args, fds) or ({}, ())
            answer: Json = {"id": request_id, "ok": ok}
        except PorticoError as error:
            answer = {"id": request_id, "error": error.to_wire()}
        except Exception as error:  # the peer must learn of it, and the cause must reach the log
            answer = {"id": request_id, "error": PorticoError(f"{op} failed.", why=repr(error)).to_wire()}
            self._loop.call_exception_handler({"message": f"handler of {op!r} failed", "exception": error})
        if request_id is None:
            close_all(answer_fds)
            return
        with contextlib.suppress(PorticoError):
            await self._send(answer, answer_fds)


async def connect(path: str, handler: Handler | None = None, *, name: str = "peer") -> Channel:
    """Connect to the SEQPACKET socket at ``path``.

    Raises:
        Unavailable: Nobody listens there.

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Unavailable(f"The {name} is not running.", why=f"{path}: {error.strerror}") from error
    return Channel(sock, handler, name=name)


def listen(path: str, mode: int = 0o600) -> socket.socket:
    """Listen on a SEQPACKET socket at ``path``, replacing a stale one, with exactly ``mode`` from its first moment.

    Raises:
        OSError: As bind(2).

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    sock.listen(64)
    return sock
