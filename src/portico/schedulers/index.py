"""A queue as a table: filtered, sorted, in pages, and counted. Pure; quick with tens of thousands of jobs.

Made once of each answer of a scheduler and shared by all who look. Who may see which jobs, the caller decides and says
with ``user_name``.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from portico.schedulers.protocol import Job, JobState

PAGE_LIMIT: Final = 500


class Column(enum.StrEnum):
    """What a table can be sorted by."""

    ID = "id"
    NAME = "name"
    USER = "user"
    STATE = "state"
    PARTITION = "partition"
    ACCOUNT = "account"
    CORES = "cores"
    NODES = "nodes"
    LIMIT = "limit"
    USED = "used"
    SUBMITTED = "submitted"
    STARTED = "started"
    ENDS = "ends"
    POSITION = "position"
    PRIORITY = "priority"


_ORDER: Final = {JobState.RUNNING: 0, JobState.QUEUED: 1, JobState.ENDED: 2}

_VALUES: Final[dict[Column, Callable[[Job], Any]]] = {
    Column.ID: lambda job: (int(job.id), "") if job.id.isdecimal() else (0, job.id),
    Column.NAME: lambda job: job.name.casefold(),
    Column.USER: lambda job: job.user_name,
    Column.STATE: lambda job: (_ORDER[job.state], job.word),
    Column.PARTITION: lambda job: job.partition,
    Column.ACCOUNT: lambda job: job.account,
    Column.CORES: lambda job: job.cores,
    Column.NODES: lambda job: job.nodes,
    Column.LIMIT: lambda job: job.limit_s,
    Column.USED: lambda job: job.used_s,
    Column.SUBMITTED: lambda job: job.submitted,
    Column.STARTED: lambda job: job.started,
    Column.ENDS: lambda job: job.ends,
    Column.POSITION: lambda job: job.position or None,
    Column.PRIORITY: lambda job: job.priority,
}


@dataclass(frozen=True)
class JobFilter:
    """Which jobs; what is empty or None does not restrict.

    Attributes:
        text: Each of its words must be in the id, name, user, account, partition, node names or what it waits for.
    """

    user_name: str | None = None
    states: frozenset[JobState] = frozenset()
    partition: str = ""
    account: str = ""
    qos: str = ""
    held: bool | None = None
    text: str = ""


@dataclass(frozen=True)
class Page:
    """A part of a table; ``total`` counts all that the filter lets through."""

    jobs: tuple[Job, ...]
    total: int
    offset: int


class JobIndex:
    """A table of jobs that does not change."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = tuple(jobs)
        self._orders: dict[tuple[Column, bool], tuple[Job, ...]] = {}
        self._texts: dict[str, str] | None = None
        self._counts: dict[tuple[JobFilter, str], dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def find_page(
        self,
        wanted: JobFilter = JobFilter(),
        column: Column = Column.SUBMITTED,
        *,
        descending: bool = True,
        offset: int = 0,
        limit: int = 50,
    ) -> Page:
        """Return a page. Jobs without a value in the column come last, either way; ties are in order of their ids."""
        found = self._filter(self._sort(column, descending), wanted)
        offset, limit = max(0, offset), max(1, min(limit, PAGE_LIMIT))
        return Page(tuple(found[offset : offset + limit]), len(found), offset)

    def count(self, wanted: JobFilter, name: str) -> dict[str, int]:
        """Return how many of the filtered jobs have which value of an attribute, e.g. ``partition``."""
        key = wanted, name
        if key not in self._counts:
            self._counts[key] = dict(Counter(map(attrgetter(name), self._filter(self._jobs, wanted))))
        return self._counts[key]

    def _sort(self, column: Column, descending: bool) -> tuple[Job, ...]:
        order = self._orders.get((column, descending))
        if order is None:
            value = _VALUES[column]
            by_id = sorted(self._jobs, key=_VALUES[Column.ID])
            keyed = [(value(job), job) for job in by_id]
            rest = [job for key, job in keyed if key is None]
            found = sorted((pair for pair in keyed if pair[0] is not None), key=lambda p: p[0], reverse=descending)
            order = self._orders[(column, descending)] = tuple([job for _, job in found] + rest)
        return order

    def _filter(self, jobs: Sequence[Job], wanted: JobFilter) -> Sequence[Job]:
        found = jobs
        # One pass for each condition that is set: most tables have one or two.
        if wanted.user_name is not None:
            found = [job for job in found if job.user_name == wanted.user_name]
        if wanted.states:
            found = [job for job in found if job.state in wanted.states]
        for name in ("partition", "account", "qos"):
            if value := getattr(wanted, name):
                take = attrgetter(name)
                found = [job for job in found if take(job) == value]
        if wanted.held is not None:
            found = [job for job in found if job.held is wanted.held]
        if words := wanted.text.casefold().split():
            texts = self._get_texts()
            for word in words:
                found = [job for job in found if word in texts[job.id]]
        return found

    def _get_texts(self) -> dict[str, str]:
        """Return what is searched of each job, by its id; made when somebody searches."""
        if self._texts is None:
            self._texts = {}
            for job in self._jobs:
                parts = (job.id, job.shown_id, job.name, job.user_name, job.account, job.partition, *job.node_names)
                self._texts[job.id] = "\n".join((*parts, job.word, job.waiting_for, job.detail)).casefold()
        return self._texts
