"""The store: what Portico keeps, in SQLite. The only place with SQL; callers get and give the values of portico.model.

Each change is one short transaction, with its audit row inside. Every database error leaves here as a PorticoError
that says what to do.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from portico.errors import PorticoError, Unavailable
from portico.store.transaction import Transaction

BUSY_TIMEOUT_S: Final = 3.0
"""For another process's lock; SQLite tries again after a while, whoever came first (sqlite3_busy_timeout)."""
TURN_TIMEOUT_S: Final = 20.0
"""For the other writers of this process, who have their turn one after the other."""


class Store:
    """A database.

    Args:
        path: The SQLite file; its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _create_engine(path)
        self._turn = threading.Lock()

    def upgrade(self) -> None:
        """Make the database, or bring it to this version's shape.

        Raises:
            Unavailable: It is corrupt, of a newer Portico, locked, or the disk is full.
        """
        if not self.path.exists():  # 0600 from its first moment
            with self._translated():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        alembic = AlembicConfig()
        alembic.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._translated(), self._engine.connect() as connection:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
            if found != "ok":
                raise self._say_corrupt(str(found))
            alembic.attributes["connection"] = connection
            try:
                command.upgrade(alembic, "head")
            except CommandError as error:
                head = ScriptDirectory.from_config(alembic).get_current_head()
                raise Unavailable(
                    f"The database {self.path} was made by a newer Portico.",
                    why=f"{error}; this version knows up to {head}.",
                    hint="Install that version again, or go back to a backup.",
                ) from error
            connection.commit()

    @contextlib.contextmanager
    def begin(self) -> Iterator[Transaction]:
        """Open a transaction that may write; it commits unless an exception leaves the block.

        Raises:
            Unavailable: The database is locked, full, corrupt or gone.
        """
        with self._turn_taken(), self._translated(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield Transaction(connection)
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a transaction that only reads; it never waits for a writer (write-ahead log)."""
        with self._translated(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield Transaction(connection)
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def backup(self, target: Path) -> None:
        """Copy the database, while it is in use, to a new file of mode 0600 (sqlite3_backup_init).

        Raises:
            Unavailable: The file is there already, or can't be written.
        """
        with self._translated():
            os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            source, copy = sqlite3.connect(self.path), sqlite3.connect(target)
            with contextlib.closing(source), contextlib.closing(copy):
                source.backup(copy)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _turn_taken(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=TURN_TIMEOUT_S):
            raise self._say_busy(f"Others have been writing to {self.path} for over {TURN_TIMEOUT_S:g} s.")
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PorticoError:
            raise
        except DBAPIError as error:
            raise self._translate(str(error.orig)) from error
        except (sqlite3.Error, OSError) as error:
            raise self._translate(str(error)) from error

    def _translate(self, said: str) -> PorticoError:
        if "locked" in said or "busy" in said:
            return self._say_busy(f"Another process has locked {self.path} for over {BUSY_TIMEOUT_S:g} s.")
        if "full" in said or "No space" in said or "disk I/O" in said:
            return Unavailable(
                "Portico's disk is full; nothing was changed.",
                why=f"{self.path}: {said}",
                hint="An administrator makes room. What runs goes on meanwhile.",
            )
        if "not a database" in said or "malformed" in said:
            return self._say_corrupt(said)
        if "readonly" in said or "unable to open" in said or "Permission" in said:
            return Unavailable(
                f"The database {self.path} can't be opened for writing.",
                why=said,
                hint="Its file and folder must belong to the account that Portico runs as.",
            )
        return Unavailable("The database refused a request; nothing was changed.", why=said)

    def _say_busy(self, why: str) -> Unavailable:
        return Unavailable(
            "The database is busy; nothing was changed.",
            why=why,
            hint="Try again. If it stays so, an administrator looks for a program that has the file open.",
            retry_after_s=5,
        )

    def _say_corrupt(self, said: str) -> Unavailable:
        return Unavailable(
            f"The database {self.path} is damaged.",
            why=said,
            hint="Move the file away, then put a backup in its place (`portico backup` made it) or start with none: "
            "running sessions are found again once their users are added again.",
        )


def _create_engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=4, max_overflow=8, pool_timeout=10
    )

    # pysqlite would begin transactions by itself, and only before some statements; we say BEGIN.
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
