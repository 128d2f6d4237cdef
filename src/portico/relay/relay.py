"""The relay: runs a session's app inside a job on another machine, and carries its streams out to Portico.

One file that needs nothing else of Portico, and Python 3.9. It listens on nothing: it dials out over TLS, with
Portico's certificate pinned, and makes one more outgoing connection for each stream. docs/protocol.md, "Relay", is
normative.

    PORTICO_SESSION=… PORTICO_SESSION_DIR=… python3 -I relay.py

It is two processes: the first one starts the app, and starts the second one again whenever that ends; the second one
carries. When the app ends, all of it does, with the app's exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

CONNECT_S = 10.0
APP_S = 2.0
SILENCE_S = 60.0
"""Portico pings every 20 s; without one for so long the connection is given up, and dialled anew."""
REDIAL_FIRST_S = 0.2
REDIAL_LAST_S = 5.0
RESTART_S = 0.2
LINE_BYTES = 256 * 1024
"""More than Portico says at once: all keys of a user who comes by SSH, and what wire's messages hold is 120 KiB."""
CHUNK_BYTES = 256 * 1024
RECORD_BYTES = 16 * 1024
"""A TLS record's (RFC 8446, 5.1): what OpenSSL may ask to be given again, so more is not given at once."""
FAREWELL_S = 5.0
ORPHAN_S = 2.0
"""How long an app has for its end whose relay was killed."""
PATH_BYTES = 107
"""What sun_path holds (unix(7)), less its final NUL."""

Json = dict[str, Any]


def say(text: str) -> None:
    """Write a line to the session's log."""
    print(f"portico: {text}", file=sys.stderr, flush=True)


