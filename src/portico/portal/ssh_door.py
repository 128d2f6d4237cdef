"""The socket that sshd's look-ups and users' own processes ask: keys, principals, and the way into a session.

Everybody on the machine may connect. Who it is, the kernel says (SO_PEERCRED): look-ups are answered to the account
they run as alone, and a connection to a session is given to whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import socket
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from portico import wire
from portico.accounts import Accounts
from portico.accounts.ssh_entry import Process, SshEntry
from portico.accounts.ssh_failures import SshFailures
from portico.config import SSH_ACCOUNT, Config
from portico.errors import Forbidden, PorticoError, Refused
from portico.model import SshConnection
from portico.sessions.machine import read_boot_id
from portico.sessions.ssh import SshSessions
from portico.ssh.log import Accepted, Failed, parse_line

log = logging.getLogger(__name__)

CONNECTIONS_PER_USER: Final = 64
CONNECTION_S: Final = 20.0
LOG_S: Final = 0.5
TIDY_S: Final = 300.0


class SshDoor:
    """Answers on ``ssh.sock``, and reads what sshd says in its log.

    Args:
        rooms: The way into sessions.
    """

    def __init__(self, config: Config, accounts: Accounts, entry: SshEntry, rooms: SshSessions) -> None:
        self._config = config
        self._accounts = accounts
        self._entry = entry
        self._rooms = rooms
        self._failures = SshFailures()
        self._open: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._boot_id = read_boot_id()

    def cut_soon(self, tags: list[str]) -> None:
        """Have connections end that live by any of these; may be called from any thread."""
        self._loop.call_soon_threadsafe(lambda: self._keep(self._entry.cut(tags)))

    def _keep(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # the socket

    async def listen(self, listener: socket.socket) -> None:
        """Answer until cancelled."""
        listener.setblocking(False)
        while True:
            sock, _ = await self._loop.sock_accept(listener)
            uid = wire.get_credentials(sock).uid
            # A look-up is a process of an account that nobody else runs anything as.
            if not self._is_look_up(uid) and self._open[uid] >= CONNECTIONS_PER_USER:
                sock.close()
                continue
            self._open[uid] += 1
            self._keep(self._serve(sock, uid))

    async def _serve(self, sock: socket.socket, uid: int) -> None:
        channel = wire.Channel(sock, partial(self._handle, uid), name=f"uid {uid}")
        try:
            async with asyncio.timeout(CONNECTION_S):
                await channel.wait_closed()
        except TimeoutError:
            channel.close()
        finally:
            self._open[uid] -= 1

    async def _handle(self, uid: int, op: str, args: Mapping[str, Any], fds: list[int]) -> wire.Answer:
        wire.close_all(fds)
        if op == "connect":
            who = await asyncio.to_thread(self._accounts.identify_uid, uid)
            return {}, [await self._rooms.connect(who, str(args.get("session", "")))]
        if op not in ("keys", "principals"):
            raise Refused(f"The portal knows no {op[:20]!r}.")
        if not self._is_look_up(uid):
            raise Forbidden("This is for sshd's look-ups alone.")
        user_name, fingerprint = str(args.get("user")), str(args.get("fingerprint"))
        process = self._read_process(args)
        if op == "keys":
            lines = await asyncio.to_thread(self._entry.find_keys, user_name, fingerprint, process)
        else:
            serial = str(args.get("serial"))
            if not (serial.isascii() and serial.isdecimal() and len(serial) < 19):
                return {"lines": []}, ()
            lines = await asyncio.to_thread(self._entry.find_principals, user_name, fingerprint, int(serial), process)
        return {"lines": lines}, ()

    def _is_look_up(self, uid: int) -> bool:
        if not self._config.multi_user:
            return uid == os.geteuid()
        try:
            return uid == pwd.getpwnam(SSH_ACCOUNT).pw_uid
        except KeyError:
            return False

    def _read_process(self, args: Mapping[str, Any]) -> Process | None:
        pid, start = args.get("pid"), args.get("start_ticks")
        if isinstance(pid, int) and isinstance(start, int) and pid > 1 and start > 0:
            return Process(pid, start, self._boot_id)
        return None

    # sshd's log

    async def follow(self, path: Path) -> None:
        """Read what sshd says, from where the last portal stopped, until cancelled; forget what has ended."""
        mark = Path(self._config.state_dir) / "ssh-log-position"
        tail = LogTail(path, mark)
        try:
            await self._follow(tail)
        finally:
            with contextlib.suppress(PorticoError):
                self._entry.record_failures(self._failures.take(everything=True))

    async def _follow(self, tail: LogTail) -> None:
        tidy_at = 0.0
        while True:
            try:
                for line in await asyncio.to_thread(tail.read):
                    # The supervisor puts a time before each line.
                    match parse_line(line.partition(" ")[2]):
                        case Accepted() as accepted:
                            await asyncio.to_thread(self._entry.record, accepted)
                        case Failed() as failed:
                            self._failures.add(failed)
                await asyncio.to_thread(self._entry.record_failures, self._failures.take())
                if self._loop.time() >= tidy_at:
                    tidy_at = self._loop.time() + TIDY_S
                    await asyncio.to_thread(self._entry.tidy, self._is_there)
            except (OSError, PorticoError) as error:
                log.error("sshd's log: %s", error)
                await asyncio.sleep(TIDY_S / 10)
            await asyncio.sleep(LOG_S)

    def _is_there(self, connection: SshConnection) -> bool:
        if connection.boot_id != self._boot_id:
            return False
        try:
            text = Path(f"/proc/{connection.pid}/stat").read_text(errors="replace")
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return int(text[text.rindex(")") + 2 :].split()[19]) == connection.start_ticks

    def close(self) -> None:
        """Give up what is being done."""
        for task in self._tasks:
            task.cancel()


class LogTail:
    """New lines of a log file that is rotated by renaming, each once, across restarts too.

    Args:
        mark: A file that keeps how far it was read.
    """

    def __init__(self, path: Path, mark: Path) -> None:
        self._path, self._mark = path, mark
        self._inode, self._offset = 0, 0
        try:
            inode, offset = mark.read_text().split()
            self._inode, self._offset = int(inode), int(offset)
        except (OSError, ValueError):
            pass

    def read(self) -> list[str]:
        """Return whole lines that were not returned before.

        Raises:
            OSError: The file can't be read, or the mark not be written.
        """
        lines: list[str] = []
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            return lines
        if self._inode and inode != self._inode:
            rotated = self._path.with_name(f"{self._path.name}.1")
            if rotated.exists() and rotated.stat().st_ino == self._inode:
                lines += self._take(rotated)
            self._offset = 0
        self._inode = inode
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        lines += self._take(self._path)
        if lines:
            temporary = self._mark.with_suffix(".new")
            temporary.write_text(f"{self._inode} {self._offset}")
            temporary.replace(self._mark)
        return lines

    def _take(self, path: Path) -> list[str]:
        with open(path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].decode(errors="replace").splitlines()
