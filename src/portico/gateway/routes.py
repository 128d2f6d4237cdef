"""What the gateway asks the portal: which way a request goes. Knows no domain; docs/protocol.md is normative."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from portico import wire
from portico.errors import PorticoError, Unavailable

Json = dict[str, Any]

RECONNECT_FIRST_S: Final = 0.05
RECONNECT_LAST_S: Final = 1.0
CACHE_LIMIT: Final = 10_000


@dataclass(eq=False)
class Live:
    """A stream or request under way: what it lives by, and how it is cut."""

    tags: frozenset[str]
    cut: Callable[[], None]


@dataclass
class Decision:
    """An answer of the portal. ``fd`` is one connection to the app, owned by whoever takes the decision."""

    kind: str
    answer: Json
    fds: list[int] = field(default_factory=list)
    expires: float = 0.0

    @property
    def tags(self) -> frozenset[str]:
        """What the way lives by."""
        return frozenset(str(tag) for tag in self.answer.get("tags", ()))


class Routes:
    """The channel to the portal, its cached decisions, and all that is live.

    Args:
        path: The portal's routes socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel: wire.Channel | None = None
        self._cache: dict[tuple[str, ...], Decision] = {}
        self._live: set[Live] = set()
        self.on_cut: Callable[[frozenset[str]], None] = lambda tags: None

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        wait_s = RECONNECT_FIRST_S
        while True:
            try:
                channel = await wire.connect(self._path, self._handle, name="portal")
                self._channel = channel
                await channel.notify("hello", {"pid": os.getpid(), "tags": self._list_tags()})
                wait_s = RECONNECT_FIRST_S
                await channel.wait_closed()
            except PorticoError:
                pass
            self._channel = None
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RECONNECT_LAST_S)

    def _list_tags(self) -> list[str]:
        # Flat and without doubles, so that ten thousand streams fit one message; the portal answers with `cut`.
        return sorted({tag for live in self._live for tag in live.tags})[:4000]

    async def route(self, request: Json, cache_key: tuple[str, ...] | None) -> Decision:
        """Return the portal's decision, or one that it allowed to be kept; a kept one has no descriptor.

        Raises:
            Unavailable: The portal is away.
        """
        if cache_key and (kept := self._cache.get(cache_key)):
            if kept.expires > time.monotonic():
                return Decision(kept.kind, kept.answer)
            del self._cache[cache_key]
        packet = await self._ask("route", request)
        decision = Decision(str(packet.body.get("kind")), packet.body, packet.fds)
        cache_s = packet.body.get("cache_s")
        if cache_key and isinstance(cache_s, (int, float)) and cache_s > 0:
            if len(self._cache) >= CACHE_LIMIT:
                self._cache.clear()
            self._cache[cache_key] = Decision(decision.kind, decision.answer, [], time.monotonic() + cache_s)
        return decision

    async def connect(self, key: str) -> int:
        """Return one more connection for a kept decision.

        Raises:
            PorticoError: It does not hold any more, or the portal is away.
        """
        packet = await self._ask("connect", {"key": key})
        if len(packet.fds) != 1:
            wire.close_all(packet.fds)
            raise Unavailable("The portal gave no connection.")
        return packet.fds[0]

    async def _ask(self, op: str, args: Json) -> wire.Packet:
        channel = self._channel
        if channel is None or channel.closed:
            raise Unavailable("Portico is restarting.", retry_after_s=2)
        return await channel.ask(op, args, timeout_s=10)

    @contextlib.contextmanager
    def register(self, tags: frozenset[str], cut: Callable[[], None]) -> Any:
        """Keep a stream where ``cut`` finds it, while the block runs."""
        live = Live(tags, cut)
        self._live.add(live)
        try:
            yield
        finally:
            self._live.discard(live)

    def count_live(self) -> int:
        """Return how many streams and app requests are live."""
        return len(self._live)

    async def _handle(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        wire.close_all(fds)
        if op != "cut":
            raise Unavailable(f"A gateway knows no {op!r}.")
        tags = frozenset(str(tag) for tag in args.get("tags", ()))
        self._cache = {key: kept for key, kept in self._cache.items() if not kept.tags & tags}
        self.on_cut(tags)
        hit = [live for live in self._live if live.tags & tags]
        for live in hit:
            live.cut()
        return {"streams": len(hit)}, ()
