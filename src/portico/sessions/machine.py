"""This machine, through the broker and the users' agents: the only way by which the portal touches it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from portico import wire
from portico.errors import NotFound, Refused, Unavailable
from portico.model import Session, SshConnection
from portico.schedulers.batch import render_record
from portico.schedulers.protocol import JobRequest
from portico.wire import Channel, Json, Packet

AGENT_IDLE_S: Final = 60.0
BROKER_WAIT_S: Final = 5.0
"""A broker that died is there again in about a second."""


class BrokerMachine:
    """The broker's client, and an agent for each user who is at work.

    Implements accounts.PosixAccounts and schedulers.local.Machine.

    Args:
        broker_path: The broker's socket.
        on_account: Called with the name of each POSIX account that was made.
    """

    def __init__(self, broker_path: str, on_account: Callable[[str], None] = lambda name: None) -> None:
        self._broker_path = broker_path
        self._broker: Channel | None = None
        self._broker_lock = asyncio.Lock()
        self._agents: dict[str, Channel] = {}
        self._agent_locks: dict[str, asyncio.Lock] = {}
        self._used: dict[str, float] = {}
        self._asking: Counter[str] = Counter()
        self.on_account = on_account

    @property
    def agents(self) -> int:
        """How many users' agents are at work."""
        return sum(1 for agent in self._agents.values() if not agent.closed)

    # accounts

    async def make(self, name: str) -> None:
        """Make a POSIX account; see PosixAccounts."""
        answer = await self._ask_broker("account_make", {"user": name}, timeout_s=40)
        if answer.body["made"]:
            self.on_account(name)

    async def lock(self, name: str, locked: bool) -> None:
        """Lock or unlock a POSIX account; see PosixAccounts."""
        await self._ask_broker("account_lock", {"user": name, "locked": locked}, timeout_s=40)

    async def remove(self, name: str, remove_home: bool) -> None:
        """Remove a POSIX account; see PosixAccounts."""
        if agent := self._agents.pop(name, None):
            agent.close()
        await self._ask_broker("account_remove", {"user": name, "remove_home": remove_home}, timeout_s=60)

    # agents

    async def ask(self, user_name: str, op: str, args: Json, *, timeout_s: float = 10.0) -> Packet:
        """Ask a user's agent; one is forked where there is none. Where it is gone, another one is asked the same.

        Raises:
            PorticoError: As the agent or the broker answered.
        """
        for last in (False, True):
            agent = await self._get_agent(user_name)
            began = time.monotonic()
            try:
                return await self._ask_agent(user_name, agent, op, args, timeout_s=timeout_s)
            except Unavailable:
                if not agent.closed and time.monotonic() - began >= timeout_s:
                    agent.close()  # it hangs: on a dead file server, or because its user has stopped it
                    raise
                if last or not agent.closed:  # it may just have left, idle
                    raise
        raise AssertionError("unreachable")

    async def ask_once(self, user_name: str, op: str, args: Json, fds: Sequence[int], *, timeout_s: float) -> Packet:
        """Ask a user's agent what must not be done twice: Unavailable may mean that it was done. ``fds`` are closed.

        Raises:
            PorticoError: As the agent or the broker answered.
        """
        try:
            agent = await self._get_agent(user_name)
        except BaseException:
            wire.close_all(fds)
            raise
        return await self._ask_agent(user_name, agent, op, args, fds, timeout_s=timeout_s)

    async def _ask_agent(
        self, user_name: str, agent: Channel, op: str, args: Json, fds: Sequence[int] = (), *, timeout_s: float
    ) -> Packet:
        self._asking[user_name] += 1
        try:
            return await agent.ask(op, args, fds, timeout_s=timeout_s)
        finally:
            self._asking[user_name] -= 1
            self._used[user_name] = time.monotonic()

    async def _get_agent(self, user_name: str) -> Channel:
        lock = self._agent_locks.setdefault(user_name, asyncio.Lock())
        async with lock:
            agent = self._agents.get(user_name)
            if agent is None or agent.closed:
                agent = self._agents[user_name] = await self._fork({"user": user_name})
            return agent

    async def _fork(self, args: Json) -> Channel:
        fd = _take_fd(await self._ask_broker("agent", args))
        return Channel(socket.socket(fileno=fd), name=f"agent of {args['user']}")

    def close_idle(self) -> None:
        """Let agents go that nobody has asked for a while."""
        for name, agent in list(self._agents.items()):
            if not self._asking[name] and time.monotonic() - self._used.get(name, 0) > AGENT_IDLE_S:
                del self._agents[name]
                agent.close()

    def close(self) -> None:
        """Let all go."""
        for channel in (*self._agents.values(), self._broker):
            if channel:
                channel.close()

    # jobs

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        """Start a job in a cell of its own; see Machine. What a failed start leaves, the caller ends."""
        cells = await self.cells() is not None
        args: Json = {"user": request.user_name}
        if cells:
            args["cell"] = {"name": request.key, "cores": request.cores, "memory_bytes": request.memory_bytes}
        start: Json = {
            "session": request.key,
            "argv": list(request.argv),
            "env": dict(request.env),
            "deadline": deadline.timestamp(),
            "memory_bytes": request.memory_bytes,
            "cores": request.cores,
            "enforce": not cells,
        }
        if request.batch:
            options = request.options
            start["work"] = {"folder": options.folder, "output": options.output, "error": options.error}
        agent = await self._fork(args)
        try:
            await agent.ask("start", start)
        finally:
            agent.close()

    async def prepare(self, request: JobRequest) -> None:
        """Write a batch job's script and record; see schedulers.local.Machine."""
        files = {"job.sh": request.script.decode()}
        args = {"session": request.key, "record": render_record(request), "files": files}
        await self.ask(request.user_name, "prepare", args)

    async def forget(self, user_name: str, key: str) -> None:
        """Remove a job's folder; see schedulers.local.Machine."""
        await self.ask(user_name, "forget", {"session": key})

    async def look(self, user_name: str, key: str) -> Json:
        """Return what the user's agent sees; see schedulers.local.Machine."""
        return (await self.ask(user_name, "look", {"session": key})).body

    async def cells(self) -> dict[str, Json] | None:
        """Return all cells; see schedulers.local.Machine."""
        cells: dict[str, Json] | None = (await self._ask_broker("cells", {})).body["cells"]
        return cells

    async def end_cell(self, key: str) -> None:
        """End a cell; see schedulers.local.Machine."""
        with contextlib.suppress(NotFound):
            await self._ask_broker("cell_end", {"name": key})

    async def signal(self, user_name: str, key: str, name: str) -> None:
        """Signal a job; see schedulers.local.Machine."""
        await self.ask(user_name, "signal", {"session": key, "signal": name})

    async def set_deadline(self, user_name: str, key: str, deadline: datetime) -> None:
        """Move a deadline; see schedulers.local.Machine."""
        await self.ask(user_name, "deadline", {"session": key, "deadline": deadline.timestamp()})

    async def connect(self, user_name: str, key: str) -> int:
        """Return a descriptor that is connected to the app's socket; the caller owns it."""
        return _take_fd(await self.ask(user_name, "connect", {"session": key}, timeout_s=4))

    async def connect_ssh(self, session: Session, files: Mapping[str, str]) -> int:
        """Return a descriptor that is connected to a new sshd in a session's cell; the caller owns it.

        Raises:
            PorticoError: The session does not run, or there is no sshd.
        """
        args: Json = {"user": session.user_name}
        if await self.cells() is not None:
            args["cell"] = {"name": session.id, "cores": session.cores, "memory_bytes": session.memory_bytes}
        agent = await self._fork(args)
        try:
            return _take_fd(await agent.ask("ssh", {"session": session.id, "files": dict(files)}))
        finally:
            agent.close()

    async def end_ssh(self, connection: SshConnection) -> None:
        """End an sshd process of Portico's own sshd, if it still is this one.

        Raises:
            NotFound: It has ended.
        """
        if connection.boot_id != read_boot_id():
            raise NotFound("That was before this machine was started.")
        args = {"user": connection.user_name, "pid": connection.pid, "start_ticks": connection.start_ticks}
        await self._ask_broker("ssh_end", args)

    # the broker

    async def _connect_broker(self) -> Channel:
        return await wire.connect(self._broker_path, name="broker")

    async def _ask_broker(self, op: str, args: Json, *, timeout_s: float = 15.0) -> Packet:
        deadline = time.monotonic() + BROKER_WAIT_S
        while True:
            broker = None
            try:
                async with self._broker_lock:
                    if self._broker is None or self._broker.closed:
                        self._broker = await self._connect_broker()
                broker = self._broker
                return await broker.ask(op, args, timeout_s=timeout_s)
            except Unavailable:
                # Away, or gone with the question; every request to it can be made twice.
                if time.monotonic() > deadline or (broker and not broker.closed):
                    raise
                await asyncio.sleep(0.05)


