"""The embedded scheduler of one machine: a queue, cells with limits, and shepherds that keep the time.

What runs is asked for in bulk: one question to the broker for all cells, however many users look. It starts and ends
nothing itself; the machine it is given does, as the user. Whatever needs one user's agent or home happens beside the
queue, never in it: a user whose agent is stopped or whose disk hangs holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from portico.errors import Conflict, NotFound, PorticoError, TooMany, Unavailable
from portico.model import Reason, now
from portico.schedulers.batch import DEFAULT_TIME_S, PARTITION
from portico.schedulers.ending import explain_end
from portico.schedulers.line import Line
from portico.schedulers.local_batch import BatchJobs, Homes, show
from portico.schedulers.protocol import (
    Action,
    Capacity,
    Feature,
    Job,
    JobDetails,
    JobOptions,
    JobRef,
    JobRequest,
    JobState,
    JobStatus,
    Node,
    Offer,
    Queue,
    Reservation,
)
from portico.schedulers.queue import refuse_impossible
from portico.schedulers.spool import Entry, Spool, parse_entry

log = logging.getLogger(__name__)

STOP_GRACE: Final = timedelta(seconds=5)
OVERDUE: Final = timedelta(seconds=20)
"""The shepherd keeps the limit by itself; this long after it, somebody has stopped the shepherd."""
ATTEMPTS: Final = 3
"""Starts that may fail before a job is given up."""
SETTLE: Final = timedelta(seconds=3)
"""A start whose outcome is unknown may still be under way for so long; only then is what is left of it ended."""
PATIENCE_S: Final = 0.25
"""How long one query waits for what it began; the rest goes on behind it."""
TROUBLE_FIRST_S: Final = 1.0
TROUBLE_LAST_S: Final = 60.0
"""After a failure to look at a job the next try waits, ever longer: no log is flooded, no broker kept busy."""

Cells = dict[str, dict[str, Any]]


class Machine(Homes, Protocol):
    """What the scheduler needs of the machine; sessions/machine.py has it. All raise PorticoError."""

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        """Start the job as its user, in a cell where there are cells."""

    async def cells(self) -> dict[str, dict[str, Any]] | None:
        """Return all cells, or None where the machine has none."""

    async def end_cell(self, key: str) -> None:
        """Kill all in a cell and remove it; no cell is no error."""

    async def signal(self, user_name: str, key: str, name: str) -> None:
        """Send TERM or KILL to all of the job's processes, as its user."""


