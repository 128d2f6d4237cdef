"""The broker: forks agents, keeps cells, makes, locks and removes POSIX accounts, ends SSH connections.

The only part of Portico with root. It answers the portal's uid alone, within limits of its own; OPERATIONS is the
whole policy. What the table does not know, or what has the wrong shape, closes the connection. It holds no secret,
opens no file of a user, runs no shell, and writes an audit line for every request before it is carried out.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from portico import wire
from portico.broker import accounts, ssh
from portico.broker.cells import Cells, find_hierarchy
from portico.broker.fork import fork_agent
from portico.config import SERVICE_ACCOUNT, Config
from portico.errors import PorticoError, Refused, TooMany, Unavailable
from portico.model import SESSION_ID, USER_NAME

Json = dict[str, Any]
Answer = tuple[Json, list[socket.socket]]

CONNECTIONS: Final = 16
FORKS: Final = (50, 1.0)
ACCOUNTS: Final = (100, 60.0)
"""Most requests within so many seconds."""


class Rate:
    """At most ``count`` in any ``seconds``."""

    def __init__(self, count: int, seconds: float) -> None:
        self._count, self._seconds = count, seconds
        self._times: deque[float] = deque()

    def take(self) -> None:
        """Count one.

        Raises:
            TooMany: It is one too many.

        """
        now = time.monotonic()
        while self._times and now - self._times[0] > self._seconds:
            self._times.popleft()
        if len(self._times) >= self._count:
            raise TooMany("The broker was asked too often.", retry_after_s=self._seconds)
        self._times.append(now)


def _name(value: Any) -> bool:
    return isinstance(value, str) and USER_NAME.match(value) is not None


def _cell(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "cores", "memory_bytes"}
        and isinstance(value["name"], str)
        and SESSION_ID.match(value["name"]) is not None
        and type(value["cores"]) in (int, float)
        and 0 < value["cores"] <= 4096
        and type(value["memory_bytes"]) is int
        and 1 << 20 <= value["memory_bytes"] < 1 << 50
    )


def _session(value: Any) -> bool:
    return isinstance(value, str) and SESSION_ID.match(value) is not None


def _pid(value: Any) -> bool:
    return type(value) is int and 1 < value < 1 << 22


def _ticks(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 62


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


class Broker:
    """One broker process; :meth:`run` serves until SIGTERM."""

    def __init__(self, config: Config, listener: socket.socket, audit_fd: int) -> None:
        self._config = config
        self._listener = listener
        self._audit_fd = audit_fd
        self._cells = Cells(config.instance, find_hierarchy() if config.multi_user else {})
        self._peer_uid = pwd.getpwnam(SERVICE_ACCOUNT).pw_uid if config.multi_user else os.geteuid()
        self._forks, self._changes = Rate(*FORKS), Rate(*ACCOUNTS)
        self._selector = selectors.DefaultSelector()
        self._open = 0
        self._stopping = False

    def run(self) -> None:
        """Serve until SIGTERM. Agents and sessions go on after it."""
        wake, woken = socket.socketpair()
        for end in (wake, woken, self._listener):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's to answer
        signal.signal(signal.SIGCHLD, lambda *_: None)  # not ignored: it ends select()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(woken, selectors.EVENT_READ, lambda sock: sock.recv(4096))
        while not self._stopping:
            for key, _ in self._selector.select(10):
                with contextlib.suppress(BlockingIOError):
                    key.data(key.fileobj)
            self._reap()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _reap(self) -> None:
        """Let ended agents go, between two requests: in a signal handler it would take what a tool's end tells."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        peer = wire.get_credentials(sock)
        if peer.uid != self._peer_uid or self._open >= CONNECTIONS:
            self._audit("refused", f"connection of uid {peer.uid} pid {peer.pid}, {self._open} open")
            sock.close()
            return
        sock.settimeout(2)  # a peer that does not read its answers is cut off, not waited for
        self._open += 1
        self._selector.register(sock, selectors.EVENT_READ, self._serve)

    def _serve(self, sock: socket.socket) -> None:
        try:
            packet = wire.receive(sock)
            if packet is None:
                self._close(sock)
                return
            if packet.fds:
                wire.close_all(packet.fds)
                raise Refused("a descriptor came with a request")
            self._answer(sock, packet.body)
        except (OSError, PorticoError) as error:
            self._audit("refused", f"{error}"[:200])
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._open -= 1
        sock.close()

    def _answer(self, sock: socket.socket, body: Json) -> None:
        op, args = body.get("op"), body.get("args")
        entry = OPERATIONS.get(op) if isinstance(op, str) else None
        if entry is None or not isinstance(args, dict) or body.keys() != {"id", "op", "args"}:
            raise Refused(f"unknown request {str(op)[:40]!r}")
        required, optional, function = entry
        for name, value in args.items():
            check = required.get(name) or optional.get(name)
            if check is None or not check(value):
                raise Refused(f"{op}: argument {str(name)[:40]!r} has the wrong shape")
        if not required.keys() <= args.keys():
            raise Refused(f"{op}: an argument is missing")
        if op != "cells":
            self._audit(op or "", json.dumps(args))
        sockets: list[socket.socket] = []
        try:
            ok, sockets = function(self, args)
            answer: Json = {"id": body["id"], "ok": ok}
        except PorticoError as error:
            self._audit("failed", f"{op}: {error}")
            answer = {"id": body["id"], "error": error.to_wire()}
        try:
            wire.send(sock, answer, [s.fileno() for s in sockets])
        finally:
            for s in sockets:
                s.close()

    def _agent(self, args: Json) -> Answer:
        self._forks.take()
        account = accounts.get_account(args["user"], self._config)
        cell = args.get("cell")
        if cell and self._cells.usable:
            self._cells.make(cell["name"], cell["cores"], cell["memory_bytes"])
        try:
            pid, channel = fork_agent(
                account, self._config, self._cells, cell["name"] if cell and self._cells.usable else None
            )
        except OSError as error:
            raise Unavailable("No agent could be started.", why=str(error)) from error
        return {"pid": pid, "uid": account.pw_uid, "home": account.pw_dir}, [channel]

    def _look(self, _args: Json) -> Answer:
        return {"cells": self._cells.look() if self._cells.usable else None}, []

    def _end(self, args: Json) -> Answer:
        return {"processes": self._cells.end(args["name"])}, []

    def _make(self, args: Json) -> Answer:
        return accounts.make_account(args["user"], self._config, self._changes.take), []

    def _lock(self, args: Json) -> Answer:
        self._changes.take()
        accounts.lock_account(args["user"], args["locked"], self._config)
        return {}, []

    def _remove(self, args: Json) -> Answer:
        self._changes.take()
        accounts.remove_account(args["user"], args["remove_home"], self._config)
        return {}, []

    def _ssh_end(self, args: Json) -> Answer:
        account = accounts.get_account(args["user"], self._config)
        return {"processes": ssh.end_connection(account, args["pid"], args["start_ticks"])}, []

    def _audit(self, what: str, detail: str) -> None:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {what} {detail}"
        with contextlib.suppress(OSError):  # a full disk must not stop the stopping of sessions
            os.write(self._audit_fd, (line.encode("unicode_escape").decode()[:1000] + "\n").encode())


