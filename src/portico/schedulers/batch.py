"""Batch jobs of the embedded scheduler: what may be asked for, what is filled in, and what a job waits for. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

from portico.errors import Invalid
from portico.model import SESSION_ID
from portico.schedulers.protocol import Capacity, JobOptions, JobRequest
from portico.schedulers.queue import GB
from portico.schedulers.script import check_script

PARTITION: Final = "local"
DEFAULT_CORES: Final = 1.0
DEFAULT_MEMORY_BYTES: Final = 2 * GB
DEFAULT_TIME_S: Final = 3600.0
MEMORY_MIN_BYTES: Final = 16 * 10**6
"""No shell starts with less."""
SCRIPT_LIMIT_BYTES: Final = 96 * 1024
"""As much as a message to the user's agent takes (wire.MESSAGE_LIMIT_BYTES), as JSON."""
TASKS_MAX: Final = 200
"""Tasks of an array: each is a file of the spool and a folder of its user's."""
NAME_MAX: Final = 100
PATH_MAX_BYTES: Final = 1024
BEGIN_MAX_S: Final = 366 * 86400.0

_ARRAY: Final = re.compile(
    r"(?P<parts>\d{1,9}(-\d{1,9}(:\d{1,9})?)?(,\d{1,9}(-\d{1,9}(:\d{1,9})?)?)*)(%(?P<most>\d{1,9}))?"
)
_DEPENDENCY: Final = re.compile(r"(?P<kind>afterok|afterany|afternotok)(?P<ids>(:[a-z][a-z0-9]{11})+)")
_NOT_HERE: Final = {
    "account": "There are no accounts to charge.",
    "qos": "There is no QOS to choose.",
    "gres": "It hands out no devices.",
    "constraint": "It has one node, with the features that it has.",
    "reservation": "There are no reservations.",
    "exclusive": "No job has all of it.",
    "requeue": "A job that was lost is not begun again.",
}
"""The options that make no sense on one machine, each with the reason."""


@dataclass(frozen=True)
class Dependency:
    """A job that another one waits for; ``kind`` as sbatch(1) has it."""

    kind: str
    key: str


def complete(request: JobRequest, capacity: Capacity) -> JobRequest:
    """Return a request with the defaults in it, and the cores of all its tasks."""
    cores = (request.cores or DEFAULT_CORES) * max(1, request.options.tasks)
    memory = request.memory_bytes or min(DEFAULT_MEMORY_BYTES, capacity.memory_bytes)
    return replace(request, cores=cores, memory_bytes=memory, time_limit_s=request.time_limit_s or DEFAULT_TIME_S)


def check(request: JobRequest, longest_s: float) -> None:
    """Do nothing if this is a batch job that one machine can run; how much there is of it, others know.

    Raises:
        Invalid: It is none; ``field`` says what stands against it.
    """
    check_script(request.script, SCRIPT_LIMIT_BYTES)
    try:
        size = len(json.dumps(request.script.decode()))
    except UnicodeDecodeError as error:
        raise Invalid("The script is no UTF-8 text.", hint="Save it as UTF-8.", field="script") from error
    if size > SCRIPT_LIMIT_BYTES:
        raise Invalid("The script is too large.", hint="Put data into a file of its own.", field="script")
    check_options(request.options)
    for field, number in (("cores", request.cores), ("memory_gb", request.memory_bytes)):
        if not math.isfinite(number) or number < 0:
            raise Invalid(f"{number:g} is out of bounds.", field=field)
    if request.cores and request.cores < 0.1:
        raise Invalid("A job has a tenth of a core at least.", field="cores")
    if request.memory_bytes and request.memory_bytes < MEMORY_MIN_BYTES:
        raise Invalid("No program runs in so little memory.", hint="Ask for 0.1 GB at least.", field="memory_gb")
    check_limit(request.time_limit_s or DEFAULT_TIME_S, longest_s)


def check_limit(limit_s: float, longest_s: float) -> None:
    """Do nothing if a job may have such a time limit.

    Raises:
        Invalid: It may not.
    """
    if not math.isfinite(limit_s) or limit_s < 1:
        raise Invalid("This is no time limit.", field="hours")
    if limit_s > longest_s:
        raise Invalid(
            f"A job may run for {longest_s / 3600:g} hours at most; {limit_s / 3600:g} were asked for.",
            hint="Ask for less, or an administrator sets max_hours.",
            field="hours",
        )


