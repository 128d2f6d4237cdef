"""An answer that many want and that is costly: asked for once an interval, and shared."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, Generic, TypeVar

from portico.errors import PorticoError
from portico.model import now

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

STRETCH: Final = 5.0
"""An answer that took long is asked for less often, so that asking never takes more than a fifth of the time."""
TROUBLE_LAST_S: Final = 10.0
"""Whoever does not answer is asked ever less often, up to this."""


class Kept(Generic[T]):
    """The last answer, asked for anew when somebody wants it and ``interval_s`` has passed.

    However many ask at once, there is one question. Where it fails, the last answer stays, with its age and the
    trouble beside it.

    Args:
        ask: Asks.
        clock: Seconds that never go back.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._interval_s = interval_s
        self._clock = clock
        self._flight: asyncio.Task[None] | None = None
        self._due_at = float("-inf")
        self._failures = 0
        self.value: T | None = None
        self.asked_at = float("-inf")
        """When the question was asked whose answer is kept, by ``clock``."""
        self.as_of: datetime | None = None
        self.trouble: PorticoError | None = None

    async def refresh(self, *, wait: bool = True) -> None:
        """Ask if it is time, and wait for the answer. Never raises PorticoError.

        Args:
            wait: Otherwise whoever asks has the answer of before, if there is one, while the next is on its way.
        """
        if self._flight is None and self._clock() >= self._due_at:
            self._flight = asyncio.create_task(self._fly())
        if self._flight is not None and (wait or self.value is None):
            await asyncio.shield(self._flight)  # one caller that gives up must not take it from the others

    async def get_younger(self, age_s: float) -> T:
        """Return an answer that is at most so old, if there is one: for whoever has reason to doubt the last one.

        Raises:
            PorticoError: There never was one.
        """
        self._due_at = min(self._due_at, self.asked_at + age_s)
        return await self.get()

    async def get(self) -> T:
        """Return the answer, the last one where there is no newer.

        Raises:
            PorticoError: There never was one.
        """
        await self.refresh()
        if self.value is None:
            assert self.trouble is not None
            raise self.trouble
        return self.value

    async def close(self) -> None:
        """Give up a question that is under way."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)

    async def _fly(self) -> None:
        began, as_of = self._clock(), now()
        self._due_at = began + self._interval_s
        try:
            value = await self._ask()
        except PorticoError as error:
            self.trouble = error
            self._failures += 1
            wait_s = min(self._interval_s * 2 ** min(self._failures - 1, 10), max(TROUBLE_LAST_S, self._interval_s))
            self._due_at = self._clock() + wait_s
        else:
            self.value, self.asked_at, self.as_of, self.trouble = value, began, as_of, None
            self._failures = 0
            self._due_at = began + max(self._interval_s, STRETCH * (self._clock() - began))
        finally:
            self._flight = None


class Shelf(Generic[K, V]):
    """The newest ``most`` of many answers: what nobody has looked at for longest makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[K, V] = OrderedDict()

    def find(self, key: K) -> V | None:
        """Return what is held for a key."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: K, value: V) -> V:
        """Hold a value; return it."""
        self._held[key] = value
        self._held.move_to_end(key)
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        return value

    def list(self) -> list[V]:
        """Return all that is held."""
        return list(self._held.values())
