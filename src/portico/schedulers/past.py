"""The embedded scheduler's history: batch jobs that ended, a file each, for a week.

In memory stands what lists show; a script is read from its file when somebody asks for it.
"""

from __future__ import annotations

import bisect
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from portico.errors import NotFound
from portico.schedulers.spool import Entry, Spool, parse_entry

KEPT: Final = timedelta(days=7)
JOBS_PER_USER: Final = 1000


class History:
    """What ended.

    Args:
        folder: Of its own.

    Raises:
        Unavailable: The folder can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool = Spool(folder, _parse_bare)
        self._order = sorted((_get_end(entry), entry.request.key) for entry in self._spool)
        self._counts = Counter(entry.request.user_name for entry in self._spool)

    def add(self, entry: Entry) -> None:
        """Keep a job that ended; the oldest of a user's go when there are too many.

        Raises:
            Unavailable: The disk is full; nothing was changed.
        """
        key, user_name = entry.request.key, entry.request.user_name
        if self._spool.find(key) is not None:
            return
        self._spool.put(entry)
        self._spool.change_in_memory(key, request=replace(entry.request, script=b""))
        bisect.insort(self._order, (_get_end(entry), key))
        self._counts[user_name] += 1
        while self._counts[user_name] > JOBS_PER_USER:
            self._drop(next(key for _, key in self._order if self._get(key).request.user_name == user_name))

    def prune(self, at: datetime) -> None:
        """Drop what ended too long ago."""
        while self._order and self._order[0][0] < at - KEPT:
            self._drop(self._order[0][1])

    def find(self, key: str) -> Entry | None:
        """Return a job, without its script."""
        return self._spool.find(key)

    def iter_since(self, since: datetime) -> Iterator[Entry]:
        """Yield what ended since then, without scripts, newest first."""
        for at in range(len(self._order) - 1, bisect.bisect_left(self._order, (since, "")) - 1, -1):
            yield self._get(self._order[at][1])

    def read_script(self, key: str) -> bytes:
        """Return a job's script.

        Raises:
            NotFound: It is not kept.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return parse_entry(json.loads((self._folder / f"{key}.json").read_text())).request.script
        raise NotFound("The job's script is not kept any more.")

    def _get(self, key: str) -> Entry:
        entry = self._spool.find(key)
        assert entry is not None
        return entry

    def _drop(self, key: str) -> None:
        entry = self._get(key)
        self._order.remove((_get_end(entry), key))
        self._counts[entry.request.user_name] -= 1
        self._spool.drop(key)


def _get_end(entry: Entry) -> datetime:
    return entry.ended or entry.request.submitted


def _parse_bare(value: dict[str, Any]) -> Entry:
    entry = parse_entry(value)
    return replace(entry, request=replace(entry.request, script=b""))