def check_options(options: JobOptions) -> None:
    """Do nothing if one machine can do what is asked for.

    Raises:
        Invalid: It can't, or a text is none; ``field`` says which.
    """
    if options.partition not in ("", PARTITION):
        raise Invalid(
            f"This machine has no partition {options.partition[:60]!r}.", hint="Leave it empty.", field="partition"
        )
    for field, why in _NOT_HERE.items():
        if getattr(options, field):
            raise Invalid(
                f"This machine's own scheduler can't do that: {field}.", why=why, hint="Leave it out.", field=field
            )
    if options.nodes not in (0, 1):
        raise Invalid("This machine is one node.", hint="Ask for tasks or cores instead.", field="nodes")
    if not 0 <= options.tasks <= 4096:
        raise Invalid(f"{options.tasks} is out of bounds.", field="tasks")
    if not 0 <= options.begin_after_s <= BEGIN_MAX_S:
        raise Invalid("A job can wait for a year at most.", field="begin_after_s")
    if len(options.name) > NAME_MAX or (options.name and not options.name.isprintable()):
        raise Invalid(
            f"A job can't have the name {options.name[:60]!r}.",
            hint=f"At most {NAME_MAX} characters, without line breaks.",
            field="name",
        )
    for field in ("folder", "output", "error"):
        path = getattr(options, field)
        if path and (not path.isprintable() or len(path.encode()) > PATH_MAX_BYTES):
            raise Invalid(f"{path[:60]!r} is no path that a job can use.", hint="It stands on one line.", field=field)
    if options.folder and not options.folder.startswith("/"):
        raise Invalid(f"{options.folder[:60]!r} is no folder.", hint="It begins with /.", field="folder")
    parse_array(options.array)
    parse_dependency(options.dependency)


# where it works and writes to


def settle(request: JobRequest, folder: str, home: str) -> JobRequest:
    """Return a request with absolute paths, what it runs, and its environment.

    Args:
        request: A complete one.
        folder: The job's own, which has job.sh.
        home: The user's.
    """
    options = request.options
    place = options.folder or home

    def find(path: str) -> str:
        return path if path.startswith("/") else f"{place.rstrip('/')}/{path}"

    names = {"j": request.key, "x": (options.name or "job").replace("/", "_"), "u": request.user_name, "%": "%"}
    given = dict(request.env)
    names |= {"A": given.get("PORTICO_ARRAY_ID", request.key), "a": given.get("PORTICO_ARRAY_TASK_ID", "0")}

    def fill(path: str) -> str:
        return find(re.sub("%([jxuAa%])", lambda match: names[match[1]], path))

    output = fill(options.output or "portico-%j.out")
    settled = replace(options, folder=place, output=output, error=fill(options.error) if options.error else "")
    env = {
        "PORTICO_SESSION": request.key,  # by which its processes are found
        "PORTICO_JOB_ID": request.key,
        "PORTICO_JOB_NAME": options.name,
        "PORTICO_CORES": f"{request.cores:g}",
        "PORTICO_MEMORY_BYTES": str(request.memory_bytes),
        "PORTICO_TASKS": str(max(1, options.tasks)),
        **given,
    }
    return replace(request, options=settled, env=tuple(env.items()), argv=(f"{folder}/job.sh",))


# what it waits for


def parse_dependency(text: str) -> list[Dependency]:
    """Return the jobs that all must have ended, ``afterok:ID:ID,afterany:ID``.

    Raises:
        Invalid: It is something else.
    """
    found = []
    for part in text.split(",") if text else ():
        match = _DEPENDENCY.fullmatch(part)
        if match is None:
            raise Invalid(
                f"The dependency can't be {text[:60]!r}.",
                why="This machine's own scheduler knows afterok, afterany and afternotok, with ids of jobs.",
                hint="It looks like afterok:k1234567890a.",
                field="dependency",
            )
        found += [Dependency(match["kind"], key) for key in match["ids"][1:].split(":")]
    return found


