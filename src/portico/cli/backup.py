"""A copy of the database while it is in use: SQLite's own online backup, by the account that owns the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from portico.errors import Conflict, NotFound, PorticoError, Unavailable


def write_backup(database: Path, file: Path) -> int:
    """Copy ``database`` to ``file`` (0600, the caller's) and return its size in bytes.

    As root the copying itself runs as the file's owner: root never opens a database that somebody else can write.

    Raises:
        NotFound: There is no such database.
        Conflict: ``file`` exists.
        Unavailable: It could not be copied; no file is left.

    """
    try:
        owner = database.stat()
    except OSError as error:
        raise NotFound(
            f"There is no database {database}.", why=error.strerror or "", hint="Name its folder with --state-dir."
        ) from error
    if file.exists():
        raise Conflict(f"{file} exists.", hint="Choose another name; a backup is never overwritten.")
    with tempfile.TemporaryDirectory(prefix="portico-backup-") as folder:
        copy = Path(folder) / "copy.db"
        ids: dict[str, Any] = {}
        if os.geteuid() == 0:
            ids = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
            os.chown(folder, owner.st_uid, owner.st_gid)
        argv = [sys.executable, "-s", "-P", "-m", "portico.cli.backup", str(database), str(copy)]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", umask=0o077, check=False, **ids)
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise Unavailable("The database could not be copied.", why=reason[-1] if reason else "")
        try:
            source = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW)
            target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(source, "rb") as reader, open(target, "wb") as writer:
                shutil.copyfileobj(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
                return writer.tell()
        except OSError as error:
            raise Unavailable(f"{file} could not be written.", why=error.strerror or str(error)) from error


def copy_as_owner(database: str, target: str) -> None:
    """Copy in this process, which has the owner's uid."""
    from portico.store import Store

    try:
        Store(Path(database)).backup(Path(target))
    except PorticoError as error:
        sys.exit(" ".join(part for part in (error.message, error.why) if part))


if __name__ == "__main__":
    copy_as_owner(*sys.argv[1:])
