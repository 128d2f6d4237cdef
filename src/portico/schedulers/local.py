"""The embedded scheduler of one machine: a queue, cells with limits, and shepherds that keep the time.

What runs is asked for in bulk: one question to the broker for all cells, however many users look. It starts and ends
nothing itself; the machine it is given does, as the user.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from portico.errors import Conflict, NotFound, PorticoError, Unavailable
from portico.model import Reason, now
from portico.schedulers.protocol import Capacity, JobRequest, JobState, JobStatus
from portico.schedulers.queue import choose_next, describe_wait, refuse_impossible
from portico.schedulers.spool import Entry, Spool

log = logging.getLogger(__name__)

STOP_GRACE: Final = timedelta(seconds=5)
OVERDUE: Final = timedelta(seconds=20)
"""The shepherd keeps the limit by itself; this long after it, somebody has stopped the shepherd."""
ATTEMPTS: Final = 3


class Machine(Protocol):
    """What the scheduler needs of the machine; sessions/machine.py has it. All raise PorticoError."""

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        """Start the job as its user, in a cell where there are cells."""

    async def look(self, user_name: str, key: str) -> dict[str, Any]:
        """Return what the user's agent sees of a job (docs/protocol.md, `look`)."""

    async def cells(self) -> dict[str, dict[str, Any]] | None:
        """Return all cells, or None where the machine has none."""

    async def end_cell(self, key: str) -> None:
        """Kill all in a cell and remove it; no cell is no error."""

    async def signal(self, user_name: str, key: str, name: str) -> None:
        """Send TERM or KILL to all of the job's processes, as its user."""

    async def set_deadline(self, user_name: str, key: str, deadline: datetime) -> None:
        """Tell the shepherd."""


