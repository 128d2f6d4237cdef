"""A session's two folders: what is kept (below the home) and its socket's (below the runtime folder).

Everything here runs as the user on the user's own files. It never follows a symbolic link at the end of a path, and
never believes what it reads to be well formed: the user can write all of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from typing import Any, Final

from portico.errors import Conflict, Invalid, NotFound, PorticoError, Unavailable
from portico.model import SESSION_ID

Json = dict[str, Any]

READ_LIMIT_BYTES: Final = 256 * 1024
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def find_root() -> str:
    """Return the folder of all session folders of this user."""
    return os.path.join(os.environ["HOME"], ".local/share/portico/sessions")


def find_sessions() -> list[str]:
    """Return the ids of all session folders, newest last."""
    try:
        with os.scandir(find_root()) as entries:
            found = [e for e in entries if SESSION_ID.match(e.name) and e.is_dir(follow_symlinks=False)]
            return [e.name for e in sorted(found, key=lambda e: e.stat(follow_symlinks=False).st_mtime)]
    except OSError:
        return []


def translate(error: OSError, doing: str) -> PorticoError:
    """Return what a person should read about ``error``."""
    if error.errno in FULL:
        return Unavailable(
            f"Your home folder is full: {doing} failed.",
            why=f"{error.filename or find_root()}: {error.strerror}",
            hint="Remove files that you no longer need, then try again.",
        )
    return Unavailable(f"{doing.capitalize()} failed.", why=f"{error.filename or ''}: {error.strerror}")


class Folder:
    """The folders of one session.

    Raises:
        Invalid: ``session_id`` is not one.

    """

    def __init__(self, session_id: str) -> None:
        if not isinstance(session_id, str) or not SESSION_ID.match(session_id):
            raise Invalid("This is not a session id.")
        self.session_id = session_id
        self.path = os.path.join(find_root(), session_id)
        self.run = os.path.join(os.environ["XDG_RUNTIME_DIR"], session_id)
        self.socket = os.path.join(self.run, "app.sock")
        self.log = os.path.join(self.path, "log")

    def make(self) -> None:
        """Make both folders, 0700.

        Raises:
            Conflict: One is there and is not a folder of this user's own.
            Unavailable: The disk is full, or the home is not writable.

        """
        try:
            os.makedirs(find_root(), mode=0o700, exist_ok=True)
            for path in (self.path, self.run):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                found = os.lstat(path)
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                    raise Conflict(f"{path} is in the way: it is not a folder of yours.", hint="Remove it.")
                os.chmod(path, 0o700)
        except OSError as error:
            raise translate(error, "making the session's folder") from error

    def write(self, name: str, content: str | bytes, mode: int = 0o600) -> None:
        """Write a file of the kept folder, whole or not at all.

        Raises:
            NotFound: There is no such folder, or a link stands in its place.
            Unavailable: The disk is full.

        """
        data = content if isinstance(content, bytes) else content.encode(errors="replace")
        temporary = f".{name}.{os.getpid()}"
        folder = self._open()
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
        except OSError as error:
            raise translate(error, f"writing {name}") from error
        finally:
            os.close(folder)

    def write_json(self, name: str, value: Json) -> None:
        """Write a JSON file as :meth:`write` does."""
        self.write(name, json.dumps(value))

    def read_json(self, name: str) -> Json | None:
        """Return a JSON object, or None where there is none, or something else."""
        try:
            fd = self.open_file(name)
        except (OSError, PorticoError):
            return None
        with os.fdopen(fd, "rb") as file:
            try:
                value = json.loads(file.read(READ_LIMIT_BYTES))
            except (OSError, ValueError, RecursionError):
                return None
        return value if isinstance(value, dict) else None

    def open_file(self, name: str) -> int:
        """Return a descriptor for reading a regular file of the kept folder."""
        folder = self._open()
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFound(f"{name} is not a file.")
        return fd

    def remove_file(self, name: str) -> None:
        """Remove a file of the kept folder, if it is there.

        Raises:
            NotFound: There is no such folder, or a link stands in its place.
            Unavailable: It can't be removed.
        """
        folder = self._open()
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise translate(error, f"removing {name}") from error
        finally:
            os.close(folder)

    def read_tail(self, name: str, lines: int, limit_bytes: int = 64 * 1024) -> str:
        """Return the last lines of a file, at most ``limit_bytes``, as valid UTF-8; empty where there is none."""
        try:
            fd = self.open_file(name)
        except (OSError, PorticoError):
            return ""
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(fd).st_size
            file.seek(max(0, size - limit_bytes))
            text = file.read(limit_bytes).decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""

    def remove_run(self) -> None:
        """Remove the socket's folder."""
        shutil.rmtree(self.run, ignore_errors=True)

    def remove(self) -> None:
        """Remove both folders."""
        self.remove_run()
        shutil.rmtree(self.path, ignore_errors=True)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise NotFound("The session's folder is not there.", why=f"{self.path}: {error.strerror}") from error
