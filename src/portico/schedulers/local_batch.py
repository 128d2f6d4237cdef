"""What the embedded scheduler does for batch jobs besides running them: taking, holding, showing, and their history.

It shares the spool with the scheduler, which alone starts and ends what is in it.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from portico.errors import Conflict, Invalid, NotFound, PorticoError, TooMany
from portico.model import Reason
from portico.schedulers import batch, directives
from portico.schedulers.past import History
from portico.schedulers.protocol import Capacity, Job, JobDetails, JobRequest, JobState, JobStatus
from portico.schedulers.queue import refuse_impossible
from portico.schedulers.spool import Entry, Spool

LIVE_PER_USER: Final = 1000
"""Jobs that one user may have waiting or running."""
SHOWN: Final = timedelta(minutes=5)
"""How long the table shows what has ended, as Slurm's does (slurm.conf(5), MinJobAge)."""


class Homes(Protocol):
    """What is done in a user's home; a part of the scheduler's machine."""

    async def look(self, user_name: str, key: str) -> dict[str, Any]:
        """Return what the user's agent sees of a job (docs/protocol.md, `look`)."""

    async def prepare(self, request: JobRequest) -> None:
        """Write a batch job's script and record into its folder, as its user."""

    async def forget(self, user_name: str, key: str) -> None:
        """Remove the folder of a job that does not run."""

    async def set_deadline(self, user_name: str, key: str, deadline: datetime) -> None:
        """Tell the shepherd."""


