"""The table of jobs: what a filter lets through, in which order, in which page."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from portico.schedulers.index import PAGE_LIMIT, Column, JobFilter, JobIndex
from portico.schedulers.protocol import Job, JobState

START = datetime(2026, 1, 2, tzinfo=UTC)
JOBS = [
    Job("9", "alice", JobState.RUNNING, "RUNNING", name="Fluid", partition="batch", cores=4, submitted=START,
        started=START + timedelta(hours=1), node_names=("n7",)),
    Job("10", "alice", JobState.QUEUED, "PENDING", name="grid", partition="batch", position=2, submitted=START, held=True),
    Job("11", "bob", JobState.QUEUED, "PENDING", name="Grid", partition="short", position=1, waiting_for="its turn",
        submitted=START + timedelta(hours=2)),
    Job("12", "bob", JobState.ENDED, "FAILED", name="fluid two", partition="short", account="proj2"),
]  # fmt: skip
INDEX = JobIndex(JOBS)
ALL = JobFilter()


def ids(wanted: JobFilter = ALL, column: Column = Column.ID, descending: bool = False) -> str:
    return " ".join(job.id for job in INDEX.find_page(wanted, column, descending=descending).jobs)


def test_filters() -> None:
    assert ids() == "9 10 11 12"
    assert ids(JobFilter(user_name="alice")) == "9 10" and ids(JobFilter(user_name="")) == ""
    assert ids(JobFilter(states=frozenset({JobState.QUEUED}))) == "10 11"
    assert ids(JobFilter(partition="short", account="proj2")) == "12"
    assert ids(JobFilter(held=True)) == "10" and ids(JobFilter(held=False)) == "9 11 12"
    assert ids(JobFilter(text="FLUID")) == "9 12" and ids(JobFilter(text="fluid bob")) == "12"
    assert ids(JobFilter(text="n7")) == "9" and ids(JobFilter(text="turn")) == "11" and ids(JobFilter(text="x")) == ""


def test_order_has_what_lacks_a_value_last_either_way() -> None:
    assert ids(column=Column.POSITION) == "11 10 9 12" and ids(column=Column.POSITION, descending=True) == "10 11 9 12"
    assert ids(column=Column.STARTED, descending=True) == "9 10 11 12"
    assert ids(column=Column.NAME) == "9 12 10 11" and ids(column=Column.STATE) == "9 10 11 12"
    assert ids(column=Column.ID, descending=True) == "12 11 10 9"  # numbers, not texts


def test_pages_are_bounded() -> None:
    page = INDEX.find_page(offset=1, limit=2, column=Column.ID, descending=False)
    assert ([job.id for job in page.jobs], page.total, page.offset) == (["10", "11"], 4, 1)
    assert INDEX.find_page(offset=99).jobs == () and INDEX.find_page(offset=-5).offset == 0
    many = JobIndex([replace(JOBS[0], id=str(n)) for n in range(PAGE_LIMIT + 9)])
    assert len(many.find_page(limit=10**9).jobs) == PAGE_LIMIT


def test_counts() -> None:
    assert INDEX.count(JobFilter(), "partition") == {"batch": 2, "short": 2}
    assert INDEX.count(JobFilter(user_name="bob"), "state") == {"queued": 1, "ended": 1}


@given(st.sampled_from(list(Column)), st.booleans(), st.integers(1, 5))
def test_pages_together_are_the_table(column: Column, descending: bool, limit: int) -> None:
    seen: list[str] = []
    while page := INDEX.find_page(column=column, descending=descending, offset=len(seen), limit=limit).jobs:
        seen += [job.id for job in page]
    assert sorted(seen) == sorted(job.id for job in JOBS)
