"""What can be said of an event without names: numbers, and lines over time. Pure.

All is computed from what the store has anyway: when somebody registered, took a seat, started and ended a session. It
is kept with the event at its end, because seats and registrations go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from portico.model import Line, Plot, Registration, Seat, SeatState, Session

POINTS: Final = 145
APPS: Final = 5
"""So many have a line of their own."""
SHORTEST: Final = timedelta(minutes=10)
"""Of a plot."""


@dataclass(frozen=True)
class Summary:
    """Numbers by name, and plots."""

    numbers: dict[str, int]
    plots: tuple[Plot, ...]


def summarise(
    seats: Sequence[Seat], registrations: Sequence[Registration], sessions: Sequence[Session], at: datetime
) -> Summary:
    """Return an event's summary as it is at a moment."""
    counts = Counter(session.app_id for session in sessions)
    spans = [(one.started, min(one.ended or at, at)) for one in sessions if one.started and one.started < at]
    numbers = {
        "seats": len(seats),
        "seats taken": sum(seat.state is SeatState.TAKEN for seat in seats),
        "registrations": len(registrations),
        "waited in vain": sum(not one.seat_name for one in registrations),
        "sessions": len(sessions),
        "most sessions at once": count_most(spans),
        **{f"sessions of {app}": number for app, number in sorted(counts.items())},
    }
    plots = _plot_seats(seats, registrations, at), _plot_sessions(sessions, at)
    return Summary(numbers, tuple(plot for plot in plots if plot))


def _plot_seats(seats: Sequence[Seat], registrations: Sequence[Registration], at: datetime) -> Plot | None:
    events = {
        "registrations": [(one.at, 1) for one in registrations],
        "seats taken": [(seat.taken, 1) for seat in seats if seat.taken],
    }
    return draw_plot("Registrations and seats", events, at)


def _plot_sessions(sessions: Sequence[Session], at: datetime) -> Plot | None:
    changes: dict[str, list[tuple[datetime, int]]] = {"all": []}
    common = Counter(session.app_id for session in sessions).most_common()
    own = {app for app, _ in common[:APPS]}
    changes |= {app: [] for app, _ in common[:APPS]}
    if len(common) > APPS:
        changes["other"] = []
    for one in sessions:
        if one.started is None:
            continue
        steps = [(one.started, 1), *([(one.ended, -1)] if one.ended else [])]
        changes["all"] += steps
        changes[one.app_id if one.app_id in own else "other"] += steps
    if len(common) == 1:
        del changes["all"]
    return draw_plot("Sessions that ran", changes, at)


def draw_plot(title: str, changes: dict[str, list[tuple[datetime, int]]], at: datetime) -> Plot | None:
    """Return how numbers changed, from their first change to a moment; None where nothing did.

    Args:
        title: Of the plot.
        changes: Of each line when it went up or down, by how much.
        at: The end.
    """
    first = min((when for steps in changes.values() for when, _ in steps if when <= at), default=None)
    if first is None:
        return None
    begins = min(first, at - SHORTEST)
    step = (at - begins) / (POINTS - 1)
    moments = [*(begins + number * step for number in range(POINTS - 1)), at]
    lines = tuple(Line(name, _sample(sorted(steps), moments)) for name, steps in changes.items() if steps)
    return Plot(title, begins, at, lines)


def _sample(steps: Sequence[tuple[datetime, int]], moments: Sequence[datetime]) -> tuple[int, ...]:
    values, value, place = [], 0, 0
    for moment in moments:
        while place < len(steps) and steps[place][0] <= moment:
            value += steps[place][1]
            place += 1
        values.append(value)
    return tuple(values)


def count_most(spans: Sequence[tuple[datetime, datetime]]) -> int:
    """Return how many of some spans of time there were at once, at most; one that ends as another begins is not."""
    most = value = 0
    for _, change in sorted([*((begins, 1) for begins, _ in spans), *((ends, -1) for _, ends in spans)]):
        value += change
        most = max(most, value)
    return most
