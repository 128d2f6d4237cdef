"""Slurm as a Scheduler: one question about the queue an interval, whoever looks, and its answers shared by all.

It runs nothing itself: a Runner does, as Portico's own account for questions about all jobs, as the user for what a
user does. What Portico itself submitted is followed in own.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from portico.errors import Conflict, NotFound, PorticoError
from portico.model import Reason, now
from portico.schedulers.kept import Kept, Shelf
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
    Reservation,
)
from portico.schedulers.slurm import control, history, queue, site, submit
from portico.schedulers.slurm.command import Runner
from portico.schedulers.slurm.console import Console
from portico.schedulers.slurm.own import NEVER, OwnJobs
from portico.schedulers.slurm.site import Site

log = logging.getLogger(__name__)

NODES_INTERVAL_S: Final = 15.0
ACCOUNTS_INTERVAL_S: Final = 300.0
STRANGER_S: Final = 5.0
"""The same for whoever has no account in the last answer."""
HISTORY_INTERVAL_S: Final = 30.0
HISTORIES: Final = 200
"""Histories kept, one for each user who looked at theirs."""
USAGE_INTERVAL_S: Final = 30.0
"""What a job uses: sstat asks the controller and then every node of the job."""
WAITING_INTERVAL_S: Final = 300.0
"""Where a job that waits will write to."""
LOOKED_AT: Final = 2000
"""Jobs whose details are kept, of those that somebody has a page of."""

Stage = tuple[str, datetime | None, JobState | None, datetime | None]
"""Whose a job is and what it has come to: what was told of it at another stage does not hold any more."""
Accounts = tuple[bool, tuple[Qos, ...], tuple[site.Association, ...], dict[str, str]]


class SlurmScheduler:
    """A Slurm cluster; see Scheduler.

    Args:
        spool: Where Portico's own jobs are kept.
        runner: Runs commands.
        environment: Added to every command's: SLURM_CONF, PATH.
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
        self._console = Console(runner, environment)
        self._own = OwnJobs(spool, self._console, operator, clock, timer)
        self._operator = operator
        self._timer = timer
        memory = queue.Memory()
        self._queue = Kept(lambda: self._console.do(None, queue.list_queue(memory=memory)), interval_s, timer)
        self._nodes = Kept(self._ask_nodes, NODES_INTERVAL_S, timer)
        self._reservations = Kept(self._ask_reservations, NODES_INTERVAL_S, timer)
        self._accounts = Kept(self._ask_accounts, ACCOUNTS_INTERVAL_S, timer)
        self._histories: Shelf[str | None, tuple[datetime, Kept[list[Job]]]] = Shelf(HISTORIES)
        self._details: Shelf[str, tuple[Stage, Kept[JobDetails]]] = Shelf(LOOKED_AT)
        self._records: Shelf[str, Kept[Job | None]] = Shelf(LOOKED_AT)
        self._jobs: dict[str, Job] = {}
        self._followed_at = NEVER
        self._shown = Queue((), None)

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do; see Scheduler."""
        return frozenset(Feature) if self._operator else frozenset(Feature) - {Feature.SUSPEND}

    @property
    def on_news(self) -> Callable[[], None]:
        """Called when something became of a job after the query that began it; a query tells what."""
        return self._own.on_news

    @on_news.setter
    def on_news(self, call: Callable[[], None]) -> None:
        self._own.on_news = call

    # the jobs that Portico submitted

    async def submit(self, request: JobRequest) -> None:
        """Take a job; see Scheduler.

        While Slurm is away the job is kept, and given to it when it is back. A refusal is raised, unless it comes
        only after some seconds: then the job has ended with it.
        """
        await self._own.submit(request)

    async def check(self, request: JobRequest, groups: Collection[str]) -> None:
        """Refuse what can never run; see Scheduler."""
        submit.submit(request)
        if wanted := request.options.reservation:  # which has rules of its own
            site.refuse_unknown(wanted, await self._find_reservations(wanted))
        else:
            site.refuse_impossible(request, await self.find_offers(request.user_name, groups))

    async def adopt(self, request: JobRequest, job: Job) -> None:
        """Take up a job of Portico's that is in the queue and not in the spool."""
        await self._own.adopt(request, job)

    async def recall(self, request: JobRequest) -> None:
        """Take up a job of Portico's that may have been submitted, or not; it is submitted once in all."""
        await self._own.recall(request)

    async def cancel(self, key: str, reason: Reason) -> None:
        """End a job; see Scheduler. Slurm gives a running one TERM, and KILL after its KillWait."""
        await self._own.cancel(key, reason)

    async def extend(self, key: str, deadline: datetime) -> None:
        """Move a deadline; see Scheduler. Slurm counts in minutes from the start.

        Raises:
            Forbidden: Slurm lets its operators alone do that, and Portico is none.
        """
        await self._own.extend(key, deadline)

    async def forget(self, key: str) -> None:
        """Drop an ended job; see Scheduler."""
        await self._own.forget(key)

    async def query(self) -> dict[str, JobStatus]:
        """Return Portico's own jobs; see Scheduler. While Slurm is away, as they were last seen."""
        await self._queue.refresh()
        self._take_answer()
        return self._own.describe()

    def _take_answer(self) -> None:
        if self._queue.trouble is not None:
            self._own.lose_touch()
        elif self._queue.value is not None and self._queue.asked_at > self._followed_at:
            self._followed_at = self._queue.asked_at
            self._jobs = {job.id: job for job in self._queue.value}
            self._own.follow(self._jobs, self._followed_at)

    def find_orphans(self) -> list[Job]:
        """Return live jobs in the queue that carry a key which is not in the spool; anyone can write a key."""
        return [
            job
            for job in self._jobs.values()
            if job.key and job.state is not JobState.ENDED and not self._own.is_known(job.key)
        ]

    # all jobs

    async def list_jobs(self) -> Queue:
        """Return the queue; see Scheduler. Answers from memory, while the next answer may be on its way."""
        await self._queue.refresh(wait=False)
        self._take_answer()
        shown = self._shown
        if shown.as_of != self._queue.as_of or shown.trouble is not self._queue.trouble:
            shown = self._shown = Queue(tuple(self._jobs.values()), self._queue.as_of, self._queue.trouble)
        return shown

    async def list_history(self, user_name: str | None, since: datetime) -> list[Job]:
        """Return what ended; see Scheduler. The same question within HISTORY_INTERVAL_S is answered from before."""
        known = self._histories.find(user_name)
        if known is None or since < known[0]:

            async def ask() -> list[Job]:
                return await self._console.do(None, history.list_history(user_name, since))

            known = self._histories.put(user_name, (since, Kept(ask, HISTORY_INTERVAL_S, self._timer)))
        return [job for job in await known[1].get() if job.ends is None or job.ends >= since]

    async def find_record(self, job_id: str) -> Job | None:
        """Return a job that the queue does not have any more, from accounting; see Scheduler."""
        known = self._records.find(job_id)
        if known is None:

            async def ask() -> Job | None:
                return await self._console.do(None, history.find_record(job_id))

            known = self._records.put(job_id, Kept(ask, HISTORY_INTERVAL_S, self._timer))
        await known.refresh()
        if known.trouble is not None:
            raise known.trouble
        return known.value

    async def describe(self, user_name: str, ref: JobRef) -> JobDetails:
        """Return more of a job; see Scheduler. However many look at its page, asked for once an interval."""
        job = self._find_same(ref)
        if job and job.user_name != user_name:
            raise NotFound("Slurm knows no such job of this user.")
        state, started = (job.state, job.started) if job else (None, None)
        stage: Stage = (user_name, ref.submitted, state, started)
        known = self._details.find(ref.id)
        if known is None or known[0] != stage:
            ask = partial(self._ask_details, user_name, ref.id, state)
            interval_s = WAITING_INTERVAL_S if state is JobState.QUEUED else USAGE_INTERVAL_S
            known = self._details.put(ref.id, (stage, Kept(ask, interval_s, self._timer)))
        return await known[1].get()

    async def _ask_details(self, user_name: str, job_id: str, state: JobState | None) -> JobDetails:
        details = JobDetails()
        with contextlib.suppress(NotFound):  # the controller may have forgotten it; accounting has not
            details = await self._console.do(None, history.describe(job_id))
        with contextlib.suppress(PorticoError):  # what it uses is not always known
            if state is None or state is JobState.ENDED:
                used = await self._console.do(None, history.measure_ended(job_id))
            elif state is JobState.RUNNING:
                used = await self._console.do(user_name, history.measure_live(job_id))
            else:
                return details
            folder = details.folder or used.folder
            details = replace(
                used, folder=folder, output=details.output, error=details.error, restarts=details.restarts
            )
        return details

    async def read_script(self, user_name: str, ref: JobRef) -> bytes:
        """Return a script; see Scheduler. The controller keeps it for a while, accounting where a site says so."""
        self._find_same(ref)
        try:
            return await self._console.do(user_name, history.read_script(ref.id))
        except NotFound:
            return await self._console.do(user_name, history.read_stored_script(ref.id))

    async def act(self, user_name: str, ref: JobRef, action: Action) -> None:
        """Do something to a job; see Scheduler."""
        job = self._find_same(ref)
        if job and job.state is JobState.ENDED:  # scancel would say nothing, requeue would run it again
            raise Conflict("The job has ended already.")
        if job and job.state is JobState.RUNNING and action is Action.HOLD:  # which Slurm takes, and does nothing
            raise Conflict("The job has started already.", hint="Only what waits can be put on hold.")
        mine = job is not None and job.user_name == user_name
        key = self._own.find_key(job) if job and mine and not job.array_id else ""  # of an array only this row's tasks
        if key and action is Action.CANCEL:
            await self._own.cancel(key, Reason.STOPPED)
            return
        # An operator may do that to every job, so it must be known whose this one is.
        as_operator = self._operator and mine and action in (Action.SUSPEND, Action.RESUME)
        whose = None if as_operator else user_name
        rest = job is not None and bool(job.array_id) and job.state is JobState.QUEUED
        await self._console.do(whose, control.act(_find_target(ref, job), action, waiting_only=rest))

    async def change_limit(self, user_name: str, ref: JobRef, limit_s: float) -> None:
        """Change a time limit; see Scheduler."""
        job = self._find_same(ref)
        await self._console.do(user_name, control.change_limit(_find_target(ref, job), limit_s))

    # the place

    async def find_offers(self, user_name: str, groups: Collection[str]) -> list[Offer]:
        """Return what a user may ask for; see Scheduler."""
        partitions, nodes = await self._nodes.get()
        accounts = await self._accounts.get()
        if accounts[0] and not any(one.user == user_name for one in accounts[2]):  # they may just have got one
            accounts = await self._accounts.get_younger(STRANGER_S)
        enforced, qos, associations, defaults = accounts
        reservations: list[Reservation] = []
        with contextlib.suppress(PorticoError):  # a site may show them to nobody (PrivateData)
            reservations = await self._reservations.get()
        site_ = Site(partitions, nodes, enforced, qos, associations, defaults, tuple(reservations))
        return site_.find_offers(user_name, groups)

    async def list_nodes(self) -> list[Node]:
        """Return the nodes; see Scheduler."""
        return list((await self._nodes.get())[1])

    async def list_reservations(self) -> list[Reservation]:
        """Return the reservations; see Scheduler."""
        return await self._reservations.get()

    async def _find_reservations(self, wanted: str) -> list[Reservation]:
        """Return the reservations, a newer answer where one that is wanted may just have been made."""
        known = await self._reservations.get()
        if set(wanted.split(",")) <= {one.name for one in known}:
            return known
        return await self._reservations.get_younger(STRANGER_S)

    async def get_capacity(self) -> Capacity:
        """Return what there is and what is held; see Scheduler."""
        return site.count_capacity((await self._nodes.get())[1], self._jobs.values())

    async def close(self) -> None:
        """Let go of what is being done; the spool has all that the next one needs."""
        await self._own.close()
        for close in (self._queue.close, self._nodes.close, self._reservations.close, self._accounts.close):
            await close()
        for _, histories in self._histories.list():
            await histories.close()
        for _, details in self._details.list():
            await details.close()
        for record in self._records.list():
            await record.close()

    async def _ask_nodes(self) -> tuple[tuple[site.Partition, ...], tuple[Node, ...]]:
        partitions = await self._console.do(None, site.list_partitions())
        nodes = await self._console.do(None, site.list_nodes())
        return tuple(partitions), tuple(nodes)

    async def _ask_reservations(self) -> list[Reservation]:
        return await self._console.do(None, site.list_reservations())

    async def _ask_accounts(self) -> Accounts:
        settings = await self._console.do(None, site.read_settings())
        if "jobs" in settings.get("PrivateData", "").lower() and not self._operator:
            log.warning("Slurm hides jobs (PrivateData): make Portico's account an operator; docs/slurm.md says how")
        if not settings.get("AccountingStorageType", "").endswith("slurmdbd"):
            return False, (), (), {}
        enforced = "associations" in settings.get("AccountingStorageEnforce", "").lower()
        associations = await self._console.do(None, site.list_associations(settings.get("ClusterName", "")))
        qos = await self._console.do(None, site.list_qos())
        return enforced, tuple(qos), tuple(associations), await self._console.do(None, site.list_default_accounts())

    def _find_same(self, ref: JobRef) -> Job | None:
        """Return the job in the last answer that a reference names; None where it is not in it.

        Raises:
            Conflict: It was put back into the queue since, or its id was given to another job, and it is safer to look.
        """
        job = self._jobs.get(ref.id)
        if job and ref.submitted and job.submitted and job.submitted != ref.submitted:
            raise Conflict("This job is not what it was when the page was made.", hint="Look at the list again.")
        return job


def _find_target(ref: JobRef, job: Job | None) -> str:
    """Return what names a job on Slurm's command line: of a task never its own id, which may be its array's too."""
    return job.shown_id if job is not None and job.array_id and job.state is JobState.RUNNING else ref.id