def read_settings(folder: str) -> Json:
    """Return relay.json, which holds the session's secret.

    Raises:
        OSError, ValueError: It can't be read, is another user's, or may be read by others.
    """
    with open(os.path.join(folder, "relay.json"), "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError("relay.json is not this user's alone")
        value = json.loads(file.read(64 * 1024))
    if not isinstance(value, dict):
        raise ValueError("relay.json is no object")
    return value


# the first process: the app, and whoever carries


class Job:
    """The app and the process that carries its streams.

    Args:
        folder: The session's.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._run, self._lock = make_run_folder()
        self._env = {**os.environ, "PORTICO_SOCKET": os.path.join(self._run, "app.sock")}
        runtime = self._env.get("XDG_RUNTIME_DIR", "")
        if not os.access(runtime, os.W_OK):
            self._env["XDG_RUNTIME_DIR"] = self._run
        self._app: subprocess.Popen[bytes] | None = None
        self._carrier: subprocess.Popen[bytes] | None = None
        self._is_told = False

    def run(self) -> int:
        """Run the app to its end; return its exit status (128 + n for signal n)."""
        signal.signal(signal.SIGTERM, self._on_term)
        try:
            self._app = subprocess.Popen(
                [os.path.join(self._folder, "job.sh")],
                stdin=subprocess.DEVNULL,
                env=self._env,
                cwd=os.environ.get("HOME", "/"),
                start_new_session=True,
            )
            if self._is_told:  # while it was being started
                self._tell_app()
            self._start_carrier()
            status = self._wait()
        finally:
            self._end()
        return status if status >= 0 else 128 - status

    def _start_carrier(self) -> None:
        assert self._app is not None
        # Its standard input is a pipe of ours: it ends when we do, however that happens, and ends the app then.
        self._carrier = subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(__file__), "carry", str(self._app.pid)],
            stdin=subprocess.PIPE,
            env=self._env,
        )

    def _wait(self) -> int:
        assert self._app is not None and self._carrier is not None
        while True:
            pid, status = os.wait()
            if pid == self._app.pid:
                self._app.returncode = os.waitstatus_to_exitcode(status)
                return self._app.returncode
            if pid == self._carrier.pid:
                self._carrier.returncode = os.waitstatus_to_exitcode(status)
                if self._carrier.stdin:
                    self._carrier.stdin.close()
                time.sleep(RESTART_S)
                self._start_carrier()

    def _on_term(self, number: int, frame: object) -> None:
        self._is_told = True
        self._tell_app()

    def _tell_app(self) -> None:
        if self._app is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._app.pid, signal.SIGTERM)

    def _end(self) -> None:
        self._tell_app()  # what the app has left behind
        if self._carrier is not None:
            if self._carrier.stdin:
                self._carrier.stdin.close()
            self._carrier.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._carrier.wait(2)
        shutil.rmtree(self._run, ignore_errors=True)


def make_run_folder() -> tuple[str, int]:
    """Return a new folder, 0700 and on this machine, short enough for a socket's path, and what keeps it ours.

    That is a lock which ends with this process, however it ends. Folders of relays that were killed are removed.
    """
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("TMPDIR", ""), "/tmp"]  # noqa: S108 - mkdtemp makes a folder of its own there
    for base in bases:
        if base and len(base) < PATH_BYTES - 40 and os.access(base, os.W_OK | os.X_OK):
            remove_left_folders(base)
            folder = tempfile.mkdtemp(prefix="portico-", dir=base)
            making = os.path.join(folder, "lock.new")
            lock = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(making, os.path.join(folder, "lock"))  # nobody sees it unlocked
            return folder, lock
    raise OSError("there is no folder for the app's socket")


def remove_left_folders(base: str) -> None:
    """Remove this user's folders there whose relay is no more: all that is left of a job that was killed."""
    for entry in os.scandir(base):
        with contextlib.suppress(OSError):
            if entry.name.startswith("portico-") and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                flags = os.O_RDWR | os.O_NOFOLLOW
                lock = os.open(os.path.join(entry.path, "lock"), flags)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(lock)


# the second process: the streams


class Carrier:
    """Answers Portico on one connection, and carries each stream on one of its own.

    Args:
        session: The session's id.
        settings: What relay.json holds.
        app_path: The app's socket.
    """

    def __init__(self, session: str, settings: Json, app_path: str) -> None:
        self._session, self.app_path = session, app_path
        self._token: str = settings["token"]
        self._hosts: list[tuple[str, int]] = [(str(host), int(port)) for host, port in settings["hosts"]]
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.check_hostname = False  # the certificate itself is what is trusted, and nothing else
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.load_verify_locations(cadata=settings["certificate"])
        self._host = self._hosts[0]
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_welcome = False
        self._sshds: list[subprocess.Popen[bytes]] = []

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        wait_s, said = REDIAL_FIRST_S, ""
        while True:
            for host in self._hosts:
                self._host = host
                self._is_welcome = False
                try:
                    await self._serve()
                    why = "Portico has closed the connection"
                except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                    why = str(error) or type(error).__name__
                if self._is_welcome:
                    wait_s, said = REDIAL_FIRST_S, ""
                if why != said:
                    said = why
                    say(f"not connected to {self._host[0]}:{self._host[1]}: {why}")
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, REDIAL_LAST_S)

    async def _serve(self) -> None:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(*self._host, ssl=self._tls, limit=LINE_BYTES), CONNECT_S
        )
        try:
            set_options(writer.get_extra_info("socket"))
            hello = {"hello": 1, "session": self._session, "token": self._token, "node": socket.gethostname()}
            writer.write(render({**hello, "run": count_restarts()}))
            while line := await asyncio.wait_for(reader.readline(), SILENCE_S):
                if len(line) > LINE_BYTES or not line.endswith(b"\n"):
                    raise ValueError("Portico speaks another language")
                message = json.loads(line)
                if "refused" in message:
                    raise ValueError(str(message["refused"])[:200])
                self._take(message, writer)
        finally:
            writer.close()

    def _take(self, message: Json, writer: asyncio.StreamWriter) -> None:
        if "ok" in message:
            self._is_welcome = True
            say("connected")
        elif "ping" in message:
            writer.write(render({"pong": message["ping"]}))
        elif "open" in message:
            ssh = message.get("ssh")
            self._begin(self._open(str(message["open"]), writer, ssh if isinstance(ssh, dict) else None))
        elif "probe" in message:
            self._begin(self._probe(message, writer))

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_app(self) -> socket.socket:
        """Connect to the app.

        Raises:
            OSError: It does not listen, or the one who does is another user.
        """
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, self.app_path), APP_S)
            credentials = struct.Struct("3i")
            peer = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
            if peer[1] != os.geteuid():
                raise PermissionError("the app's socket is not the user's own")
        except BaseException:
            sock.close()
            raise
        return sock

    async def _start_sshd(self, files: Json) -> socket.socket:
        """Start an sshd for one connection, as the user, inside the job; it listens on nothing.

        Raises:
            OSError: There is none on this node, or its files can't be written.
        """
        folder = os.path.join(os.path.dirname(self.app_path), "ssh")
        sock, sshd = await asyncio.get_running_loop().run_in_executor(None, start_sshd, folder, files)
        self._sshds = [one for one in self._sshds if one.poll() is None] + [sshd]
        return sock

    async def _open(self, nonce: str, control: asyncio.StreamWriter, ssh: Json | None) -> None:
        """Carry one stream to its end: to the app, or to an sshd that is given these files."""
        try:
            app = await (self._connect_app() if ssh is None else self._start_sshd(ssh))
        except (TimeoutError, OSError) as error:
            control.write(render({"failed": nonce, "why": describe(error)}))
            return
        try:
            portico = await asyncio.get_running_loop().run_in_executor(None, self._dial_stream, nonce)
        except OSError as error:
            app.close()
            control.write(render({"failed": nonce, "why": describe(error)}))
            return
        with portico:
            with app:
                await join(portico, app)
            await bid_farewell(portico)

    def _dial_stream(self, nonce: str) -> ssl.SSLSocket:
        """Return a connection to Portico that has said what it is for.

        Raises:
            OSError: There is none within CONNECT_S.
        """
        sock = socket.create_connection(self._host, CONNECT_S)
        try:
            set_options(sock)
            portico = self._tls.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise
        try:
            portico.sendall(render({"stream": nonce}))
        except BaseException:
            portico.close()
            raise
        return portico

    async def _probe(self, message: Json, control: asyncio.StreamWriter) -> None:
        ready, waiting_for = False, "the app to open its socket"
        try:
            ready, waiting_for = await asyncio.wait_for(
                self._ask_app(str(message.get("reach")), str(message.get("path"))), APP_S
            )
        except FileNotFoundError:
            pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            waiting_for = f"the app to answer ({describe(error)})"
        control.write(render({"probed": message["probe"], "ready": ready, "waiting_for": waiting_for}))

    async def _ask_app(self, reach: str, path: str) -> tuple[bool, str]:
        reader, writer = await asyncio.open_unix_connection(sock=await self._connect_app())
        try:
            if reach == "pty":
                return True, ""
            if reach == "rfb":
                return (await reader.readexactly(4)) == b"RFB ", "the desktop to greet"
            if any(character in path for character in "\r\n "):
                return False, "a path that can be asked for"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            status = await reader.readexactly(12)
            ready = status.startswith(b"HTTP/1.") and status[9:12].isdigit() and int(status[9:12]) < 400
            return ready, f"the app's pages (now {status.decode('latin-1')!r})"
        finally:
            writer.close()


