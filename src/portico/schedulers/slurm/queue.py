"""The queue: one squeue for all jobs of a cluster, and what it says. Pure.

Plain formatted output and not --json: at 10,000 jobs that is 0.1 s and 1 MB instead of 1.2 s and 32 MB, and --json
says "no jobs" with exit status 0 while the controller is away. Anyone can put a separator or a line break into a
job's name: each record, and each free text in it, begins with a mark that was made up for this one question and that
no other user can see, because the format travels in the environment. So nobody can forge another's record.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from portico.model import SESSION_ID
from portico.schedulers.protocol import Job, JobState
from portico.schedulers.slurm.command import ENVIRONMENT, Command, Result
from portico.schedulers.slurm.refusals import translate
from portico.schedulers.slurm.states import describe_turn, describe_wait, explain_end, is_held, parse_state
from portico.schedulers.slurm.text import (
    clean,
    count_tasks,
    decode,
    expand_nodes,
    is_nothing,
    make_printable,
    parse_duration,
    parse_int,
    parse_size,
    parse_time,
)

log = logging.getLogger(__name__)

FIELDS: Final = (
    ("id", "%A"),
    ("array", "%F"),
    ("tasks", "%K"),
    ("word", "%T"),
    ("reason", "%r"),
    ("user", "%u"),
    ("account", "%a"),
    ("partition", "%P"),
    ("qos", "%q"),
    ("submitted", "%V"),
    ("started", "%S"),
    ("ends", "%e"),
    ("limit", "%l"),
    ("used", "%M"),
    ("nodes", "%D"),
    ("cores", "%C"),
    ("memory", "%m"),
    ("gres", "%b"),
    ("names", "%N"),
    ("priority", "%Q"),
    ("dependency", "%E"),
    # free text, which may hold anything
    ("comment", "%k"),
    ("name", "%j"),
)
"""What is asked for: our name for it and squeue's -o code (squeue(1)). Command and parser both walk this table."""

SEPARATOR: Final = "|"
KEY_PREFIX: Final = "portico:"
_KEY_NAME: Final = "portico-"
_PLAIN: Final = tuple(name for name, _ in FIELDS if name not in ("comment", "name"))


def make_mark() -> str:
    """Return a mark that nobody can guess."""
    return secrets.token_hex(8)


Record = tuple[str, str, str]
"""What squeue said of a job: plain fields, comment, name."""


@dataclass
class Memory:
    """What was read of the last answer. Most of a queue is as it was two seconds ago and need not be read again.

    Attributes:
        read: Each record of the last answer with the job that it is, before its position is known.
        placed: The jobs of the last answer by id, with their positions.
    """

    read: dict[Record, Job] = field(default_factory=dict)
    placed: dict[str, tuple[Job, Job]] = field(default_factory=dict)


def list_queue(mark: str | None = None, memory: Memory | None = None) -> Command[list[Job]]:
    """Ask for all jobs: those that wait, run, and ended within the controller's MinJobAge (300 s by default).

    In hidden partitions too, and in ones that Portico's account may not use; of a federation, this cluster's only.

    Args:
        mark: What records begin with; by default one that was made up.
        memory: Makes reading quicker, and is brought up to date by it. One answer at a time.
    """
    return _ask((), mark or make_mark(), lambda jobs: jobs, memory)


def find_key(key: str, user_name: str, mark: str | None = None) -> Command[list[Job]]:
    """Ask for the jobs of a user that carry a key, the oldest first."""

    def choose(jobs: list[Job]) -> list[Job]:
        return sorted((j for j in jobs if j.key == key and j.user_name == user_name), key=lambda j: parse_int(j.id))

    return _ask((f"--user={user_name}",), mark or make_mark(), choose)


def _ask(
    more: tuple[str, ...], mark: str, choose: Callable[[list[Job]], list[Job]], memory: Memory | None = None
) -> Command[list[Job]]:
    codes = dict(FIELDS)
    plain = SEPARATOR.join(codes[name] for name in _PLAIN)
    form = f"{mark}{plain}{mark}{codes['comment']}{mark}{codes['name']}"
    return Command(
        ("squeue", "--noheader", "--local", "--all", "--states=all", *more),
        lambda result: choose(parse_queue(result, mark, memory)),
        env=(*ENVIRONMENT, ("SQUEUE_FORMAT", form)),
    )


