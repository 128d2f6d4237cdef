"""What Portico asks of a scheduler, whichever it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from portico.model import Reason


class JobState(enum.StrEnum):
    """Where a job is, as its scheduler sees it."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class JobRequest:
    """What is asked for. ``key`` is the session's id: with it a job is found again, whatever else was lost."""

    key: str
    user_name: str
    cores: float
    memory_bytes: int
    time_limit_s: float
    submitted: datetime
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class JobStatus:
    """What became of it. ``deadline`` is when it will be ended; ``waiting_for`` is for people."""

    key: str
    user_name: str
    state: JobState
    waiting_for: str = ""
    started: datetime | None = None
    deadline: datetime | None = None
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, what is held, and how many jobs wait."""

    cores: float
    memory_bytes: int
    cores_held: float = 0
    memory_held_bytes: int = 0
    running: int = 0
    queued: int = 0


class Scheduler(Protocol):
    """A place that runs jobs.

    Every method raises PorticoError: Invalid for a request that can never run here, NotFound for an unknown key,
    Unavailable where the scheduler does not answer (nothing was lost then).
    """

    async def submit(self, request: JobRequest) -> None:
        """Take a job; the same key a second time changes nothing."""

    async def cancel(self, key: str, reason: Reason) -> None:
        """Take a waiting job out of the queue, or end a running one, gently at first."""

    async def extend(self, key: str, deadline: datetime) -> None:
        """Move a running job's deadline."""

    async def query(self) -> dict[str, JobStatus]:
        """Return all jobs that were not forgotten, asked for in bulk; also the moment at which waiting jobs start."""

    async def forget(self, key: str) -> None:
        """Drop what is known of an ended job."""

    async def get_capacity(self) -> Capacity:
        """Return what there is, and what is held."""
