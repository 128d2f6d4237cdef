"""Slurm and its faults, for real: what people read, and that no job is lost or run twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from scheduler_places import SlurmPlace, make_key

from portico.errors import Conflict, Forbidden, Invalid, PorticoError
from portico.model import Reason, now
from portico.schedulers.protocol import Action, Job, JobRef, JobRequest, JobState

pytestmark = pytest.mark.system

FOREVER = "sleep 1000"


async def find(place: SlurmPlace, **wanted: Any) -> Job | None:
    """Return the job that is so, in a fresh answer."""
    jobs = (await place.scheduler.list_jobs()).jobs
    return next((job for job in jobs if all(getattr(job, name) == value for name, value in wanted.items())), None)


async def wait_for(condition: Callable[[], Awaitable[Any]], timeout_s: float = 30) -> Any:
    """Return the first true value.

    Raises:
        TimeoutError: There was none.
    """
    async with asyncio.timeout(timeout_s):
        while not (value := await condition()):
            await asyncio.sleep(0.1)
        return value


async def in_thread(call: Callable[..., Any], *args: Any) -> None:
    """Do something slow to the rig."""
    await asyncio.to_thread(call, *args)


# the controller


def test_controller_down_at_submission(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        mark = place.find_home(place.alice) / "down"
        await in_thread(place.rig.stop_controller)
        try:
            key = await place.submit(f"echo ran >> {mark}")
            status = (await place.scheduler.query())[key]
            assert status.state is JobState.QUEUED and "controller does not answer" in status.waiting_for
            await place.restart()  # and Portico, too
            assert (await place.scheduler.query())[key].state is JobState.QUEUED
        finally:
            await in_thread(place.rig.start_controller)
        assert (await place.until_ended(key, 60)).reason is Reason.FINISHED
        assert mark.read_text() == "ran\n" and len(place.find_ids(key)) == 1

    place.run(test())


def test_controller_hung_at_submission_takes_it_all_the_same(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        mark = place.find_home(place.alice) / "hung"
        place.rig.hang_controller()
        try:
            key = await place.submit(f"echo ran >> {mark}; sleep 12")
            await place.until(key, lambda status: "controller does not answer" in status.waiting_for)
        finally:
            place.rig.wake_controller()
        await place.until_running(key)
        assert (await place.until_ended(key, 60)).reason is Reason.FINISHED
        assert mark.read_text() == "ran\n" and len(place.find_ids(key)) == 1

    place.run(test())


def test_controller_away_while_jobs_run(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        stays, ends = await place.submit(FOREVER), await place.submit("sleep 4; exit 3")
        before = await place.until_running(stays)
        await place.until_running(ends)
        await in_thread(place.rig.stop_controller)
        try:
            await wait_for(lambda: _has_trouble(place))
            queue = await place.scheduler.list_jobs()
            assert queue.trouble and "does not answer" in queue.trouble.message and queue.as_of
            assert any(job.key == stays for job in queue.jobs)
            assert (await place.scheduler.query())[stays].state is JobState.RUNNING
            with pytest.raises(PorticoError) as refused:
                await place.scheduler.act(place.alice, find_ref(queue.jobs, stays), Action.SUSPEND)
            assert refused.value.code == "unavailable"
        finally:
            await in_thread(place.rig.start_controller)
        await wait_for(lambda: _has_no_trouble(place))
        after = await place.until_running(stays)
        assert after.job_id == before.job_id
        assert (await place.until_ended(ends, 90)).detail == "exit status 3"
        await place.scheduler.cancel(stays, Reason.STOPPED)
        assert (await place.until_ended(stays)).reason is Reason.STOPPED

    place.run(test())


async def _has_trouble(place: SlurmPlace) -> bool:
    return (await place.scheduler.list_jobs()).trouble is not None


async def _has_no_trouble(place: SlurmPlace) -> bool:
    return not await _has_trouble(place)


def find_ref(jobs: tuple[Job, ...], key: str) -> JobRef:
    return next(job.ref for job in jobs if job.key == key)


def test_controller_killed_before_it_wrote_the_job_down(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        marks = [place.find_home(place.alice) / name for name in ("once", "again")]
        keys = [await place.submit(f"sleep 2; echo ran >> {marks[0]}")]
        keys.append(await place.submit(f"sleep 2; echo ran >> {marks[1]}", options={"requeue": True}))
        await in_thread(place.rig.kill_controller)
        await in_thread(place.rig.start_controller)
        once, again = [await place.until_ended(key, 90) for key in keys]
        assert once.reason in (Reason.LOST, Reason.FINISHED, Reason.NODE_FAILED)
        assert again.reason is Reason.FINISHED and marks[1].exists()
        assert not marks[0].exists() or marks[0].read_text() == "ran\n"

    place.run(test())


# how jobs end


def test_cancelled_from_outside(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        running, waiting = await place.submit(FOREVER), await place.submit("true", options={"held": True})
        status = await place.until_running(running)
        await place.until(waiting, lambda status: "on hold" in status.waiting_for)
        place.rig.run("scancel", status.job_id, place.find_ids(waiting)[0])
        for key in (running, waiting):
            ended = await place.until_ended(key)
            assert (ended.reason, ended.detail) == (Reason.CANCELLED, "by uid 0")

    place.run(test())


def test_a_node_dies(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        stays = await place.submit(FOREVER)
        again = await place.submit("sleep 300", options={"requeue": True})
        nodes = {(await place.until_running(key)).node_names for key in (stays, again)}
        (names,) = nodes  # a test's two jobs of one core fit on one
        await in_thread(place.rig.kill_node, names[0])
        try:
            ended = await place.until_ended(stays, 90)
            assert ended.reason is Reason.NODE_FAILED
            back = await place.until(
                again, lambda status: status.state is JobState.QUEUED or status.node_names != names, 60
            )
            assert back.job_id == place.find_ids(again)[0]
            assert not (await place.scheduler.list_nodes())[0].usable or names[0] != "n1"
        finally:
            await in_thread(place.rig.start_node, names[0])
        await place.scheduler.cancel(again, Reason.STOPPED)
        assert (await place.until_ended(again, 60)).reason is Reason.STOPPED

    place.run(test())


def test_put_back_into_the_queue(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        key = await place.submit("sleep 300", options={"requeue": True})
        await place.until_running(key)
        job = await find(place, key=key)
        assert job
        await place.scheduler.act(place.alice, job.ref, Action.REQUEUE)
        status = await place.until(key, lambda status: status.state is JobState.QUEUED)
        assert status.started is None and status.waiting_for
        with pytest.raises(Conflict):  # it is not what the page showed
            await place.scheduler.act(place.alice, job.ref, Action.CANCEL)
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.until_ended(key)

    place.run(test())


def test_a_missing_output_folder(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        request = await place.make_request(make_key(), place.alice, "true", {"options": {}})
        options = {"folder": str(place.find_home(place.alice)), "output": "/nowhere/out"}
        key = request.key
        await place.scheduler.submit(_change(request, **options))
        ended = await place.until_ended(key)
        assert ended.reason is Reason.NOT_STARTED and "output file" in ended.detail

    place.run(test())


def _change(request: JobRequest, **options: Any) -> JobRequest:
    return replace(request, options=replace(request.options, **options))


def test_accounting_down(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        await in_thread(place.rig.stop_accounting)
        try:
            ended = await place.until_ended(await place.submit("exit 4"), 60)
            assert (ended.reason, ended.detail) == (Reason.FAILED, "exit status 4")
            with pytest.raises(PorticoError) as refused:
                await place.scheduler.list_history(place.alice, now() - timedelta(hours=1))
            assert refused.value.code == "unavailable" and "accounting" in refused.value.message.lower()
        finally:
            await in_thread(place.rig.start_accounting)

    place.run(test())


# what others put into the queue


def test_names_of_others_disturb_nobody(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        key = await place.submit(FOREVER)
        await place.until_running(key)
        bad = [
            "a|b|c",
            "two\nlines\n99|99|N/A|RUNNING|None|root|x|y|z|1|1|1|1|1|1|1|1|1|1|1|1",
            os.fsdecode(b"\xff\xfe\x80"),
        ]
        for name in bad:
            await _submit_by_hand(place, f"--job-name={name}", f"--comment=portico:{key}\n|x")

        async def get_mine() -> list[Job]:
            jobs = (await place.scheduler.list_jobs()).jobs
            mine = [job for job in jobs if job.user_name == place.alice and job.held and job.state is JobState.QUEUED]
            return mine if len(mine) == 3 else []

        mine = await wait_for(get_mine)
        jobs = (await place.scheduler.list_jobs()).jobs
        assert all(job.name.isprintable() and not job.key for job in mine)
        assert not any(job.id == "99" and job.user_name == "root" for job in jobs)
        assert (await place.scheduler.query())[key].state is JobState.RUNNING
        assert len([job for job in jobs if job.key == key]) == 1
        for job in mine:
            await place.scheduler.act(place.alice, job.ref, Action.CANCEL)
        await place.scheduler.cancel(key, Reason.STOPPED)
        await place.until_ended(key)

    place.run(test())


async def _submit_by_hand(place: SlurmPlace, *options: str) -> None:
    home = place.find_home(place.alice)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "SLURM_CONF": str(place.rig.conf)}
    found = home.stat()
    argv = ["sbatch", "--hold", "--output=/dev/null", "--time=5", *options]
    await asyncio.to_thread(
        subprocess.run, argv, input=b"#!/bin/sh\nsleep 9\n", env=env, user=found.st_uid, group=found.st_gid,
        extra_groups=[], cwd=home, check=True, capture_output=True,
    )  # fmt: skip


# what a user does


def test_no_field_becomes_a_directive(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        for field in ("name", "partition", "account", "qos", "gres", "constraint", "reservation", "array", "dependency",
                      "folder", "output", "error"):  # fmt: skip
            for text in ("x\n#SBATCH --nodes=3", "x --nodes=3", "-N3", "x;id", "$(id)"):
                request = await place.make_request(make_key(), place.alice, "true", {"options": {}})
                if field == "name" and "\n" not in text:
                    continue  # a name may be anything on one line
                with pytest.raises(Invalid) as refused:
                    await place.scheduler.submit(_change(request, **{field: text}))
                assert refused.value.field == field
        home = place.find_home(place.alice)
        body = 'printf "%s" "$PORTICO_FORM_TITLE" > "$HOME/title"; scontrol show job "$SLURM_JOB_ID" > "$HOME/shown"'
        evil = "x\n#SBATCH --nodes=3\n--exclusive"
        name = "$(id); -N3 #SBATCH --nodes=3"
        env = (("PORTICO_FORM_TITLE", evil), ("SLURM_CONF", str(place.rig.conf)))
        key = await place.submit(body, env=env, options={"name": name})
        await place.until_ended(key)
        assert (home / "title").read_text() == evil
        shown = (home / "shown").read_text()
        assert "NumNodes=1 " in shown and f"JobName={name}" in shown and "PORTICO_FORM" not in shown

    place.run(test())


def test_a_script_passes_untouched_or_not_at_all(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        script = b'#!/bin/sh\n#SBATCH --nodes=1\ncat "$0" > $HOME/copy # caf\xe9\n' + b"# filler\n" * 40_000
        key = await place.submit("", script=script)
        (job_id,) = place.find_ids(key)
        assert await place.scheduler.read_script(place.alice, JobRef(job_id)) == script
        assert (await place.until_ended(key)).reason is Reason.FINISHED
        assert (place.find_home(place.alice) / "copy").read_bytes() == script  # 360 kB, larger than a message
        for wrong in (b"echo\n", b"#!/bin/sh\r\necho\r\n", b"", b"#!/bin/sh\n\0\n", b"\xef\xbb\xbf#!/bin/sh\n"):
            with pytest.raises(Invalid) as refused:
                await place.submit("", script=wrong)
            assert refused.value.field == "script" and not refused.value.why.startswith("Slurm says")

    place.run(test())


def test_the_jobs_environment_is_a_clean_one(slurm_place: SlurmPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place = slurm_place

    async def test() -> None:
        await place.until_ended(await place.submit('env > "$HOME/env"', env=(("MINE", "1"),)))
        names = {line.partition("=")[0] for line in (place.find_home(place.alice) / "env").read_text().splitlines()}
        assert {"MINE", "HOME", "PATH"} <= names and "XDG_RUNTIME_DIR" not in names
        assert not {name for name in names if name.startswith(("PORTICO", "SQUEUE", "PYTEST")) or name == "TZ"}

    place.run(test())


def test_hold_release_and_change_the_limit(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        key = await place.submit(FOREVER, options={"begin_after_s": 3600})
        job = await wait_for(lambda: find(place, key=key))
        assert "may begin" in job.waiting_for
        await place.scheduler.act(place.alice, job.ref, Action.HOLD)
        await wait_for(lambda: find(place, key=key, held=True))
        await place.scheduler.act(place.alice, job.ref, Action.RELEASE)
        await wait_for(lambda: find(place, key=key, held=False))
        await place.scheduler.change_limit(place.alice, job.ref, 1200)
        await wait_for(lambda: find(place, key=key, limit_s=1200.0))
        for action, error in ((Action.SUSPEND, Forbidden), (Action.REQUEUE, Conflict)):
            with pytest.raises((error, Conflict)):
                await place.scheduler.act(place.alice, job.ref, action)
        await place.scheduler.act(place.alice, job.ref, Action.CANCEL)
        assert (await place.until_ended(key)).reason is Reason.STOPPED

    place.run(test())


def test_as_an_operator_portico_extends_and_suspends(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        place.rig.run(
            "sacctmgr", "--immediate", "add", "user", "portico", f"account={place.account}", "adminlevel=operator"
        )
        place.operator = True
        await place.restart()
        try:
            key = await place.submit(FOREVER)
            status = await place.until_running(key)
            assert status.deadline
            await place.scheduler.extend(key, status.deadline + timedelta(hours=1))
            await place.until(key, lambda s: s.deadline == status.deadline + timedelta(hours=1))
            job = await find(place, key=key)
            assert job
            await place.scheduler.act(place.alice, job.ref, Action.SUSPEND)
            await wait_for(lambda: find(place, key=key, word="SUSPENDED"))
            await place.scheduler.act(place.alice, job.ref, Action.RESUME)
            await wait_for(lambda: find(place, key=key, word="RUNNING"))
            await place.scheduler.cancel(key, Reason.STOPPED)
            await place.until_ended(key)
        finally:
            place.rig.run("sacctmgr", "--immediate", "delete", "user", "portico")
            place.operator = False
            await place.restart()

    place.run(test())


def test_arrays_and_dependencies(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        home = place.find_home(place.alice)
        array = await place.submit("sleep 1; echo $SLURM_ARRAY_TASK_ID >> $HOME/tasks", options={"array": "1-4%2"})
        status = await place.until(array, lambda status: status.job_id)
        after = await place.submit(
            "wc -l < $HOME/tasks > $HOME/count", options={"dependency": f"afterok:{status.job_id}"}
        )
        never = await place.submit("true", options={"dependency": f"afternotok:{status.job_id}"})
        waiting = await place.until(after, lambda status: status.waiting_for != "its turn")
        assert waiting.waiting_for == "the jobs that it depends on"
        assert (await place.until_ended(array, 60)).reason is Reason.FINISHED
        assert (await place.until_ended(after, 60)).reason is Reason.FINISHED
        assert (home / "count").read_text().strip() == "4"
        await place.until(never, lambda status: "can never start" in status.waiting_for)
        await place.scheduler.cancel(never, Reason.STOPPED)
        await place.until_ended(never)

    place.run(test())


def test_a_row_of_an_array_is_only_that_row(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        key = await place.submit(FOREVER, options={"array": "1-4%3"})
        rows = await wait_for(lambda: _find_rows(place, key, running=3, waiting=1))
        last = max(rows, key=lambda job: job.state is JobState.QUEUED)
        await place.scheduler.act(place.alice, last.ref, Action.CANCEL)
        await wait_for(lambda: _find_rows(place, key, running=3, waiting=0))  # those that run go on
        for left in (2, 1, 0):
            rows = [job for job in await _find_rows(place, key) if job.state is JobState.RUNNING]
            await place.scheduler.act(place.alice, max(rows, key=lambda job: job.id == job.array_id).ref, Action.CANCEL)
            await wait_for(lambda left=left: _find_rows(place, key, running=left, waiting=0))
        assert (await place.until_ended(key)).reason is Reason.CANCELLED

    place.run(test())


async def _find_rows(place: SlurmPlace, key: str, running: int = -1, waiting: int = -1) -> list[Job]:
    """Return an array's rows if so many of them run and wait; else none."""
    rows = [job for job in (await place.scheduler.list_jobs()).jobs if job.key == key]
    states = [job.state for job in rows]
    wrong = (running >= 0 and states.count(JobState.RUNNING) != running) or (
        waiting >= 0 and states.count(JobState.QUEUED) != waiting
    )
    return [] if wrong else rows


