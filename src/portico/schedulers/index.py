"""A queue as a table: filtered, sorted, in pages, and counted. Pure; quick with tens of thousands of jobs.

Made once of each answer of a scheduler and shared by all who look. Who may see which jobs, the caller decides and says
with ``user_name``.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final

from portico.schedulers.protocol import Job, JobState

PAGE_LIMIT: Final = 500
FEW: Final = 8
"""Where a search finds less than one job in so many, those are sorted, and not the whole table looked through."""


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
    """A table of jobs that does not change."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = tuple(jobs)
        self._orders: dict[tuple[Column, bool], Sequence[Job]] = {}
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
        few = self._find_few(wanted.text.casefold().split())
        if few is None:
            found = _filter(self._sort(column, descending), wanted)
        else:
            found = _sort(_filter(few, wanted), column, descending)
        offset, limit = max(0, offset), max(1, min(limit, PAGE_LIMIT))
        return Page(tuple(found[offset : offset + limit]), len(found), offset)

    def count(self, wanted: JobFilter, name: str) -> dict[str, int]:
        """Return how many of the filtered jobs have which value of an attribute, e.g. ``partition``."""
        key = wanted, name
        if key not in self._counts:
            found: Sequence[Job] = self._jobs
            if wanted.user_name is not None:
                found = self._own.get(wanted.user_name, NOTHING)._jobs
            self._counts[key] = dict(Counter(map(attrgetter(name), _filter(found, wanted))))
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
    def _in_order(self) -> list[Job]:
        return sorted(self._jobs, key=_VALUES[Column.ID])

    def _sort(self, column: Column, descending: bool) -> Sequence[Job]:
        key = column, descending
        if key not in self._orders:
            self._orders[key] = _sort(self._in_order, column, descending, in_order=True)
        return self._orders[key]

    @cached_property
    def _text(self) -> tuple[str, list[int]]:
        """What is searched, of all jobs in one, and where each job's begins; made when somebody searches."""
        texts = [job.search_text for job in self._jobs]
        return "\0".join(texts), list(accumulate((len(text) + 1 for text in texts), initial=0))

    def _find_few(self, words: list[str]) -> list[Job] | None:
        """Return the jobs with the rarest of these words; None where that is no rare one, or there is none.

        One search through all texts at once costs a tenth of a look at each job.
        """
        if not words:
            return None
        text, begins = self._text
        word = min(words, key=text.count)
        if text.count(word) * FEW > len(self._jobs):
            return None
        found, at = [], text.find(word)
        while at >= 0:
            number = bisect_right(begins, at) - 1
            found.append(self._jobs[number])
            at = text.find(word, begins[number + 1])
        return found


NOTHING: Final = JobIndex(())


def _sort(jobs: Sequence[Job], column: Column, descending: bool, *, in_order: bool = False) -> Sequence[Job]:
    value = _VALUES[column]
    by_id = jobs if in_order else sorted(jobs, key=_VALUES[Column.ID])
    try:
        return sorted(by_id, key=value, reverse=descending)
    except TypeError:  # some have None there
        having = [job for job in by_id if value(job) is not None]
        return sorted(having, key=value, reverse=descending) + [job for job in by_id if value(job) is None]


def _filter(jobs: Sequence[Job], wanted: JobFilter) -> Sequence[Job]:
    """Return the jobs that a filter lets through, whosever they are."""
    found = jobs
    # One pass for each condition that is set: most tables have one or two.
    if wanted.states:
        found = [job for job in found if job.state in wanted.states]
    for name in ("partition", "account", "qos"):
        if value := getattr(wanted, name):
            take = attrgetter(name)
            found = [job for job in found if take(job) == value]
    if wanted.held is not None:
        found = [job for job in found if job.held is wanted.held]
    for word in wanted.text.casefold().split():
        found = [job for job in found if word in job.search_text]
    return found