class BatchJobs:
    """The batch jobs of one machine.

    Args:
        spool: The scheduler's.
        folder: Where ended jobs are kept.
        longest_s: The longest time limit.

    Raises:
        Unavailable: The folder can't be used.
    """

    def __init__(self, spool: Spool[Entry], folder: Path, machine: Homes, longest_s: float) -> None:
        self._spool = spool
        self._history = History(folder)
        self._machine = machine
        self._used: dict[str, tuple[int, float]] = {}
        self.longest_s = longest_s

    # taking

    def is_known(self, key: str) -> bool:
        """Return whether there is, or lately was, such a job."""
        return self._spool.find(key) is not None or self._history.find(key) is not None

    def check(self, request: JobRequest, capacity: Capacity) -> JobRequest:
        """Return the request with its script's directives and the defaults, if it can run once the machine is empty.

        Raises:
            Invalid: It never can.
            TooMany: Its user has as many as one may have.
        """
        request = directives.apply(request)
        batch.check(request, self.longest_s)
        for one in batch.parse_dependency(request.options.dependency):
            if self._find_of(one.key, request.user_name) is None:
                raise Invalid(
                    f"You have no job {one.key} here.", hint="Look at the table for its id.", field="dependency"
                )
        live = sum(
            one.request.batch and one.request.user_name == request.user_name and one.state is not JobState.ENDED
            for one in self._spool
        )
        if live + max(1, len(batch.parse_array(request.options.array)[0])) > LIVE_PER_USER:
            raise TooMany(
                f"You have {live} jobs here; one may have {LIVE_PER_USER}.", hint="Wait until some have ended."
            )
        completed = batch.complete(request, capacity)
        refuse_impossible(completed, capacity)
        return completed

    async def submit(self, request: JobRequest, capacity: Capacity) -> None:
        """Take a job, or all tasks of an array, or nothing.

        Raises:
            PorticoError: It can't run, or the user's home or Portico's disk is full.
        """
        jobs, user_name = batch.split_array(self.check(request, capacity)), request.user_name
        settled: list[JobRequest] = []
        try:
            for job in jobs:
                look = await self._machine.look(user_name, job.key)
                settled.append(batch.settle(job, str(look["folder"]), str(look["home"])))
                await self._machine.prepare(settled[-1])
            if self.is_known(request.key):  # the same was submitted meanwhile
                return
            for job in settled:
                self._spool.put(Entry(job, held=job.options.held))
        except BaseException:
            for job in settled:
                self._spool.drop(job.key)
                with contextlib.suppress(PorticoError):
                    await self._machine.forget(user_name, job.key)
            raise

    # what waits

    def sort_out(self, waiting: Collection[Entry], at: datetime) -> tuple[list[JobRequest], dict[str, str]]:
        """Return the jobs that may start when there is room, and what the others wait for."""
        free: list[JobRequest] = []
        blocked: dict[str, str] = {}
        tasks = Counter(batch.find_array(one.request)[0] for one in self._spool if one.holds and one.request.batch)
        for entry in waiting:
            request, (array, _) = entry.request, batch.find_array(entry.request)
            most = int(request.options.array.partition("%")[2] or 0)
            if why := self._find_block(entry, at):
                blocked[request.key] = why
            elif array and most and tasks[array] >= most:
                blocked[request.key] = "other tasks of its array to end"
            else:
                tasks[array] += 1
                free.append(request)
        return free, blocked

    def _find_block(self, entry: Entry, at: datetime) -> str:
        if entry.held:
            return "its user to release it"
        begin_after_s = entry.request.options.begin_after_s
        if begin_after_s and at < entry.request.submitted + timedelta(seconds=begin_after_s):
            return "the time at which it may begin"
        for _, other in self._iter_needed(entry):
            if other is not None and other.state is not JobState.ENDED:
                return f"job {other.request.key} to end"
        return ""

    def find_hopeless(self, entry: Entry) -> str:
        """Return why a job can never start; empty if it may."""
        for kind, other in self._iter_needed(entry):
            if other is None:
                if kind != "afterany":
                    return "It depends on a job that is not known any more."
            elif other.state is JobState.ENDED:
                succeeded = other.reason is Reason.FINISHED
                if kind == "afterok" and not succeeded:
                    return f"It depends on job {other.request.key}, which did not succeed."
                if kind == "afternotok" and succeeded:
                    return f"It depends on the failure of job {other.request.key}, which succeeded."
        return ""

    def _iter_needed(self, entry: Entry) -> Iterator[tuple[str, Entry | None]]:
        """Yield what a job depends on: the kind, and the other job, of an array each task."""
        for one in batch.parse_dependency(entry.request.options.dependency):
            other = self._find_of(one.key, entry.request.user_name)
            yield one.kind, other
            if other is not None and batch.find_array(other.request)[0] == one.key:  # its first task has its id
                for number in batch.parse_array(other.request.options.array)[0][1:]:
                    yield one.kind, self._find_of(batch.make_task_key(one.key, number), entry.request.user_name)

    def _find_of(self, key: str, user_name: str) -> Entry | None:
        entry = self._spool.find(key) or self._history.find(key)
        return entry if entry and entry.request.batch and entry.request.user_name == user_name else None

    # what can be done to one

    def get(self, user_name: str, key: str) -> Entry:
        """Return a job of this user's, a session's too.

        Raises:
            NotFound: There is none.
        """
        entry = self._spool.find(key) or self._history.find(key)
        if entry is None or entry.request.user_name != user_name:
            raise NotFound("The scheduler has no such job.")
        return entry

    def hold(self, user_name: str, key: str, held: bool) -> None:
        """Hold or release a waiting job.

        Raises:
            Conflict: It does not wait, or is a session's.
        """
        entry = self._get_batch(user_name, key)
        if not entry.waits:
            raise Conflict("The job has started already.", hint="Only what waits can be put on hold.")
        self._spool.change(key, held=held)

    async def change_limit(self, user_name: str, key: str, limit_s: float, at: datetime) -> None:
        """Change the time limit of a job that waits or runs.

        Raises:
            Invalid: It is longer than a job may run, or over already.
            Conflict: The job has ended, or is a session's.
        """
        entry = self._get_batch(user_name, key)
        batch.check_limit(limit_s, self.longest_s)
        if entry.forking or entry.cancelled:
            raise Conflict("The job begins or ends just now.", hint="Try again in a moment.")
        if entry.state is JobState.RUNNING:
            assert entry.started is not None
            deadline = entry.started + timedelta(seconds=limit_s)
            if deadline <= at:
                raise Invalid("The job has run for longer already.", hint="Cancel it to end it now.", field="hours")
            await self._machine.set_deadline(user_name, key, deadline)
            entry = self._get_batch(user_name, key)
            self._spool.change(key, deadline=deadline, request=replace(entry.request, time_limit_s=limit_s))
        else:
            self._spool.change(key, request=replace(entry.request, time_limit_s=limit_s))

    def _get_batch(self, user_name: str, key: str) -> Entry:
        entry = self.get(user_name, key)
        if not entry.request.batch:
            raise Conflict("This is a session and no batch job.", hint="Open its own page.")
        if entry.state is JobState.ENDED:
            raise Conflict("The job has ended already.")
        return entry

    # looking

    def measure(self, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of what cells use."""
        for key, cell in cells.items():
            most = max(self._used.get(key, (0, 0.0))[0], cell.get("memory_bytes", 0))
            self._used[key] = (most, cell.get("cpu_s", 0.0))
        for key in self._used.keys() - cells.keys():
            del self._used[key]

    def find_used(self, key: str) -> tuple[int | None, float | None]:
        """Return the memory (bytes, the most seen) and CPU (seconds) that a job has used; None where nobody counts."""
        return self._used.get(key, (None, None))

    def describe(self, user_name: str, key: str) -> JobDetails:
        """Return where a job's output goes and what it uses.

        Raises:
            NotFound: There is none of this user's.
        """
        entry = self.get(user_name, key)
        memory, cpu_s = self.find_used(key)
        options = entry.request.options
        return JobDetails(
            options.folder or None,
            options.output or None,
            options.error or options.output or None,
            entry.memory_used_bytes if memory is None else memory,
            entry.cpu_used_s if cpu_s is None else cpu_s,
        )

    def read_script(self, user_name: str, key: str) -> bytes:
        """Return a job's script.

        Raises:
            NotFound: It is not kept, or the job is not this user's.
            Conflict: It is a session's.
        """
        entry = self.get(user_name, key)
        if not entry.request.batch:
            raise Conflict("This is a session, which has no script of yours.")
        script = entry.request.script or self._history.read_script(key)
        if not script:
            raise NotFound("The job's script is not kept any more.")
        return script

    def file(self, entry: Entry) -> None:
        """Move an ended job into the history.

        Raises:
            Unavailable: The disk is full.
        """
        self._history.add(entry)

    def list_lately(self, at: datetime) -> list[Job]:
        """Return jobs of the history that the table still shows."""
        self._history.prune(at)
        return [show(entry, at) for entry in self._history.iter_since(at - SHOWN)]

    def find_record(self, key: str, at: datetime) -> Job | None:
        """Return a job of the history, whosever it is."""
        entry = self._history.find(key)
        return show(entry, at) if entry else None

    def list_history(self, user_name: str | None, since: datetime, at: datetime) -> list[Job]:
        """Return batch jobs that ended since then, newest first."""
        self._history.prune(at)
        fresh = [one for one in self._spool if one.request.batch and one.ended and one.ended >= since]
        fresh.sort(key=lambda one: one.ended or at, reverse=True)
        shown = {one.request.key for one in fresh}
        older = (one for one in self._history.iter_since(since) if one.request.key not in shown)
        return [show(one, at) for one in (*fresh, *older) if user_name in (None, one.request.user_name)]


def show(entry: Entry, at: datetime, status: JobStatus | None = None) -> Job:
    """Return a job of the spool, or of the history, as tables have it."""
    request, used_s = entry.request, 0.0
    if entry.started and entry.state is not JobState.QUEUED:
        used_s = max(0.0, ((entry.ended or at) - entry.started).total_seconds())
    array, number = batch.find_array(request)
    return Job(
        id=request.key,
        user_name=request.user_name,
        state=entry.state,
        word=entry.state.value,
        name=request.options.name if request.batch else "session",
        key=request.key,
        shown_id=f"{array}_{number}" if array else request.key,
        array_id=array,
        partition=batch.PARTITION,
        held=entry.held and entry.waits,
        waiting_for=status.waiting_for if status else "",
        submitted=request.submitted,
        started=entry.started,
        ends=entry.ended or entry.deadline,
        limit_s=request.time_limit_s,
        used_s=used_s,
        cores=math.ceil(request.cores),
        nodes=1,
        memory_bytes=request.memory_bytes,
        position=status.position if status else 0,
        dependency=request.options.dependency,
        reason=entry.reason,
        detail=entry.detail,
    )
