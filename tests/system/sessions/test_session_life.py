"""Sessions with the real broker, agents and POSIX users: their life, its limits, and what survives what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from brokered import Brokered, find_reason_to_skip, wait_for
from portico.model import Reason, SessionState
from portico.schedulers.protocol import Capacity

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(find_reason_to_skip()), reason=find_reason_to_skip() or "can run"),
]

Test = Callable[[Brokered], Awaitable[None]]


def run(test: Test, capacity: Capacity = Capacity(8, 4 * 10**9), **settings: Any) -> None:
    async def main() -> None:
        place = Brokered(capacity, **settings)
        place.start_broker()
        await place.start_portal()
        try:
            await asyncio.wait_for(test(place), 120)
        finally:
            await place.destroy()

    asyncio.run(main())


def test_a_terminal_of_two_users_is_ready_and_is_theirs() -> None:
    async def test(place: Brokered) -> None:
        alice, bob = place.add_user("alice"), place.add_user("bob")
        one, two = await place.sessions.start(alice, "terminal"), await place.sessions.start(bob, "terminal")
        ready = await place.wait(alice, one, SessionState.READY)
        await place.wait(bob, two, SessionState.READY)
        assert ready.started and ready.ends and ready.ready
        assert (ready.ready - ready.started).total_seconds() < 3

    run(test)
