"""Jobs as people see them: the table, one job, submission and what can be done to one. Who may what is decided here.

Pages and API never ask a scheduler more often than once an interval: they are answered from what it said last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from portico.accounts import Permission, may, require
from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError
from portico.jobs import files
from portico.jobs.samples import INTERVAL_S, Sample, Samples
from portico.jobs.templates import Templates
from portico.model import Identity, Reason, now
from portico.schedulers.clusters import LOCAL, Cluster
from portico.schedulers.index import Column, JobFilter, JobIndex, Page
from portico.schedulers.protocol import (
    Action,
    Feature,
    Job,
    JobDetails,
    JobOptions,
    JobRequest,
    JobState,
    JobStatus,
    Node,
    Offer,
    Queue,
)
from portico.schedulers.slurm.command import Runner
from portico.sessions.machine import BrokerMachine
from portico.sessions.notices import Notices
from portico.sessions.remote_place import find_groups
from portico.sessions.rows import Rows
from portico.sessions.service import make_session_id

log = logging.getLogger(__name__)

GB: Final = 10**9
HISTORY_DAYS: Final = 90
SUBMIT_PATIENCE_S: Final = 3.0
"""How long a submission waits for the scheduler's own id of the job."""
TIDY_S: Final = 5.0
UNTOLD: Final = frozenset({Reason.STOPPED, Reason.CANCELLED})
"""Ends of jobs that somebody brought about."""
ENDS: Final = {
    Reason.FAILED: "Its program ended with an error.",
    Reason.TIME_LIMIT: "Its time was over.",
    Reason.OUT_OF_MEMORY: "It needed more memory than it had.",
    Reason.NODE_FAILED: "The node on which it ran failed.",
    Reason.PREEMPTED: "Its nodes were needed for work of higher priority.",
    Reason.NOT_STARTED: "It could not be started.",
    Reason.CANCELLED: "It was cancelled.",
    Reason.STOPPED: "It was cancelled.",
}
"""Why jobs end, as people are told."""
ALL: Final = JobFilter()


@dataclass(frozen=True)
class JobsPage:
    """A part of the table. ``trouble`` says why it is not newer than ``as_of``."""

    page: Page
    as_of: datetime | None
    trouble: PorticoError | None
    partitions: tuple[str, ...]


@dataclass(frozen=True)
class JobView:
    """One job, with what only its own user may see; that is None to others."""

    job: Job
    details: JobDetails | None
    actions: tuple[Action, ...]
    can_change_limit: bool = False


@dataclass(frozen=True)
class Wanted:
    """What to submit. ``script`` or ``path``, the other is empty; 0: the script's or the site's default."""

    script: str = ""
    path: str = ""
    cores: float = 0
    memory_gb: float = 0
    hours: float = 0
    options: JobOptions = field(default_factory=JobOptions)
    notify: bool = False


