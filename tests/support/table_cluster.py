"""A cluster that is a table: a Scheduler whose jobs stand where a test puts them, and a runner whose files do so, too."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from portico.errors import Conflict, NotFound, PorticoError
from portico.model import Reason, now
from portico.schedulers.clusters import Cluster
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
from portico.schedulers.slurm.command import Command, Result

GB = 10**9


class TableScheduler:
    """See Scheduler."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.forgotten: dict[str, Job] = {}
        self.requests: dict[str, JobRequest] = {}
        self.done: list[tuple[str, str, str]] = []
        self.refuses: PorticoError | None = None
        self.features = frozenset(Feature)
        self._queue = Queue((), None)

    def add(self, user_name: str, state: JobState = JobState.RUNNING, **more: Any) -> Job:
        """Add a job."""
        job = Job(
            str(100 + len(self.jobs)), user_name, state, state.value.upper(), partition="batch", cores=2, nodes=1,
            submitted=now(), started=now() if state is JobState.RUNNING else None, limit_s=3600, used_s=600,
            memory_bytes=GB,
        )  # fmt: skip
        job = self.jobs[job.id] = replace(job, **more)
        self._queue = Queue(tuple(self.jobs.values()), now())
        return job

    def forget_job(self, job_id: str) -> None:
        """Let the queue forget a job, which accounting goes on to remember."""
        self.forgotten[job_id] = self.jobs.pop(job_id)
        self._queue = Queue(tuple(self.jobs.values()), now())

    def end(self, name: str, reason: Reason, detail: str = "") -> None:
        """Let a job end."""
        job = next(job for job in self.jobs.values() if job.name == name)
        self.jobs[job.id] = replace(job, state=JobState.ENDED, reason=reason, detail=detail)
        self._queue = Queue(tuple(self.jobs.values()), now())

    async def submit(self, request: JobRequest) -> None:
        if self.refuses:
            raise self.refuses
        self.requests[request.key] = request
        self.add(request.user_name, JobState.QUEUED, key=request.key, name=request.options.name, started=None)

    async def check(self, request: JobRequest, groups: Collection[str]) -> None:
        pass

    async def cancel(self, key: str, reason: Reason) -> None:
        raise NotFound("none")

    async def extend(self, key: str, deadline: datetime) -> None:
        raise NotFound("none")

    async def query(self) -> dict[str, JobStatus]:
        found = {job.key: job for job in self.jobs.values() if job.key}
        return {
            key: JobStatus(
                key, job.user_name, job.state, reason=job.reason, detail=job.detail, job_id=job.id, batch=True,
                notify=self.requests[key].notify, name=job.name,
            )
            for key, job in found.items() if key in self.requests
        }  # fmt: skip

    async def forget(self, key: str) -> None:
        self.requests.pop(key, None)

    async def list_jobs(self) -> Queue:
        return self._queue

    async def list_history(self, user_name: str | None, since: datetime) -> list[Job]:
        return [job for job in self.jobs.values() if job.state is JobState.ENDED and job.user_name == user_name]

    async def find_record(self, job_id: str) -> Job | None:
        return self.forgotten.get(job_id)

    async def describe(self, user_name: str, ref: JobRef) -> JobDetails:
        return JobDetails(folder="/home", output=f"/home/{ref.id}.out", error=f"/home/{ref.id}.err", cpu_used_s=300)

    async def read_script(self, user_name: str, ref: JobRef) -> bytes:
        return b"#!/bin/sh\nhostname\n"

    async def act(self, user_name: str, ref: JobRef, action: Action) -> None:
        if self.jobs[ref.id].state is JobState.ENDED:
            raise Conflict("The job has ended already.")
        self.done.append((user_name, ref.id, action.value))

    async def change_limit(self, user_name: str, ref: JobRef, limit_s: float) -> None:
        self.done.append((user_name, ref.id, f"{limit_s:g}"))

    async def find_offers(self, user_name: str, groups: Collection[str]) -> list[Offer]:
        qos = (Qos("normal"), Qos("long"))
        return [Offer("batch", True, "", ("demo", "other"), qos, None, 3600, 3, 4, 4 * GB, ("gpu:1",), ("course",))]

    async def list_nodes(self) -> list[Node]:
        return [
            Node(f"n{n}", "IDLE", n < 3, ("batch",), 4, n, 4 * GB, n * GB, 0.5, "", "" if n < 3 else "broken")
            for n in (1, 2, 3)
        ]

    async def list_reservations(self) -> list[Reservation]:
        return [Reservation("course", now(), now() + timedelta(hours=8), "batch", ("n1", "n2"), accounts=("demo",))]

    async def get_capacity(self) -> Capacity:
        return Capacity(8, 8 * GB, 3, 3 * GB, 1, 1)

    async def close(self) -> None:
        pass


class FilesRunner:
    """A runner that knows files by their path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str | None, tuple[str, ...]]] = []

    async def run(self, user_name: str | None, command: Command[Any]) -> Result:
        self.asked.append((user_name, command.argv))
        path = command.argv[-1]
        if path not in self.files:
            return Result(1, b"", f"tail: cannot open '{path}' for reading: No such file or directory".encode())
        return Result(0, self.files[path])


def make_cluster(name: str = "demo") -> tuple[Cluster, TableScheduler]:
    """Return a cluster and its scheduler."""
    scheduler = TableScheduler()
    return Cluster(name, "Demo cluster", "slurm", scheduler), scheduler
