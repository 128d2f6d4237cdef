"""How Slurm writes times, sizes, lists of nodes and tasks. Pure, and forgiving: what can't be read is None or empty."""

from __future__ import annotations

import functools
import math
import re
from datetime import UTC, datetime
from typing import Final

from portico.schedulers.slurm.command import Result

MIB: Final = 1 << 20
EXPANDED_LIMIT: Final = 100_000
"""Most names or numbers that one expression is unfolded to; no answer of Slurm's own comes near."""

CACHED: Final = 4096
"""Answers kept: of ten thousand jobs most have the same times, sizes and places."""

_NOTHING: Final = frozenset({"", "(null)", "n/a", "none", "unknown", "invalid", "not_set", "none assigned"})
_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_DURATION: Final = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?(?:\.(\d+))?\Z")


def is_nothing(text: str) -> bool:
    """Return whether this is one of Slurm's many words for no value."""
    return text.strip().lower() in _NOTHING


@functools.lru_cache(CACHED)
def clean(text: str) -> str:
    """Return a text, empty for one of Slurm's words for nothing, with nothing in it that does not print."""
    return "" if is_nothing(text) else make_printable(text)


def make_printable(text: str, limit: int = 200) -> str:
    """Return somebody's text with nothing in it that does not print."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


def decode(result: Result) -> str:
    """Return a command's output; what is no UTF-8 in it is replaced."""
    return result.stdout.decode("utf-8", errors="replace")


@functools.lru_cache(CACHED)
def parse_time(text: str) -> datetime | None:
    """Return a time: Unix seconds (SLURM_TIME_FORMAT=%s), or ISO 8601 without a zone, which is UTC (TZ=UTC)."""
    try:
        if text.isdecimal():
            return datetime.fromtimestamp(int(text), UTC) if int(text) else None
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None


@functools.lru_cache(CACHED)
def parse_duration(text: str) -> float | None:
    """Return seconds of ``[days-]hours:minutes:seconds``, ``minutes:seconds`` or ``minutes``; None for no limit.

    With days the first part is hours (sbatch(1), --time): ``1-12`` is a day and a half.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        return None
    days, *parts = match.group(1, 2, 3, 4)
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    fraction = float(f"0.{match[5]}") if match[5] else 0.0
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds + fraction


def parse_minutes(text: str) -> float | None:
    """Return seconds of a number of minutes (sacct's TimelimitRaw); None for no limit."""
    return float(text.strip()) * 60 if text.strip().isdecimal() else None


def render_minutes(seconds: float) -> str:
    """Return a time limit in whole minutes, Slurm's own unit, rounded up."""
    return str(max(1, math.ceil(seconds / 60 - 1e-9)))


@functools.lru_cache(CACHED)
def parse_size(text: str, unit: str = "M") -> int | None:
    """Return the bytes of ``500M``, ``1.5G``, ``4436K``; ``unit`` is that of a bare number.

    A last letter ``c`` or ``n`` (sacct before 21.08: for each core, each node) is left to the caller.
    """
    match = re.match(r"([0-9.]+)([KMGTP]?)", text.strip())
    try:
        return int(float(match[1]) * 1024 ** _UNITS[match[2] or unit]) if match else None
    except ValueError:
        return None


def parse_tres(text: str) -> dict[str, str]:
    """Return ``cpu=4,mem=2000M,gres/gpu:a100=2`` as a dictionary."""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def parse_int(text: str) -> int:
    """Return a number, 0 for none. Slurm shortens large ones: ``12K``."""
    match = re.match(r"(\d+)(K?)", text.strip())
    return int(match[1]) * (1024 if match[2] else 1) if match else 0


@functools.lru_cache(CACHED)
def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the names in a hostlist expression: ``n[1-3,07],login``, ``r[1-2]n[1-2]``.

    scontrol(1), "show hostnames". Numbers keep their leading zeros.
    """
    if is_nothing(text):
        return ()
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        found = [""]
        for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            endings = [literal] if literal else _expand_ranges(ranges)
            if len(found) * len(endings) + len(names) > EXPANDED_LIMIT:
                return (text,)
            found = [name + ending for name in found for ending in endings]
        names += found
    return tuple(names)


def _expand_ranges(text: str) -> list[str]:
    numbers: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and first.isdecimal() and last.isdecimal() and int(last) - int(first) <= EXPANDED_LIMIT:
            numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        else:
            numbers.append(part)
    return numbers


def count_tasks(text: str) -> int:
    """Return how many tasks an array expression names: ``1-1000:3%5``, ``7``, ``1,5,9-11``."""
    count = 0
    for part in text.partition("%")[0].split(","):
        match = re.match(r"(\d+)(?:-(\d+)(?::(\d+))?)?\Z", part.strip())
        if match:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            count += max(0, (last - first) // max(1, step) + 1)
    return max(1, count)
