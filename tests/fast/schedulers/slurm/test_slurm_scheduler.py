"""SlurmScheduler over a Slurm with vices: asked once, never given a job twice, never mistaken about whose job it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from slurms import HOUR, KEYS, START, FakeJob, FakeSlurm

from portico.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from portico.model import Reason
from portico.schedulers.kept import Shelf
from portico.schedulers.protocol import Action, Feature, JobOptions, JobRef, JobRequest, JobState, JobStatus, Scheduler
from portico.schedulers.slurm import own
from portico.schedulers.slurm import scheduler as scheduler_module
from portico.schedulers.slurm.scheduler import SlurmScheduler

SCRIPT = b"#!/bin/sh\nexit 0\n"


class Place:
    def __init__(self, folder: Path, **vices: Any) -> None:
        self.folder, self.slurm = folder, FakeSlurm(**vices)
        self.begin()

    def begin(self, **more: Any) -> None:
        """Begin again on the same spool, as after a restart."""
        slurm = self.slurm
        self.scheduler = SlurmScheduler(self.folder, slurm, clock=slurm.clock, timer=slurm.timer, **more)
        typed: Scheduler = self.scheduler
        assert typed

    async def submit(self, user: str = "alice", **options: Any) -> str:
        key = next(KEYS)
        options = {"options": JobOptions(**options)}
        await self.scheduler.submit(JobRequest(key, user, 1, 1 << 20, 60, self.slurm.clock(), script=SCRIPT, **options))
        return key

    async def turn(self, seconds: float = 2.5) -> dict[str, JobStatus]:
        """Let time pass, ask, and let what that began come to its end."""
        self.slurm.advance(seconds)
        await self.scheduler.query()
        for _ in range(50):
            await asyncio.sleep(0)
        return await self.scheduler.query()

    async def follow(self, key: str, seconds: float = 60) -> JobStatus:
        """Take turns until the job has ended or ``seconds`` have passed."""
        end = self.slurm.now + seconds
        while (status := (await self.turn())[key]).state is not JobState.ENDED and self.slurm.now < end:
            pass
        return status


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "spool")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_one_question_an_interval_for_any_number_of_callers(place: Place) -> None:
    async def test() -> None:
        place.slurm.slow_s = 0.01
        for _ in range(100):
            await place.submit()
        for turn in range(1, 4):
            place.slurm.advance(2.1)
            answers = await asyncio.gather(*(place.scheduler.query() for _ in range(200)))
            await asyncio.gather(*(place.scheduler.list_jobs() for _ in range(200)))
            assert place.slurm.count("squeue") == turn and all(len(answer) == 100 for answer in answers)
        assert place.slurm.count("sacct") == place.slurm.count("scontrol") == 0

    run(test())


def test_an_answer_that_takes_long_is_asked_for_less_often(place: Place) -> None:
    async def test() -> None:
        real = place.slurm._squeue
        place.slurm._squeue = lambda user, command: (place.slurm.advance(4), real(user, command))[1]  # type: ignore[method-assign]
        for _ in range(20):
            await place.scheduler.query()
            place.slurm.advance(2.1)
        assert place.slurm.count("squeue") == 3  # one every 20 s, and not 20 of them

    run(test())


def test_a_caller_who_gives_up_takes_nothing_from_the_others(place: Place) -> None:
    async def test() -> None:
        place.slurm.slow_s = 0.05
        key = await place.submit()
        first = asyncio.create_task(place.scheduler.query())
        second = asyncio.create_task(place.scheduler.query())
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second)[key].state is JobState.QUEUED and place.slurm.count("squeue") == 1

    run(test())


def test_from_submission_to_its_end(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        status = (await place.turn())[key]
        assert status.state is JobState.QUEUED and status.waiting_for == "its turn: number 1 in the queue"
        assert status.job_id == "100" and status.position == 1
        place.slurm.start(key)
        status = (await place.turn())[key]
        assert (
            status.state is JobState.RUNNING
            and status.node_names == ("n1",)
            and status.deadline
            and not status.position
        )
        place.slurm.end(key, "FAILED", "3:0", "NonZeroExitCode")
        status = (await place.turn())[key]
        assert (status.state, status.reason, status.detail) == (JobState.ENDED, Reason.FAILED, "exit status 3")
        assert place.slurm.count("sacct") == 1
        await place.turn()
        assert place.slurm.count("sacct") == 1
        await place.scheduler.forget(key)
        assert await place.scheduler.query() == {} and not list(place.folder.iterdir())

    run(test())


def test_the_same_key_twice_is_one_job(place: Place) -> None:
    async def test() -> None:
        place.slurm.slow_s = 0.01
        request = JobRequest("kabcdefghijk", "alice", 1, 0, 0, START, script=SCRIPT)
        await asyncio.gather(*(place.scheduler.submit(request) for _ in range(5)))
        place.begin()
        await place.scheduler.submit(request)
        assert place.slurm.count("sbatch") == 1

    run(test())


def test_a_refusal_is_raised_and_leaves_nothing(place: Place) -> None:
    async def test() -> None:
        place.slurm.refuses = "Invalid qos specification"
        with pytest.raises(Invalid) as refused:
            await place.submit(qos="gold")
        assert refused.value.field == "qos" and await place.scheduler.query() == {}
        with pytest.raises(Invalid):
            await place.submit(name="a\n#SBATCH --exclusive")
        assert place.slurm.count("sbatch") == 1 and not list(place.folder.iterdir())

    run(test())


def test_a_refusal_that_comes_late_ends_the_job(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(own, "SUBMIT_PATIENCE_S", 0.01)
        place.slurm.refuses, place.slurm.slow_s = "Invalid qos specification", 0.05
        key = await place.submit()
        await asyncio.sleep(0.1)
        status = (await place.scheduler.query())[key]
        assert status.reason is Reason.NOT_STARTED and "QOS" in status.detail

    run(test())


# never twice


def test_controller_down_at_submission(place: Place) -> None:
    async def test() -> None:
        place.slurm.down = True
        key = await place.submit()
        status = (await place.turn())[key]
        assert status.state is JobState.QUEUED and "controller does not answer" in status.waiting_for
        tried = place.slurm.count("sbatch")
        for _ in range(5):
            await place.turn(20)
        assert place.slurm.count("sbatch") == tried == 1  # it is not bombarded
        place.slurm.down = False
        await place.turn(31)
        await place.turn(6)
        assert len(place.slurm.get(key)) == 1 and (await place.turn())[key].job_id == "100"

    run(test())


@pytest.mark.parametrize("late_s", [0, 1, 4])
def test_a_hung_controller_that_took_it_all_the_same(place: Place, late_s: float) -> None:
    async def test() -> None:
        place.slurm.hung, place.slurm.accepts_late_s = True, late_s
        key = await place.submit()
        await place.turn()
        place.slurm.advance(31)
        place.slurm.wake()
        for _ in range(10):
            await place.turn(2.1)
        assert len(place.slurm.get(key)) == 1 == place.slurm.count("sbatch")
        assert (await place.turn())[key].job_id == "100"

    run(test())


def test_an_answer_from_before_the_controller_hung_again_does_not_count(place: Place) -> None:
    async def test() -> None:
        place.slurm.hung, place.slurm.accepts_late_s = True, 4
        key = await place.submit()
        place.slurm.wake()
        await place.turn()  # an answer without it
        place.slurm.hung = True
        await place.turn()
        place.slurm.advance(31)
        place.slurm.wake()
        for _ in range(10):
            await place.turn(2.1)
        assert len(place.slurm.get(key)) == 1 == place.slurm.count("sbatch")

    run(test())


def test_portico_dies_during_the_submission(place: Place) -> None:
    async def test() -> None:
        def die() -> None:
            raise asyncio.CancelledError

        place.slurm.on_sbatch = die
        key = await place.submit()
        place.slurm.on_sbatch = lambda: None
        place.slurm.jobs.append(FakeJob("77", "alice", f"portico-{key}", f"portico:{key}", place.slurm.now))
        place.begin()
        assert (await place.turn())[key].job_id == "77"
        for _ in range(5):
            await place.turn()
        assert len(place.slurm.get(key)) == 1

    run(test())


def test_what_the_controller_lost_has_ended(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        place.slurm.jobs.clear()  # kill -9 right after sbatch
        status = await place.follow(key)
        assert status.reason is Reason.LOST and place.slurm.count("sbatch") == 1

    run(test())


def test_what_may_run_twice_is_submitted_again_and_its_id_is_anothers(place: Place) -> None:
    async def test() -> None:
        key = await place.submit(requeue=True)
        place.slurm.jobs.clear()  # kill -9 right after sbatch
        place.slurm.next_id = 100
        place.slurm.jobs.append(FakeJob("100", "bob", "his", "", place.slurm.now, "RUNNING", started=place.slurm.now))
        for _ in range(8):
            status = (await place.turn())[key]
            assert status.state is JobState.QUEUED
        place.slurm.next_id = 101
        assert len(place.slurm.get(key)) == 1 and status.job_id != "" and place.slurm.count("sbatch") == 2

    run(test())


def test_a_lost_id_goes_to_another_job_of_the_same_user(place: Place) -> None:
    async def test() -> None:
        first = await place.submit(requeue=True)
        place.slurm.jobs.clear()
        place.slurm.next_id = 100
        second = await place.submit()
        for _ in range(6):
            statuses = await place.turn()
        assert (statuses[second].job_id, statuses[first].job_id) == ("100", "101")
        assert len(place.slurm.jobs) == 2

    run(test())


def test_one_that_is_there_twice_is_cancelled_once(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        await place.turn()
        place.slurm.jobs.append(FakeJob("105", "alice", "x", f"portico:{key}", place.slurm.now))
        await place.turn()
        assert [job.word for job in place.slurm.get(key)] == ["PENDING", "CANCELLED"]
        assert (await place.turn())[key].job_id == "100"

    run(test())


def test_where_jobs_are_hidden_their_user_is_asked_before_a_second_time(place: Place) -> None:
    async def test() -> None:
        place.slurm.hides_jobs = True
        keys = [await place.submit(), await place.submit(requeue=True)]
        place.slurm.accounting_down = True
        for _ in range(30):
            statuses = await place.turn()
        assert place.slurm.count("sbatch") == 2 and ("alice", "squeue") in place.slurm.asked
        assert {statuses[key].state for key in keys} == {JobState.QUEUED}

    run(test())


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_what_may_have_been_submitted_is_looked_for_first(place: Place, hidden: bool, taken: bool) -> None:
    async def test() -> None:
        place.slurm.hides_jobs = hidden
        key = await place.submit()
        (request,) = [entry.request for entry in place.scheduler._own._spool]
        if not taken:
            place.slurm.jobs.clear()
        place.scheduler._own._spool.drop(key)  # the spool was lost
        await place.scheduler.recall(request)
        for _ in range(30):
            statuses = await place.turn()
        assert place.slurm.count("sbatch") == (1 if taken else 2)
        assert len(place.slurm.get(key)) == 1 and statuses[key].job_id == place.slurm.get(key)[0].id

    run(test())


def test_one_that_ran_and_ended_during_a_long_outage(place: Place) -> None:
    async def test() -> None:
        place.slurm.hung = True
        key = await place.submit()
        place.slurm.wake()
        await place.slurm.run(None, own.queue.list_queue())  # it takes the job
        place.slurm.end(key).in_queue = False
        place.slurm.advance(400)
        status = await place.follow(key, 600)
        assert status.reason is Reason.FINISHED and place.slurm.count("sbatch") == 1

    run(test())


def test_accounting_that_lags_is_reason_to_wait(place: Place) -> None:
    async def test() -> None:
        place.slurm.hung, place.slurm.accounting_lags = True, True
        key = await place.submit()
        place.slurm.wake()
        await place.slurm.run(None, own.queue.list_queue())
        place.slurm.end(key).in_queue = False
        place.slurm.advance(400)
        for _ in range(10):
            assert (await place.turn())[key].state is JobState.QUEUED
        place.slurm.accounting_lags = False
        assert (await place.follow(key)).reason is Reason.FINISHED and place.slurm.count("sbatch") == 1

    run(test())


def test_where_jobs_are_hidden_their_end_is_told_by_their_user(place: Place) -> None:
    async def test() -> None:
        place.slurm.hides_jobs = place.slurm.accounting_down = True
        key = await place.submit()
        for _ in range(5):
            await place.turn()
        place.slurm.end(key, "TIMEOUT")
        assert (await place.follow(key)).reason is Reason.TIME_LIMIT

    run(test())


# whose job it is


def test_a_forged_key_changes_nothing(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        await place.turn()
        place.slurm.jobs.append(FakeJob("7", "bob", "x", f"portico:{key}", place.slurm.now, "RUNNING", started=1))
        status = (await place.turn())[key]
        assert status.state is JobState.QUEUED and status.job_id == "100"
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.turn()
        assert [job.word for job in place.slurm.get(key)] == ["CANCELLED", "RUNNING"]
        assert place.scheduler.find_orphans() == []

    run(test())


def test_a_site_that_takes_the_key_away(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        job = place.slurm.start(key)
        job.name, job.comment = "renamed", "by the site"
        assert (await place.turn())[key].state is JobState.RUNNING
        job.word, job.ended = "TIMEOUT", place.slurm.now
        assert (await place.turn())[key].reason is Reason.TIME_LIMIT

    run(test())


def test_orphans_are_found_and_adopted(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        await place.turn()
        next(place.folder.iterdir()).unlink()
        place.begin()
        await place.turn()
        (orphan,) = place.scheduler.find_orphans()
        assert (orphan.key, orphan.user_name) == (key, "alice")
        await place.scheduler.adopt(JobRequest(key, "alice", 1, 1, 60, START), orphan)
        assert (await place.turn())[key].job_id == "100" and place.scheduler.find_orphans() == []

    run(test())


# ends


def test_a_job_that_runs_again_waits_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(own, "PUT_BACK_WAIT_S", 0)
        key = await place.submit()
        job = place.slurm.start(key)
        await place.turn()
        job.word, job.reason, job.started, job.submitted = "PENDING", "BeginTime", 0, place.slurm.now
        job.restarts = 1
        status = (await place.turn())[key]
        assert status.state is JobState.QUEUED and "put back" in status.waiting_for and status.started is None
        for _ in range(3):  # accounting is asked why, and does not say
            status = (await place.turn())[key]
        assert (status.restarts, status.put_back) == (1, "Slurm does not say why")
        place.begin()
        job.word, job.started = "RUNNING", place.slurm.now
        status = (await place.turn())[key]
        assert (status.restarts, status.state) == (1, JobState.RUNNING)

    run(test())


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_job_that_was_put_back_before_it_was_seen(
    place: Place, monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    async def test() -> None:
        monkeypatch.setattr(own, "PUT_BACK_WAIT_S", 0)
        key = await place.submit()
        place.slurm.advance(1)
        job = place.slurm.start(key)
        job.submitted, job.restarts = place.slurm.now, restarts  # 0: the controller's clock is ahead of ours
        for _ in range(3):
            status = (await place.turn())[key]
        assert (status.restarts, bool(status.put_back), status.state) == (restarts, restarts == 1, JobState.RUNNING)

    run(test())


@pytest.mark.parametrize("vice", ["accounting_down", "accounting_lags"])
def test_an_end_without_accounting(place: Place, vice: str) -> None:
    async def test() -> None:
        setattr(place.slurm, vice, True)
        key = await place.submit()
        place.slurm.start(key)
        await place.turn()
        place.slurm.end(key, "FAILED", "9:0", "NonZeroExitCode")
        status = await place.follow(key)
        assert status.reason is Reason.FAILED
        assert status.detail == ("exit status 9" if vice == "accounting_down" else "exit status unknown")

    run(test())


def test_one_that_left_the_queue_is_asked_for_in_the_history(place: Place) -> None:
    async def test() -> None:
        keys = [await place.submit() for _ in range(3)]
        for key in keys:
            place.slurm.start(key)
        await place.turn()
        for key in keys:
            place.slurm.end(key, "NODE_FAIL").in_queue = False
        statuses = await place.turn()
        assert {status.reason for status in statuses.values()} == {Reason.NODE_FAILED}
        assert place.slurm.count("sacct") == 1

    run(test())


def test_one_that_nobody_knows_any_more_is_lost_in_the_end(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        place.slurm.start(key)
        await place.turn()
        place.slurm.jobs.clear()
        assert (await place.turn())[key].state is JobState.RUNNING  # not at once
        status = await place.follow(key)
        assert status.reason is Reason.LOST and "no longer knows" in status.detail

    run(test())


def test_while_slurm_is_away_what_was_known_stays(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        place.slurm.start(key)
        await place.turn()
        place.slurm.down = True
        for _ in range(5):
            assert (await place.turn(60))[key].state is JobState.RUNNING
        queue = await place.scheduler.list_jobs()
        assert len(queue.jobs) == 1 and queue.trouble and queue.as_of
        place.begin()  # and after a restart too
        assert (await place.turn())[key].state is JobState.RUNNING
        assert 3 <= place.slurm.count("squeue") <= 9

    run(test())


def test_cancel_is_told_as_such_and_tried_until_it_is_done(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        place.slurm.start(key)
        await place.turn()
        place.slurm.down = True
        await place.scheduler.cancel(key, Reason.STOPPED_BY_ADMIN)
        await place.turn()
        place.slurm.down = False
        status = await place.follow(key)
        assert status.reason is Reason.STOPPED_BY_ADMIN and place.slurm.count("scancel") == 2
        assert ("alice", "scancel") in place.slurm.asked

    run(test())


def test_cancel_before_slurm_has_it(place: Place) -> None:
    async def test() -> None:
        place.slurm.hung = True
        taken, dropped = await place.submit(), await place.submit()
        for key in (taken, dropped):
            await place.scheduler.cancel(key, Reason.STOPPED)
        del place.slurm.waiting[1]
        place.slurm.wake()
        await place.turn(31)
        assert (await place.follow(dropped)).reason is Reason.STOPPED
        assert (await place.follow(taken)).reason is Reason.STOPPED
        assert [job.word for job in place.slurm.jobs] == ["CANCELLED"] and place.slurm.count("sbatch") == 2

    run(test())


def test_cancelled_from_outside(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        await place.turn()
        place.slurm.end(key, "CANCELLED")
        assert (await place.turn())[key].reason is Reason.CANCELLED

    run(test())


# what else can be done


def test_extend_needs_an_operator(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        with pytest.raises(Conflict):
            await place.scheduler.extend(key, START + HOUR)
        place.slurm.start(key)
        await place.turn()
        with pytest.raises(Forbidden, match="operators"):
            await place.scheduler.extend(key, START + 2 * HOUR)
        place.begin(operator=True)
        await place.turn()
        await place.scheduler.extend(key, START + 2 * HOUR)
        assert (await place.scheduler.query())[key].deadline == START + 2 * HOUR
        assert Feature.SUSPEND in place.scheduler.features

    run(test())


def test_actions_name_one_job(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        status = (await place.turn())[key]
        (job,) = (await place.scheduler.list_jobs()).jobs
        await place.scheduler.act("alice", job.ref, Action.HOLD)
        assert (await place.scheduler.list_jobs()).jobs[0].held is False  # until the next answer
        await place.turn()
        assert (await place.scheduler.list_jobs()).jobs[0].held
        with pytest.raises(Conflict, match="not what it was"):
            await place.scheduler.act("alice", JobRef(job.id, START - HOUR), Action.CANCEL)
        with pytest.raises(NotFound):
            await place.scheduler.act("alice", JobRef("12; rm"), Action.CANCEL)
        await place.scheduler.act("alice", job.ref, Action.CANCEL)
        assert (await place.follow(key)).reason is Reason.STOPPED and status.job_id == job.id
        with pytest.raises(Conflict, match="ended"):
            await place.scheduler.act("alice", job.ref, Action.REQUEUE)

    run(test())


def test_the_script_comes_back_from_wherever_it_is_kept(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        (job,) = place.slurm.get(key)
        assert await place.scheduler.read_script("alice", JobRef(job.id)) == SCRIPT
        with pytest.raises(Forbidden):
            await place.scheduler.read_script("bob", JobRef(job.id))
        job.in_queue = False
        assert await place.scheduler.read_script("alice", JobRef(job.id)) == SCRIPT
        job.in_history = False
        with pytest.raises(NotFound, match="no longer has the script"):
            await place.scheduler.read_script("alice", JobRef(job.id))

    run(test())


def test_what_runs_is_not_put_on_hold(place: Place) -> None:
    async def test() -> None:
        place.slurm.start(await place.submit())
        await place.turn()
        (job,) = (await place.scheduler.list_jobs()).jobs
        with pytest.raises(Conflict, match="started"):
            await place.scheduler.act("alice", job.ref, Action.HOLD)

    run(test())


def test_an_array_is_one_job_that_ends_with_its_last_task(place: Place) -> None:
    async def test() -> None:
        key = await place.submit(array="1-2")
        (first,) = place.slurm.get(key)
        place.slurm.jobs.append(FakeJob("150", "alice", "x", first.comment, first.submitted, array="2"))
        first.word, first.started = "RUNNING", place.slurm.now
        assert (await place.turn())[key].state is JobState.RUNNING
        first.word = "COMPLETED"
        assert (await place.turn())[key].state is JobState.QUEUED
        place.slurm.jobs[1].word = "COMPLETED"
        assert (await place.turn())[key].reason is Reason.FINISHED and place.slurm.count("scancel") == 0

    run(test())


def test_a_user_whose_account_is_gone_keeps_no_job(place: Place) -> None:
    async def test() -> None:
        place.begin(operator=True)
        key = await place.submit()
        place.slurm.start(key)
        await place.turn()
        place.slurm.vanished = True
        await place.scheduler.cancel(key, Reason.STOPPED_BY_ADMIN)
        assert (await place.follow(key)).reason is Reason.STOPPED_BY_ADMIN
        assert (None, "scancel") in place.slurm.asked

    run(test())


def test_what_an_operator_may_is_done_to_ones_own_jobs_only(place: Place) -> None:
    async def test() -> None:
        place.begin(operator=True)
        place.slurm.start(await place.submit())
        await place.turn()
        (job,) = (await place.scheduler.list_jobs()).jobs
        for user, ref in (("bob", job.ref), ("alice", job.ref), ("bob", JobRef("4711"))):
            with contextlib.suppress(NotFound):
                await place.scheduler.act(user, ref, Action.SUSPEND)
            assert place.slurm.asked[-1] == (None if user == "alice" else user, "scontrol")

    run(test())


def test_an_agent_that_lies_about_the_id_ends_nobody_elses_job(place: Place) -> None:
    async def test() -> None:
        place.begin(operator=True)
        place.slurm.jobs.append(FakeJob("7", "bob", "his", "", place.slurm.now, "RUNNING", started=place.slurm.now))
        place.slurm.next_id = 7
        key = await place.submit()
        del place.slurm.jobs[1]  # alice's job was never there: her agent only said so
        place.slurm.vanished = True
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.turn()
        assert place.slurm.jobs[0].word == "RUNNING" and (None, "scancel") not in place.slurm.asked

    run(test())


def test_history_is_asked_once_for_many(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        place.slurm.end(key)
        for _ in range(3):
            found = await asyncio.gather(*(place.scheduler.list_history("alice", START - HOUR) for _ in range(50)))
            assert [job.key for job in found[0]] == [key]
        assert place.slurm.count("sacct") == 1
        assert await place.scheduler.list_history("alice", START + HOUR) == []
        await place.scheduler.list_history("alice", START - 2 * HOUR)
        assert place.slurm.count("sacct") == 2

    run(test())


def test_the_details_of_a_job_are_asked_once_for_many_pages(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        place.slurm.start(key)
        await place.turn()
        (job,) = (await place.scheduler.list_jobs()).jobs
        for _ in range(5):
            details = await asyncio.gather(*(place.scheduler.describe("alice", job.ref) for _ in range(40)))
            assert all(one.output == "/home/alice/out" and one.cpu_used_s == 60 for one in details)
        assert place.slurm.count("scontrol") == place.slurm.count("sstat") == 1
        with pytest.raises(NotFound):
            await place.scheduler.describe("bob", job.ref)
        place.slurm.advance(scheduler_module.USAGE_INTERVAL_S + 1)
        await place.scheduler.describe("alice", job.ref)
        assert place.slurm.count("sstat") == 2
        place.slurm.end(key)
        await place.turn()
        await place.scheduler.describe("alice", job.ref)
        assert place.slurm.count("sstat") == 2 and ("sacct" in [program for _, program in place.slurm.asked])

    run(test())


def test_a_job_that_only_accounting_remembers(place: Place) -> None:
    async def test() -> None:
        key = await place.submit()
        job = place.slurm.end(key)
        job.in_queue = False
        for _ in range(3):
            found = await place.scheduler.find_record("100")
            assert found and (found.key, found.user_name, found.state) == (key, "alice", JobState.ENDED)
            assert await place.scheduler.find_record("101") is None
        assert place.slurm.count("sacct") == 2
        for text in ("", "x", "100; rm", "1-5", "--allusers"):
            with pytest.raises(NotFound):
                await place.scheduler.find_record(text)
        place.slurm.accounting_down = True
        with pytest.raises(Unavailable):
            await place.scheduler.find_record("102")

    run(test())


def test_a_shelf_keeps_what_was_looked_at_last() -> None:
    shelf: Shelf[int, str] = Shelf(2)
    shelf.put(1, "one"), shelf.put(2, "two")
    assert shelf.find(1) == "one"
    shelf.put(3, "three")
    assert (shelf.find(1), shelf.find(2), shelf.find(3)) == ("one", None, "three") and len(shelf.list()) == 2
