"""What every scheduler does, for real: the same tests over this machine's own and over Slurm."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from brokered import wait_for
from scheduler_places import LocalBatchPlace, LocalPlace, Place, SlurmPlace, make_key

from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError
from portico.model import Reason, now
from portico.schedulers.protocol import Action, Feature, Job, JobRef, JobState, Scheduler

pytestmark = pytest.mark.system

FOREVER = "sleep 1000"


@pytest.fixture(scope="module")
def overdue(place: Place) -> str:
    """Return a job that is over its time limit after a while; asked for first, so that the wait costs nobody anything."""
    return place.run(place.submit("trap '' TERM; sleep 1000 & wait; wait", time_limit_s=place.limit_s))


def test_it_is_a_scheduler(place: Place, overdue: str) -> None:
    typed: Scheduler = place.scheduler
    assert typed.features <= frozenset(Feature)
    assert {Feature.BATCH, Feature.HOLD, Feature.LIMIT, Feature.HISTORY} <= typed.features


def test_submit_run_and_end_well(place: Place) -> None:
    async def test() -> None:
        before = now()
        key = await place.submit("sleep 1")
        status = (await place.scheduler.query())[key]
        assert status.user_name == place.alice and status.state in (JobState.QUEUED, JobState.RUNNING)
        status = await place.until_running(key)
        assert status.started and status.deadline and status.job_id and not status.waiting_for
        assert abs((status.started - before).total_seconds()) < 30
        assert abs((status.deadline - status.started).total_seconds() - 600) < 2
        status = await place.until_ended(key)
        assert (status.reason, status.detail) == (Reason.FINISHED, "")

    place.run(test())


def test_the_same_key_twice_is_one_job(place: Place) -> None:
    async def test() -> None:
        key, mark = make_key(), place.find_home(place.alice) / "twice"
        body = f"echo ran >> {mark}"
        request = await place.make_request(key, place.alice, body, {})
        await asyncio.gather(*(place.scheduler.submit(request) for _ in range(4)))
        await place.until_ended(key)
        await place.scheduler.submit(request)
        assert (await place.scheduler.query())[key].state is JobState.ENDED
        assert mark.read_text() == "ran\n"

    place.run(test())


@pytest.mark.parametrize("body, reason, detail", [
    ("exit 7", Reason.FAILED, "exit status 7"), ("kill -9 $$", Reason.FAILED, "signal 9 (SIGKILL)"),
])  # fmt: skip
def test_ends_with_a_reason(place: Place, body: str, reason: Reason, detail: str) -> None:
    async def test() -> None:
        status = await place.until_ended(await place.submit(body))
        assert status.reason is reason and status.detail.startswith(detail)

    place.run(test())


def test_cancel_a_running_job(place: Place) -> None:
    async def test() -> None:
        mark, ready = (place.find_home(place.alice) / name for name in ("terminated", "trapped"))
        key = await place.submit(f"trap 'echo yes > {mark}; exit 0' TERM; touch {ready}; sleep 1000 & wait")
        await place.until_running(key)

        async def is_ready() -> bool:
            return ready.exists()

        await wait_for(is_ready, 30, "the trap")
        await asyncio.sleep(1)  # a TERM in the very first moments may find more than the shell that has the trap
        await place.scheduler.cancel(key, Reason.STOPPED_BY_ADMIN)
        status = await place.until_ended(key)
        assert status.reason is Reason.STOPPED_BY_ADMIN
        await place.scheduler.cancel(key, Reason.STOPPED)  # changes nothing
        assert (await place.scheduler.query())[key].reason is Reason.STOPPED_BY_ADMIN
        if isinstance(place, LocalPlace):  # Slurm gives TERM to the script's children first
            assert mark.exists()

    place.run(test())


def test_cancel_a_waiting_job(place: Place) -> None:
    async def test() -> None:
        options = {"options": {"begin_after_s": 3600}} if isinstance(place, SlurmPlace) else {}
        filler = [] if options else [await place.submit(FOREVER, cores=4.0)]
        key = await place.submit("true", **options)
        status = await place.until(key, lambda status: status.waiting_for and status.job_id)
        assert status.state is JobState.QUEUED and status.started is None
        await place.scheduler.cancel(key, Reason.STOPPED)
        assert (await place.until_ended(key)).reason is Reason.STOPPED
        for other in filler:
            await place.scheduler.cancel(other, Reason.STOPPED)
            await place.until_ended(other)

    place.run(test())


def test_extend(place: Place) -> None:
    async def test() -> None:
        key = await place.submit(FOREVER)
        status = await place.until_running(key)
        assert status.deadline
        wanted = status.deadline + timedelta(hours=1)
        if isinstance(place, SlurmPlace):  # as on a site where Portico is no operator
            with pytest.raises(Forbidden) as refused:
                await place.scheduler.extend(key, wanted)
            assert "operators" in refused.value.message and refused.value.hint
            assert (await place.scheduler.query())[key].deadline == status.deadline
        else:
            await place.scheduler.extend(key, wanted)
            await place.until(key, lambda status: status.deadline == wanted)
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.until_ended(key)
        with pytest.raises(Conflict):
            await place.scheduler.extend(key, wanted)

    place.run(test())


def test_what_can_never_run_is_refused_with_a_reason(place: Place) -> None:
    async def test() -> None:
        for changes, field in (({"cores": 10_000.0}, "cores"), ({"memory_bytes": 1 << 50}, "memory_gb")):
            request = await place.make_request(make_key(), place.alice, "true", dict(changes))
            for ask in (place.scheduler.check(request, ()), place.scheduler.submit(request)):
                with pytest.raises(Invalid) as refused:
                    await ask
                assert refused.value.field == field and refused.value.message
            assert request.key not in await place.scheduler.query()
        await place.scheduler.check(await place.make_request(make_key(), place.alice, "true", {}), ())

    place.run(test())


def test_a_job_that_ended_is_there_until_it_is_forgotten(place: Place) -> None:
    async def test() -> None:
        key = await place.submit("true")
        await place.until_ended(key)
        await place.restart()
        assert (await place.scheduler.query())[key].reason is Reason.FINISHED
        await place.scheduler.forget(key)
        assert key not in await place.scheduler.query()
        await place.restart()
        assert key not in await place.scheduler.query()
        for wrong in (place.scheduler.cancel(key, Reason.STOPPED), place.scheduler.extend(key, now())):
            with pytest.raises(NotFound):
                await wrong

    place.run(test())


def test_forget_spares_what_has_not_ended(place: Place) -> None:
    async def test() -> None:
        key = await place.submit(FOREVER)
        await place.scheduler.forget(key)
        await place.until_running(key)
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.until_ended(key)

    place.run(test())


def test_a_restart_in_the_middle_finds_everything_again(place: Place) -> None:
    async def test() -> None:
        mark = place.find_home(place.alice) / "restarts"
        stays = await place.submit(f"echo begun >> {mark}; {FOREVER}")
        ends = await place.submit("sleep 2; exit 5")
        before = await place.until_running(stays)
        await place.until_running(ends)
        await place.restart()
        after = await place.until_running(stays)
        assert (after.started, after.job_id) == (before.started, before.job_id)
        assert (await place.until_ended(ends)).detail == "exit status 5"
        assert mark.read_text() == "begun\n"
        await place.scheduler.cancel(stays, Reason.STOPPED)
        await place.until_ended(stays)

    place.run(test())


def test_all_jobs_and_the_place_are_shown(place: Place) -> None:
    async def test() -> None:
        key = await place.submit(FOREVER)
        await place.until_running(key)
        queue = await place.scheduler.list_jobs()
        (job,) = [job for job in queue.jobs if job.key == key]
        assert queue.as_of and queue.trouble is None
        assert (job.user_name, job.state, job.cores, job.limit_s) == (place.alice, JobState.RUNNING, 1, 600)
        assert job.core_hours_at_limit == pytest.approx(1 / 6) and job.partition
        capacity = await place.scheduler.get_capacity()
        assert capacity.cores >= 4 and capacity.running >= 1
        nodes = await place.scheduler.list_nodes()
        assert nodes and all(node.usable and node.cores for node in nodes[:1])
        offers = await place.scheduler.find_offers(place.alice, [place.alice])
        assert offers[0].default and offers[0].max_cores_per_node >= 4
        await place.scheduler.describe(place.alice, job.ref)
        with pytest.raises(PorticoError):
            await place.scheduler.act(place.alice, JobRef("999999999"), Action.HOLD)
        await place.scheduler.act(place.alice, job.ref, Action.CANCEL)
        assert (await place.until_ended(key)).reason is Reason.STOPPED
        with pytest.raises((Conflict, NotFound)):
            await place.scheduler.act(place.alice, job.ref, Action.CANCEL)

    place.run(test())


async def find_job(place: Place, key: str) -> Job:
    """Return a job as the queue shows it, once it does."""
    while True:
        if found := [job for job in (await place.scheduler.list_jobs()).jobs if job.key == key]:
            return found[0]
        await asyncio.sleep(0.1)


def test_a_batch_job_is_held_released_and_read(place: Place) -> None:
    if type(place) is LocalPlace:
        pytest.skip("sessions are not held")

    async def test() -> None:
        key = await place.submit("pwd; sleep 1000", options={"held": True})
        await place.until(key, lambda status: status.job_id)
        job = await find_job(place, key)
        while not job.held:
            await asyncio.sleep(0.1)
            job = await find_job(place, key)
        assert job.state is JobState.QUEUED and (await place.scheduler.query())[key].batch is isinstance(
            place, LocalBatchPlace
        )
        await place.scheduler.change_limit(place.alice, job.ref, 1200)
        assert await place.scheduler.read_script(place.alice, job.ref) == b"#!/bin/sh\npwd; sleep 1000\n"
        await place.scheduler.act(place.alice, job.ref, Action.RELEASE)
        status = await place.until_running(key)
        assert status.started and status.deadline
        assert (status.deadline - status.started).total_seconds() == pytest.approx(1200, abs=2)
        with pytest.raises(Conflict):
            await place.scheduler.act(place.alice, (await find_job(place, key)).ref, Action.HOLD)
        home = place.find_home(place.alice)
        details = await place.scheduler.describe(place.alice, job.ref)
        assert details.folder == str(home) and details.output == f"{home}/out-{job.id}"
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.until_ended(key)
        assert (home / f"out-{job.id}").read_text().startswith(f"{home}\n")

    place.run(test())


def test_the_history_of_batch_jobs(place: Place) -> None:
    async def test() -> None:
        since = now() - timedelta(minutes=1)
        key = await place.submit("exit 4")
        status = await place.until_ended(key)
        await place.scheduler.forget(key)
        await place.restart()
        deadline = asyncio.get_running_loop().time() + 60
        while True:
            found = {job.id: job for job in await place.scheduler.list_history(place.alice, since)}
            if type(place) is LocalPlace:  # a session's end is told by its own page
                assert key not in found
                return
            if status.job_id in found or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(1)
        job = found[status.job_id]
        assert (job.state, job.reason, job.user_name) == (JobState.ENDED, Reason.FAILED, place.alice)
        assert job.ends and job.ends >= since and job.detail.startswith("exit status 4")

    place.run(test())


def test_another_user_can_do_nothing_to_it(place: Place) -> None:
    async def test() -> None:
        bob = await place.make_user("bob")
        key = await place.submit(FOREVER)
        await place.until_running(key)
        (job,) = [job for job in (await place.scheduler.list_jobs()).jobs if job.key == key]
        for action in Action:
            with pytest.raises(PorticoError) as refused:
                await place.scheduler.act(bob, job.ref, action)
            assert refused.value.code in ("forbidden", "not-found", "conflict"), (action, refused.value)
        assert (await place.scheduler.query())[key].state is JobState.RUNNING
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.until_ended(key)

    place.run(test())


def test_the_time_limit_ends_a_job_that_does_not_want_to(place: Place, overdue: str) -> None:
    async def test() -> None:
        status = await place.until_ended(overdue, 120)
        assert status.reason is Reason.TIME_LIMIT

    place.run(test())
