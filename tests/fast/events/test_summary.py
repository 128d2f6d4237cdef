"""What is said of an event without names, from times that the store has anyway."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

from event_rig import EventWorld

from portico.events.plots import render_page, render_plots
from portico.events.summary import POINTS, Summary, count_most, draw_plot, summarise
from portico.model import Reach, Registration, Seat, SeatState, Session

AT = datetime(2027, 3, 1, 12, tzinfo=UTC)


def hour(number: float) -> datetime:
    return AT + timedelta(hours=number)


def make_session(number: int, app: str, started: float | None, ended: float | None = None) -> Session:
    return Session(
        f"s{number}", "ev1-01", app, app, "local", Reach.PTY, 1, 1, 1, created=hour(started or 0),
        started=None if started is None else hour(started), ended=None if ended is None else hour(ended),
    )  # fmt: skip


def test_lines_are_what_happened() -> None:
    seats = [Seat(n, 1, f"ev1-0{n}", SeatState.TAKEN if n < 3 else SeatState.FREE, taken=hour(n - 1) if n < 3 else None) for n in (1, 2, 3)]  # fmt: skip
    people = [Registration(n, 1, {"name": "Ada"}, {}, hour(n), "192.0.2.1", "" if n == 2 else f"ev1-0{n + 1}") for n in range(3)]  # fmt: skip
    ran = [make_session(1, "desk", 0, 2), make_session(2, "desk", 1), make_session(3, "book", 1, 3), make_session(4, "book", None)]  # fmt: skip
    found = summarise(seats, people, ran, hour(4))
    assert found.numbers == {
        "seats": 3, "seats taken": 2, "registrations": 3, "waited in vain": 1, "sessions": 4,
        "most sessions at once": 3, "sessions of book": 2, "sessions of desk": 2,
    }  # fmt: skip
    first, second = found.plots
    assert (first.begins, first.ends) == (hour(0), hour(4))
    lines = {line.name: line.values for line in (*first.lines, *second.lines)}
    assert all(len(values) == POINTS for values in lines.values())
    quarter = (POINTS - 1) // 4
    at = {name: [values[number * quarter] for number in range(5)] for name, values in lines.items()}
    assert at == {
        "registrations": [1, 2, 3, 3, 3], "seats taken": [1, 2, 2, 2, 2], "all": [1, 3, 2, 1, 1],
        "desk": [1, 2, 1, 1, 1], "book": [0, 1, 1, 0, 0],
    }  # fmt: skip


def test_nothing_happened() -> None:
    assert summarise([], [], [], AT).plots == ()
    assert draw_plot("T", {"x": []}, AT) is None


def test_spans_that_touch_are_not_at_once() -> None:
    assert count_most([(hour(0), hour(1)), (hour(1), hour(2))]) == 1
    assert count_most([(hour(0), hour(2)), (hour(1), hour(3)), (hour(1.5), hour(1.6))]) == 3


def test_many_apps_have_one_line_for_the_rest() -> None:
    ran = [make_session(n, f"app{n}", 0) for n in range(9)]
    (plot,) = summarise([], [], ran, hour(1)).plots
    assert [line.name for line in plot.lines][-1] == "other" and len(plot.lines) == 7
    assert plot.lines[-1].values[-1] == 4


def test_a_page_of_its_own_is_sound_html_and_escapes(world: EventWorld) -> None:
    from dataclasses import replace

    event = replace(world.make_event(), title="<script>alert(1)</script>")
    text = render_page(event, summarise([], [], [make_session(1, "<b>", 0)], hour(1))).decode()
    assert "<script" not in text and "<b>" not in text and "http" not in text

    class Check(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta",):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None: ...

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    check = Check()
    check.feed(text)
    assert check.open == []


def test_it_is_kept_after_the_removal_and_shown(world: EventWorld) -> None:
    world.make_event(seats=2)
    claim = world.claim()
    world.run(world.events.desk.start(world.seat(claim.seat_name), "school", "shell"))
    live = world.run(world.events.archives.summarise(world.olga, "school"))
    assert live.numbers["registrations"] == 1 and render_plots(live.plots).count("<figure") >= 1
    cookie = world.sign_in("olga")
    assert "So far" in world.ask("GET", "/events/school", cookie=cookie).text
    world.run(world.events.end(world.olga, "school"))
    world.run(world.events.remove(world.olga, "school", early=True))
    world.turn()
    kept = world.run(world.events.archives.summarise(world.olga, "school"))
    assert isinstance(kept, Summary) and kept.plots and kept.numbers["seats taken"] == 1
    text = world.ask("GET", "/events/school", cookie=cookie).text
    assert "<polyline" in text and "Summary" in text and claim.seat_name not in text
