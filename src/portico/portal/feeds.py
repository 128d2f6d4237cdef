"""Server-sent events: a page is told that something changed, and looks again; what changed is never in the feed.

A feed ends at once when the sign-in, API token or user that it lives by is cut off, and when the portal goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from fastapi.responses import StreamingResponse

from portico.errors import PorticoError
from portico.model import Identity
from portico.sessions.changes import Changes

HEARTBEAT_S: Final = 15.0
BURST_S: Final = 0.1
"""A burst of changes is one piece of news."""

_HELLO: Final = b"retry: 1000\n\nevent: hello\ndata: 1\n\n"
_CHANGE: Final = b"event: change\ndata: 1\n\n"
_END: Final = b"event: end\ndata: 1\n\n"
_HEARTBEAT: Final = b": still here\n\n"


@dataclass(eq=False)
class _Feed:
    """An open feed: what it lives by, the event that wakes it, and whether it was cut."""

    lives_by: frozenset[str]
    news: asyncio.Event
    cut: bool = False


class Feeds:
    """The feeds that are open. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._open: set[_Feed] = set()
        self._closed = False

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def cut(self, tags: Iterable[str]) -> None:
        """End every feed that lives by one of these tags."""
        gone = set(tags)
        for feed in self._open:
            if feed.lives_by & gone:
                feed.cut = True
                feed.news.set()

    def close(self) -> None:
        """End every feed, and each that is opened from now on: the portal goes away; browsers come back."""
        self._closed = True
        for feed in self._open:
            feed.news.set()

    def answer(
        self, changes: Changes, who: Identity, everyone: bool, check: Callable[[], Awaitable[Any]]
    ) -> StreamingResponse:
        """Return the response that carries a feed.

        Args:
            changes: Where the news comes from.
            who: Whose news.
            everyone: The news of all users instead; the caller has looked whether they may.
            check: Raises PorticoError once the request's identity is nobody's any more.
        """
        return StreamingResponse(
            self.stream(changes, who, everyone, check),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    async def stream(
        self, changes: Changes, who: Identity, everyone: bool, check: Callable[[], Awaitable[Any]]
    ) -> AsyncIterator[bytes]:
        """Yield the events of a feed; see :meth:`answer`."""
        with changes.subscribe(None if everyone else who.user_name) as news:
            way_in = f"token:{who.token_id}" if who.token_id else f"sign-in:{who.sign_in_id}"
            feed = _Feed(frozenset({f"user:{who.user_name}", way_in}), news)
            self._open.add(feed)
            try:
                yield _HELLO
                while not self._closed:
                    quiet = not await _wait(news)
                    if self._closed:
                        return
                    if feed.cut or (quiet and not await _passes(check)):
                        yield _END
                        return
                    yield _HEARTBEAT if quiet else _CHANGE
                    if not quiet:
                        await asyncio.sleep(BURST_S)
            finally:
                self._open.discard(feed)


async def _wait(news: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(news.wait(), HEARTBEAT_S)
    except TimeoutError:
        return False
    news.clear()
    return True


async def _passes(check: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await check()
    except PorticoError:
        return False
    return True
