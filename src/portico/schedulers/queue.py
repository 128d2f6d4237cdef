"""Who is next: the pure part of the embedded scheduler.

First come, first served, and nobody overtakes: the oldest job waits until it fits, and all behind it wait too. So a
large job is never starved by small ones. It costs some idle cores, which interactive work has anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from portico.errors import Invalid
from portico.schedulers.protocol import Capacity, JobRequest

GB: Final = 1_000_000_000
WAIT_START: Final = "its start"


def choose_next(queued: Iterable[JobRequest], capacity: Capacity) -> list[JobRequest]:
    """Return the jobs that start now, in order. ``queued`` is in order of submission."""
    cores, memory = capacity.cores - capacity.cores_held, capacity.memory_bytes - capacity.memory_held_bytes
    chosen = []
    for request in queued:
        if request.cores > cores + 1e-9 or request.memory_bytes > memory:
            break
        cores -= request.cores
        memory -= request.memory_bytes
        chosen.append(request)
    return chosen


def take_turns(queued: Iterable[JobRequest], running: Iterable[str]) -> list[JobRequest]:
    """Return batch jobs in the order in which they start: users take turns, so that a hundred jobs hold up nobody.

    Args:
        queued: In order of submission, which counts among jobs whose users have as many before them.
        running: The users of those that run, one for each job.
    """
    before, ranked = Counter(running), []
    for request in queued:
        ranked.append((before[request.user_name], request))
        before[request.user_name] += 1
    return [request for _, request in sorted(ranked, key=lambda pair: pair[0])]


def measure_room(capacity: Capacity, batch: Sequence[JobRequest], batch_cores: float) -> Capacity:
    """Return what batch jobs may hold, so far as it is free or held by them.

    Args:
        capacity: What there is, and what is held by sessions and jobs.
        batch: The jobs that run.
        batch_cores: What they may hold in all: interactive work idles most of the time, they do not.
    """
    held = sum(request.cores for request in batch)
    free = min(capacity.cores - capacity.cores_held, batch_cores - held)
    return Capacity(batch_cores, capacity.memory_bytes, batch_cores - free, capacity.memory_held_bytes)


def describe_wait(position: int, request: JobRequest, capacity: Capacity) -> str:
    """Return what a waiting job waits for, for people. ``position`` counts from 1."""
    if position > 1:
        return f"its turn: number {position} in the queue"
    lacks = []
    if (cores := request.cores - (capacity.cores - capacity.cores_held)) > 1e-9:
        lacks.append("1 more core" if cores == 1 else f"{cores:g} more cores")
    if (memory := request.memory_bytes - (capacity.memory_bytes - capacity.memory_held_bytes)) > 0:
        lacks.append(f"{memory / GB:.1f} GB more memory")
    return f"{' and '.join(lacks)} to become free" if lacks else WAIT_START


def refuse_impossible(request: JobRequest, capacity: Capacity) -> None:
    """Do nothing if the machine could run this once it is empty.

    Raises:
        Invalid: It never could.
    """
    if request.cores > capacity.cores + 1e-9:
        raise Invalid(
            f"This machine offers {capacity.cores:g} cores in all; {request.cores:g} can never be had.",
            hint="Ask for fewer.",
            field="cores",
        )
    if request.memory_bytes > capacity.memory_bytes:
        raise Invalid(
            f"This machine offers {capacity.memory_bytes / GB:.1f} GB of memory in all; "
            f"{request.memory_bytes / GB:.1f} GB can never be had.",
            hint="Ask for less.",
            field="memory_gb",
        )
