"""Batch jobs beside sessions on one machine: the keeper, which finds sessions again, must not take one for the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from desk import Desk, run, until
from machines import FakeMachine

from portico.model import Reason
from portico.schedulers.protocol import JobOptions, JobRequest, JobState, JobStatus


@pytest.mark.parametrize("has_cells", [True, False])
def test_a_batch_job_is_nobodys_session_though_its_spool_is_lost(
    tmp_path: Path, has_cells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portico.sessions.local_place.is_in_cell", lambda pid, key: True)
    monkeypatch.setattr("portico.sessions.keeper.SEARCH_S", 0.05)

    async def test() -> None:
        desk = Desk(tmp_path, FakeMachine(has_cells=has_cells))
        alice = desk.add_user("alice")
        script, options = b"#!/bin/sh\n", JobOptions(name="mine")
        for key in ("kaaaaaaaaaaa", "kbbbbbbbbbbb"):
            request = JobRequest(key, "alice", 1, 10**9, 600, desk.clock(), script=script, options=options, batch=True)
            await desk.scheduler.submit(request)
        async with desk.keeping():
            await until(lambda: find_running(desk, 2))
        desk.store.close()
        for path in tmp_path.glob("local/*"):
            path.unlink()
        desk.machine.jobs["kbbbbbbbbbbb"].record = {"batch": {"cores": "many"}}  # its user has written that
        desk.begin()
        async with desk.keeping():
            (status,) = await until(lambda: find_running(desk, 1))
            assert (status.key, status.user_name, status.batch) == ("kaaaaaaaaaaa", "alice", True)
            assert [job.name for job in (await desk.scheduler.list_jobs()).jobs] == ["mine"]
            await asyncio.sleep(0.2)
            assert await desk.sessions.list_sessions(alice) == []
            assert {desk.machine.jobs[key].starts for key in ("kaaaaaaaaaaa", "kbbbbbbbbbbb")} == {1}
            await desk.scheduler.cancel("kaaaaaaaaaaa", Reason.STOPPED)
            await until(lambda: find_running(desk, 0, JobState.ENDED))

    run(test())


async def find_running(desk: Desk, number: int, state: JobState = JobState.RUNNING) -> list[JobStatus]:
    """Return the jobs that the scheduler knows, once all are in a state and there are so many."""
    found = list((await desk.scheduler.query()).values())
    return found if all(one.state is state for one in found) and len(found) >= number else []
