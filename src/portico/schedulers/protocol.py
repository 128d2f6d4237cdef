"""What Portico asks of a scheduler, whichever it is: values and one protocol. No I/O, no scheduler's own words."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Protocol

from portico.errors import PorticoError
from portico.model import Reason


class JobState(enum.StrEnum):
    """Where a job is, as its scheduler sees it."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class Feature(enum.StrEnum):
    """What not every scheduler can do; pages offer only what the cluster's scheduler has."""

    BATCH = "batch"  # scripts, with options, arrays and dependencies
    ACCOUNTS = "accounts"  # partitions, accounts and QOS to choose from
    HOLD = "hold"  # and release
    SUSPEND = "suspend"  # and resume
    REQUEUE = "requeue"
    LIMIT = "limit"  # change a waiting job's time limit
    EXPECTED_START = "expected-start"
    HISTORY = "history"  # jobs that ended are found long afterwards


class Action(enum.StrEnum):
    """What can be done to a job."""

    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE = "release"
    SUSPEND = "suspend"
    RESUME = "resume"
    REQUEUE = "requeue"


@dataclass(frozen=True)
class JobOptions:
    """What a batch job may ask for besides cores, memory and time. Empty or 0: not asked for, the scheduler's default.

    Texts are a person's own: the adapter checks each. ``cores`` of the request are those of one task, and
    ``memory_bytes`` are those on each node.
    """

    name: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    nodes: int = 0
    tasks: int = 0
    gres: str = ""  # "gpu:2"
    constraint: str = ""
    reservation: str = ""
    array: str = ""  # "1-100%5"
    dependency: str = ""  # "afterok:12:13"
    begin_after_s: float = 0
    folder: str = ""  # absolute
    output: str = ""
    error: str = ""
    exclusive: bool = False
    requeue: bool = False  # whether it may run again from its beginning after a node failed
    held: bool = False


@dataclass(frozen=True)
class JobRequest:
    """What is asked for. ``key`` is the session's id: with it a job is found again, whatever else was lost.

    ``batch`` for a job that is nobody's session, and has a key of the same form; ``notify`` if its user wants to be
    told of its end.

    The embedded scheduler runs ``argv`` with ``env``; a batch system runs ``script`` with ``env``. No secret is in
    any of them: batch systems keep them. 0 for cores, memory or time means that the script or the site decides.
    """

    key: str
    user_name: str
    cores: float
    memory_bytes: int
    time_limit_s: float
    submitted: datetime
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    script: bytes = b""
    options: JobOptions = JobOptions()
    batch: bool = False
    notify: bool = False


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
    job_id: str = ""
    node_names: tuple[str, ...] = ()
    position: int = 0  # in its queue, from 1; 0: not known
    expected_start: datetime | None = None
    batch: bool = False
    notify: bool = False
    name: str = ""  # as it was submitted
    restarts: int = 0  # how often it was put back into the queue and begins again
    put_back: str = ""  # why it was the last time, for people: the rest of "It was put back into the queue: …"


@dataclass(frozen=True)
class JobRef:
    """A job as its scheduler names it. ``submitted`` tells two apart that were given the same id."""

    id: str
    submitted: datetime | None = None


@dataclass(frozen=True)
class Job:
    """A job in the queue or in the history, whoever submitted it and however.

    ``name`` is somebody's own text, made printable. ``key`` is the one that Portico gave it, if any; anyone can write
    one, so it counts only together with ``user_name``. ``word`` is the scheduler's own for the state.
    """

    id: str
    user_name: str
    state: JobState
    word: str
    name: str = ""
    key: str = ""
    shown_id: str = ""  # of arrays "13_7" or "13_[8-20%5]"
    array_id: str = ""
    task_count: int = 1
    account: str = ""
    partition: str = ""
    qos: str = ""
    held: bool = False
    waiting_for: str = ""
    submitted: datetime | None = None
    started: datetime | None = None  # or when its start is expected
    ends: datetime | None = None  # at the latest; of an ended one, when it ended
    limit_s: float | None = None
    used_s: float = 0
    cores: int = 0
    nodes: int = 0
    memory_bytes: int = 0  # on each node, or for each core where it was asked for so
    gres: str = ""
    node_names: tuple[str, ...] = ()
    priority: int = 0
    position: int = 0
    dependency: str = ""
    reason: Reason | None = None
    detail: str = ""

    @cached_property
    def search_text(self) -> str:
        """What a search looks at, in small letters. Made when somebody searches, and kept with the job."""
        parts = (self.id, self.shown_id, self.name, self.user_name, self.account, self.partition, *self.node_names)
        return "\n".join((*parts, self.word, self.waiting_for, self.detail)).casefold()

    def move_to(self, position: int, waiting_for: str) -> Job:
        """Return the same job at another place in the queue: what replace() does, ten times as quick.

        One job that starts moves all that wait, and there may be tens of thousands.
        """
        moved = object.__new__(Job)
        moved.__dict__.update(self.__dict__, position=position, waiting_for=waiting_for)
        moved.__dict__.pop("search_text", None)
        return moved

    @property
    def ref(self) -> JobRef:
        """How actions name it."""
        return JobRef(self.id, self.submitted)

    @property
    def core_hours(self) -> float:
        """What it has cost so far."""
        return self.cores * self.used_s / 3600

    @property
    def core_hours_at_limit(self) -> float | None:
        """What it costs if it runs to its limit; None without one."""
        return None if self.limit_s is None else self.cores * self.limit_s / 3600


