"""Batch jobs of the embedded scheduler: what is refused, who is next, what is kept, and what is left after a failure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from machines import FakeMachine

from portico.errors import Conflict, Invalid, NotFound, PorticoError, TooMany, Unavailable
from portico.model import Reason
from portico.schedulers import batch, local_batch, past
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Action, Capacity, JobOptions, JobRef, JobRequest, JobState
from portico.schedulers.spool import Entry
from portico.wire import Json

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GB = 10**9
SCRIPT = b"#!/bin/sh\necho caf\xc3\xa9\n"


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Place:
    """A scheduler on a machine, and a new one on the same spool when it is told to begin again."""

    def __init__(self, folder: Path, machine: FakeMachine | None = None, batch_cores: float | None = None) -> None:
        self.folder, self.machine, self.clock, self.batch_cores = folder, machine or FakeMachine(), Clock(), batch_cores
        self.numbers = 0
        self.begin()

    def begin(self) -> None:
        capacity = Capacity(4, 8 * GB)
        self.scheduler = LocalScheduler(
            self.folder / "local", self.machine, capacity, self.clock, batch_cores=self.batch_cores, longest_s=7200
        )

    def make(self, user: str = "alice", script: bytes = SCRIPT, **more: Any) -> JobRequest:
        self.numbers += 1
        options = JobOptions(**{n: more.pop(n) for n in list(more) if n in JobOptions.__dataclass_fields__})
        values = {"cores": 0.0, "memory_bytes": 0, "time_limit_s": 0.0} | more
        at = START + timedelta(seconds=self.numbers / 1000)
        return JobRequest(
            f"k{self.numbers:011d}", user, submitted=at, script=script, options=options, batch=True, **values
        )

    async def submit(self, user: str = "alice", **more: Any) -> str:
        request = self.make(user, **more)
        await self.scheduler.submit(request)
        return request.key

    async def start_session(self, cores: float, user: str = "alice") -> str:
        self.numbers += 1
        key = f"s{self.numbers:011d}"
        await self.machine.ask(user, "prepare", {"session": key, "record": {}, "files": {}})
        at = START + timedelta(seconds=self.numbers / 1000)
        await self.scheduler.submit(JobRequest(key, user, cores, GB, 3600, at, ("/job",)))
        return key

    async def states(self) -> dict[str, JobState]:
        return {key: status.state for key, status in (await self.scheduler.query()).items()}

    async def wait_for(self, key: str) -> str:
        return (await self.scheduler.query())[key].waiting_for

    async def end(self, key: str, status: int = 0) -> None:
        """Let a job end by itself, and be noticed."""
        self.machine.end(key, status)
        await self.scheduler.query()
        await asyncio.sleep(0)

    async def act(self, key: str, action: Action, user: str = "alice") -> None:
        await self.scheduler.act(user, JobRef(key), action)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


# what is asked for


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, "a\nb") for name in ("name", "partition", "array", "dependency", "folder", "output", "error")]
    + [(name, "x") for name in ("account", "qos", "gres", "constraint", "reservation", "partition", "folder", "array")]
    + [("exclusive", True), ("requeue", True), ("nodes", 2), ("nodes", -1), ("tasks", -1), ("tasks", 10**6)]
    + [("array", text) for text in ("1-", "5-1", "1-10:0", "1-3%0", "0-999999999", "1,2\n", "1%")]
    + [("dependency", text) for text in ("afterok", "afterok:", "after:k00000000001", "afterok:12", "singleton")]
    + [("begin_after_s", float("nan")), ("begin_after_s", -1), ("name", "x" * 101), ("output", "/\x1b[2J")],
)
def test_what_makes_no_sense_is_refused_at_its_field(place: Place, field: str, value: object) -> None:
    async def test() -> None:
        for ask in (place.scheduler.submit, lambda request: place.scheduler.check(request, ())):
            with pytest.raises(Invalid) as refused:
                await ask(place.make(**{field: value}))
            assert refused.value.field == field and refused.value.message.endswith((".", "%."))
        assert await place.scheduler.query() == {} and place.machine.asked == []

    run(test())


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("cores", {"cores": 5}), ("cores", {"cores": 2, "tasks": 3}), ("cores", {"cores": 0.01}),
        ("memory_gb", {"memory_bytes": 9 * GB}), ("memory_gb", {"memory_bytes": 1000}),
        ("hours", {"time_limit_s": 7201}), ("hours", {"time_limit_s": 0.1}), ("hours", {"time_limit_s": float("nan")}),
    ],
)  # fmt: skip
def test_too_much_and_too_little(place: Place, field: str, more: dict[str, float]) -> None:
    async def test() -> None:
        with pytest.raises(Invalid) as refused:
            await place.submit(**more)
        assert refused.value.field == field

    run(test())


@pytest.mark.parametrize(
    "script",
    [b"", b"echo\n", b"#!/bin/sh\r\n", b"\xef\xbb\xbf#!/bin/sh\n", b"#!/bin/sh\n\0", b"#!/bin/sh\n\xff",
     b"#!/bin/sh\n" + b"#" * 98304, b"#!/bin/sh\n" + "é".encode() * 20000],
)  # fmt: skip
def test_no_script(place: Place, script: bytes) -> None:
    async def test() -> None:
        with pytest.raises(Invalid) as refused:
            await place.submit(script=script)
        assert refused.value.field == "script"

    run(test())


def test_defaults_files_and_environment(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        (entry,) = place.scheduler._spool
        asked = entry.request
        assert (asked.cores, asked.memory_bytes, asked.time_limit_s) == (1, 2 * GB, 3600)
        assert asked.argv == (f"/home/alice/{key}/job.sh",)
        assert dict(asked.env)["PORTICO_SESSION"] == key and dict(asked.env)["PORTICO_CORES"] == "1"
        details = await place.scheduler.describe("alice", JobRef(key))
        assert (details.folder, details.output) == ("/home/alice", f"/home/alice/portico-{key}.out")
        assert details.error == details.output
        wanted = {"folder": "/data", "output": "%x/%j-%u%%", "error": "/e-%q", "name": "a/b", "tasks": 2}
        other = await place.submit(**wanted)
        details = await place.scheduler.describe("alice", JobRef(other))
        assert (details.output, details.error) == (f"/data/a_b/{other}-alice%", "/e-%q")
        assert await place.scheduler.read_script("alice", JobRef(other)) == SCRIPT
        (offer,) = await place.scheduler.find_offers("alice", ())
        assert (offer.max_time_s, offer.default_time_s) == (7200, 3600)

    run(test())


def test_what_the_script_asks_for_counts_and_is_checked(place: Place) -> None:
    async def test() -> None:
        await place.submit(script=b"#!/bin/sh\n#SBATCH -c 2 --array=1-2 -o %a.txt\ntrue\n")
        outputs = [(one.request.cores, one.request.options.output) for one in place.scheduler._spool]
        assert sorted(outputs) == [(2, "/home/alice/1.txt"), (2, "/home/alice/2.txt")]
        for line, field in (("--gres=gpu:1", "gres"), ("-c 5", "cores"), ("-t 1-0", "hours"), ("--what", "script")):
            with pytest.raises(Invalid) as refused:
                await place.submit(script=f"#!/bin/sh\n#SBATCH {line}\n".encode())
            assert refused.value.field == field

    run(test())


# who is next


def test_sessions_come_before_jobs_and_jobs_keep_to_their_cores(tmp_path: Path) -> None:
    async def test() -> None:
        place = Place(tmp_path, batch_cores=2)
        with pytest.raises(Invalid, match="offers 2 cores"):
            await place.submit(cores=3)
        jobs = [await place.submit(cores=1) for _ in range(3)]
        await place.scheduler.query()
        assert place.machine.launched == jobs[:2], "the third would be one core too many"
        session = await place.start_session(3)
        assert await place.wait_for(session) == "1 more core to become free"
        assert await place.wait_for(jobs[2]) == "its turn: number 2 in the queue"
        await place.end(jobs[0])
        assert (await place.states())[session] is JobState.RUNNING
        assert (await place.states())[jobs[2]] is JobState.QUEUED
        await place.end(session)
        assert (await place.states())[jobs[2]] is JobState.RUNNING

    run(test())


def test_hold_release_and_limits(place: Place) -> None:
    async def test() -> None:
        held, other = await place.submit(held=True), await place.submit()
        assert (await place.states()) == {held: JobState.QUEUED, other: JobState.RUNNING}, "it holds up nobody"
        assert "release" in await place.wait_for(held)
        (shown,) = [job for job in (await place.scheduler.list_jobs()).jobs if job.id == held]
        assert shown.held and shown.position == 0
        place.begin()
        await place.scheduler.change_limit("alice", JobRef(held), 1800)
        await place.act(held, Action.RELEASE)
        status = (await place.scheduler.query())[held]
        assert status.deadline and status.started
        assert status.deadline - status.started == timedelta(seconds=1800)
        for action in (Action.HOLD, Action.SUSPEND, Action.REQUEUE):
            with pytest.raises(Conflict):
                await place.act(held, action)
        place.clock.advance(600)
        await place.scheduler.change_limit("alice", JobRef(held), 3000)
        assert place.machine.jobs[held].deadline == (status.started + timedelta(seconds=3000)).timestamp()
        for limit_s in (7201, 500, 0, float("inf")):
            with pytest.raises(Invalid):
                await place.scheduler.change_limit("alice", JobRef(held), limit_s)
        await place.end(held)
        with pytest.raises(Conflict):
            await place.scheduler.change_limit("alice", JobRef(held), 1000)

    run(test())


def test_another_users_job_and_a_sessions(place: Place) -> None:
    async def test() -> None:
        key, session = await place.submit(), await place.start_session(1)
        await place.scheduler.query()
        for work in (
            place.act(key, Action.CANCEL, "bob"), place.act(key, Action.HOLD, "bob"),
            place.scheduler.describe("bob", JobRef(key)), place.scheduler.read_script("bob", JobRef(key)),
            place.scheduler.change_limit("bob", JobRef(key), 60),
        ):  # fmt: skip
            with pytest.raises(NotFound):
                await work
        for work in (
            place.act(session, Action.HOLD), place.scheduler.read_script("alice", JobRef(session)),
            place.scheduler.change_limit("alice", JobRef(session), 60),
        ):  # fmt: skip
            with pytest.raises(Conflict, match="session"):
                await work
        with pytest.raises(Invalid, match="no job"):
            await place.submit("bob", dependency=f"afterany:{key}")

    run(test())


def test_dependencies(place: Place) -> None:
    async def test() -> None:
        first = await place.submit()
        after = {
            kind: await place.submit(dependency=f"{kind}:{first}") for kind in ("afterok", "afterany", "afternotok")
        }
        assert await place.wait_for(after["afterok"]) == f"job {first} to end"
        await place.end(first, 1)
        await place.scheduler.forget(first)
        place.begin()
        found = await place.scheduler.query()
        assert found[after["afterok"]].reason is Reason.NOT_STARTED
        assert "did not succeed" in found[after["afterok"]].detail
        assert {found[after[kind]].state for kind in ("afterany", "afternotok")} == {JobState.RUNNING}

    run(test())


def test_an_array_runs_so_many_at_once_and_others_wait_for_all(place: Place) -> None:
    async def test() -> None:
        request = place.make(array="1-4%2")
        await asyncio.gather(*(place.scheduler.submit(request) for _ in range(3)))
        tasks = [request.key, *(batch.make_task_key(request.key, number) for number in (2, 3, 4))]
        later = await place.submit(dependency=f"afterok:{request.key}")
        assert set(await place.states()) == {*tasks, later}
        assert len(place.machine.launched) == 2
        assert [job.shown_id for job in (await place.scheduler.list_jobs()).jobs if job.array_id] == [
            f"{request.key}_{dict(entry.request.env)['PORTICO_ARRAY_TASK_ID']}"
            for entry in place.scheduler._spool
            if entry.request.key != later
        ]
        for _ in range(4):
            assert (await place.states())[later] is JobState.QUEUED
            states = await place.states()
            await place.end(next(key for key in place.machine.launched if states[key] is JobState.RUNNING))
        assert (await place.states())[later] is JobState.RUNNING

    run(test())


def test_one_that_begins_later(place: Place) -> None:
    async def test() -> None:
        key = await place.submit(begin_after_s=3600)
        assert "time" in await place.wait_for(key)
        place.clock.advance(3601)
        assert (await place.states())[key] is JobState.RUNNING

    run(test())


def test_a_user_has_so_many_jobs_and_no_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_batch, "LIVE_PER_USER", 5)

    async def test() -> None:
        await place.submit(array="1-4")
        with pytest.raises(TooMany):
            await place.submit(array="1-2")
        await place.submit()
        await place.submit("bob")

    run(test())


# what is kept


def test_history_outlives_restarts_and_has_no_sessions(place: Place) -> None:
    async def test() -> None:
        key, session = await place.submit(name="first"), await place.start_session(1)
        await place.scheduler.query()
        place.machine.jobs[key].oom_kills = 0
        place.clock.advance(60)
        for one in (key, session):
            await place.end(one, 3)
            await place.scheduler.forget(one)
        assert key not in place.machine.jobs, "its folder is removed"
        assert session in place.machine.jobs
        assert await place.scheduler.query() == {}
        for _ in range(2):
            (job,) = await place.scheduler.list_history("alice", START)
            assert (job.id, job.name, job.reason, job.detail, job.used_s) == (
                key, "first", Reason.FAILED, "exit status 3", 60,
            )  # fmt: skip
            assert await place.scheduler.read_script("alice", JobRef(key)) == SCRIPT
            assert [job.id for job in (await place.scheduler.list_jobs()).jobs] == [key], "the table shows it a while"
            assert await place.scheduler.list_history("bob", START) == []
            place.begin()
        await place.scheduler.submit(replace(place.make(), key=key))
        assert await place.scheduler.query() == {}, "the same key a second time"
        with pytest.raises(Conflict, match="ended already"):
            await place.act(key, Action.CANCEL)
        place.clock.advance(past.KEPT.total_seconds() + 1)
        assert await place.scheduler.list_history("alice", START) == []
        assert list((place.folder / "local-ended").iterdir()) == []

    run(test())


def test_the_oldest_go_when_a_user_has_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "JOBS_PER_USER", 2)
    history = past.History(tmp_path / "ended")
    for number, user in enumerate(("alice", "bob", "alice", "alice")):
        request = JobRequest(f"k{number:011d}", user, 1, GB, 60, START, script=SCRIPT, batch=True)
        history.add(Entry(request, state=JobState.ENDED, ended=START + timedelta(seconds=number)))
    for found in (history, past.History(tmp_path / "ended")):
        assert [one.request.key[-1] for one in found.iter_since(START)] == ["3", "2", "1"]
        assert all(one.request.script == b"" for one in found.iter_since(START))
        assert found.read_script("k00000000003") == SCRIPT
        with pytest.raises(NotFound):
            found.read_script("k00000000000")


def test_what_a_job_used_is_kept(tmp_path: Path) -> None:
    class Measures(FakeMachine):
        async def cells(self) -> dict[str, Json] | None:
            found = await super().cells() or {}
            return {key: cell | {"memory_bytes": self.used, "cpu_s": 7.5} for key, cell in found.items()}

        used = 500

    async def test() -> None:
        machine = Measures()
        place = Place(tmp_path, machine)
        key = await place.submit()
        await place.scheduler.query()
        await place.scheduler.query()
        machine.used = 100
        await place.end(key)
        await place.scheduler.forget(key)
        place.begin()
        details = await place.scheduler.describe("alice", JobRef(key))
        assert (details.memory_used_bytes, details.cpu_used_s) == (500, 7.5)

    run(test())


@pytest.mark.parametrize(
    ("said", "used_s"), [(30, 30), (-5, 90), (10**6, 90), ("x", 90), (float("nan"), 90), (None, 90)]
)
def test_the_end_is_as_its_shepherd_said_where_that_can_be(place: Place, said: Any, used_s: float) -> None:
    async def test() -> None:
        key = await place.submit()
        await place.scheduler.query()
        place.clock.advance(90)
        place.machine.end(key)
        ended = place.machine.jobs[key].ended
        assert ended is not None
        ended["at"] = START.timestamp() + said if isinstance(said, (int, float)) else said
        await place.scheduler.query()
        (job,) = await place.scheduler.list_history(None, START)
        assert job.used_s == used_s

    run(test())


# what goes wrong


def test_a_full_home_leaves_nothing(tmp_path: Path) -> None:
    class Full(FakeMachine):
        async def _prepare(self, user_name: str, args: Json) -> Json:
            if len(self.jobs) == 2:
                raise Unavailable("Your home folder is full: writing job.sh failed.")
            return await super()._prepare(user_name, args)

    async def test() -> None:
        place = Place(tmp_path, Full())
        with pytest.raises(Unavailable, match="home folder is full"):
            await place.submit(array="1-5")
        assert await place.scheduler.query() == {} and place.machine.jobs == {}
        assert list((tmp_path / "local").iterdir()) == []

    run(test())


def test_a_full_disk_of_porticos_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr("portico.schedulers.spool.os.fsync", fail)
            with pytest.raises(Unavailable, match="could not be written"):
                await place.submit(array="1-5")
        assert await place.scheduler.query() == {} and place.machine.jobs == {}
        key = await place.submit()
        await place.scheduler.query()
        await place.end(key)
        with monkeypatch.context() as full:
            full.setattr("portico.schedulers.spool.os.fsync", fail)
            with pytest.raises(PorticoError):
                await place.scheduler.forget(key)
        assert (await place.states())[key] is JobState.ENDED, "it is not lost between spool and history"

    run(test())


def test_a_spool_of_an_older_portico_is_read(place: Place) -> None:
    async def test() -> None:
        key = await place.start_session(1)
        path = place.folder / f"local/{key}.json"
        entry = json.loads(path.read_text())
        for name in ("held", "ended", "memory_used_bytes", "cpu_used_s"):
            del entry[name]
        path.write_text(json.dumps(entry))
        place.begin()
        assert (await place.states())[key] is JobState.RUNNING

    run(test())