Check = Callable[[Any], bool]
OPERATIONS: Final[dict[str, tuple[dict[str, Check], dict[str, Check], Callable[[Broker, Json], Answer]]]] = {
    "agent": ({"user": _name}, {"cell": _cell}, Broker._agent),
    "cells": ({}, {}, Broker._look),
    "cell_end": ({"name": _session}, {}, Broker._end),
    "ssh_end": ({"user": _name, "pid": _pid, "start_ticks": _ticks}, {}, Broker._ssh_end),
    "account_make": ({"user": _name}, {}, Broker._make),
    "account_lock": ({"user": _name, "locked": _flag}, {}, Broker._lock),
    "account_remove": ({"user": _name, "remove_home": _flag}, {}, Broker._remove),
}
"""The policy: request, required and optional arguments with their checks, function."""


def run(config: Config, listener: socket.socket) -> None:
    """Run the broker until SIGTERM.

    Args:
        config: The settings.
        listener: A listening SEQPACKET socket; docs/protocol.md says where.
    """
    if config.multi_user and os.geteuid() != 0:
        sys.exit("The broker of a multi-user Portico must be started by root.")
    listener.set_inheritable(False)
    os.umask(0o077)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    audit_fd = os.open(os.path.join(config.state_dir, "broker-audit.log"), flags, 0o600)
    Broker(config, listener, audit_fd).run()
