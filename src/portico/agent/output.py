"""Where a batch job works and writes to: a folder and files of the user's own choice, opened as that user."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from typing import Any, Final

from portico.agent.folder import FULL, translate
from portico.errors import Conflict, Invalid

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY
"""Truncated as sbatch does; a pipe that nobody reads is refused instead of waited for (open(2), ENXIO)."""


@dataclass(frozen=True)
class Work:
    """Absolute paths; an empty ``error`` means the same file as ``output``."""

    folder: str
    output: str
    error: str

    @staticmethod
    def take(value: Any) -> Work:
        """Return what a request says.

        Raises:
            Invalid: It says something else.
        """
        if not isinstance(value, dict) or value.keys() != {"folder", "output", "error"}:
            raise Invalid("work has a folder, an output and an error.")
        texts = list(value.values())
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise Invalid("The paths of work must be texts.")
        if not all(text.startswith("/") for text in (value["folder"], value["output"], value["error"] or "/")):
            raise Invalid("The paths of work begin with /.")
        return Work(value["folder"], value["output"], value["error"])

    def open(self) -> list[int]:
        """Return descriptors of both outputs, which may be the same; the caller closes them.

        Raises:
            Conflict: The folder can't be entered, or a file not written.
            Unavailable: The disk is full.
        """
        if not os.path.isdir(self.folder) or not os.access(self.folder, os.X_OK):
            raise Conflict(f"The job can't work in {self.folder}.", why="It is no folder, or you may not enter it.")
        fds = [_open(self.output)]
        try:
            fds.append(_open(self.error) if self.error and self.error != self.output else os.dup(fds[0]))
        except BaseException:
            os.close(fds[0])
            raise
        return fds


def _open(path: str) -> int:
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        if error.errno in FULL:
            raise translate(error, "opening the job's output") from error
        why = "Nobody reads from this pipe." if error.errno == errno.ENXIO else (error.strerror or "")
        raise Conflict(f"The output {path} can't be written.", why=why) from error
    with contextlib.suppress(OSError):
        os.set_blocking(fd, True)
    return fd
