"""A queue as a table: filtered, sorted, in pages, and counted. Pure; quick with tens of thousands of jobs.

Made once of each answer of a scheduler and shared by all who look. Who may see which jobs, the caller decides and says
with ``user_name``.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import compress, islice, repeat
from operator import and_, attrgetter, contains, eq
from typing import Any, Final

from portico.schedulers.protocol import Job, JobState

PAGE_LIMIT: Final = 500
MASKS: Final = 200
"""Kept at most; a table lives for seconds, and each costs a byte a job."""


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
    Column.USER: attrgetter("user_name"),
    Column.STATE: lambda job: (_ORDER[job.state], job.word),
    Column.PARTITION: attrgetter("partition"),
    Column.ACCOUNT: attrgetter("account"),
    Column.CORES: attrgetter("cores"),
    Column.NODES: attrgetter("nodes"),
    Column.LIMIT: attrgetter("limit_s"),
    Column.USED: attrgetter("used_s"),
    Column.SUBMITTED: attrgetter("submitted"),
    Column.STARTED: attrgetter("started"),
    Column.ENDS: attrgetter("ends"),
    Column.POSITION: lambda job: job.position or None,
    Column.PRIORITY: attrgetter("priority"),
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
    """A table of jobs that does not change.

    What a filter lets through is a mask: a byte for each job, 1 for those. Masks are made and applied without a loop
    of our own, which with ten thousand jobs is ten times as quick; those of a word or a value are kept.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = sorted(jobs, key=_VALUES[Column.ID])
        self._orders: dict[tuple[Column, bool], list[int]] = {}
        self._masks: dict[tuple[str, object], bytes] = {}
        self._counts: dict[tuple[JobFilter, str], dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, job_id: str) -> Job | None:
        """Return the job with that id, or that people know by it: ``13_7`` of an array."""
        return self._by_id.get(job_id)

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
        if wanted.user_name is not None:
            own, wanted = self._own.get(wanted.user_name, NOTHING), replace(wanted, user_name=None)
            return own.find_page(wanted, column, descending=descending, offset=offset, limit=limit)
        offset, limit = max(0, offset), max(1, min(limit, PAGE_LIMIT))
        order, mask = self._sort(column, descending), self._find_mask(wanted)
        if mask is None:
            rows, total = order[offset : offset + limit], len(order)
        else:
            rows = list(islice(compress(order, map(mask.__getitem__, order)), offset, offset + limit))
            total = mask.count(1)
        return Page(tuple(self._jobs[row] for row in rows), total, offset)

    def count(self, wanted: JobFilter, name: str) -> dict[str, int]:
        """Return how many of the filtered jobs have which value of an attribute, e.g. ``partition``."""
        if wanted.user_name is not None:
            return self._own.get(wanted.user_name, NOTHING).count(replace(wanted, user_name=None), name)
        key = wanted, name
        if key not in self._counts:
            mask = self._find_mask(wanted)
            found = self._jobs if mask is None else compress(self._jobs, mask)
            self._counts[key] = dict(Counter(map(attrgetter(name), found)))
        return self._counts[key]

    @cached_property
    def _own(self) -> dict[str, JobIndex]:
        """A table for each user: most tables are of one's own jobs."""
        jobs: dict[str, list[Job]] = {}
        for job in self._jobs:
            jobs.setdefault(job.user_name, []).append(job)
        return {name: JobIndex(own) for name, own in jobs.items()}

    @cached_property
    def _by_id(self) -> dict[str, Job]:
        found = {job.shown_id: job for job in self._jobs}
        return found | {job.id: job for job in self._jobs}

    @cached_property
    def _texts(self) -> list[str]:
        return [job.search_text for job in self._jobs]

    def _sort(self, column: Column, descending: bool) -> list[int]:
        """Return the rows of ``_jobs`` in an order."""
        key = column, descending
        if key not in self._orders:
            values = list(map(_VALUES[column], self._jobs))
            rows = [row for row, value in enumerate(values) if value is not None]
            rows.sort(key=values.__getitem__, reverse=descending)
            self._orders[key] = rows + [row for row, value in enumerate(values) if value is None]
        return self._orders[key]

    def _find_mask(self, wanted: JobFilter) -> bytes | None:
        """Return which jobs a filter lets through, whosever they are; None for all."""
        masks = [self._get_mask("text", word) for word in wanted.text.casefold().split()]
        names = ("partition", "account", "qos")
        masks += [self._get_mask(name, value) for name in names if (value := getattr(wanted, name))]
        if wanted.states:
            masks.append(self._get_mask("state", wanted.states))
        if wanted.held is not None:
            masks.append(self._get_mask("held", wanted.held))
        if not masks:
            return None
        together = reduce(and_, (int.from_bytes(mask, "little") for mask in masks))
        return together.to_bytes(len(self._jobs), "little")

    def _get_mask(self, name: str, value: Any) -> bytes:
        key = name, value
        if (mask := self._masks.get(key)) is None:
            if name == "text":
                mask = bytes(map(contains, self._texts, repeat(value)))
            elif name == "state":
                mask = bytes(job.state in value for job in self._jobs)
            else:
                mask = bytes(map(eq, map(attrgetter(name), self._jobs), repeat(value)))
            if len(self._masks) >= MASKS:
                self._masks.clear()
            self._masks[key] = mask
        return mask


NOTHING: Final = JobIndex(())
