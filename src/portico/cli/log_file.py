"""Log files of bounded size, written by the supervisor for its programs. What they say is never interpreted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class LogFile:
    """An append-only file of bounded size: at ``limit_bytes`` it becomes NAME.1, which becomes NAME.2 …; ``kept`` of
    them.

    A full disk loses lines, never the process.
    """

    def __init__(self, path: Path, *, mode: int, limit_bytes: int = 10_000_000, kept: int = 3) -> None:
        self._path = path
        self._mode = mode
        self._limit_bytes = limit_bytes
        self._kept = kept
        self._open()

    def write(self, line: bytes) -> None:
        """Append one line."""
        with contextlib.suppress(OSError):
            if self._size + len(line) > self._limit_bytes:
                self._rotate()
            self._size += os.write(self._descriptor, line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        folder = os.stat(self._path.parent)
        os.fchown(self._descriptor, -1, folder.st_gid)
        os.fchmod(self._descriptor, self._mode)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        os.close(self._descriptor)
        self._open()


def render_line(line: bytes) -> str:
    """Return a line fit for a terminal: control characters, which could be a stranger's, are shown and not obeyed."""
    text = line.decode(errors="replace").rstrip("\r\n")
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1] for character in text
    )