class LocalScheduler:
    """A queue on this machine.

    Args:
        spool: Where the queue is kept; beside it, the history.
        capacity: What sessions and jobs may hold in all.
        batch_cores: What batch jobs may hold of its cores; by default all.
        longest_s: The longest time limit of a batch job.

    Raises:
        Unavailable: The spool's folder can't be used.
    """

    def __init__(
        self,
        spool: Path,
        machine: Machine,
        capacity: Capacity,
        clock: Callable[[], datetime] = now,
        *,
        batch_cores: float | None = None,
        longest_s: float = 86400.0,
    ) -> None:
        self._spool = Spool(spool, parse_entry)
        self._machine = machine
        self._capacity = capacity
        self._batch_capacity = replace(capacity, cores=capacity.cores if batch_cores is None else batch_cores)
        self._batch = BatchJobs(self._spool, spool.with_name(f"{spool.name}-ended"), machine, longest_s)
        self._line = Line(self._spool, self._batch, capacity, self._batch_capacity.cores, clock)
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._troubles: dict[str, tuple[float, datetime]] = {}
        self.on_news: Callable[[], None] = lambda: None
        """Called when something became of a job after the query that began it; a query tells what."""
        self.has_cells = False
        """Whether the machine has cells, as of the last query."""
        self.unknown_cells: frozenset[str] = frozenset()
        """Cells with processes that belong to no job known here, as of the last query."""

    async def submit(self, request: JobRequest) -> None:
        """Queue a job; see Scheduler."""
        if self._batch.is_known(request.key):
            return
        if request.batch:
            await self._batch.submit(request, self._batch_capacity)
        else:
            await self.check(request, ())
            self._spool.put(Entry(request))

    async def adopt(self, request: JobRequest, started: datetime, deadline: datetime) -> None:
        """Take up a job that runs and is not in the spool."""
        if not self._batch.is_known(request.key):
            self._spool.put(Entry(request, state=JobState.RUNNING, started=started, deadline=deadline))
            log.info("%s of %s runs, and was not in the spool", request.key, request.user_name)

    async def cancel(self, key: str, reason: Reason) -> None:
        """End a job; see Scheduler. A running one gets TERM now and KILL after STOP_GRACE."""
        entry = self._get(key)
        if entry.waits:
            self._spool.change(key, cancelled=reason)
            self._end(key, reason, "")
        elif entry.state is not JobState.ENDED and entry.cancelled is None:
            entry = self._spool.change(key, cancelled=reason, kill_at=self._clock() + STOP_GRACE)
            if entry.state is JobState.RUNNING:  # one that is being started gets it when it has begun
                self._terminate(entry)

    async def extend(self, key: str, deadline: datetime) -> None:
        """Move a deadline; see Scheduler."""
        entry = self._get(key)
        if entry.state is not JobState.RUNNING or entry.cancelled:
            raise Conflict("Only what runs can be extended.")
        await self._machine.set_deadline(entry.request.user_name, key, deadline)
        if self._get(key).state is JobState.RUNNING:
            self._spool.change(key, deadline=deadline)

    async def forget(self, key: str) -> None:
        """Drop an ended job; see Scheduler. A batch job goes into the history."""
        entry = self._spool.find(key)
        if entry and entry.state is JobState.ENDED:
            if entry.request.batch:
                self._batch.file(entry)
            self._spool.drop(key)

    async def get_capacity(self) -> Capacity:
        """Return what there is and what is held; see Scheduler."""
        return self._line.count()

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do; see Scheduler."""
        return frozenset({Feature.BATCH, Feature.HOLD, Feature.LIMIT, Feature.HISTORY})

    @property
    def longest_s(self) -> float:
        """The longest time limit of a batch job."""
        return self._batch.longest_s

    async def check(self, request: JobRequest, groups: Collection[str]) -> None:
        """Refuse what can never run; see Scheduler."""
        if request.batch:
            self._batch.check(request, self._batch_capacity)
        elif request.script or request.options != JobOptions():
            raise Conflict("An app's session has no script and options of a person's.")
        else:
            refuse_impossible(request, self._capacity)

    async def list_jobs(self) -> Queue:
        """Return all jobs that wait, run, or ended lately; see Scheduler. Answers from memory."""
        statuses, at = self._line.describe(), self._clock()
        live = [show(entry, at, statuses[entry.request.key]) for entry in self._spool]
        return Queue((*live, *(job for job in self._batch.list_lately(at) if job.id not in statuses)), at)

    async def list_history(self, user_name: str | None, since: datetime) -> list[Job]:
        """Return batch jobs that ended; see Scheduler. What becomes of sessions, others keep."""
        return self._batch.list_history(user_name, since, self._clock())

    async def find_record(self, job_id: str) -> Job | None:
        """Return a job of the history; see Scheduler."""
        return self._batch.find_record(job_id, self._clock())

    async def describe(self, user_name: str, ref: JobRef) -> JobDetails:
        """Return where a job's output goes and what it uses; see Scheduler."""
        return self._batch.describe(user_name, ref.id)

    async def read_script(self, user_name: str, ref: JobRef) -> bytes:
        """Return a batch job's script; see Scheduler."""
        return self._batch.read_script(user_name, ref.id)

    async def act(self, user_name: str, ref: JobRef, action: Action) -> None:
        """Cancel a job, hold or release a batch job; see Scheduler."""
        entry = self._batch.get(user_name, ref.id)
        if action in (Action.HOLD, Action.RELEASE):
            self._batch.hold(user_name, ref.id, action is Action.HOLD)
        elif action is not Action.CANCEL:
            raise Conflict(f"This machine's own scheduler can't {action} jobs.")
        elif entry.state is JobState.ENDED:
            raise Conflict("The job has ended already.")
        else:
            await self.cancel(ref.id, Reason.STOPPED)

    async def change_limit(self, user_name: str, ref: JobRef, limit_s: float) -> None:
        """Change a batch job's time limit; see Scheduler. That of a session is moved by extend()."""
        await self._batch.change_limit(user_name, ref.id, limit_s, self._clock())

    async def find_offers(self, user_name: str, groups: Collection[str]) -> list[Offer]:
        """Return the machine as one partition; see Scheduler."""
        return [
            Offer(
                PARTITION,
                default=True,
                max_time_s=self._batch.longest_s,
                default_time_s=DEFAULT_TIME_S,
                max_nodes=1,
                max_cores_per_node=int(self._batch_capacity.cores),
                max_memory_per_node_bytes=self._capacity.memory_bytes,
            )
        ]

    async def list_nodes(self) -> list[Node]:
        """Return the machine; see Scheduler."""
        all_, load = self._line.count(), os.getloadavg()[0]
        held = int(all_.cores_held), all_.memory_bytes, all_.memory_held_bytes
        return [Node(socket.gethostname(), "up", True, (PARTITION,), int(all_.cores), *held, load)]

    async def list_reservations(self) -> list[Reservation]:
        """Return nothing: one machine has no reservations."""
        return []

    async def query(self) -> dict[str, JobStatus]:
        """Return all jobs, after those that can start were started; see Scheduler."""
        cells = await self._machine.cells()
        self.has_cells = cells is not None
        self.unknown_cells = frozenset(
            key for key, cell in (cells or {}).items() if cell["processes"] and self._spool.find(key) is None
        )
        self._batch.measure(cells or {})
        begun = [self._care(entry, cells) for entry in self._spool]
        for entry in self._spool:
            if entry.waits and entry.request.batch and (why := self._batch.find_hopeless(entry)):
                self._end(entry.request.key, Reason.NOT_STARTED, why)
        at = self._clock()
        for request in self._line.choose():
            entry = self._get(request.key)
            self._spool.change(
                request.key,
                forking=True,
                attempts=entry.attempts + 1,
                started=at,
                deadline=at + timedelta(seconds=request.time_limit_s),
            )
            begun.append(self._begin(request.key, self._launch(request.key, cells is not None)))
        if tasks := [task for task in begun if task is not None]:
            await asyncio.wait(tasks, timeout=PATIENCE_S)
        return self._line.describe()

    async def close(self) -> None:
        """Let go of what is being done; the spool has all that the next one needs."""
        tasks = [*self._tasks.values(), *self._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # beside the queue: one task a job at most

    def _begin(self, key: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        before = self._spool.find(key)

        async def run() -> None:
            try:
                await work
                self._troubles.pop(key, None)
            except PorticoError as error:
                self._put_off(key)
                log.warning("session %s: %s %s", key, error.message, error.why)
            except Exception:  # a defect, which must stay with this one job
                self._put_off(key)
                log.exception("session %s", key)
            finally:
                self._tasks.pop(key, None)
                if self._spool.find(key) is not before:
                    self.on_news()

        task = self._tasks[key] = asyncio.create_task(run())
        return task

    def _put_off(self, key: str) -> None:
        wait_s = min(self._troubles.get(key, (TROUBLE_FIRST_S / 2, None))[0] * 2, TROUBLE_LAST_S)
        self._troubles[key] = (wait_s, self._clock() + timedelta(seconds=wait_s))

    def _care(self, entry: Entry, cells: Cells | None) -> asyncio.Task[None] | None:
        """Begin what a job needs now; None for nothing, and while something is under way."""
        key, at = entry.request.key, self._clock()
        trouble = self._troubles.get(key)
        if not entry.holds or key in self._tasks or (trouble and at < trouble[1]):
            return None
        cell = cells.get(key) if cells is not None else None
        lives = cell is not None and cell["processes"] > 0
        if entry.forking:
            return self._begin(key, self._recover(key, lives or cells is None, cells is not None))
        overdue = at >= _find_end(entry)
        if lives and not overdue:
            return None
        return self._begin(key, self._check(key, lives, overdue, cell["oom_kills"] if cell else 0, cells is not None))

    async def _launch(self, key: str, has_cells: bool) -> None:
        entry = self._get(key)
        assert entry.deadline is not None
        try:
            await self._machine.launch(entry.request, entry.deadline)
        except TooMany:  # the broker's own limit: not this job's fault
            self._spool.change(key, forking=False, attempts=entry.attempts - 1, started=None, deadline=None)
        except PorticoError as error:
            log.warning("session %s did not start: %s %s", key, error.message, error.why)
            self._spool.change(key, detail=f"{error.message} {error.why}".strip()[:500])
            if not isinstance(error, Unavailable):  # the same would be said again
                self._spool.change(key, attempts=ATTEMPTS)
        else:
            self._take_up(key)

    def _take_up(self, key: str) -> None:
        entry = self._spool.change(key, forking=False, state=JobState.RUNNING, detail="")
        if entry.cancelled:  # somebody was faster than the start
            self._terminate(entry)

    async def _recover(self, key: str, may_live: bool, has_cells: bool) -> None:
        """Find out what became of a start that failed, or during which Portico died."""
        look = await self._look(key)
        entry = self._get(key)
        if look["running"]:
            self._take_up(key)
            return
        if may_live and entry.started and self._clock() < entry.started + SETTLE:
            return  # its shepherd may be about to write down that it runs
        await self._clear(key, has_cells)
        entry = self._get(key)
        if look["ended"] or entry.cancelled:
            self._end(key, *explain_end(look, entry.cancelled, oom_kills=0))
        elif look.get("gone") or (entry.detail and entry.attempts >= ATTEMPTS):
            self._end(key, Reason.NOT_STARTED, entry.detail or str(look["gone"]))
        else:
            self._spool.change(key, forking=False, started=None, deadline=None)

    async def _check(self, key: str, lives: bool, overdue: bool, oom_kills: int, has_cells: bool) -> None:
        """End a job that is overdue; take note of one that has ended."""
        look = None if lives else await self._look(key)
        if overdue and (lives or (look and look["running"])):
            await self._clear(key, has_cells)
            if self._get(key).cancelled is None:
                self._spool.change(key, cancelled=Reason.TIME_LIMIT)
            look = None
        look = look or await self._look(key)
        # What its owner says runs counts only until then. Without cells the shepherd is left to write down the end.
        if look["running"] and not (overdue and has_cells):
            return
        await self._clear(key, has_cells)  # whatever is left, and the cell itself
        self._end(key, *explain_end(look, self._get(key).cancelled, oom_kills), look=look)

    async def _clear(self, key: str, has_cells: bool) -> None:
        """Kill all that is left of a job."""
        if has_cells:
            await self._machine.end_cell(key)
        else:
            with contextlib.suppress(NotFound, Conflict):
                await self._machine.signal(self._get(key).request.user_name, key, "KILL")

    async def _look(self, key: str) -> dict[str, Any]:
        """Return what the user's agent sees; where the account is no more, that nothing runs."""
        try:
            return await self._machine.look(self._get(key).request.user_name, key)
        except (NotFound, Conflict) as error:
            return {"running": False, "ended": None, "this_boot": None, "gone": error.message.rstrip(".")}

    def _terminate(self, entry: Entry) -> None:
        async def run() -> None:
            try:
                await self._machine.signal(entry.request.user_name, entry.request.key, "TERM")
            except PorticoError as error:
                log.warning("session %s: TERM failed, KILL follows: %s", entry.request.key, error)

        self._do_beside(run())

    def _do_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # the entries

    def _end(self, key: str, reason: Reason, detail: str, look: Mapping[str, Any] | None = None) -> None:
        entry = self._get(key)
        memory, cpu_s = self._batch.find_used(key)
        self._spool.change(
            key,
            forking=False,
            state=JobState.ENDED,
            reason=reason,
            detail=detail[:500],
            ended=_read_end(look or {}, entry.started, self._clock()),
            memory_used_bytes=memory,
            cpu_used_s=cpu_s,
        )
        if entry.request.batch:  # what its folder had is in the spool; of sessions people look at the log

            async def forget() -> None:
                with contextlib.suppress(PorticoError):
                    await self._machine.forget(entry.request.user_name, key)

            self._do_beside(forget())

    def _get(self, key: str) -> Entry:
        entry = self._spool.find(key)
        if entry is None:
            raise NotFound("The scheduler has no such job.")
        return entry


def _find_end(entry: Entry) -> datetime:
    """Return when whatever is left of a running job is killed."""
    assert entry.deadline is not None
    return entry.kill_at or entry.deadline + OVERDUE


def _read_end(look: Mapping[str, Any], started: datetime | None, at: datetime) -> datetime:
    """Return when a job ended: as its shepherd wrote down, where that can be true."""
    ended = look.get("ended")
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError, KeyError):
        said = datetime.fromtimestamp(float(ended["at"]), UTC) if isinstance(ended, Mapping) else at
        return said if started and started <= said <= at else at
    return at
