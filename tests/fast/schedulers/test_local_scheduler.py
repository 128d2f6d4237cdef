"""The embedded scheduler against machines with vices: order, limits, restarts, and starts that happen once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from machines import (
    AgentThatLies,
    AgentThatVanishes,
    BrokerInAHurry,
    BrokerThatIsAway,
    BrokerThatRefuses,
    FakeMachine,
    Job,
    SlowAgent,
)

from portico.errors import Conflict, Invalid, PorticoError, Unavailable
from portico.model import Reason
from portico.schedulers import local
from portico.schedulers.local import ATTEMPTS, OVERDUE, SETTLE, STOP_GRACE, LocalScheduler
from portico.schedulers.protocol import Capacity, JobRequest, JobState

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GB = 10**9


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Place:
    """A scheduler on a machine, and a new one on the same spool when it is told to begin again."""

    def __init__(self, folder: Path, machine: FakeMachine, capacity: Capacity) -> None:
        self.folder, self.machine, self.capacity, self.clock = folder, machine, capacity, Clock()
        self.begin()

    def begin(self) -> None:
        self.scheduler = LocalScheduler(self.folder, self.machine, self.capacity, self.clock)

    async def submit(self, number: int, cores: float = 1, user: str = "alice", hours: float = 1) -> str:
        key = f"k{number:011d}"
        self.machine.jobs.setdefault(key, Job(user))
        await self.scheduler.submit(
            JobRequest(key, user, cores, GB, hours * 3600, START + timedelta(seconds=number), ("/job",), (("A", "b"),))
        )
        return key

    async def states(self) -> dict[str, JobState]:
        return {key: status.state for key, status in (await self.scheduler.query()).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "local"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_the_oldest_waits_until_it_fits_and_nobody_overtakes(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(4, 8 * GB))
        first, large, small = await place.submit(1, 2), await place.submit(2, 3), await place.submit(3, 1)
        status = await place.scheduler.query()
        assert place.machine.launched == [first]
        assert status[large].waiting_for == "1 more core to become free"
        assert status[small].waiting_for == "its turn: number 2 in the queue"
        place.machine.end(first)
        await place.scheduler.query()
        await place.scheduler.query()
        assert place.machine.launched == [first, large, small]
        assert (await place.scheduler.get_capacity()).cores_held == 4

    run(test())


def test_the_order_survives_a_restart_and_nothing_is_started_twice(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(1, 8 * GB))
        keys = [await place.submit(number) for number in (3, 1, 2)]
        await place.scheduler.query()
        place.begin()
        for _ in range(3):
            await place.scheduler.query()
            place.machine.end(place.machine.launched[-1])
            await place.scheduler.query()
        assert place.machine.launched == sorted(keys)
        assert all(state is JobState.ENDED for state in (await place.states()).values())

    run(test())


def test_killed_between_the_note_and_the_start_it_starts(folder: Path) -> None:
    class DiesBefore(FakeMachine):
        async def launch(self, request: JobRequest, deadline: datetime) -> None:
            raise asyncio.CancelledError

    class DiesAfter(FakeMachine):
        async def launch(self, request: JobRequest, deadline: datetime) -> None:
            await super().launch(request, deadline)
            raise asyncio.CancelledError

    async def test(machine: FakeMachine, at: Path) -> None:
        place = Place(at, machine, Capacity(1, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        place.machine = FakeMachine(machine.jobs)
        place.begin()
        await place.scheduler.query()
        await place.scheduler.query()
        assert (await place.states())[key] is JobState.RUNNING
        assert machine.jobs[key].starts == 1

    run(test(DiesBefore(), folder / "before"))
    run(test(DiesAfter(), folder / "after"))


def test_a_start_whose_agent_vanished_counts_if_it_happened(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, AgentThatVanishes(), Capacity(1, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        assert (await place.states())[key] is JobState.RUNNING
        assert place.machine.jobs[key].starts == 1

    run(test())


def test_a_start_that_is_still_under_way_is_not_disturbed(folder: Path) -> None:
    class TakesItsTime(FakeMachine):
        """The agent died, and the shepherd that it forked has not yet written that it runs."""

        async def _look(self, user_name: str, args: dict[str, Any]) -> dict[str, Any]:
            return {**await super()._look(user_name, args), "running": False}

    async def test() -> None:
        place = Place(folder, TakesItsTime(), Capacity(1, 8 * GB))
        key = await place.submit(1)
        place.machine.jobs[key].running, place.machine.jobs[key].starts = True, 1
        place.scheduler._spool.change(key, forking=True, started=START, deadline=START + timedelta(hours=1))
        place.begin()
        for _ in range(3):
            assert (await place.states())[key] is JobState.QUEUED
        assert place.machine.jobs[key].running
        place.clock.advance(SETTLE.total_seconds())  # then it never will
        await place.scheduler.query()
        assert not place.machine.jobs[key].running

    run(test())


def test_a_refused_start_ends_with_the_reason_and_frees_its_place(folder: Path) -> None:
    async def test(error: PorticoError, attempts: int) -> None:
        machine = BrokerThatRefuses(error, attempts)
        place = Place(folder / str(attempts), machine, Capacity(1, 8 * GB))
        first, second = await place.submit(1), await place.submit(2)
        for _ in range(2 * attempts):  # a start, and a look at what became of it
            await place.scheduler.query()
        status = (await place.scheduler.query())[first]
        assert (status.state, status.reason, status.detail) == (JobState.ENDED, Reason.NOT_STARTED, "No. Why.")
        assert machine.launched == [second]

    run(test(Conflict("No.", why="Why."), 1))
    run(test(Unavailable("No.", why="Why."), ATTEMPTS))


def test_the_brokers_own_limit_is_not_the_jobs_fault(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, BrokerInAHurry(ATTEMPTS * 3), Capacity(1, 8 * GB))
        key = await place.submit(1)
        for _ in range(ATTEMPTS * 3):
            assert (await place.states())[key] is JobState.QUEUED
        assert (await place.states())[key] is JobState.RUNNING

    run(test())


def test_while_the_broker_is_away_nothing_is_lost(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, BrokerThatIsAway(), Capacity(1, 8 * GB))
        key = await place.submit(1)
        with pytest.raises(Unavailable):
            await place.scheduler.query()
        place.machine = FakeMachine(place.machine.jobs)
        place.begin()
        assert (await place.states())[key] is JobState.RUNNING

    run(test())


def test_one_users_hanging_agent_holds_up_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_S", 0.02)

    async def test() -> None:
        place = Place(folder, SlowAgent("alice"), Capacity(3, 8 * GB))
        hers, his = await place.submit(1, user="alice"), await place.submit(2, user="bob")
        states = await place.states()
        assert states == {hers: JobState.QUEUED, his: JobState.RUNNING}
        place.machine.end(his)
        assert (await place.states())[his] is JobState.ENDED
        await place.scheduler.close()

    run(test())


def test_one_question_for_all_cells_however_many_jobs(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(100, 100 * GB))
        for number in range(50):
            await place.submit(number)
        await place.scheduler.query()
        place.machine.asked.clear()
        place.machine.cell_questions = 0
        await place.scheduler.query()
        assert (place.machine.cell_questions, place.machine.asked) == (1, [])

    run(test())


@pytest.mark.parametrize("has_cells", [True, False])
def test_stopping_is_gentle_then_not(folder: Path, has_cells: bool) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(has_cells=has_cells), Capacity(2, 8 * GB))
        good, deaf = await place.submit(1), await place.submit(2)
        await place.scheduler.query()
        place.machine.jobs[deaf].deaf = True
        for key in (good, deaf):
            await place.scheduler.cancel(key, Reason.STOPPED)
            await place.scheduler.cancel(key, Reason.STOPPED_BY_ADMIN)  # the first word counts
        await asyncio.sleep(0)
        status = await place.scheduler.query()
        assert (status[good].reason, status[deaf].state) == (Reason.STOPPED, JobState.RUNNING)
        assert place.machine.jobs[deaf].signals == ["TERM"]
        place.clock.advance(STOP_GRACE.total_seconds())
        await place.scheduler.query()
        assert (await place.scheduler.query())[deaf].reason is Reason.STOPPED
        assert not place.machine.jobs[deaf].running

    run(test())


def test_one_that_is_stopped_while_it_starts_gets_its_term_afterwards(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(1, 8 * GB))
        gate = asyncio.Event()
        launch = place.machine.launch

        async def launch_late(request: JobRequest, deadline: datetime) -> None:
            await gate.wait()
            await launch(request, deadline)

        place.machine.launch = launch_late  # type: ignore[method-assign]
        key = await place.submit(1)
        await place.scheduler.query()
        await place.scheduler.cancel(key, Reason.STOPPED)
        gate.set()
        await asyncio.sleep(0.01)
        assert place.machine.jobs[key].signals == ["TERM"]
        assert (await place.scheduler.query())[key].reason is Reason.STOPPED

    run(test())


@pytest.mark.parametrize("has_cells", [True, False])
def test_the_limit_holds_though_the_shepherd_does_not(folder: Path, has_cells: bool) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(has_cells=has_cells), Capacity(1, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        place.clock.advance(3600)
        assert (await place.states())[key] is JobState.RUNNING  # the shepherd's own time
        await place.scheduler.extend(key, place.clock() + timedelta(hours=1))
        place.clock.advance(3600 + OVERDUE.total_seconds())
        await place.scheduler.query()
        assert (await place.scheduler.query())[key].reason is Reason.TIME_LIMIT
        assert not place.machine.jobs[key].running

    run(test())


def test_what_ended_by_itself_long_ago_did_not_hit_the_limit(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(1, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        place.machine.end(key)
        place.clock.advance(10 * 3600)
        place.begin()
        assert (await place.scheduler.query())[key].reason is Reason.FINISHED

    run(test())


def test_reasons(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(10, 80 * GB))
        keys = [await place.submit(number) for number in range(6)]
        await place.scheduler.query()
        jobs, end = place.machine.jobs, place.machine.end
        end(keys[0], 0)
        end(keys[1], 3)
        end(keys[2], None, number=11)
        end(keys[3], 137)
        jobs[keys[3]].oom_kills = 1
        jobs[keys[4]].running, jobs[keys[4]].this_boot = False, False
        end(keys[5], 0, why="time-limit")
        found = await place.scheduler.query()
        assert [(found[key].reason, found[key].detail) for key in keys] == [
            (Reason.FINISHED, ""),
            (Reason.FAILED, "exit status 3"),
            (Reason.FAILED, "signal 11 (SIGSEGV)"),
            (Reason.OUT_OF_MEMORY, ""),
            (Reason.LOST, "the machine was restarted"),
            (Reason.TIME_LIMIT, ""),
        ]

    run(test())


def test_lies_in_the_users_own_files_stay_small(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, AgentThatLies(), Capacity(1, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        place.machine.end(key)
        status = (await place.scheduler.query())[key]
        assert (status.reason, status.detail) == (Reason.FAILED, "exit status unknown")

    run(test())


def test_a_removed_account_ends_its_jobs(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(1, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        place.machine.gone.add("alice")
        place.machine.jobs[key].running = False
        status = (await place.scheduler.query())[key]
        assert (status.state, status.reason) == (JobState.ENDED, Reason.LOST)

    run(test())


def test_the_impossible_is_refused_and_names_what_there_is(folder: Path) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(2, 8 * GB))
        with pytest.raises(Invalid, match="offers 2 cores in all") as error:
            await place.submit(1, 3)
        assert error.value.field == "cores"
        assert await place.scheduler.query() == {}

    run(test())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00\xff",
        "null",
        '{"request": 5}',
        "[" * 100_000,
        json.dumps({"request": {"key": "k00000000009"}}),
    ],
)
def test_a_broken_spool_file_stops_no_other(folder: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(2, 8 * GB))
        key = await place.submit(1)
        (folder / "k00000000009.json").write_text(text)
        place.begin()
        assert await place.states() == {key: JobState.RUNNING}
        assert "k00000000009.json" in caplog.text
        assert (folder / "k00000000009.json").exists()

    run(test())


@pytest.mark.parametrize(
    ("name", "value"),
    [("cores", "many"), ("cores", -1), ("memory_bytes", None), ("submitted", "2026-01-01T00:00:00"), ("env", [["a"]])],
)
def test_a_spool_file_with_one_wrong_value_is_left_out(folder: Path, name: str, value: object) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(2, 8 * GB))
        key, other = await place.submit(1), await place.submit(2)
        path = folder / f"{key}.json"
        entry = json.loads(path.read_text())
        entry["request"][name] = value
        path.write_text(json.dumps(entry))
        place.begin()
        assert await place.states() == {other: JobState.RUNNING}

    run(test())


def test_a_full_disk_refuses_what_is_new_and_keeps_what_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        place = Place(folder, FakeMachine(), Capacity(2, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("portico.schedulers.spool.os.fsync", fail)
        with pytest.raises(Unavailable, match="could not be written"):
            await place.submit(2)
        await place.scheduler.cancel(key, Reason.STOPPED)
        await asyncio.sleep(0)
        assert (await place.scheduler.query())[key].reason is Reason.STOPPED
        with contextlib.suppress(FileNotFoundError):
            assert list(folder.glob("*.new")) == []

    run(test())


def test_a_defect_with_one_job_stays_with_it(folder: Path) -> None:
    class Broken(FakeMachine):
        async def look(self, user_name: str, key: str) -> dict[str, Any]:
            if user_name == "alice":
                raise RuntimeError("a defect")
            return await super().look(user_name, key)

    async def test() -> None:
        place = Place(folder, Broken(), Capacity(2, 8 * GB))
        hers, his = await place.submit(1, user="alice"), await place.submit(2, user="bob")
        await place.scheduler.query()
        place.machine.end(hers)
        place.machine.end(his)
        assert await place.states() == {hers: JobState.RUNNING, his: JobState.ENDED}

    run(test())


def test_one_that_cannot_be_looked_at_is_tried_ever_less_often(folder: Path) -> None:
    class Broken(FakeMachine):
        looks = 0

        async def look(self, user_name: str, key: str) -> dict[str, Any]:
            self.looks += 1
            raise Unavailable("The file server does not answer.")

    async def test() -> None:
        machine = Broken()
        place = Place(folder, machine, Capacity(2, 8 * GB))
        key = await place.submit(1)
        await place.scheduler.query()
        machine.end(key)
        for _ in range(60):
            assert (await place.states())[key] is JobState.RUNNING
            place.clock.advance(1)
        assert 4 <= machine.looks <= 7

    run(test())
