"""Who is told that something changed: pages that wait for news (server-sent events)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Changes:
    """News for users. A subscriber that is slow misses nothing: it learns that there was news, and looks again."""

    def __init__(self) -> None:
        self._waiting: set[tuple[str | None, asyncio.Event]] = set()

    @contextlib.contextmanager
    def subscribe(self, user_name: str | None) -> Iterator[asyncio.Event]:
        """Give an event that is set at news for this user, or at any for None; the subscriber clears it."""
        entry = (user_name, asyncio.Event())
        self._waiting.add(entry)
        try:
            yield entry[1]
        finally:
            self._waiting.discard(entry)

    def tell(self, *user_names: str) -> None:
        """Tell subscribers of these users, and those of everything."""
        for wanted, event in self._waiting:
            if wanted is None or wanted in user_names:
                event.set()