class Jobs:
    """The jobs of all clusters that take scripts.

    Args:
        runner: Runs commands as a user.
        clusters: All clusters; those without batch jobs are left out.
        notices: Where users are told of ends.
        templates: Scripts to begin with; by default Portico's own.
        samples: Folder where the last day of each cluster is kept; by default nowhere.
    """

    def __init__(
        self,
        rows: Rows,
        machine: BrokerMachine,
        runner: Runner,
        clusters: Sequence[Cluster],
        notices: Notices,
        templates: Templates | None = None,
        samples: Path | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._rows = rows
        self._machine = machine
        self._runner = runner
        taking = [one for one in clusters if Feature.BATCH in one.scheduler.features]
        taking.sort(key=lambda one: one.name == LOCAL)  # where there is a cluster, it is what people mean
        self._clusters = {one.name: one for one in taking}
        self._notices = notices
        self.templates = templates or Templates()
        self._clock = clock
        self._indexes: dict[str, tuple[Queue, JobIndex]] = {}
        self._samples = {name: Samples(samples and samples / f"{name}.jsonl") for name in self._clusters}

    @property
    def clusters(self) -> list[Cluster]:
        """Those that take jobs."""
        return list(self._clusters.values())

    def get_cluster(self, name: str = "") -> Cluster:
        """Return a cluster, the first where none is named.

        Raises:
            NotFound: There is none.
        """
        if not name and self._clusters:
            return next(iter(self._clusters.values()))
        if name not in self._clusters:
            raise NotFound("There is no such cluster for jobs.", hint="Look at the list of clusters.")
        return self._clusters[name]

    async def run(self) -> None:
        """Take samples, tell of ends, and forget submissions that are over, until cancelled."""
        sample_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            at = loop.time()
            for cluster in self._clusters.values():
                try:
                    await self._tidy(cluster)
                    if at >= sample_at:
                        await self._sample(cluster)
                except PorticoError as error:
                    log.warning("%s: %s %s", cluster.name, error.message, error.why)
                except Exception:  # a defect, which must not end the pages
                    log.exception("%s", cluster.name)
            if at >= sample_at:
                sample_at = at + INTERVAL_S
            await asyncio.sleep(TIDY_S)

    async def _sample(self, cluster: Cluster) -> None:
        queue = await cluster.scheduler.list_jobs()
        if queue.trouble is None:
            found = await cluster.scheduler.get_capacity()
            sample = Sample(self._clock(), found.cores, found.cores_held, found.running, found.queued)
            await asyncio.to_thread(self._samples[cluster.name].add, sample)

    async def _tidy(self, cluster: Cluster) -> None:
        """Tell of ends, and forget what a scheduler keeps of submissions for us once they are in its own records."""
        for key, status in (await cluster.scheduler.query()).items():
            if status.batch and status.state is JobState.ENDED:
                if status.notify and status.reason not in UNTOLD:
                    trouble = status.reason is not Reason.FINISHED
                    path = f"/jobs/{cluster.name}/{status.job_id}"
                    await self._notices.on_job_end(status.user_name, path, describe_end(status), trouble=trouble)
                await cluster.scheduler.forget(key)

    # looking

    async def _read_queue(self, cluster: Cluster) -> tuple[Queue, JobIndex]:
        queue = await cluster.scheduler.list_jobs()
        kept = self._indexes.get(cluster.name)
        if kept is None or kept[0] is not queue:
            kept = self._indexes[cluster.name] = queue, JobIndex(queue.jobs)
        return kept

    async def list_jobs(
        self,
        who: Identity,
        cluster: str = "",
        wanted: JobFilter = ALL,
        column: Column = Column.SUBMITTED,
        *,
        descending: bool = True,
        offset: int = 0,
        limit: int = 50,
        everyone: bool = False,
    ) -> JobsPage:
        """Return a part of the table: one's own jobs, or everyone's.

        Raises:
            Forbidden: Everyone's, without the permission.
            NotFound: There is no such cluster.
        """
        if everyone:
            require(who, Permission.JOB_LIST)
        else:
            wanted = replace(wanted, user_name=who.user_name)
        queue, index = await self._read_queue(self.get_cluster(cluster))
        page = index.find_page(wanted, column, descending=descending, offset=offset, limit=limit)
        partitions = sorted(index.count(JobFilter(user_name=wanted.user_name), "partition"))
        return JobsPage(page, queue.as_of, queue.trouble, tuple(partitions))

    async def list_history(self, who: Identity, cluster: str = "", days: float = 7) -> list[Job]:
        """Return one's own jobs that ended within so many days, the newest first.

        Raises:
            PorticoError: The accounting does not answer, or there is no such cluster.
        """
        if not 0 < days <= HISTORY_DAYS:
            raise Invalid(f"From 0 to {HISTORY_DAYS} days.", field="days")
        since = self._clock() - timedelta(days=days)
        return await self.get_cluster(cluster).scheduler.list_history(who.user_name, since)

    async def _find(self, who: Identity, cluster: Cluster, job_id: str) -> Job:
        """Return a job that this user may see.

        Raises:
            NotFound: There is none.
        """
        job = await self._find_in_queue(cluster, job_id) or await self._find_new(cluster, job_id)
        if job is None:
            with contextlib.suppress(PorticoError):
                job = await cluster.scheduler.find_record(job_id)
        if job is None or (job.user_name != who.user_name and not may(who, Permission.JOB_LIST)):
            raise NotFound("There is no such job.", hint="Jobs that ended leave the table; look at the history.")
        return job

    async def _find_in_queue(self, cluster: Cluster, job_id: str) -> Job | None:
        _, index = await self._read_queue(cluster)
        return index.find(job_id)

    async def _find_new(self, cluster: Cluster, job_id: str) -> Job | None:
        """Return a job that was submitted just now, and that the queue's last answer does not have yet."""
        statuses = await cluster.scheduler.query()
        if job := await self._find_in_queue(cluster, job_id):  # there may be a newer answer now
            return job
        for status in statuses.values():
            if status.batch and status.job_id == job_id:
                return Job(
                    job_id,
                    status.user_name,
                    status.state,
                    status.state.value.upper(),
                    key=status.key,
                    shown_id=job_id,
                    waiting_for=status.waiting_for,
                    reason=status.reason,
                    detail=status.detail,
                )
        return None

    async def _find_own(self, who: Identity, cluster: Cluster, job_id: str) -> Job:
        job = await self._find(who, cluster, job_id)
        if job.user_name != who.user_name:
            raise Forbidden("Only whose job it is may do this.")
        return job

    async def view(self, who: Identity, cluster: str, job_id: str) -> JobView:
        """Return one job.

        Raises:
            NotFound: There is none that this user may see.
        """
        place = self.get_cluster(cluster)
        job = await self._find(who, place, job_id)
        if job.user_name != who.user_name:
            actions = (Action.CANCEL,) if may(who, Permission.JOB_CANCEL) and job.state is not JobState.ENDED else ()
            return JobView(job, None, actions)
        details = JobDetails()
        with contextlib.suppress(PorticoError):  # what it uses is not always known
            details = await place.scheduler.describe(who.user_name, job.ref)
        features = place.scheduler.features
        may_change = job.state is JobState.QUEUED or (job.state is JobState.RUNNING and place.name == LOCAL)
        return JobView(job, details, find_actions(job, features), may_change)

    async def read_script(self, who: Identity, cluster: str, job_id: str) -> str:
        """Return the script of a job of one's own.

        Raises:
            PorticoError: It is not kept any more, or is another's.
        """
        place = self.get_cluster(cluster)
        job = await self._find_own(who, place, job_id)
        script = await place.scheduler.read_script(who.user_name, job.ref)
        return script.decode("utf-8", errors="replace")

    async def tail(self, who: Identity, cluster: str, job_id: str, *, error: bool = False, lines: int = 200) -> str:
        """Return the last lines of what a job of one's own has written.

        Raises:
            PorticoError: It can't be read, or is another's.
        """
        place = self.get_cluster(cluster)
        job = await self._find_own(who, place, job_id)
        details = await place.scheduler.describe(who.user_name, job.ref)
        return await self.tail_described(who, details, error=error, lines=lines)

    async def tail_described(self, who: Identity, details: JobDetails, *, error: bool = False, lines: int = 200) -> str:
        """Return the last lines of what one's own job has written, whose details were asked for already.

        Raises:
            PorticoError: It can't be read.
        """
        path = details.error if error else details.output
        if not path or path == "/dev/null":
            raise NotFound("It is not known where this job writes to.")
        command = files.tail(path, max(1, min(lines, 2000)))
        return command.parse(await self._runner.run(who.user_name, command))

    # doing

    async def submit(self, who: Identity, cluster: str, wanted: Wanted) -> str:
        """Submit a script; return the scheduler's id of the job, empty while it could not be asked.

        Raises:
            Invalid: It can never run, or is no script; ``field`` says what stands against it.
            PorticoError: It was refused.
        """
        if not who.user_id:
            raise Conflict("root on this machine is no user of the portal.", hint="Sign in as a user.")
        place = self.get_cluster(cluster)
        await self._machine.make(who.user_name)
        if bool(wanted.script.strip()) == bool(wanted.path):
            raise Invalid("Give a script, or the path of one.", field="script")
        if wanted.path:
            command = files.read(wanted.path)
            script = command.parse(await self._runner.run(who.user_name, command))
        else:
            script = wanted.script.replace("\r\n", "\n").encode()  # what browsers send (HTML, 4.10.21.4)
        for name, value in (("cores", wanted.cores), ("memory_gb", wanted.memory_gb), ("hours", wanted.hours)):
            if not math.isfinite(value) or value < 0:
                raise Invalid(f"{value:g} is out of bounds.", field=name)
        request = JobRequest(
            key=make_session_id(),
            user_name=who.user_name,
            cores=wanted.cores,
            memory_bytes=int(wanted.memory_gb * GB),
            time_limit_s=wanted.hours * 3600,
            submitted=self._clock(),
            script=script,
            options=wanted.options,
            batch=True,
            notify=wanted.notify,
        )
        groups = await asyncio.to_thread(find_groups, who.user_name)
        await place.scheduler.check(request, groups)
        await self._rows.write(
            lambda tx: tx.add_audit(who.user_name, "job:submit", request.key, place.name, who.address)
        )
        await place.scheduler.submit(request)
        deadline = asyncio.get_running_loop().time() + SUBMIT_PATIENCE_S
        while True:
            status = (await place.scheduler.query()).get(request.key)
            if status is None or status.job_id or asyncio.get_running_loop().time() > deadline:
                return status.job_id if status else ""
            await asyncio.sleep(0.1)

    async def act(self, who: Identity, cluster: str, job_id: str, action: Action) -> None:
        """Do something to a job: one's own, or cancel anybody's with the permission.

        Raises:
            PorticoError: It may not be done, or can't be.
        """
        place = self.get_cluster(cluster)
        job = await self._find(who, place, job_id)
        if job.user_name != who.user_name:
            if action is not Action.CANCEL:
                raise Forbidden("Only whose job it is may do this.")
            require(who, Permission.JOB_CANCEL)
        async with self._audited(who, f"job:{action}", job_id, f"{place.name}, {job.user_name}"):
            await place.scheduler.act(job.user_name, job.ref, action)

    async def change_limit(self, who: Identity, cluster: str, job_id: str, hours: float) -> None:
        """Change the time limit of a job of one's own.

        Raises:
            PorticoError: It may not be, or can't be.
        """
        if not math.isfinite(hours) or not 0 < hours < 24 * 366:
            raise Invalid("This is no time limit.", field="hours")
        place = self.get_cluster(cluster)
        job = await self._find_own(who, place, job_id)
        async with self._audited(who, "job:limit", job_id, f"{place.name}, {hours:g} hours"):
            await place.scheduler.change_limit(who.user_name, job.ref, hours * 3600)

    @contextlib.asynccontextmanager
    async def _audited(self, who: Identity, action: str, job_id: str, detail: str) -> AsyncIterator[None]:
        """Write down what is about to be done: whatever happens then, it was not done unseen. A refusal follows it."""
        await self._rows.write(lambda tx: tx.add_audit(who.user_name, action, job_id, detail, who.address))
        try:
            yield
        except PorticoError as error:
            said = f"{detail}, refused: {error.message}"
            await self._rows.write(lambda tx: tx.add_audit(who.user_name, action, job_id, said, who.address))
            raise

    # the cluster

    async def find_offers(self, who: Identity, cluster: str = "") -> list[Offer]:
        """Return what one may ask for.

        Raises:
            PorticoError: The scheduler does not answer.
        """
        groups = await asyncio.to_thread(find_groups, who.user_name)
        return await self.get_cluster(cluster).scheduler.find_offers(who.user_name, groups)

    async def list_nodes(self, cluster: str = "") -> list[Node]:
        """Return the nodes.

        Raises:
            PorticoError: The scheduler does not answer.
        """
        return await self.get_cluster(cluster).scheduler.list_nodes()

    async def count_queue(self, cluster: str = "") -> dict[str, dict[str, int]]:
        """Return how many jobs run and wait, by partition; of everybody, without names."""
        _, index = await self._read_queue(self.get_cluster(cluster))
        counts: dict[str, dict[str, int]] = {}
        for state in (JobState.RUNNING, JobState.QUEUED):
            for name, number in index.count(JobFilter(states=frozenset({state})), "partition").items():
                counts.setdefault(name, {"running": 0, "queued": 0})[state.value] = number
        return counts

    def list_samples(self, cluster: str = "") -> list[Sample]:
        """Return figures of the last day, the oldest first."""
        return self._samples[self.get_cluster(cluster).name].list()


def find_actions(job: Job, features: frozenset[Feature]) -> tuple[Action, ...]:
    """Return what its user can do to a job now."""
    if job.state is JobState.ENDED:
        return ()
    found = [Action.CANCEL]
    if job.state is JobState.QUEUED and Feature.HOLD in features:
        found.append(Action.RELEASE if job.held else Action.HOLD)
    if job.state is JobState.RUNNING:
        if Feature.SUSPEND in features:
            found.append(Action.RESUME if job.word == "SUSPENDED" else Action.SUSPEND)
        if Feature.REQUEUE in features:
            found.append(Action.REQUEUE)
    return tuple(found)


def describe_end(status: JobStatus) -> str:
    """Return a sentence or two on how a job has ended."""
    name = f"Job {status.job_id}{f' ({status.name})' if status.name else ''}"
    if status.reason is Reason.FINISHED:
        return f"{name} has finished."
    sentence = ENDS.get(status.reason, "It is not known why.") if status.reason else "It is not known why."
    return f"{name} has ended. {sentence}{f' ({status.detail})' if status.detail else ''}"
