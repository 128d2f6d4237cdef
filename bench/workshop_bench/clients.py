"""Some of the live clients, in one process: ``python -m workshop_bench.clients PLAN RESULT``.

The plan says who, where, from when till when (time.monotonic, which all processes of a machine share); the result is
what happened, one event each. Nobody is asked anything meanwhile, so that measuring costs the load little.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from workshop_bench.connection import Connection, Lost, Way, connect
from workshop_bench.person import Person, Terminal

BACKOFF_FIRST_S: Final = 0.25
BACKOFF_LAST_S: Final = 5.0
"""As the desktop's page does it (portal/static/stage.js)."""


class Event(NamedTuple):
    """What happened at a seat.

    Args:
        seat: Its number.
        what: ``picture`` (connected, with a first picture), ``key``, ``scroll``, ``window``, ``close``, each of them as
            ``late …`` when it did not come in time, ``lost`` (a connection) or ``refused`` (an attempt).
        at_s: time.monotonic.
        took_s: How long, where that means something.
        why: For ``lost`` and ``refused``.
    """

    seat: int
    what: str
    at_s: float
    took_s: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Visit:
    """One client: who sits where, and when they come."""

    seat: int
    way: Way
    terminal: Terminal
    seed: str
    begin_s: float
    end_s: float


def render_plan(visits: list[Visit]) -> str:
    """Return what a process of clients is told."""
    return json.dumps([asdict(visit) for visit in visits])


def parse_plan(text: str) -> list[Visit]:
    """Return what :func:`render_plan` has written."""
    return [_parse_visit(one) for one in json.loads(text)]


def _parse_visit(one: dict[str, Any]) -> Visit:
    return Visit(**(one | {"way": Way(**one["way"]), "terminal": Terminal(**one["terminal"])}))


def parse_result(text: str) -> list[Event]:
    """Return what the clients of a process have written."""
    return [Event(*one) for one in json.loads(text)]


async def stay(visit: Visit, events: list[Event]) -> None:
    """Come when it is time, live, and come back whenever the connection is lost."""
    chance = random.Random(visit.seed)
    await asyncio.sleep(visit.begin_s - time.monotonic())
    backoff_s = BACKOFF_FIRST_S
    while True:
        begin = time.monotonic()
        try:
            connection = await connect(visit.way)
        except Lost as error:
            events.append(Event(visit.seat, "refused", time.monotonic(), why=str(error)))
        else:
            now = time.monotonic()
            events.append(Event(visit.seat, "picture", now, now - begin))
            backoff_s = BACKOFF_FIRST_S
            await _live(visit, connection, chance, events)
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)


async def _live(visit: Visit, connection: Connection, chance: random.Random, events: list[Event]) -> None:
    def tell(what: str, took_s: float) -> None:
        events.append(Event(visit.seat, what, time.monotonic(), took_s))

    living = asyncio.create_task(Person(connection, visit.terminal, chance, tell).live())
    try:
        await asyncio.wait([living, connection.ended], return_when=asyncio.FIRST_COMPLETED)
        if living.done() and not isinstance(living.exception(), Lost):
            await living  # ours is at fault
        events.append(Event(visit.seat, "lost", time.monotonic(), why=connection.ended.result()))
    finally:
        living.cancel()
        with contextlib.suppress(asyncio.CancelledError, Lost):
            await living
        connection.close()


async def stay_all(visits: list[Visit]) -> list[Event]:
    """Be all of them, until their time is over."""
    events: list[Event] = []
    if not visits:
        return events
    with contextlib.suppress(TimeoutError):
        left_s = max(visit.end_s for visit in visits) - time.monotonic()
        async with asyncio.timeout(left_s), asyncio.TaskGroup() as group:
            for visit in visits:
                group.create_task(stay(visit, events))
    return events


def work(live: Callable[[list[Visit]], Coroutine[Any, Any, list[Event]]]) -> None:
    """Read the plan that the arguments name, do it, write the result, and wait to be ended."""
    plan, result = (Path(name) for name in sys.argv[1:3])
    events = asyncio.run(live(parse_plan(plan.read_text())))
    written = result.with_suffix(".new")
    written.write_text(json.dumps(events))
    written.rename(result)
    signal.pause()


if __name__ == "__main__":
    work(stay_all)
