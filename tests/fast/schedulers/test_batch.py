"""Batch jobs of the embedded scheduler, the pure parts: arrays, turns, and the record in a job's folder."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico.errors import Invalid
from portico.model import SESSION_ID
from portico.schedulers import batch
from portico.schedulers.protocol import Capacity, JobOptions, JobRequest
from portico.schedulers.queue import measure_room, take_turns

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GB = 10**9
SCRIPT = b"#!/bin/sh\n"


@given(st.text("0123456789-,:%", max_size=12))
def test_any_array_is_refused_or_has_few_tasks(text: str) -> None:
    try:
        numbers, most = batch.parse_array(text)
    except Invalid as error:
        assert error.field == "array"
    else:
        assert len(numbers) <= batch.TASKS_MAX and numbers == sorted(set(numbers)) and most >= 0


def test_arrays_are_read_as_sbatch_does() -> None:
    assert batch.parse_array("1-3,7,10-20:5%2") == ([1, 2, 3, 7, 10, 15, 20], 2)
    assert batch.parse_array("") == ([], 0)
    keys = {batch.make_task_key("k00000000001", number) for number in range(1000)}
    assert len(keys) == 1000 and all(SESSION_ID.match(key) for key in keys)


def test_users_take_turns() -> None:
    def ask(user: str, number: int) -> JobRequest:
        return JobRequest(f"k{number}", user, 1, GB, 60, START)

    queued = [ask("alice", 1), ask("alice", 2), ask("alice", 3), ask("bob", 4), ask("carol", 5)]
    assert [one.key for one in take_turns(queued, [])] == ["k1", "k4", "k5", "k2", "k3"]
    assert [one.key for one in take_turns(queued, ["alice", "carol"])] == ["k4", "k1", "k5", "k2", "k3"]


def test_the_room_of_batch_jobs() -> None:
    running = [JobRequest("k1", "alice", 1.5, GB, 60, START)]
    room = measure_room(Capacity(8, 8 * GB, 3, 2 * GB), running, 2)
    assert room.cores - room.cores_held == 0.5 and room.memory_held_bytes == 2 * GB
    full = measure_room(Capacity(8, 8 * GB, 7.75, 2 * GB), running, 2)
    assert full.cores - full.cores_held == 0.25


def test_a_record_is_read_again_and_lies_are_not() -> None:
    options = JobOptions(name="n", output="out", array="1-3")
    request = JobRequest("k00000000001", "alice", 1, GB, 60, START, script=SCRIPT, options=options, batch=True)
    asked = batch.settle(batch.split_array(request)[1], "/f", "/h")
    record = json.loads(json.dumps(batch.render_record(asked)))
    assert batch.is_batch(record) and not batch.is_batch({"id": "x"}) and not batch.is_batch(None)
    again = batch.parse_record(record, asked.key, "alice", 7200)
    assert again == replace(asked, script=b"", argv=("job.sh",))
    for name, value in (
        ("cores", -1), ("cores", "many"), ("memory_bytes", 1 << 60), ("time_limit_s", 10**9), ("options", {}),
        ("options", {**record["batch"]["options"], "output": "a\nb"}), ("env", 5), ("submitted", "2026-01-01T00:00:00"),
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError, OverflowError, Invalid)):
            batch.parse_record({"batch": record["batch"] | {name: value}}, asked.key, "alice", 7200)
