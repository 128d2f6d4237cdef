"""The jobs that Portico itself gave to Slurm: followed by their keys, never submitted twice.

What Slurm may have taken is looked for before it is submitted again: a hung controller takes a job although sbatch
failed, one that was killed forgets a job whose id sbatch had printed. An answer of the queue without the job counts
only if it was asked for after the attempt, and only together with a second one some seconds later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from portico.errors import Conflict, NotFound, PorticoError, TooMany, Unavailable
from portico.model import Reason
from portico.schedulers.protocol import Action, Job, JobRequest, JobState, JobStatus
from portico.schedulers.slurm import control, history, queue, submit
from portico.schedulers.slurm.console import Console
from portico.schedulers.slurm.history import Ended
from portico.schedulers.slurm.ledger import SKEW, Entry, Phase, observe, parse_entry
from portico.schedulers.slurm.states import UNKNOWN_PUT_BACK, describe_wait, explain_end, find_put_back
from portico.schedulers.spool import Spool

log = logging.getLogger(__name__)

SETTLE_S: Final = 5.0
"""A controller that was hung works off what had reached it; only then does an answer without the job count."""
SUBMIT_PATIENCE_S: Final = 5.0
"""How long a submission is waited for; it goes on behind."""
HISTORY_PATIENCE_S: Final = 20.0
"""How long accounting may lag behind the queue before an end is told without its details."""
FORGOTTEN: Final = timedelta(seconds=240)
"""The controller may forget an ended job after MinJobAge (300 s by default); then only accounting knows of it."""
CANCEL_AGAIN_S: Final = 10.0
PUT_BACK_TRIES: Final = 3
PUT_BACK_WAIT_S: Final = 1.0
"""How often, and after how much longer each time, accounting is asked why a job was put back; then that is not told."""
NEVER: Final = float("-inf")


class OwnJobs:
    """Portico's own jobs on one cluster.

    Args:
        spool: Where they are kept.
        console: Has commands run.
        operator: Whether Portico's own account is an operator in Slurm.
        timer: Seconds that never go back; those of ``asked_at``, too.

    Raises:
        Unavailable: The spool's folder can't be used.
    """

    def __init__(
        self,
        spool: Path,
        console: Console,
        operator: bool,
        clock: Callable[[], datetime],
        timer: Callable[[], float],
    ) -> None:
        self._spool = Spool(spool, parse_entry)
        self._console = console
        self._operator = operator
        self._clock = clock
        self._timer = timer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._jobs: Mapping[str, Job] = {}
        self._tried_at: dict[str, float] = {}  # when the last sbatch of a key ended
        self._absent_since: dict[str, float] = {}
        self._ended_since: dict[str, float] = {}
        self._cancelled_at: dict[str, float] = {}
        self.on_news: Callable[[], None] = lambda: None

    # what a Scheduler does by key; it has the contracts

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
        task = self._begin(f"submit {request.key}", self._attempt, request.key, refusals)
        if task is not None:
            await asyncio.wait([task], timeout=SUBMIT_PATIENCE_S)
        for refusal in refusals:
            await self.forget(request.key)
            raise refusal

    async def adopt(self, request: JobRequest, job: Job) -> None:
        """Take up a job of Portico's that is in the queue and not in the spool."""
        if self._spool.find(request.key) is None:
            entry = Entry(request, Phase.KNOWN, job_id=job.id, submitted=job.submitted)
            self._spool.put(replace(entry, **observe(entry, job)))

    async def recall(self, request: JobRequest) -> None:
        """Take up a job of which nobody knows whether Slurm was given it: it is looked for before it is submitted."""
        if self._spool.find(request.key) is None:
            self._spool.put(Entry(request, attempts=1, tried=request.submitted))

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
        user_name = None if self._operator else entry.request.user_name
        limit_s = (deadline - entry.started).total_seconds()
        await self._console.do(user_name, control.change_limit(entry.job_id, limit_s))
        if self._get(key).state is JobState.RUNNING:
            self._spool.change(key, deadline=deadline)

    async def forget(self, key: str) -> None:
        """Drop an ended job; see Scheduler."""
        entry = self._spool.find(key)
        if entry and entry.phase is Phase.ENDED:
            self._spool.drop(key)
            for kept in (self._tried_at, self._absent_since, self._ended_since, self._cancelled_at):
                kept.pop(key, None)

    def describe(self) -> dict[str, JobStatus]:
        """Return all that were not forgotten, as they were last seen."""
        return {entry.request.key: entry.describe() for entry in self._spool}

    def find_key(self, job: Job) -> str:
        """Return the key of a job that is one of these; empty for another, whatever key it carries."""
        entry = self._spool.find(job.key)
        return job.key if entry and entry.is_job(job) else ""

    def is_known(self, key: str) -> bool:
        """Return whether this is the key of one of these."""
        return self._spool.find(key) is not None

    async def close(self) -> None:
        """Let go of what is being done; the spool has all that the next one needs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
            job_id = await self._console.do(entry.request.user_name, submit.submit(entry.request))
        except (Unavailable, TooMany) as error:
            log.warning("job %s: %s %s", key, error.message, error.why)
            self._spool.change(key, trouble=error.message.rstrip("."))
        except PorticoError as error:
            refusals.append(error)
            self._end(key, Reason.NOT_STARTED, f"{error.message} {error.why}".strip())
        else:
            known = {"phase": Phase.KNOWN, "job_id": job_id, "waiting_for": describe_wait("")}
            self._spool.change(key, **known, accepted=self._clock())
            if self._get(key).cancelled:  # somebody was faster
                self._cancel_in_slurm(key)
        finally:
            self._tried_at[key] = self._timer()

    async def _attempt_again(self, key: str) -> None:
        """Submit what the queue has been without for long enough, and what its user can't see in it either."""
        entry = self._get(key)
        user_name = entry.request.user_name
        try:
            found = await self._console.do(user_name, queue.find_key(key, user_name))
            if found:  # where a site hides jobs (PrivateData), the question about all of them was not enough
                self._take_sight(entry, found)
            elif not (entry.tried and self._clock() - entry.tried > FORGOTTEN and await self._find_in_history(entry)):
                await self._attempt(key, [])
        except PorticoError as error:
            self._spool.change(key, trouble=error.message.rstrip("."))

    async def _find_in_history(self, entry: Entry) -> bool:
        """Return whether accounting has a job that was taken, and was forgotten by the controller since it ended."""
        assert entry.tried is not None
        key = entry.request.key
        try:
            jobs = await self._console.do(None, history.find_key(key, entry.request.user_name, entry.tried - SKEW))
        except Unavailable as error:
            if error.hint:
                raise  # accounting is away for now: better late than twice
            return False  # this cluster has none
        for job in jobs[:1]:
            if job.state is JobState.ENDED:  # else accounting lags, and tells more the next time
                self._spool.change(key, job_id=job.id, submitted=job.submitted, started=job.started)
                self._end(key, job.reason or Reason.LOST, job.detail)
        return bool(jobs)

    # following

    def lose_touch(self) -> None:
        """Take note that the queue did not answer: what it said before says nothing about what is absent now."""
        self._absent_since.clear()

    def follow(self, jobs: Mapping[str, Job], asked_at: float) -> None:
        """Take note of an answer about the queue.

        Args:
            jobs: All jobs, by their ids.
            asked_at: When it was asked for, by ``timer``.
        """
        self._jobs = jobs
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
                if asked_at > self._tried_at.get(key, NEVER) and f"submit {key}" not in self._tasks:
                    left += self._miss(entry, asked_at)
            elif found.state is JobState.ENDED:
                left += self._see_end(entry, found)
            else:
                self._see(entry, found)
        if left:
            self._begin("history", self._ask_history, left)

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
                self._begin(f"cancel {twin.id}", self._cancel_job, entry.request.user_name, twin.id)
        return chosen

    def _see(self, entry: Entry, job: Job) -> None:
        key = entry.request.key
        self._absent_since.pop(key, None)
        self._ended_since.pop(key, None)
        changes = observe(entry, job)
        if entry.was_put_back(job):
            changes["submitted"] = entry.submitted  # until it is known why
            self._begin(f"put back {key}", self._take_back, key, job)
        if any(getattr(entry, name) != value for name, value in changes.items()):
            # The place in the queue moves with every job: not worth a disk's attention each time.
            kept = ("phase", "job_id", "submitted", "seen", "state", "started", "deadline")
            if any(getattr(entry, name) != changes[name] for name in kept):
                self._spool.change(key, **changes)
            else:
                self._spool.change_in_memory(key, **changes)
        if entry.cancelled and self._timer() - self._cancelled_at.get(key, NEVER) > CANCEL_AGAIN_S:
            self._cancel_in_slurm(key)

    async def _take_back(self, key: str, job: Job) -> None:
        """Take note of how often Slurm has put a job back into the queue; accounting says why, a moment later."""
        restarts = self._get(key).restarts + 1
        with contextlib.suppress(PorticoError):
            restarts = (await self._console.do(None, history.describe(job.id))).restarts or 0
        why = ""
        for turn in range(PUT_BACK_TRIES * (restarts > self._get(key).restarts)):
            await asyncio.sleep(PUT_BACK_WAIT_S * turn)
            with contextlib.suppress(PorticoError):
                ended = await self._console.do(None, history.find_ends([job.id]))
                runs = [one for one in ended if one.submitted and job.submitted and one.submitted < job.submitted]
                if why := find_put_back(runs[-1].word if runs else ""):
                    break
        entry = self._get(key)
        if entry.phase is not Phase.KNOWN or not entry.was_put_back(job):
            return
        changes = observe(entry, job)
        if restarts > entry.restarts:
            changes |= {"restarts": restarts, "put_back": why or UNKNOWN_PUT_BACK}
            log.info("job %s, Slurm's %s, was put back into the queue: %s", key, job.id, changes["put_back"])
        self._spool.change(key, **changes)

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
        # What Slurm took it may have begun, even where it was never seen here: only what may run twice is given again.
        again = entry.request.options.requeue and not entry.seen and not entry.cancelled
        if entry.phase is Phase.KNOWN and not again:
            return [entry]
        if not settled:
            return []
        if entry.cancelled:
            self._end(key, entry.cancelled, "")
        elif entry.phase is Phase.KNOWN:
            log.warning("job %s: Slurm has lost its job %s before it was seen in the queue", key, entry.job_id)
            self._spool.change(key, phase=Phase.UNSURE, job_id="")
        else:
            self._begin(f"submit {key}", self._attempt_again, key)
        return []

    async def _ask_history(self, entries: list[Entry]) -> None:
        """Ask accounting how these jobs ended, all at once; where it does not tell, the controller, one by one."""
        ids = sorted({entry.job_id for entry in entries})
        found: dict[str, list[Ended]] = {}
        trouble: PorticoError | None = None
        try:
            for record in await self._console.do(None, history.find_ends(ids)):
                found.setdefault(record.job_id, []).append(record)
        except PorticoError as error:
            trouble = error
            log.warning("Slurm: %s %s", error.message, error.why)
        for entry in entries:
            chosen = _choose_record(entry, found.get(entry.job_id, []))
            if chosen is None and trouble is not None:
                with contextlib.suppress(PorticoError):
                    chosen = await self._console.do(None, history.find_exit_code(entry.job_id))
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
        self._begin(f"look {key}", self._look_as_user, entry, why)

    async def _look_as_user(self, entry: Entry, why: str) -> None:
        """Look for a job as its user, who sees it where a site hides it from others; without it, it is lost."""
        key, user_name = entry.request.key, entry.request.user_name
        jobs = await self._console.do(user_name, queue.find_key(key, user_name))
        if self._get(key).phase is Phase.ENDED:
            return
        if jobs:
            self._ended_since.pop(key, None)
            self._take_sight(entry, jobs)
        else:
            self._end(key, Reason.LOST, why)

    def _take_sight(self, entry: Entry, jobs: list[Job]) -> None:
        """Take note of what the job's own user sees of it."""
        key = entry.request.key
        job = next((job for job in jobs if job.state is not JobState.ENDED), jobs[0])
        if job.state is JobState.ENDED:
            self._spool.change(key, job_id=job.id, submitted=job.submitted)
            self._end(key, job.reason or Reason.LOST, job.detail)
        else:
            self._spool.change(key, **observe(entry, job))

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
        self._begin(name, self._cancel_job, entry.request.user_name, entry.job_id)

    async def _cancel_job(self, user_name: str, job_id: str) -> None:
        try:
            await self._console.do(user_name, control.act(job_id, Action.CANCEL))
        except NotFound:
            # The user's account is no more. An operator may end every job, so this one must have been seen as theirs.
            if not self._operator or (job := self._jobs.get(job_id)) is None or job.user_name != user_name:
                raise
            await self._console.do(None, control.act(job_id, Action.CANCEL))

    def _get(self, key: str) -> Entry:
        entry = self._spool.find(key)
        if entry is None:
            raise NotFound("The scheduler has no such job.")
        return entry

    def _begin(
        self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> asyncio.Task[None] | None:
        """Do something beside the callers; at most one of a name at a time, None for a second one."""
        if name in self._tasks:
            return None

        async def run() -> None:
            try:
                await work(*args)
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
