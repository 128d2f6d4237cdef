"""What Portico keeps of a job that it gave to Slurm: what was asked, how far that came, and what was last seen. Pure.

Slurm may forget a job, give its id to another one, or take it although sbatch said that it failed. So the request is
written down before it is made, and what is written down decides what is done next.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from portico.model import Reason
from portico.schedulers.protocol import Job, JobRequest, JobState, JobStatus
from portico.schedulers.spool import parse_request, parse_time

SKEW: Final = timedelta(minutes=5)
"""How far the clocks of Slurm's controller and ours may be apart."""


class Phase(enum.StrEnum):
    """How far a request came."""

    UNSURE = "unsure"  # sbatch was or is being run, and its outcome is not known: Slurm may have the job
    KNOWN = "known"  # Slurm has given it an id
    ENDED = "ended"


@dataclass(frozen=True)
class Entry:
    """A job. What was last seen of it stays while Slurm does not answer."""

    request: JobRequest
    phase: Phase = Phase.UNSURE
    attempts: int = 0
    tried: datetime | None = None  # when sbatch was last begun
    trouble: str = ""  # why it was not successful
    accepted: datetime | None = None  # when sbatch had its id, by our clock
    job_id: str = ""
    submitted: datetime | None = None  # as Slurm has it; a requeue moves it
    seen: bool = False
    state: JobState = JobState.QUEUED
    waiting_for: str = ""
    started: datetime | None = None
    deadline: datetime | None = None
    node_names: tuple[str, ...] = ()
    position: int = 0
    expected_start: datetime | None = None
    cancelled: Reason | None = None
    reason: Reason | None = None
    detail: str = ""
    restarts: int = 0
    put_back: str = ""

    def is_job(self, job: Job) -> bool:
        """Return whether a job in the queue is this one.

        The id alone does not say so: after a crash of its controller Slurm gives it to another. Nor does the key
        alone, which anybody can write. Where a site takes both comment and name away, id, user and time have to do.
        """
        if job.user_name != self.request.user_name:
            return False
        if job.key:
            return job.key == self.request.key
        since = self.submitted or (self.request.submitted - SKEW)
        return bool(self.job_id) and job.id == self.job_id and (job.submitted is None or job.submitted >= since)

    def was_put_back(self, job: Job) -> bool:
        """Return whether Slurm may have put this job back into its queue: only that moves its time of submission.

        One that was not seen before may have been, too; our clocks may also differ. Of an array each task has a time
        of its own. A job that still ends its earlier run is looked at later.
        """
        since = self.submitted or self.accepted
        moved = since is not None and job.submitted is not None and job.submitted > since
        return moved and job.word != "COMPLETING" and not self.request.options.array

    def describe(self) -> JobStatus:
        """Return what people are told."""
        state = JobState.ENDED if self.phase is Phase.ENDED else self.state
        waits = state is JobState.QUEUED
        waiting_for = self.waiting_for
        if self.phase is Phase.UNSURE:
            waiting_for = f"Slurm to take it{f' ({self.trouble})' if self.trouble else ''}"
        return JobStatus(
            self.request.key,
            self.request.user_name,
            state,
            waiting_for if waits else "",
            self.started,
            self.deadline,
            self.reason,
            self.detail,
            self.job_id,
            self.node_names,
            self.position if waits else 0,
            self.expected_start if waits else None,
            self.request.batch,
            self.request.notify,
            self.request.options.name,
            self.restarts,
            self.put_back,
        )


def observe(entry: Entry, job: Job) -> dict[str, Any]:
    """Return what changes in an entry when its job was seen in the queue, waiting or running."""
    runs = job.state is JobState.RUNNING
    return {
        "phase": Phase.KNOWN,
        "job_id": job.array_id or job.id,  # of an array, what stands for all its tasks
        "submitted": job.submitted or entry.submitted,
        "seen": True,
        "trouble": "",
        "state": job.state,
        "waiting_for": job.waiting_for,
        "started": job.started if runs else None,
        "deadline": job.ends if runs else None,
        "node_names": job.node_names if runs else (),
        "position": job.position,
        "expected_start": None if runs else job.started,
    }


def parse_entry(value: dict[str, Any]) -> Entry:
    """Return the entry that asdict() and JSON made a dictionary of.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: It is none.
    """

    def time(name: str) -> datetime | None:
        return parse_time(value[name]) if value[name] else None

    def reason(name: str) -> Reason | None:
        return Reason(value[name]) if value[name] else None

    return Entry(
        request=parse_request(dict(value["request"])),
        phase=Phase(value["phase"]),
        attempts=int(value["attempts"]),
        tried=time("tried"),
        trouble=str(value["trouble"]),
        accepted=time("accepted") if "accepted" in value else None,
        job_id=str(value["job_id"]),
        submitted=time("submitted"),
        seen=bool(value["seen"]),
        state=JobState(value["state"]),
        waiting_for=str(value["waiting_for"]),
        started=time("started"),
        deadline=time("deadline"),
        node_names=tuple(str(name) for name in value["node_names"]),
        position=int(value["position"]),
        expected_start=time("expected_start"),
        cancelled=reason("cancelled"),
        reason=reason("reason"),
        detail=str(value["detail"]),
        restarts=int(value.get("restarts", 0)),
        put_back=str(value.get("put_back", "")),
    )
