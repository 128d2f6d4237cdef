"""Machines that are not there, each named by its vice, at the seam between the portal and its broker and agents."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from portico.errors import NotFound, PorticoError, TooMany, Unavailable
from portico.schedulers.protocol import JobRequest
from portico.sessions import BrokerMachine
from portico.wire import Json, Packet


@dataclass
class Job:
    """What runs on the machine. It outlives every portal, as cells do."""

    user_name: str
    record: Json | None = None
    running: bool = False
    starts: int = 0
    ready: bool = True
    deaf: bool = False  # to TERM
    deadline: float | None = None
    ended: Json | None = None
    this_boot: bool | None = None
    oom_kills: int = 0
    signals: list[str] = field(default_factory=list)


class FakeMachine(BrokerMachine):
    """A machine that does what it is asked to."""

    def __init__(self, jobs: dict[str, Job] | None = None, *, has_cells: bool = True) -> None:
        super().__init__("/nonexistent")
        self.jobs = {} if jobs is None else jobs
        self.has_cells = has_cells
        self.launched: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.cell_questions = 0
        self.accounts: set[str] = set()
        self.gone: set[str] = set()

    def end(self, key: str, status: int | None = 0, why: str = "exited", number: int | None = None) -> None:
        """Let a job end by itself."""
        job = self.jobs[key]
        job.running, job.ended = False, {"at": 0, "exit_status": status, "signal": number, "why": why}

    async def make(self, name: str) -> None:
        self.accounts.add(name)

    async def lock(self, name: str, locked: bool) -> None:
        if name not in self.accounts:
            raise NotFound(f"There is no POSIX account {name}.")

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        job = self.jobs[request.key]
        assert not job.running, "it was started twice"
        job.running, job.this_boot, job.deadline = True, True, deadline.timestamp()
        job.starts += 1
        self.launched.append(request.key)

    async def ask(self, user_name: str, op: str, args: Json, *, timeout_s: float = 10.0) -> Packet:
        self.asked.append((user_name, op))
        if user_name in self.gone:
            raise NotFound(f"There is no POSIX account {user_name}.")
        answer: Any = await getattr(self, f"_{op}")(user_name, args)
        return Packet(answer, [])

    async def _prepare(self, user_name: str, args: Json) -> Json:
        self.jobs[args["session"]] = Job(user_name, args["record"])
        return {}

    async def _look(self, user_name: str, args: Json) -> Json:
        key = args["session"]
        job = self.jobs.get(key, Job(user_name))
        return {
            "session": key,
            "record": job.record,
            "running": job.running,
            "pid": os.getpid() if job.running else None,
            "deadline": job.deadline,
            "this_boot": job.this_boot,
            "ended": None if job.running else job.ended,
            "socket": job.running,
            "folder": f"/home/{user_name}/{key}",
            "run": f"/run/{key}",
            "home": f"/home/{user_name}",
        }

    async def _probe(self, user_name: str, args: Json) -> Json:
        job = self.jobs[args["session"]]
        return {"ready": job.running and job.ready, "waiting_for": "the app to open its socket"}

    async def _signal(self, user_name: str, args: Json) -> Json:
        job = self.jobs[args["session"]]
        job.signals.append(args["signal"])
        if job.running and (args["signal"] == "KILL" or not job.deaf):
            self.end(args["session"], None, number=15)
        return {"processes": 1}

    async def _deadline(self, user_name: str, args: Json) -> Json:
        self.jobs[args["session"]].deadline = args["deadline"]
        return {}

    async def _sessions(self, user_name: str, args: Json) -> Json:
        mine = [key for key, job in self.jobs.items() if job.user_name == user_name]
        return {"sessions": [await self._look(user_name, {"session": key}) for key in mine], "more": False}

    async def _forget(self, user_name: str, args: Json) -> Json:
        self.jobs.pop(args["session"], None)
        return {}

    async def _log(self, user_name: str, args: Json) -> Json:
        return {"text": "the last line"}

    async def cells(self) -> dict[str, Json] | None:
        self.cell_questions += 1
        if not self.has_cells:
            return None
        return {
            key: {"processes": 2 if job.running else 0, "oom_kills": job.oom_kills}
            for key, job in self.jobs.items()
            if job.starts
        }

    async def end_cell(self, key: str) -> None:
        if key in self.jobs:
            self.jobs[key].running = False

    async def connect(self, user_name: str, key: str) -> int:
        self.asked.append((user_name, "connect"))
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()


class AgentThatVanishes(FakeMachine):
    """The agent is gone after it has started the job, before it could say so."""

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        await super().launch(request, deadline)
        raise Unavailable("The agent closed the connection.")


class BrokerThatRefuses(FakeMachine):
    """The broker refuses the first ``refusals`` starts with ``error``."""

    def __init__(self, error: PorticoError, refusals: int = 1 << 30, **more: Any) -> None:
        super().__init__(**more)
        self.error, self.refusals = error, refusals

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise self.error
        await super().launch(request, deadline)


class BrokerInAHurry(BrokerThatRefuses):
    """The broker says that it was asked too often, some times."""

    def __init__(self, refusals: int) -> None:
        super().__init__(TooMany("The broker was asked too often."), refusals)


class BrokerThatIsAway(FakeMachine):
    """Nobody listens."""

    async def cells(self) -> dict[str, Json] | None:
        raise Unavailable("The broker is not running.")


class SlowAgent(FakeMachine):
    """One user's agents never answer: they are stopped, or their home's file server is dead."""

    def __init__(self, user_name: str, **more: Any) -> None:
        super().__init__(**more)
        self.slow = user_name

    async def ask(self, user_name: str, op: str, args: Json, *, timeout_s: float = 10.0) -> Packet:
        if user_name == self.slow:
            await asyncio.sleep(timeout_s)
            raise Unavailable("The agent does not answer.")
        return await super().ask(user_name, op, args, timeout_s=timeout_s)

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        if request.user_name == self.slow:
            await asyncio.sleep(10)
            raise Unavailable("The agent does not answer.")
        await super().launch(request, deadline)


class AgentThatLies(FakeMachine):
    """The user has written into the own session folder what no program would."""

    async def _look(self, user_name: str, args: Json) -> Json:
        look = await super()._look(user_name, args)
        if look["ended"]:
            look["ended"] = {"exit_status": "\ud800" * 9000, "signal": {"no": "number"}, "why": ["\x00"]}
        return look
