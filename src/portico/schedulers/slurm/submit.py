"""Submitting: sbatch with the script on standard input. Pure.

No text of a person's ever becomes part of a script: options travel on argv, each as one ``--name=value`` whose value
was checked against what such a value may look like. The script itself passes through byte by byte, with whatever
directives of its own its author wrote; what stands on argv counts for more than they do (sbatch(1), "OPTIONS").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from portico.errors import Invalid
from portico.schedulers.protocol import JobRequest
from portico.schedulers.script import check_script
from portico.schedulers.slurm.command import Command, Result
from portico.schedulers.slurm.queue import KEY_PREFIX, render_key
from portico.schedulers.slurm.refusals import translate
from portico.schedulers.slurm.text import MIB, render_minutes

SCRIPT_LIMIT_BYTES: Final = 4 << 20
"""Slurm's own default limit (slurm.conf(5), SchedulerParameters, max_script_size)."""
NAME_LIMIT: Final = 100
PLACE: Final = r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,79}"
"""A partition's, an account's, a QOS's or a reservation's name."""


@dataclass(frozen=True)
class Check:
    """What an option's text may look like; ``label`` and ``like`` are for people."""

    option: str
    label: str
    pattern: str
    like: str


CHECKS: Final[dict[str, Check]] = {
    "partition": Check("--partition", "The partition", rf"{PLACE}(,{PLACE})*", "batch"),
    "account": Check("--account", "The account", PLACE, "proj1"),
    "qos": Check("--qos", "The QOS", PLACE, "normal"),
    "gres": Check("--gres", "The devices", r"[A-Za-z0-9_./-]+(:[A-Za-z0-9_.-]+){0,2}(,[A-Za-z0-9_./:-]+)*", "gpu:1"),
    "constraint": Check("--constraint", "The features", r"[A-Za-z0-9_.&|*()\[\]=:,+-]{1,200}", "skylake&ib"),
    "reservation": Check("--reservation", "The reservation", rf"{PLACE}(,{PLACE})*", "course"),
    "array": Check(
        "--array", "The array", r"\d{1,9}(-\d{1,9}(:\d{1,9})?)?(,\d{1,9}(-\d{1,9}(:\d{1,9})?)?)*(%\d{1,9})?", "1-100%5"
    ),
    "dependency": Check(
        "--dependency",
        "The dependency",
        r"(?:singleton|(?:after|afterany|afterok|afternotok|aftercorr|afterburstbuffer)(?::\d{1,10}(?:_\d{1,9})?(?:\+\d{1,6})?)+)"
        r"(?:[,?](?:singleton|(?:after|afterany|afterok|afternotok|aftercorr|afterburstbuffer)(?::\d{1,10}(?:_\d{1,9})?(?:\+\d{1,6})?)+))*",
        "afterok:123",
    ),
}  # fmt: skip
"""The options that are words of a grammar of their own: field of JobOptions → how it is checked and named."""


def submit(request: JobRequest) -> Command[str]:
    """Submit a job as the user who runs this; its result is the job's id.

    The environment of sbatch is the job's (sbatch(1), --export=ALL by default): the runner's own clean one, and the
    request's. Nothing of it stands on argv, which every user of the machine could read.

    Raises:
        Invalid: A field holds what it must not, or the script can't be one; ``field`` says which.
    """
    check_script(request.script, SCRIPT_LIMIT_BYTES)
    return Command(
        ("sbatch", "--parsable", *render_options(request)),
        parse_submitted,
        stdin=request.script,
        env=request.env,
        timeout_s=60,
        limit_bytes=1 << 16,
    )


def render_options(request: JobRequest) -> list[str]:
    """Return the request's options for argv.

    Raises:
        Invalid: A field holds what it must not.
    """
    options = request.options
    comment, name = render_key(request.key)
    argv = [f"--comment={comment}", f"--job-name={_check_name(options.name) or name}"]
    for field, check in CHECKS.items():
        if text := getattr(options, field):
            argv.append(f"{check.option}={_check(field, check, text)}")
    for field, option in (("nodes", "--nodes"), ("tasks", "--ntasks")):
        if number := getattr(options, field):
            argv.append(f"{option}={_check_number(field, number)}")
    if request.cores:
        argv.append(f"--cpus-per-task={_check_number('cores', math.ceil(request.cores - 1e-9))}")
    if request.memory_bytes:  # never --mem=0, which means all of a node's
        argv.append(f"--mem={_check_number('memory_gb', math.ceil(request.memory_bytes / MIB))}M")
    if request.time_limit_s:  # never --time=0, which means without end
        argv.append(f"--time={render_minutes(_check_number('hours', request.time_limit_s))}")
    if options.begin_after_s:
        argv.append(f"--begin=now+{int(_check_number('begin', options.begin_after_s))}")
    for field, option in (("folder", "--chdir"), ("output", "--output"), ("error", "--error")):
        if path := getattr(options, field):
            argv.append(f"{option}={_check_path(field, path)}")
    argv += ["--exclusive"] * options.exclusive
    argv += ["--hold"] * options.held
    argv.append("--requeue" if options.requeue else "--no-requeue")
    return argv


def parse_submitted(result: Result) -> str:
    """Return the job's id that ``sbatch --parsable`` printed, ``12`` or ``12;cluster``.

    Raises:
        PorticoError: It was not taken; Unavailable means that it may have been taken all the same.
    """
    if result.status or result.timed_out:
        raise translate(result, "Submitting the job")
    for line in reversed(result.stdout.decode("ascii", errors="replace").splitlines()):
        if match := re.fullmatch(r"(\d+)(;[\w.-]+)?", line.strip()):
            return match[1]
    raise translate(Result(1, result.stdout, result.stderr, timed_out=True), "Submitting the job")


def _check(field: str, check: Check, text: str) -> str:
    if not re.fullmatch(check.pattern, text):
        raise Invalid(f"{check.label} can't be {_quote(text)}.", hint=f"It looks like {check.like}.", field=field)
    return text


def _check_name(name: str) -> str:
    if not name:
        return ""
    if not name.isprintable() or len(name) > NAME_LIMIT or name.startswith((KEY_PREFIX, "portico-")):
        raise Invalid(
            f"A job can't have the name {_quote(name)}.",
            hint=f"At most {NAME_LIMIT} characters, without line breaks, and not beginning with portico.",
            field="name",
        )
    return name


def _check_path(field: str, path: str) -> str:
    if not path.isprintable() or not path.startswith("/") or len(path.encode()) > 1024:
        raise Invalid(
            f"{_quote(path)} is no path that a job can use.",
            hint="It begins with / and has no line breaks.",
            field=field,
        )
    return path


def _check_number(field: str, number: float) -> float:
    if not math.isfinite(number) or not 0 < number < 1e9:
        raise Invalid(f"{number:g} is out of bounds.", field=field)
    return number


def _quote(text: str) -> str:
    return repr(text[:60])