def parse_queue(result: Result, mark: str, memory: Memory | None = None) -> list[Job]:
    """Return the jobs, with their positions in the queue.

    Raises:
        PorticoError: The controller did not answer.
    """
    # squeue says some errors with exit status 0; those come without a record.
    if result.status or result.timed_out or (result.stderr.strip() and not result.stdout.strip()):
        raise translate(result, "Asking for the queue")
    _, *pieces = decode(result).split(mark)
    whole = len(pieces) // 3 * 3 - 3 * result.cut  # of an answer that was cut, the last record is left out
    memory = memory or Memory()
    before, memory.read = memory.read, {}
    jobs: list[Job] = []
    for record in zip(pieces[:whole:3], pieces[1:whole:3], pieces[2:whole:3], strict=True):
        if job := before.get(record) or _parse_record(*record):
            memory.read[record] = job
            jobs.append(job)
    if result.cut or len(jobs) < whole // 3 or len(pieces) % 3:
        log.warning(
            "Slurm's queue: %d of %d records were read%s", len(jobs), len(pieces) // 3, "; it was cut" * result.cut
        )
    return _add_positions(jobs, memory)


def _parse_record(plain: str, comment: str, name: str) -> Job | None:
    """Return one record's job, without its position; None where it is none."""
    values = plain.split(SEPARATOR)
    if len(values) != len(_PLAIN) or not values[0].isdecimal():
        return None
    value = dict(zip(_PLAIN, values, strict=True))
    word, reason = value["word"], value["reason"]
    state = parse_state(word)
    is_array = not is_nothing(value["tasks"])
    why, detail = explain_end(word, reason, "") if state is JobState.ENDED else (None, "")
    return Job(
        id=value["id"],
        user_name=clean(value["user"]),
        state=state,
        word=word,
        name=make_printable(name.removesuffix("\n")),
        key=parse_key(comment, name.removesuffix("\n")),
        shown_id=_render_id(value["id"], value["array"], value["tasks"], is_array),
        array_id=value["array"] if is_array else "",
        task_count=count_tasks(value["tasks"]) if is_array else 1,
        account=clean(value["account"]),
        partition=clean(value["partition"]),
        qos=clean(value["qos"]),
        held=is_held(reason),
        waiting_for=describe_wait(reason) if state is JobState.QUEUED else "",
        submitted=parse_time(value["submitted"]),
        started=parse_time(value["started"]),
        ends=parse_time(value["ends"]),
        limit_s=parse_duration(value["limit"]),
        used_s=parse_duration(value["used"]) or 0,
        cores=parse_int(value["cores"]),
        nodes=parse_int(value["nodes"]),
        memory_bytes=parse_size(value["memory"]) or 0,
        gres=clean(value["gres"]),
        node_names=expand_nodes(value["names"]) if state is not JobState.QUEUED else (),
        priority=parse_int(value["priority"]),
        dependency=clean(value["dependency"]),
        reason=why,
        detail=detail,
    )


def _add_positions(jobs: list[Job], memory: Memory) -> list[Job]:
    """Return the jobs; each waiting one that its priority counts for with its place in its partition, from 1."""
    places: dict[str, list[Job]] = {}
    for job in jobs:
        if job.state is JobState.QUEUED and not job.held and job.priority:
            places.setdefault(job.partition, []).append(job)
    positions: dict[str, int] = {}
    for waiting in places.values():
        waiting.sort(key=lambda job: (-job.priority, int(job.id)))
        positions.update((job.id, place) for place, job in enumerate(waiting, 1))
    before, memory.placed = memory.placed, {}
    turns = (describe_wait("Priority"), describe_wait("None"))
    found: list[Job] = []
    for job in jobs:
        position = positions.get(job.id, 0)
        known = before.get(job.id)
        if known is None or known[0] is not job or known[1].position != position:
            waiting_for = describe_turn(position) if position and job.waiting_for in turns else job.waiting_for
            known = job, job.move_to(position, waiting_for) if position else job
        memory.placed[job.id] = known
        found.append(known[1])
    return found


def parse_key(comment: str, name: str) -> str:
    """Return Portico's key in a job's comment, or in its name; empty where there is none.

    A site's submission filter may change either. Anyone can write one: it counts only together with the user.
    """
    for text, prefix in ((comment, KEY_PREFIX), (name, _KEY_NAME)):
        if text.startswith(prefix):
            key = text[len(prefix) :].split(" ", 1)[0]
            if SESSION_ID.match(key):
                return key
    return ""


def render_key(key: str) -> tuple[str, str]:
    """Return the comment of a job with that key, and its name where its user gives it none."""
    return f"{KEY_PREFIX}{key}", f"{_KEY_NAME}{key}"


def _render_id(job_id: str, array_id: str, tasks: str, is_array: bool) -> str:
    if not is_array:
        return job_id
    return f"{array_id}_{tasks}" if tasks.isdecimal() else f"{array_id}_[{tasks}]"
