"""The embedded scheduler's memory: a JSON file a job, so that the queue outlives the process and the database."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from portico.errors import Unavailable
from portico.model import SESSION_ID, Reason
from portico.schedulers.protocol import JobRequest, JobState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A job in the spool. ``forking`` is set while it is being started: what is so after a crash must be looked at."""

    request: JobRequest
    state: JobState = JobState.QUEUED
    forking: bool = False
    attempts: int = 0
    started: datetime | None = None
    deadline: datetime | None = None
    cancelled: Reason | None = None
    kill_at: datetime | None = None
    reason: Reason | None = None
    detail: str = ""


class Spool:
    """The entries, in memory and below ``folder``.

    A file that can't be read is left where it is, told once, and does not stop the others.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[str, Entry] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                entry = parse_entry(json.loads(path.read_text()))
                if entry.request.key != path.stem:
                    raise ValueError("its name is another job's")
                self._entries[entry.request.key] = entry
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                log.error("The spool file %s can't be read and is left out: %s", path, error)

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda e: (e.request.submitted, e.request.key)))

    def find(self, key: str) -> Entry | None:
        """Return a job's entry."""
        return self._entries.get(key)

    def put(self, entry: Entry) -> Entry:
        """Write an entry, whole or not at all.

        Raises:
            Unavailable: The disk is full, or the folder not writable; the entry is as it was before.
        """
        path = self._folder / f"{entry.request.key}.json"
        temporary = path.with_suffix(".new")
        try:
            with open(temporary, "w") as file:
                json.dump(asdict(entry), file, default=_render)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise Unavailable(
                "The queue could not be written; nothing was changed.",
                why=f"{path}: {error.strerror}",
                hint="An administrator makes room on Portico's disk.",
            ) from error
        self._entries[entry.request.key] = entry
        return entry

    def change(self, entry: Entry, **changes: Any) -> Entry:
        """Write an entry with changes; if it can't be written, what runs counts for more, and memory has it."""
        changed = replace(entry, **changes)
        try:
            return self.put(changed)
        except Unavailable as error:
            log.error("%s %s", error.message, error.why)
            self._entries[entry.request.key] = changed
            return changed

    def drop(self, key: str) -> None:
        """Forget a job."""
        self._entries.pop(key, None)
        with contextlib.suppress(OSError):
            (self._folder / f"{key}.json").unlink()


def _render(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value))


def parse_entry(value: dict[str, Any]) -> Entry:
    """Return the entry that asdict() and JSON made a dictionary of.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    request = dict(value["request"])
    request["submitted"] = datetime.fromisoformat(request["submitted"])
    request["argv"] = tuple(request["argv"])
    request["env"] = tuple((str(k), str(v)) for k, v in request["env"])
    if not SESSION_ID.match(request["key"]):
        raise ValueError("its key is none")

    def time(name: str) -> datetime | None:
        return datetime.fromisoformat(value[name]) if value[name] else None

    return Entry(
        request=JobRequest(**request),
        state=JobState(value["state"]),
        forking=bool(value["forking"]),
        attempts=int(value["attempts"]),
        started=time("started"),
        deadline=time("deadline"),
        cancelled=Reason(value["cancelled"]) if value["cancelled"] else None,
        kill_at=time("kill_at"),
        reason=Reason(value["reason"]) if value["reason"] else None,
        detail=str(value["detail"]),
    )
