"""Slurm as a Scheduler: what Portico submitted is followed by its key, everything else is shown.

It runs nothing itself: a Runner does, as Portico's own account for questions about all jobs, as the user for what a
user does. There is one question about the queue an interval, whoever looks, and one to accounting beside it, only
for jobs of Portico's that left the queue. A submission whose outcome is unknown is never repeated before the queue
has answered twice without the job, some seconds apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from portico.errors import Conflict, NotFound, PorticoError, TooMany, Unavailable
from portico.model import Reason, now
from portico.schedulers.kept import Kept
from portico.schedulers.protocol import (
    Action,
    Capacity,
    Feature,
    Job,
    JobDetails,
    JobRef,
    JobRequest,
    JobState,
    JobStatus,
    Node,
    Offer,
    Qos,
    Queue,
)
from portico.schedulers.slurm import control, history, queue, site, submit
from portico.schedulers.slurm.command import Command, Runner
from portico.schedulers.slurm.history import Ended
from portico.schedulers.slurm.ledger import SKEW, Entry, Phase, observe, parse_entry
from portico.schedulers.slurm.site import Site
from portico.schedulers.slurm.states import describe_wait, explain_end
from portico.schedulers.spool import Spool

log = logging.getLogger(__name__)

T = TypeVar("T")

SETTLE_S: Final = 5.0
"""A controller that was hung works off what had reached it; only then does an answer without the job count."""
SUBMIT_PATIENCE_S: Final = 5.0
"""How long a submission is waited for; it goes on behind."""
HISTORY_PATIENCE_S: Final = 20.0
"""How long accounting may lag behind the queue before an end is told without its details."""
FORGOTTEN: Final = timedelta(seconds=240)
"""The controller may forget an ended job after MinJobAge (300 s by default); then only accounting knows of it."""
CANCEL_AGAIN_S: Final = 10.0
NODES_INTERVAL_S: Final = 15.0
SITE_INTERVAL_S: Final = 300.0
HISTORY_INTERVAL_S: Final = 30.0
LARGE_BYTES: Final = 100_000
HISTORIES: Final = 200
"""Histories kept, one for each user who looked at theirs."""


class SlurmScheduler:
    """A Slurm cluster; see Scheduler.

    Args:
        spool: Where Portico's own jobs are kept.
        runner: Runs commands.
        environment: Added to every command: SLURM_CONF, PATH.
        interval_s: Between two questions about the queue; more where the answer takes long.
        operator: Whether Portico's own account is an operator in Slurm, who may lengthen and suspend jobs.

    Raises:
        Unavailable: The spool's folder can't be used.
    """

    def __init__(
        self,
        spool: Path,
        runner: Runner,
        *,
        environment: tuple[tuple[str, str], ...] = (),
        interval_s: float = 2.0,
        operator: bool = False,
        clock: Callable[[], datetime] = now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = Spool(spool, parse_entry)
        self._runner = runner
        self._environment = environment
        self._operator = operator
        self._clock = clock
        self._timer = timer
        self._queue = Kept(lambda: self._do(None, queue.list_queue()), interval_s, timer)
        self._nodes = Kept(self._ask_nodes, NODES_INTERVAL_S, timer)
        self._accounts = Kept(self._ask_accounts, SITE_INTERVAL_S, timer)
        self._histories: dict[str | None, tuple[datetime, Kept[list[Job]]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tried_at: dict[str, float] = {}  # when the last sbatch of a key ended, by timer
        self._absent_since: dict[str, float] = {}
        self._ended_since: dict[str, float] = {}
        self._cancelled_at: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}
        self._followed_at = float("-inf")
        self.on_news: Callable[[], None] = lambda: None
        """Called when something became of a job after the query that began it; a query tells what."""

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do; see Scheduler."""
        return frozenset(Feature) if self._operator else frozenset(Feature) - {Feature.SUSPEND}

    # the jobs that Portico submitted

    async def submit(self, request: JobRequest) -> None:
        """Take a job; see Scheduler.

        While Slurm is away the job is kept, and given to it when it is back. A refusal is raised, unless it comes
        later than SUBMIT_PATIENCE_S: then the job has ended with it.
        """
        if self._spool.find(request.key) is not None:
            return
        submit.submit(request)  # what can't be rendered is refused now
        self._spool.put(Entry(request))
        refusals: list[PorticoError] = []
        task = self._begin(f"submit {request.key}", self._attempt(request.key, refusals))
        if task is not None:
            await asyncio.wait([task], timeout=SUBMIT_PATIENCE_S)
        for refusal in refusals:
            await self.forget(request.key)
            raise refusal

    async def check(self, request: JobRequest, groups: Collection[str]) -> None:
        """Refuse what can never run; see Scheduler."""
        submit.submit(request)
        if not request.options.reservation:  # which has rules of its own
            site.refuse_impossible(request, await self.find_offers(request.user_name, groups))

    async def adopt(self, request: JobRequest, job: Job) -> None:
        """Take up a job of Portico's that is in the queue and not in the spool."""
        if self._spool.find(request.key) is None:
            entry = Entry(request, Phase.KNOWN, job_id=job.id, submitted=job.submitted)
            self._spool.put(replace(entry, **observe(entry, job)))

    async def cancel(self, key: str, reason: Reason) -> None:
        """End a job; see Scheduler. Slurm gives a running one TERM, and KILL after its KillWait."""
        entry = self._get(key)
        if entry.phase is Phase.ENDED or entry.cancelled is not None:
            return
        self._spool.change(key, cancelled=reason)
        if entry.phase is Phase.KNOWN:
            self._cancel_in_slurm(key)

    async def extend(self, key: str, deadline: datetime) -> None:
        """Move a deadline; see Scheduler. Slurm counts in minutes from the start.

        Raises:
            Forbidden: Slurm lets its operators alone do that, and Portico is none.
        """
        entry = self._get(key)
        if (
            entry.phase is not Phase.KNOWN
            or entry.state is not JobState.RUNNING
            or not entry.started
            or entry.cancelled
        ):
            raise Conflict("Only what runs can be extended.")
        limit_s = (deadline - entry.started).total_seconds()
        await self._do(self._as_operator(entry.request.user_name), control.change_limit(entry.job_id, limit_s))
        if self._get(key).state is JobState.RUNNING:
            self._spool.change(key, deadline=deadline)

    async def forget(self, key: str) -> None:
        """Drop an ended job; see Scheduler."""
        entry = self._spool.find(key)
        if entry and entry.phase is Phase.ENDED:
            self._spool.drop(key)
            for kept in (self._tried_at, self._absent_since, self._ended_since, self._cancelled_at):
                kept.pop(key, None)

    async def query(self) -> dict[str, JobStatus]:
        """Return Portico's own jobs; see Scheduler. While Slurm is away, as they were last seen."""
        await self._queue.refresh()
        if self._queue.trouble is not None:
            self._absent_since.clear()
        elif self._queue.value is not None and self._queue.asked_at > self._followed_at:
            self._followed_at = self._queue.asked_at
            self._follow(self._queue.value)
        return {entry.request.key: entry.describe() for entry in self._spool}

    def find_orphans(self) -> list[Job]:
        """Return live jobs in the queue that carry a key which is not in the spool; anyone can write a key."""
        return [
            job
            for job in self._jobs.values()
            if job.key and job.state is not JobState.ENDED and self._spool.find(job.key) is None
        ]

    # all jobs

    async def list_jobs(self) -> Queue:
        """Return the queue; see Scheduler."""
        await self.query()
        return Queue(tuple(self._jobs.values()), self._queue.as_of, self._queue.trouble)

    async def list_history(self, user_name: str | None, since: datetime) -> list[Job]:
        """Return what ended; see Scheduler. The same question within HISTORY_INTERVAL_S is answered from before."""
        known = self._histories.get(user_name)
        if known is None or since < known[0]:

            async def ask() -> list[Job]:
                return await self._do(None, history.list_history(user_name, since))

            known = since, Kept(ask, HISTORY_INTERVAL_S, self._timer)
            self._histories[user_name] = known
            while len(self._histories) > HISTORIES:
                del self._histories[next(iter(self._histories))]
        return [job for job in await known[1].get() if job.ends is None or job.ends >= since]

    async def describe(self, user_name: str, ref: JobRef) -> JobDetails:
        """Return more of a job; see Scheduler."""
        job = self._find_same(ref)
        details = JobDetails()
        with contextlib.suppress(NotFound):
            details = await self._do(None, history.describe(ref.id))
        with contextlib.suppress(PorticoError):  # what it uses is not always known
            if job is not None and job.state is JobState.RUNNING:
                used = await self._do(user_name, history.measure_live(ref.id))
            elif job is None or job.state is JobState.ENDED:
                used = await self._do(None, history.measure_ended(ref.id))
            else:
                return details
            details = replace(details, memory_used_bytes=used.memory_used_bytes, cpu_used_s=used.cpu_used_s)
        return details

    async def act(self, user_name: str, ref: JobRef, action: Action) -> None:
        """Do something to a job; see Scheduler."""
        job = self._find_same(ref)
        if action is Action.CANCEL and job and (entry := self._spool.find(job.key)) and entry.is_job(job):
            await self.cancel(job.key, Reason.STOPPED)
            return
        if job and job.state is JobState.ENDED:  # scancel would say nothing, requeue would run it again
            raise Conflict("The job has ended already.")
        by_operator = action in (Action.SUSPEND, Action.RESUME)
        await self._do(self._as_operator(user_name) if by_operator else user_name, control.act(ref.id, action))

    async def change_limit(self, user_name: str, ref: JobRef, limit_s: float) -> None:
        """Change a time limit; see Scheduler."""
        self._find_same(ref)
        await self._do(user_name, control.change_limit(ref.id, limit_s))

    # the place

    async def find_offers(self, user_name: str, groups: Collection[str]) -> list[Offer]:
        """Return what a user may ask for; see Scheduler."""
        partitions, nodes = await self._nodes.get()
        enforced, qos, associations, defaults = await self._accounts.get()
        return Site(partitions, nodes, enforced, qos, associations, defaults).find_offers(user_name, groups)

    async def list_nodes(self) -> list[Node]:
        """Return the nodes; see Scheduler."""
        return list((await self._nodes.get())[1])

    async def get_capacity(self) -> Capacity:
        """Return what there is and what is held; see Scheduler."""
        return site.count_capacity((await self._nodes.get())[1], self._jobs.values())

    async def close(self) -> None:
        """Let go of what is being done; the spool has all that the next one needs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for close in (self._queue.close, self._nodes.close, self._accounts.close):
            await close()
        for _, kept in self._histories.values():
            await kept.close()

    # submitting

    async def _attempt(self, key: str, refusals: list[PorticoError]) -> None:
        """Run sbatch once. What Slurm may have taken is looked for later; what it refused has ended with that."""
        entry = self._spool.find(key)
        if entry is None or entry.phase is not Phase.UNSURE:
            return
        self._absent_since.pop(key, None)
        # On disk before it happens: whatever ends this process now, the next one looks before it submits.
        self._spool.put(replace(entry, attempts=entry.attempts + 1, tried=self._clock(), trouble=""))
        try:
            job_id = await self._do(entry.request.user_name, submit.submit(entry.request))
        except (Unavailable, TooMany) as error:
            log.warning("job %s: %s %s", key, error.message, error.why)
            self._spool.change(key, trouble=error.message.rstrip("."))
        except PorticoError as error:
            refusals.append(error)
            self._end(key, Reason.NOT_STARTED, f"{error.message} {error.why}".strip())
        else:
            self._spool.change(key, phase=Phase.KNOWN, job_id=job_id, waiting_for=describe_wait(""))
            if self._get(key).cancelled:  # somebody was faster
                self._cancel_in_slurm(key)
        finally:
            self._tried_at[key] = self._timer()

    async def _attempt_again(self, key: str) -> None:
        """Submit what the queue has been without for long enough, and what its user can't see in it either."""
        entry = self._get(key)
        user_name = entry.request.user_name
        try:
            found = await self._do(user_name, queue.find_key(key, user_name))
            if found:  # where a site hides jobs (PrivateData), the question about all of them was not enough
                self._spool.change(key, **observe(entry, found[0]))
            elif not (entry.tried and self._clock() - entry.tried > FORGOTTEN and await self._find_in_history(entry)):
                await self._attempt(key, [])
        except PorticoError as error:
            self._spool.change(key, trouble=error.message.rstrip("."))

    async def _find_in_history(self, entry: Entry) -> bool:
        """Look for a job that was taken, and has ended and been forgotten by the controller since."""
        assert entry.tried is not None
        command = history.list_history(entry.request.user_name, entry.tried - SKEW)
        try:
            jobs = await self._do(None, command)
        except Unavailable as error:
            if error.hint:
                raise  # accounting is away for now: better late than twice
            return False  # this cluster has none
        found = [job for job in jobs if job.key and entry.is_job(job)]
        for job in found[:1]:
            self._spool.change(entry.request.key, job_id=job.id, submitted=job.submitted, started=job.started)
            self._end(entry.request.key, job.reason or Reason.LOST, job.detail)
        return bool(found)

    # following

    def _follow(self, jobs: Iterable[Job]) -> None:
        """Take note of an answer about the queue."""
        self._jobs = {job.id: job for job in jobs}
        asked_at = self._queue.asked_at
        by_key: dict[tuple[str, str], list[Job]] = {}
        for job in self._jobs.values():
            if job.key:
                by_key.setdefault((job.user_name, job.key), []).append(job)
        left: list[Entry] = []
        for entry in list(self._spool):
            key = entry.request.key
            if entry.phase is Phase.ENDED:
                continue
            found = self._choose(entry, by_key.get((entry.request.user_name, key), []))
            if found is None:
                if asked_at > self._tried_at.get(key, float("-inf")) and f"submit {key}" not in self._tasks:
                    left += self._miss(entry, asked_at)
            elif found.state is JobState.ENDED:
                left += self._see_end(entry, found)
            else:
                self._see(entry, found)
        if left:
            self._begin("history", self._ask_history(left))

    def _choose(self, entry: Entry, carriers: list[Job]) -> Job | None:
        """Return an entry's job; one that was submitted twice all the same is cancelled, the first one stays."""
        if entry.request.options.array:  # all its tasks carry the key: it runs while one does, and ends with the last
            order = (JobState.RUNNING, JobState.QUEUED, JobState.ENDED)
            return min(carriers, key=lambda job: (order.index(job.state), int(job.id)), default=None)
        known = self._jobs.get(entry.job_id)
        if known is not None and not entry.is_job(known):
            known = None  # its id was given to another
        rest = sorted((job for job in carriers if job is not known), key=lambda job: int(job.id))
        live = [job for job in rest if job.state is not JobState.ENDED]
        chosen = known or next(iter(live or rest), None)
        for twin in live:
            if chosen is not None and twin is not chosen:
                log.warning("job %s is in Slurm twice, as %s and %s", entry.request.key, chosen.id, twin.id)
                self._begin(f"cancel {twin.id}", self._cancel_job(entry.request.user_name, twin.id))
        return chosen

    def _see(self, entry: Entry, job: Job) -> None:
        key = entry.request.key
        self._absent_since.pop(key, None)
        changes = observe(entry, job)
        if any(getattr(entry, name) != value for name, value in changes.items()):
            # The place in the queue moves with every job: not worth a disk's attention each time.
            kept = ("phase", "job_id", "submitted", "seen", "state", "started", "deadline")
            if any(getattr(entry, name) != changes[name] for name in kept):
                self._spool.change(key, **changes)
            else:
                self._spool.change_in_memory(key, **changes)
        if entry.cancelled and self._timer() - self._cancelled_at.get(key, float("-inf")) > CANCEL_AGAIN_S:
            self._cancel_in_slurm(key)

    def _see_end(self, entry: Entry, job: Job) -> list[Entry]:
        """Take note of an end that the queue still shows; return the entry if accounting knows more of it."""
        key = entry.request.key
        if entry.phase is not Phase.KNOWN or entry.job_id != job.id or not entry.seen:
            started = job.started if job.started and job.used_s else entry.started
            changes = {"phase": Phase.KNOWN, "job_id": job.id, "submitted": job.submitted, "seen": True}
            entry = self._spool.change(key, **changes, started=started)
        since = self._ended_since.setdefault(key, self._timer())
        needs_more = job.word.partition(" ")[0] in ("FAILED", "CANCELLED") and entry.cancelled is None
        if needs_more and self._timer() - since < HISTORY_PATIENCE_S:
            return [entry]
        self._end(key, job.reason or Reason.LOST, job.detail)
        return []

    def _miss(self, entry: Entry, asked_at: float) -> list[Entry]:
        """Take note that the queue has no such job; return the entry if accounting should be asked."""
        key = entry.request.key
        settled = asked_at - self._absent_since.setdefault(key, asked_at) >= SETTLE_S
        if entry.phase is Phase.KNOWN and (entry.seen or entry.cancelled):
            return [entry]
        if not settled:
            return []
        if entry.cancelled:
            self._end(key, entry.cancelled, "")
        elif entry.phase is Phase.KNOWN:
            log.warning("job %s: Slurm has lost its job %s before it was seen in the queue", key, entry.job_id)
            self._spool.change(key, phase=Phase.UNSURE, job_id="")
        else:
            self._begin(f"submit {key}", self._attempt_again(key))
        return []

    async def _ask_history(self, entries: list[Entry]) -> None:
        """Ask accounting how these jobs ended, all at once; where it does not tell, the controller, one by one."""
        ids = sorted({entry.job_id for entry in entries})
        found: dict[str, list[Ended]] = {}
        trouble: PorticoError | None = None
        try:
            for record in await self._do(None, history.find_ends(ids)):
                found.setdefault(record.job_id, []).append(record)
        except PorticoError as error:
            trouble = error
            log.warning("Slurm: %s %s", error.message, error.why)
        for entry in entries:
            chosen = _choose_record(entry, found.get(entry.job_id, []))
            if chosen is None and trouble is not None:
                with contextlib.suppress(PorticoError):
                    chosen = await self._do(None, history.find_exit_code(entry.job_id))
            self._settle(entry.request.key, chosen, trouble)

    def _settle(self, key: str, record: Ended | None, trouble: PorticoError | None) -> None:
        entry = self._spool.find(key)
        if entry is None or entry.phase is Phase.ENDED:
            return
        if record is not None and record.is_final:
            if record.started and not entry.started:
                self._spool.change(key, started=record.started)
            self._end(key, *explain_end(record.word, record.reason, record.exit_code))
            return
        since = self._ended_since.setdefault(key, self._timer())
        if self._timer() - since < HISTORY_PATIENCE_S:
            return
        if (job := self._jobs.get(entry.job_id)) and entry.is_job(job):
            if job.state is JobState.ENDED:
                self._end(key, job.reason or Reason.LOST, job.detail)
            return
        why = "Slurm no longer knows it" if trouble is None else "Slurm no longer knows it, and accounting is away"
        self._end(key, Reason.LOST, why)

    def _end(self, key: str, reason: Reason, detail: str) -> None:
        entry = self._get(key)
        if entry.cancelled is not None:
            reason, detail = entry.cancelled, ""
        request = replace(entry.request, script=b"")
        ended = {"phase": Phase.ENDED, "reason": reason, "detail": detail[:500], "request": request}
        self._spool.change(key, **ended)
        log.info("job %s, Slurm's %s, ended: %s %s", key, entry.job_id or "none", reason, detail)

    # cancelling

    def _cancel_in_slurm(self, key: str) -> None:
        entry = self._get(key)
        self._cancelled_at[key] = self._timer()
        name = f"cancel {entry.job_id}"
        self._begin(name, self._cancel_job(entry.request.user_name, entry.job_id))

    async def _cancel_job(self, user_name: str, job_id: str) -> None:
        try:
            await self._do(user_name, control.act(job_id, Action.CANCEL))
        except NotFound:
            if not self._operator:  # the user's account is no more
                raise
            await self._do(None, control.act(job_id, Action.CANCEL))

    # asking

    async def _do(self, user_name: str | None, command: Command[T]) -> T:
        command = replace(command, env=(*self._environment, *command.env))
        result = await self._runner.run(user_name, command)
        if len(result.stdout) > LARGE_BYTES:  # other requests have their turn meanwhile
            return await asyncio.to_thread(command.parse, result)
        return command.parse(result)

    async def _ask_nodes(self) -> tuple[tuple[site.Partition, ...], tuple[Node, ...]]:
        partitions = await self._do(None, site.list_partitions())
        nodes = await self._do(None, site.list_nodes())
        return tuple(partitions), tuple(nodes)

    async def _ask_accounts(
        self,
    ) -> tuple[bool, tuple[Qos, ...], tuple[site.Association, ...], dict[str, str]]:
        settings = await self._do(None, site.read_settings())
        enforced = "associations" in settings.get("AccountingStorageEnforce", "").lower()
        if not settings.get("AccountingStorageType", "").endswith("slurmdbd"):
            return False, (), (), {}
        associations = await self._do(None, site.list_associations(settings.get("ClusterName", "")))
        qos = await self._do(None, site.list_qos())
        return enforced, tuple(qos), tuple(associations), await self._do(None, site.list_default_accounts())

    def _as_operator(self, user_name: str) -> str | None:
        return None if self._operator else user_name

    def _find_same(self, ref: JobRef) -> Job | None:
        """Return the job in the last answer that a reference names; None where it is not in it.

        Raises:
            Conflict: Its id is another job's now.
        """
        job = self._jobs.get(ref.id)
        if job and ref.submitted and job.submitted and job.submitted < ref.submitted:
            raise Conflict("Slurm has given this job's number to another job.", hint="Look at the list again.")
        return job

    def _get(self, key: str) -> Entry:
        entry = self._spool.find(key)
        if entry is None:
            raise NotFound("The scheduler has no such job.")
        return entry

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Do something beside the callers; at most one of a name at a time, None for a second one."""
        if name in self._tasks:
            work.close()
            return None

        async def run() -> None:
            try:
                await work
            except PorticoError as error:
                log.warning("%s: %s %s", name, error.message, error.why)
            except Exception:  # a defect, which must stay with this one job
                log.exception("%s", name)
            finally:
                self._tasks.pop(name, None)
                self.on_news()

        task = self._tasks[name] = asyncio.create_task(run())
        return task


def _choose_record(entry: Entry, records: Iterable[Ended]) -> Ended | None:
    """Return the last record of a job's that is not of an earlier one with the same id."""
    since = (entry.submitted or entry.request.submitted) - SKEW
    fitting = [record for record in records if record.submitted is None or record.submitted >= since]
    # Of an array there is one for each task: one that failed says more.
    return max(fitting, key=lambda record: (record.word != "COMPLETED", record.submitted or since), default=None)
