"""``kill -9`` of all of Portico while everybody is at work, and how long until everybody has a picture again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from workshop_bench.clients import Event
from workshop_bench.desktops import Seat
from workshop_bench.load import Load, run_round

TARGET_S: Final = 10.0
BEFORE_S: Final = 15.0
AFTER_S: Final = 30.0
"""How long everybody is at work before, and how long they have to come back and go on."""


@dataclass
class Killing:
    """What came of it.

    Args:
        up_s: From the kill until Portico said that it was ready.
        back_s: From the kill until a seat had its picture again, for each that had.
        missing: Seats that did not come back.
        moved: Seats of whose first windows one is gone, or is another one.
        late: What did not come in time, or was lost, once everybody was back.
    """

    up_s: float = 0.0
    back_s: list[float] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    late: list[Event] = field(default_factory=list)


def kill_all(portico: Any, seats: list[Seat], browsers: int, load: Load, folder: Path) -> Killing:
    """Do it, in the middle of a round.

    Args:
        portico: What tests call a RunningPortico.
        seats: With desktops.
        browsers: How many of them are at a real one.
        load: What everybody does.
        folder: For files.
    """
    found = Killing()
    killed_at = 0.0

    def kill(begin: float) -> None:
        nonlocal killed_at
        time.sleep(max(0.0, begin + BEFORE_S - time.monotonic()))
        killed_at = time.monotonic()
        portico.kill()
        portico.start()
        found.up_s = time.monotonic() - killed_at

    ways = [seat.find_way(portico, in_browser=seat.number < browsers) for seat in seats]
    one = run_round(seats, ways, replace(load, live_s=BEFORE_S + AFTER_S), folder, {}, kill)
    first = {seat.number: 0.0 for seat in seats}
    for event in one.events:
        if event.what in ("picture", "browser picture again") and event.at_s > killed_at and not first[event.seat]:
            first[event.seat] = event.at_s
    found.back_s = [at_s - killed_at for at_s in first.values() if at_s]
    found.missing = [number for number, at_s in first.items() if not at_s]
    found.late = [event for event in one.list_failures() if event.at_s > max(first.values()) + TARGET_S]
    found.moved = [seat.number for seat in seats if not seat.windows <= seat.list_windows()]
    return found
