"""A scheduler's memory: a JSON file a job, so that what was taken outlives the process and the database."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from portico.errors import Unavailable
from portico.model import SESSION_ID, USER_NAME, Reason
from portico.schedulers.protocol import JobOptions, JobRequest, JobState

log = logging.getLogger(__name__)


class Keeps(Protocol):
    """What a spool keeps: a frozen dataclass of texts, numbers, enums and times around a request."""

    @property
    def request(self) -> JobRequest:
        """What was asked for."""


E = TypeVar("E", bound=Keeps)


@dataclass(frozen=True)
class Entry:
    """A job of the embedded scheduler in its spool.

    ``forking`` is set, on disk too, before it is started, and stays until that has an outcome: what is so after a
    crash must be looked at before anything is started again. ``cancelled`` is the reason for which it is being ended.
    ``held`` waits until its user releases it. What it used is None where nobody counts.
    """

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
    held: bool = False
    ended: datetime | None = None
    memory_used_bytes: int | None = None
    cpu_used_s: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.state is JobState.QUEUED and not self.forking

    @property
    def holds(self) -> bool:
        """Whether it holds cores and memory."""
        return self.state is JobState.RUNNING or self.forking


class Spool(Generic[E]):
    """The entries, in memory and below ``folder``.

    A file that can't be read is left where it is, told once, and does not stop the others.

    Args:
        folder: Where they are.
        parse: Returns the entry that asdict() and JSON made a dictionary of.

    Raises:
        Unavailable: The folder can't be made or read.
    """

    def __init__(self, folder: Path, parse: Callable[[dict[str, Any]], E]) -> None:
        self._folder = folder
        self._entries: dict[str, E] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
        except OSError as error:
            raise Unavailable(f"The queue's folder {folder} can't be used.", why=str(error.strerror)) from error
        for path in paths:
            try:
                entry = parse(json.loads(path.read_text()))
                if entry.request.key != path.stem:
                    raise ValueError("its name is another job's")
                self._entries[entry.request.key] = entry
            except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
                log.error("The spool file %s can't be read and is left out: %r", path, error)

    def __iter__(self) -> Iterator[E]:
        return iter(sorted(self._entries.values(), key=lambda e: (e.request.submitted, e.request.key)))

    def find(self, key: str) -> E | None:
        """Return a job's entry."""
        return self._entries.get(key)

    def put(self, entry: E) -> E:
        """Write an entry, whole or not at all.

        Raises:
            Unavailable: The disk is full, or the folder not writable; the entry is as it was before.
        """
        path = self._folder / f"{entry.request.key}.json"
        temporary = path.with_suffix(".new")
        try:
            with open(temporary, "w") as file:
                json.dump(asdict(entry), file, default=_render)  # type: ignore[call-overload]
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

    def change(self, key: str, **changes: Any) -> E:
        """Change an entry as it is now; if that can't be written, what runs counts for more, and memory has it.

        Raises:
            KeyError: There is no such job.
        """
        changed: E = replace(self._entries[key], **changes)  # type: ignore[type-var]
        try:
            return self.put(changed)
        except Unavailable as error:
            log.error("%s %s", error.message, error.why)
            self._entries[key] = changed
            return changed

    def change_in_memory(self, key: str, **changes: Any) -> None:
        """Change what is not worth the disk: it is soon seen again.

        Raises:
            KeyError: There is no such job.
        """
        self._entries[key] = replace(self._entries[key], **changes)  # type: ignore[type-var]

    def drop(self, key: str) -> None:
        """Forget a job."""
        self._entries.pop(key, None)
        with contextlib.suppress(OSError):
            (self._folder / f"{key}.json").unlink()


def _render(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value))


def parse_request(asked: dict[str, Any]) -> JobRequest:
    """Return the request that asdict() and JSON made a dictionary of.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: It is none.
    """
    options = dict(asked.get("options", {}))
    request = JobRequest(
        key=str(asked["key"]),
        user_name=str(asked["user_name"]),
        cores=float(asked["cores"]),
        memory_bytes=int(asked["memory_bytes"]),
        time_limit_s=float(asked["time_limit_s"]),
        submitted=parse_time(asked["submitted"]),
        argv=tuple(str(text) for text in asked["argv"]),
        env=tuple((str(name), str(text)) for name, text in asked["env"]),
        script=base64.b64decode(asked.get("script", ""), validate=True),
        options=JobOptions(**{n: type(d)(options.get(n, d)) for n, d in asdict(JobOptions()).items()}),
        batch=bool(asked.get("batch", False)),
        notify=bool(asked.get("notify", False)),
    )
    if not SESSION_ID.match(request.key) or not USER_NAME.match(request.user_name):
        raise ValueError("its key or its user is none")
    if not all(math.isfinite(n) and n >= 0 for n in (request.cores, request.memory_bytes, request.time_limit_s)):
        raise ValueError("what it asks for is out of bounds")
    return request


def parse_entry(value: dict[str, Any]) -> Entry:
    """Return an entry of the embedded scheduler.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: It is none.
    """
    request = parse_request(dict(value["request"]))
    if not (request.cores and request.memory_bytes and request.time_limit_s):
        raise ValueError("what it asks for is out of bounds")

    def time(name: str) -> datetime | None:
        return parse_time(value[name]) if value.get(name) else None

    memory, cpu_s = value.get("memory_used_bytes"), value.get("cpu_used_s")

    entry = Entry(
        request=request,
        state=JobState(value["state"]),
        forking=bool(value["forking"]),
        attempts=int(value["attempts"]),
        started=time("started"),
        deadline=time("deadline"),
        cancelled=Reason(value["cancelled"]) if value["cancelled"] else None,
        kill_at=time("kill_at"),
        reason=Reason(value["reason"]) if value["reason"] else None,
        detail=str(value["detail"]),
        held=bool(value.get("held", False)),
        ended=time("ended"),
        memory_used_bytes=None if memory is None else int(memory),
        cpu_used_s=None if cpu_s is None else float(cpu_s),
    )
    if entry.holds and entry.deadline is None:
        raise ValueError("it runs and has no deadline")
    return entry


def parse_time(text: Any) -> datetime:
    """Return a time as a spool writes it.

    Raises:
        ValueError, TypeError: It is none.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    return time