class LocalScheduler:
    """A queue on this machine.

    Args:
        spool: Where the queue is kept.
        capacity: What sessions may hold in all.
    """

    def __init__(self, spool: Path, machine: Machine, capacity: Capacity, clock: Callable[[], datetime] = now) -> None:
        self._spool = Spool(spool)
        self._machine = machine
        self._capacity = capacity
        self._clock = clock
        self._lock = asyncio.Lock()

    async def submit(self, request: JobRequest) -> None:
        """Queue a job; see Scheduler."""
        refuse_impossible(request, self._capacity)
        async with self._lock:
            if self._spool.find(request.key) is None:
                self._spool.put(Entry(request))

    async def adopt(self, request: JobRequest, started: datetime, deadline: datetime) -> None:
        """Take up a job that runs and is not in the spool."""
        async with self._lock:
            if self._spool.find(request.key) is None:
                self._spool.change(Entry(request), state=JobState.RUNNING, started=started, deadline=deadline)

    async def cancel(self, key: str, reason: Reason) -> None:
        """End a job; see Scheduler. A running one gets TERM now and KILL after STOP_GRACE."""
        async with self._lock:
            entry = self._get(key)
            if entry.state is JobState.ENDED:
                return
            if entry.state is JobState.QUEUED and not entry.forking:
                self._spool.change(entry, state=JobState.ENDED, reason=reason, cancelled=reason)
                return
            first = entry.cancelled is None
            entry = self._spool.change(entry, cancelled=entry.cancelled or reason)
            if first:
                self._spool.change(entry, kill_at=self._clock() + STOP_GRACE)
        if first:
            try:
                await self._machine.signal(entry.request.user_name, key, "TERM")
            except PorticoError as error:
                log.warning("session %s: TERM failed, KILL follows: %s", key, error)

    async def extend(self, key: str, deadline: datetime) -> None:
        """Move a deadline; see Scheduler."""
        async with self._lock:
            entry = self._get(key)
            if entry.state is not JobState.RUNNING:
                raise Conflict("Only what runs can be extended.")
            await self._machine.set_deadline(entry.request.user_name, key, deadline)
            self._spool.change(entry, deadline=deadline)

    async def forget(self, key: str) -> None:
        """Drop an ended job; see Scheduler."""
        entry = self._spool.find(key)
        if entry and entry.state is JobState.ENDED:
            self._spool.drop(key)

    async def get_capacity(self) -> Capacity:
        """Return what there is and what is held; see Scheduler."""
        return self._count()

    async def query(self) -> dict[str, JobStatus]:
        """Return all jobs, after those that can start were started; see Scheduler."""
        async with self._lock:
            cells = await self._machine.cells()
            for entry in list(self._spool):
                try:
                    if entry.forking:
                        entry = await self._recover(entry)
                    if entry.state is JobState.RUNNING:
                        await self._check(entry, cells)
                except PorticoError as error:
                    log.warning("session %s could not be looked at: %s %s", entry.request.key, error, error.why)
            queued = [e.request for e in self._spool if e.state is JobState.QUEUED and not e.forking]
            for request in choose_next(queued, self._count()):
                await self._launch(self._get(request.key))
            return self._describe()

    async def _launch(self, entry: Entry) -> None:
        request, at = entry.request, self._clock()
        deadline = at + timedelta(seconds=request.time_limit_s)
        entry = self._spool.change(entry, forking=True, attempts=entry.attempts + 1, started=at, deadline=deadline)
        try:
            await self._machine.launch(request, deadline)
        except Unavailable as error:  # a broker that is away comes back; a full disk does not
            look = await self._look_quietly(entry)
            if look and look.get("running"):
                self._spool.change(entry, forking=False, state=JobState.RUNNING)
            else:
                self._fail_start(entry, error)
        except PorticoError as error:
            self._end(entry, Reason.NOT_STARTED, f"{error.message} {error.why}".strip())
        else:
            self._spool.change(entry, forking=False, state=JobState.RUNNING)

    def _fail_start(self, entry: Entry, error: PorticoError) -> None:
        if entry.attempts >= ATTEMPTS:
            self._end(entry, Reason.NOT_STARTED, f"{error.message} {error.why}".strip())
        else:
            self._spool.change(entry, forking=False)

    async def _look_quietly(self, entry: Entry) -> dict[str, Any] | None:
        try:
            return await self._machine.look(entry.request.user_name, entry.request.key)
        except PorticoError:
            return None

    async def _recover(self, entry: Entry) -> Entry:
        """Find out what became of a start during which Portico died."""
        look = await self._machine.look(entry.request.user_name, entry.request.key)
        if look["running"]:
            return self._spool.change(entry, forking=False, state=JobState.RUNNING)
        await self._machine.end_cell(entry.request.key)
        if look["ended"]:
            return self._conclude(entry, look, oom_kills=0)
        if entry.cancelled:
            return self._end(entry, entry.cancelled, "")
        return self._spool.change(entry, forking=False, started=None, deadline=None)

    async def _check(self, entry: Entry, cells: dict[str, dict[str, Any]] | None) -> None:
        request, at = entry.request, self._clock()
        cell = cells.get(request.key) if cells is not None else None
        if cell is not None and cell["processes"] > 0:
            running, look = True, None
        else:
            look = await self._machine.look(request.user_name, request.key)
            running = look["running"]
        kill_at = entry.kill_at or (entry.deadline + OVERDUE if entry.deadline else None)
        if running and kill_at and at >= kill_at:
            if cells is None:
                await self._machine.signal(request.user_name, request.key, "KILL")
            else:
                await self._machine.end_cell(request.key)
                running = False
            if entry.cancelled is None:
                entry = self._spool.change(entry, cancelled=Reason.TIME_LIMIT)
        if running:
            return
        look = look or await self._machine.look(request.user_name, request.key)
        if cells is not None:
            await self._machine.end_cell(request.key)  # whatever is left, and the cell itself
        self._conclude(entry, look, oom_kills=cell["oom_kills"] if cell else 0)

    def _conclude(self, entry: Entry, look: dict[str, Any], oom_kills: int) -> Entry:
        ended = look.get("ended")
        if entry.cancelled:
            return self._end(entry, entry.cancelled, "")
        if not isinstance(ended, dict):
            if look.get("this_boot") is False:
                return self._end(entry, Reason.LOST, "the machine was restarted")
            if oom_kills:
                return self._end(entry, Reason.OUT_OF_MEMORY, "")
            return self._end(entry, Reason.LOST, "it ended without leaving a trace")
        status, number = ended.get("exit_status"), ended.get("signal")
        if ended.get("why") == "time-limit":
            return self._end(entry, Reason.TIME_LIMIT, "")
        if ended.get("why") == "out-of-memory" or (oom_kills and status != 0):
            return self._end(entry, Reason.OUT_OF_MEMORY, "")
        if status == 0:
            return self._end(entry, Reason.FINISHED, "")
        detail = f"signal {number}" if isinstance(number, int) else f"exit status {status}"
        return self._end(entry, Reason.FAILED, detail)

    def _end(self, entry: Entry, reason: Reason, detail: str) -> Entry:
        return self._spool.change(entry, forking=False, state=JobState.ENDED, reason=reason, detail=detail[:500])

    def _get(self, key: str) -> Entry:
        entry = self._spool.find(key)
        if entry is None:
            raise NotFound("The scheduler has no such job.")
        return entry

    def _count(self) -> Capacity:
        held = [e for e in self._spool if e.state is JobState.RUNNING or e.forking]
        return Capacity(
            self._capacity.cores,
            self._capacity.memory_bytes,
            sum(e.request.cores for e in held),
            sum(e.request.memory_bytes for e in held),
            len(held),
            sum(e.state is JobState.QUEUED and not e.forking for e in self._spool),
        )

    def _describe(self) -> dict[str, JobStatus]:
        found, position, capacity = {}, 0, self._count()
        for entry in self._spool:
            waiting_for, state = "", entry.state
            if entry.forking:
                state, waiting_for = JobState.RUNNING, "its start"
            elif state is JobState.QUEUED:
                position += 1
                waiting_for = describe_wait(position, entry.request, capacity)
            found[entry.request.key] = JobStatus(
                entry.request.key, state, waiting_for, entry.started, entry.deadline, entry.reason, entry.detail
            )
        return found
