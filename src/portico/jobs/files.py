"""A user's own files, read as that user: the end of a job's output, a script to submit. Pure commands.

Whatever a path leads to, a device or a pipe, it is read for a few seconds at most, and no more than is shown.
"""

from __future__ import annotations

from typing import Final

from portico.errors import Invalid, NotFound, Unavailable
from portico.schedulers.slurm.command import Command, Result

TAIL_BYTES: Final = 64 * 1024
SCRIPT_BYTES: Final = 4 << 20
READ_S: Final = 5.0


def check_path(path: str) -> str:
    """Return a path that can be read.

    Raises:
        Invalid: It is none; ``field`` is ``path``.
    """
    if not path.startswith("/") or "\0" in path or "\n" in path or len(path.encode()) > 4096:
        raise Invalid("This is not a path.", hint="It begins with / and stands on one line.", field="path")
    return path


def tail(path: str, lines: int) -> Command[str]:
    """Read the last lines of a file, TAIL_BYTES at most, as text.

    Raises:
        Invalid: It is no path.
    """
    check_path(path)

    def parse(result: Result) -> str:
        _check(result, path)
        text = result.stdout.decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    return Command(("tail", "-c", str(TAIL_BYTES), "--", path), parse, env=(), timeout_s=READ_S, limit_bytes=TAIL_BYTES)


def read(path: str) -> Command[bytes]:
    """Read a whole file.

    Raises:
        Invalid: It is no path, or too large.
    """
    check_path(path)

    def parse(result: Result) -> bytes:
        if result.cut:
            raise Invalid(f"The file has more than {SCRIPT_BYTES >> 20} MB.", field="path")
        _check(result, path)
        return result.stdout

    return Command(("cat", "--", path), parse, env=(), timeout_s=READ_S, limit_bytes=SCRIPT_BYTES)


def _check(result: Result, path: str) -> None:
    if result.timed_out:
        raise Unavailable(f"Reading {path} took too long.", why="It is no ordinary file, or its disk does not answer.")
    if result.status:
        why = result.message.rpartition(": ")[2] or "It can't be read."
        raise NotFound(f"There is nothing to read at {path}.", why=why)
