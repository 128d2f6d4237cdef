"""``#SBATCH`` lines of a script, for the embedded scheduler: a script of a cluster asks for the same here. Pure.

Only what stands before the first command counts (sbatch(1)), and what is asked for outside the script counts for more.
A line that is not understood is refused: a job must not run with other limits than its author wrote down.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from portico.errors import Invalid
from portico.schedulers.protocol import JobRequest
from portico.schedulers.slurm.text import parse_duration, parse_size

NUMBER_MAX: Final = 20
"""Characters of a number, a size or a time."""

_SHORT: Final = {
    "A": "account", "C": "constraint", "D": "chdir", "H": "hold", "J": "job-name", "M": "clusters", "N": "nodes",
    "a": "array", "c": "cpus-per-task", "d": "dependency", "e": "error", "n": "ntasks", "o": "output",
    "p": "partition", "q": "qos", "t": "time",
}  # fmt: skip
_FLAGS: Final = frozenset({"hold", "exclusive", "requeue"})
_OPTIONS: Final = {
    "array": "array", "chdir": "folder", "constraint": "constraint", "dependency": "dependency", "error": "error",
    "gres": "gres", "job-name": "name", "output": "output", "reservation": "reservation",
}  # fmt: skip
"""What is passed on as it is: name at sbatch → field of JobOptions."""
_OF_THE_SITE: Final = frozenset(
    {"account", "clusters", "comment", "export", "mail-type", "mail-user", "no-requeue", "partition", "qos"}
)
"""Where and on whose account a cluster runs it, and what does not change the job: without a meaning here."""


def apply(request: JobRequest) -> JobRequest:
    """Return a request with what its script asks for where nobody asked for something else.

    Raises:
        Invalid: A line is not understood.
    """
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    per_core = 0
    for number, name, value in _iter_directives(request.script):
        if name in _OPTIONS:
            options[_OPTIONS[name]] = value
        elif name in _FLAGS:
            options["held" if name == "hold" else name] = True
        elif name in ("nodes", "ntasks"):
            options["nodes" if name == "nodes" else "tasks"] = int(_read(number, name, value, _parse_count))
        elif name == "cpus-per-task":
            values["cores"] = float(_read(number, name, value, _parse_count))
        elif name == "mem":
            values["memory_bytes"] = int(_read(number, name, value, parse_size))
        elif name == "mem-per-cpu":
            per_core = int(_read(number, name, value, parse_size))
        elif name == "time":
            values["time_limit_s"] = _read(number, name, value, parse_duration)
        elif name not in _OF_THE_SITE:
            raise _refuse(number, f"--{name} is nothing that this machine's own scheduler knows.")
    asked = {name: value for name, value in values.items() if not getattr(request, name)}
    wanted = {name: value for name, value in options.items() if not getattr(request.options, name)}
    found = replace(request, **asked, options=replace(request.options, **wanted))
    if per_core and not found.memory_bytes:
        found = replace(found, memory_bytes=int(per_core * (found.cores or 1) * max(1, found.options.tasks)))
    return found


def _iter_directives(script: bytes) -> Iterator[tuple[int, str, str]]:
    """Yield the line's number, the option's long name and its value."""
    for number, line in enumerate(script.decode(errors="replace").split("\n"), 1):
        if line.startswith("#SBATCH"):
            yield from _parse_line(number, line.removeprefix("#SBATCH"))
        elif line.strip() and not line.startswith("#"):
            return


def _parse_line(number: int, text: str) -> Iterator[tuple[int, str, str]]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise _refuse(number, "a quotation mark is missing.") from error
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
        elif word.startswith("-") and word[1:2] in _SHORT:
            name, value = _SHORT[word[1]], word[2:].removeprefix("=")
            given = value
        else:
            raise _refuse(number, f"{word[:40]!r} is no option.")
        if not given and name not in _FLAGS and name != "no-requeue":
            if not words:
                raise _refuse(number, f"--{name[:40]} has no value.")
            value = words.pop(0)
        yield number, name[:40], value


def _read(number: int, name: str, value: str, parse: Callable[[str], float | None]) -> float:
    found = parse(value) if len(value) <= NUMBER_MAX else None
    if not found or found < 0:
        raise _refuse(number, f"--{name} can't be {value[:40]!r}.")
    return found


def _parse_count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else None


def _refuse(number: int, why: str) -> Invalid:
    return Invalid(
        f"Line {number} of the script can't be followed: {why}",
        hint="Change or remove that #SBATCH line.",
        field="script",
    )