def start_sshd(folder: str, files: Json) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start an sshd with these files in a folder of its own; return a connection to it, and its process.

    Raises:
        OSError: There is none on this node, or the disk is full.
    """
    program = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        raise OSError(f"there is no sshd on {socket.gethostname()}")
    write_sshd_files(folder, files)
    ours, theirs = socket.socketpair()
    with theirs, open(os.path.join(folder, "log"), "ab") as log:
        argv = [program, "-i", "-e", "-f", os.path.join(folder, "sshd_config")]
        end = theirs.fileno()
        return ours, subprocess.Popen(argv, stdin=end, stdout=end, stderr=log, start_new_session=True)


def write_sshd_files(folder: str, files: Json) -> None:
    """Write what an sshd needs into a folder of its own.

    Raises:
        OSError: The disk is full.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    names = ("PORTICO_", "SLURM_", "CUDA_VISIBLE", "XDG_RUNTIME_DIR", "TMPDIR")
    env = {name: value for name, value in os.environ.items() if name.startswith(names)}
    setting = " ".join(f"{name}={value}" for name, value in env.items() if is_plain(name) and is_plain(value))
    for name, text in files.items():
        if os.path.basename(name) != name or name.startswith("."):
            raise OSError(f"{name!r} is no file of sshd's")
        temporary = os.path.join(folder, f".{name}.{random.getrandbits(64):x}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(str(text).replace("@FOLDER@", folder).replace("@ENVIRONMENT@", setting))
        os.rename(temporary, os.path.join(folder, name))


def is_plain(text: str) -> bool:
    """Return whether sshd_config takes a text as one word as it is."""
    return bool(text) and text.isprintable() and not set(text) & set(" \t\"'\\#")


def count_restarts() -> int:
    """Return how often Slurm has put this job back into its queue (sbatch(1), SLURM_RESTART_COUNT)."""
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() else 0


def set_options(sock: socket.socket) -> None:
    """Have a connection send at once, and notice a Portico that is gone."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


# asyncio's streams are not used for what apps say: with them each byte is copied five times, for each TLS record.


async def join(portico: ssl.SSLSocket, app: socket.socket) -> None:
    """Carry bytes both ways until either end closes: TLS can't be closed halfway."""
    portico.setblocking(False)
    app.setblocking(False)
    pumps = [asyncio.ensure_future(pump(app, portico)), asyncio.ensure_future(pump(portico, app))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in pumps:
            one.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def bid_farewell(portico: ssl.SSLSocket) -> None:
    """Say that this is the end, and wait for the other side's.

    Where something is left unread when a connection is closed, what was sent before need not arrive (RFC 2525, 2.17).
    """
    with contextlib.suppress(OSError, ValueError):
        portico.unwrap()  # says close_notify (RFC 8446, 6.1)
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        portico.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(read_to_end(portico), FAREWELL_S)


async def pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes one way, no faster than they are taken."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while size := await receive(source, buffer):
            await send(target, buffer[:size])
            await asyncio.sleep(0)  # others have their turn, however fast this is


async def read_to_end(source: socket.socket) -> None:
    """Read until there is nothing more."""
    buffer = memoryview(bytearray(RECORD_BYTES))
    while await receive(source, buffer):
        pass


async def receive(sock: socket.socket, buffer: memoryview) -> int:
    """Read what there is; return how much, 0 at the end.

    Raises:
        OSError: The connection broke.
    """
    size = 0
    while size < len(buffer):
        try:
            got = sock.recv_into(buffer[size:])
            if not got:
                break
            size += got
        except (BlockingIOError, ssl.SSLWantReadError):
            if size:
                break
            await wait_for(sock, is_reading=True)
        except ssl.SSLWantWriteError:  # a new key is to be said first (RFC 8446, 4.6.3), which the other side prevents
            await asyncio.sleep(0.01)
    return size


async def send(sock: socket.socket, data: memoryview) -> None:
    """Send all of it.

    Raises:
        OSError: The connection broke.
    """
    portion = RECORD_BYTES if isinstance(sock, ssl.SSLSocket) else CHUNK_BYTES
    while data:
        try:
            data = data[sock.send(data[:portion]) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            await wait_for(sock, is_reading=False)
        except ssl.SSLWantReadError:
            await asyncio.sleep(0.01)


async def wait_for(sock: socket.socket, is_reading: bool) -> None:
    """Wait until a socket has something to read, or takes something. For each socket one may wait for each."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_reader, loop.remove_reader) if is_reading else (loop.add_writer, loop.remove_writer)

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    add(sock, tell)
    try:
        await ready
    finally:
        remove(sock)


def render(message: Json) -> bytes:
    """Return one line."""
    return json.dumps(message).encode() + b"\n"


def describe(error: BaseException) -> str:
    """Return what went wrong, for people."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]


async def carry(folder: str, app: int) -> None:
    """Carry until our parent ends; if that did not end what it started, do so: Slurm need not see such orphans.

    Args:
        folder: The session's.
        app: The app's process, which leads a group of its own.
    """
    carrier = Carrier(os.environ["PORTICO_SESSION"], read_settings(folder), os.environ["PORTICO_SOCKET"])
    loop = asyncio.get_running_loop()
    running = loop.create_task(carrier.run())
    loop.add_reader(0, running.cancel)  # nobody writes to it: it is our parent's end
    with contextlib.suppress(asyncio.CancelledError):
        await running
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            os.killpg(app, number)
            await asyncio.sleep(ORPHAN_S)
    shutil.rmtree(os.path.dirname(carrier.app_path), ignore_errors=True)


def main() -> int:
    """Be the process that the command line names."""
    os.umask(0o077)
    folder = os.environ["PORTICO_SESSION_DIR"]
    try:
        if sys.argv[1:2] == ["carry"]:
            asyncio.run(carry(folder, int(sys.argv[2])))
            return 0
        read_settings(folder)
        return Job(folder).run()
    except (OSError, ValueError, KeyError) as error:
        say(f"the session can't begin: {describe(error)}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
