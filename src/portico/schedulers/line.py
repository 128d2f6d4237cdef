"""The embedded scheduler's queue as its spool has it: what is held, what starts next, what the others wait for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from portico.schedulers.local_batch import BatchJobs
from portico.schedulers.protocol import Capacity, JobRequest, JobStatus
from portico.schedulers.queue import WAIT_START, choose_next, describe_wait, measure_room, take_turns
from portico.schedulers.spool import Entry, Spool


class Line:
    """Sessions first, whose users sit before their screens, and behind them batch jobs, whose users take turns.

    Args:
        capacity: What sessions and jobs may hold in all.
        batch_cores: What batch jobs may hold of its cores.
    """

    def __init__(
        self,
        spool: Spool[Entry],
        batch: BatchJobs,
        capacity: Capacity,
        batch_cores: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._spool = spool
        self._batch = batch
        self._capacity = capacity
        self._batch_cores = batch_cores
        self._clock = clock

    def count(self) -> Capacity:
        """Return what there is, and what is held."""
        held = [entry for entry in self._spool if entry.holds]
        return Capacity(
            self._capacity.cores,
            self._capacity.memory_bytes,
            sum(e.request.cores for e in held),
            sum(e.request.memory_bytes for e in held),
            len(held),
            sum(entry.waits for entry in self._spool),
        )

    def choose(self) -> list[JobRequest]:
        """Return what starts now, in order."""
        sessions, turns, _ = self._sort()
        capacity = self.count()
        chosen = choose_next(sessions, capacity)
        if len(chosen) < len(sessions):  # the next one waits for what a batch job would take
            return chosen
        left = replace(
            capacity,
            cores_held=capacity.cores_held + sum(one.cores for one in chosen),
            memory_held_bytes=capacity.memory_held_bytes + sum(one.memory_bytes for one in chosen),
        )
        return chosen + choose_next(turns, self._measure_room(left))

    def describe(self) -> dict[str, JobStatus]:
        """Return all jobs, with what those wait for that wait."""
        sessions, turns, blocked = self._sort()
        places = {request.key: place for place, request in enumerate(sessions + turns, 1)}
        capacity = self.count()
        room = self._measure_room(capacity)
        found = {}
        for entry in self._spool:
            request = entry.request
            place = places.get(request.key, 0)
            waiting_for = blocked.get(request.key, "")
            if entry.forking:
                waiting_for = WAIT_START
            elif place:
                waiting_for = describe_wait(place, request, room if request.batch else capacity)
            found[request.key] = JobStatus(
                request.key,
                request.user_name,
                entry.state,
                waiting_for,
                entry.started,
                entry.deadline,
                entry.reason,
                entry.detail,
                job_id=request.key,
                position=place,
                batch=request.batch,
                notify=request.notify,
                name=request.options.name,
            )
        return found

    def _sort(self) -> tuple[list[JobRequest], list[JobRequest], dict[str, str]]:
        """Return the sessions and the batch jobs that are in line, and why the others are not yet."""
        waiting = [entry for entry in self._spool if entry.waits]
        free, blocked = self._batch.sort_out([one for one in waiting if one.request.batch], self._clock())
        turns = take_turns(free, [one.user_name for one in self._list_running()])
        return [one.request for one in waiting if not one.request.batch], turns, blocked

    def _list_running(self) -> list[JobRequest]:
        return [entry.request for entry in self._spool if entry.holds and entry.request.batch]

    def _measure_room(self, capacity: Capacity) -> Capacity:
        return measure_room(capacity, self._list_running(), self._batch_cores)
