"""The agent: acts as one user, for the portal, over one SEQPACKET socket. docs/protocol.md, "Agent", is normative.

It has the user's uid and no more; it opens the user's files and sockets so that nobody else has to. It never
keeps state: what it knows it reads from the session's folder, each time.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from portico import wire
from portico.agent import output, processes, shepherd, ssh, vnc
from portico.agent.command import Commands
from portico.agent.folder import Folder, find_sessions, translate
from portico.errors import Conflict, Invalid, NotFound, PorticoError, Unavailable

Json = dict[str, Any]
Answer = tuple[Json, list[int]]

IDLE_S: Final = 300.0
CONNECT_TIMEOUT_S: Final = 2.0
LOG_LINES: Final = 500


def serve(sock: socket.socket) -> None:
    """Answer until the other end closes or nothing was asked for IDLE_S."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.closing(_Server(sock)) as server:
        server.run()


class _Server:
    """One connection: requests one after the other, and beside them the commands that run."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        sock.settimeout(IDLE_S)
        self._sock = sock
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, self._take_request)
        self._commands = Commands(self._selector, self._answer)
        self._open = True

    def run(self) -> None:
        idle_since = time.monotonic()
        while self._open and (self._commands or time.monotonic() - idle_since < IDLE_S):
            timeout_s = self._commands.timeout_s
            ready = self._selector.select(IDLE_S if timeout_s is None else timeout_s)
            for key, _ in ready:
                key.data()
            self._commands.end_overdue()
            if ready:
                idle_since = time.monotonic()

    def close(self) -> None:
        self._commands.close()
        self._selector.close()

    def _take_request(self) -> None:
        try:
            packet = wire.receive(self._sock)
        except (OSError, PorticoError):
            packet = None
        if packet is None:
            self._open = False
            return
        request_id, op, args = (packet.body.get(name) for name in ("id", "op", "args"))
        try:
            if not isinstance(args, dict):
                raise Invalid(f"An agent knows no {op!r} like this.")
            if op == "command":  # the only one that comes with a descriptor, and that is answered later
                self._commands.start(request_id, args, packet.fds)
                return
            handler = OPERATIONS.get(op) if isinstance(op, str) else None
            if handler is None:
                raise Invalid(f"An agent knows no {op!r}.")
            self._answer(request_id, *handler(args))
        except PorticoError as error:
            self._answer(request_id, error, [])
        except OSError as error:
            self._answer(request_id, translate(error, "this"), [])
        finally:
            wire.close_all(packet.fds)

    def _answer(self, request_id: Any, answer: Json | PorticoError, fds: list[int]) -> None:
        said: Json = {"error": answer.to_wire()} if isinstance(answer, PorticoError) else {"ok": answer}
        try:
            wire.send(self._sock, {"id": request_id, **said}, fds)
        except (OSError, PorticoError):
            self._open = False
        finally:
            wire.close_all(fds)


def _take(args: Json, name: str, kind: type | tuple[type, ...]) -> Any:
    value = args.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Invalid(f"The argument {name!r} is missing or of the wrong type.")
    return value


def _take_folder(args: Json) -> Folder:
    return Folder(_take(args, "session", str))


def _ping(args: Json) -> Answer:
    return {"uid": os.getuid(), "pid": os.getpid()}, []


def _prepare(args: Json) -> Answer:
    folder, files = _take_folder(args), _take(args, "files", dict)
    folder.make()
    for name, text in files.items():
        if not isinstance(text, str) or not name.replace(".", "").replace("-", "").replace("_", "").isalnum():
            raise Invalid(f"{name!r} is no name for a file of a session.")
        folder.write(name, text, 0o700 if name.endswith(".sh") else 0o600)
    folder.write_json("session.json", _take(args, "record", dict))
    return {}, []


def _start(args: Json) -> Answer:
    folder = _take_folder(args)
    if processes.find_recorded(folder.read_json("job.json")):
        raise Conflict("The session's job runs already.")
    argv, env = _take(args, "argv", list), _take(args, "env", dict)
    texts = [*argv, *env, *env.values()]
    if not argv or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise Invalid("argv and env must be texts.")
    folder.make()
    deadline, memory_bytes = float(_take(args, "deadline", (int, float))), int(_take(args, "memory_bytes", int))
    cores, enforce = float(_take(args, "cores", (int, float))), _take(args, "enforce", bool)
    work = output.Work.take(args["work"]) if args.get("work") is not None else None
    outputs = work.open() if work else []
    try:
        return shepherd.start(
            folder,
            argv,
            {**os.environ, **env},
            deadline=deadline,
            memory_bytes=memory_bytes,
            cores=cores,
            enforce=enforce,
            cwd=work.folder if work else "",
            outputs=outputs,
        ), []
    finally:
        wire.close_all(outputs)


def _look_at(folder: Folder) -> Json:
    job = folder.read_json("job.json")
    process = processes.find_recorded(job)
    deadline = job.get("deadline") if job else None
    boot = job.get("boot_id") if job else None
    return {
        "session": folder.session_id,
        "record": folder.read_json("session.json"),
        "running": process is not None,
        "pid": process.pid if process else None,
        "deadline": deadline if isinstance(deadline, (int, float)) else None,
        "this_boot": boot == processes.read_boot_id() if boot else None,
        "ended": None if process else folder.read_json("ended.json"),
        "trouble": "" if process else folder.read_tail("trouble", 1, 1000),
        "socket": os.path.exists(folder.socket),
        "folder": folder.path,
        "run": folder.run,
        "home": os.environ["HOME"],
    }


def _sessions(args: Json) -> Answer:
    looks: list[Json] = []
    size = 0
    for session_id in reversed(find_sessions()):
        look = _look_at(Folder(session_id))
        size += len(wire.render(look)) if _fits(look) else wire.MESSAGE_LIMIT_BYTES
        if size > wire.MESSAGE_LIMIT_BYTES * 3 // 4:
            return {"sessions": looks, "more": True}, []
        looks.append(look)
    return {"sessions": looks, "more": False}, []


def _fits(look: Json) -> bool:
    try:
        return len(wire.render(look)) < wire.MESSAGE_LIMIT_BYTES // 2
    except (PorticoError, ValueError):
        return False


def _look(args: Json) -> Answer:
    look = _look_at(_take_folder(args))
    if not _fits(look):  # its owner has filled session.json
        look["record"] = look["ended"] = None
    return look, []


def _connect_app(folder: Folder) -> socket.socket:
    # A path below the runtime folder's descriptor keeps within sun_path's 108 bytes, wherever that folder is.
    try:
        run = os.open(folder.run, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise NotFound("The app has no socket yet.") from error
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(f"/proc/self/fd/{run}/app.sock")
        if wire.get_credentials(sock).uid != os.geteuid():
            raise Unavailable("The app's socket is not the user's own.")
        sock.setblocking(False)
        return sock
    except FileNotFoundError as error:
        sock.close()
        raise NotFound("The app has no socket yet.") from error
    except (OSError, PorticoError) as error:
        sock.close()
        if isinstance(error, PorticoError):
            raise
        raise Unavailable("The app does not answer.", why=str(error)) from error
    finally:
        os.close(run)


def _connect(args: Json) -> Answer:
    return {}, [_connect_app(_take_folder(args)).detach()]


def _ssh(args: Json) -> Answer:
    folder = _take_folder(args)
    if not processes.find_recorded(folder.read_json("job.json")):
        raise Conflict("The session does not run.")
    return {}, [ssh.start(folder, _take(args, "files", dict))]


def _vnc(args: Json) -> Answer:
    folder = _take_folder(args)
    if "passwords" in args:
        passwords = _take(args, "passwords", list)
        if not all(isinstance(one, str) for one in passwords):
            raise Invalid("Passwords must be texts.")
        vnc.write_passwords(folder, passwords)
    return {"takes": vnc.takes_passwords(folder), "has": vnc.has_passwords(folder)}, []


def _probe(args: Json) -> Answer:
    folder, reach, path = _take_folder(args), _take(args, "reach", str), _take(args, "path", str)
    try:
        sock = _connect_app(folder)
    except NotFound:
        return {"ready": False, "waiting_for": "the app to open its socket"}, []
    except Unavailable as error:
        return {"ready": False, "waiting_for": f"the app to answer ({error.why or error.message})"}, []
    with sock:
        if reach == "pty":
            return {"ready": True, "waiting_for": ""}, []
        sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            if reach == "rfb":
                greeting = _read(sock, 12)
                return {"ready": greeting.startswith(b"RFB "), "waiting_for": "the desktop to greet"}, []
            if any(c in path for c in "\r\n "):
                raise Invalid("This is not a path.")
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            status = _read(sock, 12)
            ready = status.startswith(b"HTTP/1.") and status[9:12].isdigit() and int(status[9:12]) < 400
            return {"ready": ready, "waiting_for": f"the app's pages (now {status.decode('latin-1')!r})"}, []
        except OSError as error:
            return {"ready": False, "waiting_for": f"the app to answer ({error})"}, []


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def _log(args: Json) -> Answer:
    lines = min(_take(args, "lines", int), LOG_LINES)
    return {"text": _take_folder(args).read_tail("log", lines)}, []


def _deadline(args: Json) -> Answer:
    folder, deadline = _take_folder(args), float(_take(args, "deadline", (int, float)))
    job = folder.read_json("job.json")
    if not processes.find_recorded(job):
        raise Conflict("The session's job does not run.")
    assert job is not None
    folder.write_json("job.json", {**job, "deadline": deadline})
    return {}, []


def _signal(args: Json) -> Answer:
    folder, name = _take_folder(args), _take(args, "signal", str)
    if name not in ("TERM", "KILL"):
        raise Invalid("The signal must be TERM or KILL.")
    process = processes.find_recorded(folder.read_json("job.json"))
    shepherd_pid = process.pid if process else None
    if name == "KILL":
        return {"processes": processes.end_all(folder.session_id, shepherd_pid, 2)}, []
    found = processes.find_of_session(folder.session_id, shepherd_pid)
    return {"processes": processes.send_signal(found, signal.SIGTERM)}, []


def _forget(args: Json) -> Answer:
    folder = _take_folder(args)
    if processes.find_recorded(folder.read_json("job.json")):
        raise Conflict("The session still runs.", hint="Stop it first.")
    folder.remove()
    return {}, []


OPERATIONS: Final[dict[str, Callable[[Json], Answer]]] = {
    "ping": _ping,
    "prepare": _prepare,
    "start": _start,
    "sessions": _sessions,
    "look": _look,
    "probe": _probe,
    "connect": _connect,
    "ssh": _ssh,
    "vnc": _vnc,
    "log": _log,
    "deadline": _deadline,
    "signal": _signal,
    "forget": _forget,
}
"""The policy: what an agent can be asked, besides ``command``."""