@dataclass(frozen=True)
class Queue:
    """All jobs of a cluster at one moment. ``trouble`` says why there is no newer answer.

    The same object for all who ask until there is a newer answer: what is made of it can be kept with it.
    """

    jobs: tuple[Job, ...]
    as_of: datetime | None
    trouble: PorticoError | None = None


@dataclass(frozen=True)
class JobDetails:
    """More of one job: where its output goes, what it uses. Paths are as on the cluster; all is None if not known."""

    folder: str | None = None
    output: str | None = None
    error: str | None = None
    memory_used_bytes: int | None = None  # the most that any of its tasks used
    cpu_used_s: float | None = None
    restarts: int | None = None


@dataclass(frozen=True)
class Qos:
    """A quality of service that a user may choose, with what it allows each user; None: no limit of its own."""

    name: str
    max_time_s: float | None = None
    max_running: int | None = None
    max_submitted: int | None = None
    priority: int = 0


@dataclass(frozen=True)
class Offer:
    """What one user may ask for in one partition. ``closed`` says why jobs would not start there now."""

    partition: str
    default: bool = False
    closed: str = ""
    accounts: tuple[str, ...] = ()  # the user's default first; empty: none is needed
    qos: tuple[Qos, ...] = ()  # the user's default first; empty: none is needed
    max_time_s: float | None = None
    default_time_s: float | None = None
    max_nodes: int = 0
    max_cores_per_node: int = 0
    max_memory_per_node_bytes: int = 0
    gres: tuple[str, ...] = ()
    reservations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reservation:
    """Nodes that are kept for somebody for a time. ``partition`` is empty where it is for all partitions.

    ``users``, ``groups`` and ``accounts`` are whom it is for, each as the scheduler says it: a leading ``-`` is for all
    but these. Who may use it in the end, the scheduler says.
    """

    name: str
    begins: datetime | None
    ends: datetime | None
    partition: str = ""
    node_names: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A machine of a cluster. ``why`` is what the administrators wrote on it."""

    name: str
    word: str
    usable: bool
    partitions: tuple[str, ...] = ()
    cores: int = 0
    cores_held: int = 0
    memory_bytes: int = 0
    memory_held_bytes: int = 0
    load: float | None = None
    gres: str = ""
    why: str = ""


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

    Every method raises PorticoError: Invalid for a request that can never run here, NotFound for an unknown key or
    job, Forbidden for what this user may not do, Conflict for what a job's state does not allow, Unavailable where the
    scheduler does not answer (nothing was lost then). Answers about all jobs are kept for a moment and shared: callers
    ask as often as they like, the scheduler behind is asked once an interval.
    """

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do; what it can't raises Conflict."""

    # the jobs that Portico submitted, by key

    async def submit(self, request: JobRequest) -> None:
        """Take a job; the same key a second time changes nothing, whatever became of the first time."""

    async def check(self, request: JobRequest, groups: Collection[str]) -> None:
        """Do nothing if a user of these POSIX groups may ask for that, and it can ever run; else raise as submit()."""

    async def cancel(self, key: str, reason: Reason) -> None:
        """Take a waiting job out of the queue, or end a running one, gently at first."""

    async def extend(self, key: str, deadline: datetime) -> None:
        """Move a running job's deadline."""

    async def query(self) -> dict[str, JobStatus]:
        """Return all jobs that were not forgotten, asked for in bulk; also the moment at which waiting jobs start."""

    async def forget(self, key: str) -> None:
        """Drop what is known of an ended job."""

    # all jobs, by their own ids

    async def list_jobs(self) -> Queue:
        """Return the whole queue, the last known one where there is no newer; who may see what, the caller knows."""

    async def list_history(self, user_name: str | None, since: datetime) -> list[Job]:
        """Return jobs that ended since then, newest first; of one user, or of all."""

    async def find_record(self, job_id: str) -> Job | None:
        """Return a job that is not in the queue any more, whosever it was; None where nobody remembers it."""

    async def describe(self, user_name: str, ref: JobRef) -> JobDetails:
        """Return more of a job of this user's."""

    async def read_script(self, user_name: str, ref: JobRef) -> bytes:
        """Return the script of a job of this user's, as it was submitted, while the scheduler keeps it."""

    async def act(self, user_name: str, ref: JobRef, action: Action) -> None:
        """Do something to a job, as this user."""

    async def change_limit(self, user_name: str, ref: JobRef, limit_s: float) -> None:
        """Change a job's time limit, as this user."""

    # the place

    async def find_offers(self, user_name: str, groups: Collection[str]) -> list[Offer]:
        """Return what a user, member of these POSIX groups, may ask for, the default partition first."""

    async def list_nodes(self) -> list[Node]:
        """Return the machines."""

    async def list_reservations(self) -> list[Reservation]:
        """Return what is reserved, for whomever, now or later."""

    async def get_capacity(self) -> Capacity:
        """Return what there is, and what is held."""

    async def close(self) -> None:
        """Let go of what is being done; nothing is lost with it."""