def read_boot_id() -> str:
    """Return this boot's random id (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _take_fd(packet: Packet) -> int:
    if len(packet.fds) != 1:
        wire.close_all(packet.fds)
        raise Refused("An answer came without the connection that it speaks of.")
    return packet.fds[0]


def is_in_cell(pid: object, key: str) -> bool:
    """Return whether a process is in the cell of that name (cgroups(7), /proc/PID/cgroup); False for none."""
    if not isinstance(pid, int):
        return False
    try:
        lines = Path(f"/proc/{pid:d}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(line.rpartition("/")[2] == key for line in lines)


def read_capacity(cores: float, memory_gb: float) -> tuple[float, int]:
    """Return the cores and memory that sessions may hold at once.

    Args:
        cores: 0 for four times the machine's: interactive work idles most of the time.
        memory_gb: 0 for all but one GB.
    """
    if not cores:
        cores = 4.0 * len(os.sched_getaffinity(0))
    if memory_gb:
        return cores, int(memory_gb * 1e9)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return cores, max(int(total - 1e9), int(total / 2))


def find_catalog() -> Path:
    """Return the folder of the apps that come with Portico."""
    return Path(__file__).resolve().parent.parent / "catalog"


def find_program(name: str) -> Path:
    """Return the path of a file of Portico's that jobs run with nothing but the standard library."""
    return Path(__file__).resolve().parent.parent / name