def parse_array(text: str) -> tuple[list[int], int]:
    """Return the numbers of an array's tasks, in order, and how many may run at once (0: any number).

    Raises:
        Invalid: It is no array, or one with too many tasks.
    """
    if not text:
        return [], 0
    match = _ARRAY.fullmatch(text)
    if match is None:
        raise Invalid(f"The array can't be {text[:60]!r}.", hint="It looks like 1-100%5.", field="array")
    numbers: set[int] = set()
    for part in match["parts"].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        begin, end = int(first), int(last or first)
        if end < begin or step == "0" * len(step) != "":
            raise Invalid(f"The array can't be {text[:60]!r}.", hint="It goes from the lower number up.", field="array")
        numbers.update(range(begin, end + 1, int(step or 1))[: TASKS_MAX + 1])
        if len(numbers) > TASKS_MAX:
            raise Invalid(f"An array may have {TASKS_MAX} tasks here.", hint="Submit it in parts.", field="array")
    most = match["most"]
    if most is not None and not int(most):
        raise Invalid("An array of which nothing may run never ends.", hint="Put 1 or more after %.", field="array")
    return sorted(numbers), int(most or 0)


def split_array(request: JobRequest) -> list[JobRequest]:
    """Return the jobs of an array: one for each task, the first with the array's own key; or the job itself."""
    numbers, _ = parse_array(request.options.array)
    found = []
    for number in numbers:
        env = {
            "PORTICO_ARRAY_ID": request.key,
            "PORTICO_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_JOB_ID": request.key,
            "SLURM_ARRAY_TASK_ID": str(number),
        }
        key = request.key if number == numbers[0] else make_task_key(request.key, number)
        found.append(replace(request, key=key, env=tuple(env.items())))
    return found or [request]


def make_task_key(key: str, number: int) -> str:
    """Return the key of an array's task: always the same one, so that no task is submitted twice."""
    digest = hashlib.sha256(f"{key} {number}".encode()).digest()
    return "k" + base64.b32encode(digest).decode().lower()[:11]


def find_array(request: JobRequest) -> tuple[str, str]:
    """Return the id of the array that a job is a task of, and its number; empty for none."""
    env = dict(request.env)
    return env.get("PORTICO_ARRAY_ID", ""), env.get("PORTICO_ARRAY_TASK_ID", "")


# session.json of a batch job, by which it is found again where the spool was lost


def render_record(request: JobRequest) -> dict[str, Any]:
    """Return what the job's folder keeps of it."""
    return {
        "batch": {
            "cores": request.cores,
            "memory_bytes": request.memory_bytes,
            "time_limit_s": request.time_limit_s,
            "submitted": request.submitted.isoformat(),
            "env": request.env,
            "options": asdict(request.options),
        }
    }


def is_batch(record: object) -> bool:
    """Return whether a session.json speaks of a batch job."""
    return isinstance(record, Mapping) and "batch" in record


def parse_record(record: Mapping[str, Any], key: str, user_name: str, longest_s: float) -> JobRequest:
    """Return the job that a session.json of this user's speaks of, without its script. Its owner can write the file.

    Raises:
        KeyError, TypeError, ValueError, OverflowError, Invalid: It speaks of none.
    """
    said = dict(record["batch"])
    cores, memory, limit = float(said["cores"]), int(said["memory_bytes"]), float(said["time_limit_s"])
    if not (SESSION_ID.match(key) and 0 < cores <= 4096 and MEMORY_MIN_BYTES <= memory < 1 << 50):
        raise ValueError("out of bounds")
    check_limit(limit, longest_s)
    options = JobOptions(**{n: type(d)(said["options"][n]) for n, d in asdict(JobOptions()).items()})
    check_options(options)
    submitted = datetime.fromisoformat(said["submitted"])
    if submitted.tzinfo is None:
        raise ValueError("a time without its zone")
    env = tuple((str(name)[:100], str(text)[:1000]) for name, text in list(said["env"])[:20])
    return JobRequest(
        key, user_name, cores, memory, limit, submitted, ("job.sh",), env, b"", replace(options, held=False), batch=True
    )