def test_history_details_and_usage(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        key = await place.submit(
            "head -c 50000000 /dev/zero | tail -c 1 > /dev/null; sleep 3", options={"name": "my job"}
        )
        await place.until_running(key)
        job = await wait_for(lambda: find(place, key=key))
        details = await place.scheduler.describe(place.alice, job.ref)
        home = place.find_home(place.alice)
        assert details.folder == str(home) and details.output == f"{home}/out-{job.id}" == details.error
        await place.until_ended(key)

        async def in_history() -> Job | None:
            place.scheduler = place.make_scheduler()
            found = await place.scheduler.list_history(place.alice, now() - timedelta(hours=1))
            return next((job for job in found if job.key == key), None)

        ended = await wait_for(in_history)
        assert ended.name == "my job" and ended.reason is Reason.FINISHED and ended.used_s >= 3 and ended.cores == 1
        assert ended.id == job.id and ended.submitted == job.submitted
        used = await place.scheduler.describe(place.alice, ended.ref)
        assert used.folder == str(home)
        assert used.memory_used_bytes is not None or used.cpu_used_s is not None
        await place.restart()

    place.run(test())


def test_one_question_however_many_ask(slurm_place: SlurmPlace) -> None:
    place = slurm_place

    async def test() -> None:
        scheduler = place.make_scheduler()
        runner = scheduler._console._runner
        runner.asked = []
        await asyncio.gather(*(scheduler.list_jobs() for _ in range(200)))
        assert runner.asked == ["squeue"]
        await scheduler.close()

    place.run(test())


def test_no_file_of_portico_is_left_to_others(slurm_place: SlurmPlace) -> None:
    spool = Path(slurm_place.brokered.config.state_dir) / "slurm"
    assert spool.stat().st_mode & 0o077 == 0
