"""Rows of events: what is kept comes back as it was, and a seat is taken once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from portico.errors import Conflict
from portico.model import (
    Event,
    EventApp,
    EventField,
    EventSettings,
    EventState,
    FieldKind,
    Registration,
    SeatState,
    now,
)
from portico.store import Store

SETTINGS = EventSettings(
    welcome="# Hello",
    apps=(EventApp("desktop", hours=8),),
    fields=(EventField("level", "Level", FieldKind.CHOICE, True, ("low", "high")),),
    texts=(("Terms", "Be kind."),),
    placement={"partition": "course"},
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "portico.db")
    store.upgrade()
    yield store
    store.close()


def make_event(slug: str = "school") -> Event:
    at = now()
    return Event(0, slug, "School", "olga", EventState.DRAFT, at, at, at + timedelta(days=1), SETTINGS)


def test_an_event_comes_back_as_it_was(store: Store) -> None:
    with store.begin() as tx:
        made = make_event()
        event = replace(made, id=tx.add_event(made))
        assert tx.find_event("school") == event
        changed = replace(event, state=EventState.ENDED, ended=now(), summary={"seats": 3})
        tx.save_event(changed)
        assert tx.find_event("school") == changed
        assert tx.list_events("olga") == [changed] and tx.list_events("otto") == []
        with pytest.raises(Conflict):
            tx.add_event(make_event())


def test_a_seat_is_taken_once_by_any_number_of_threads(store: Store) -> None:
    with store.begin() as tx:
        event_id = tx.add_event(make_event())
        other_id = tx.add_event(make_event("other"))
        for number in tx.take_seat_numbers(event_id, 20):
            tx.add_seat(event_id, f"ev1-{number:02}")
            tx.set_seat(f"ev1-{number:02}", state=SeatState.FREE)
        tx.add_seat(other_id, "ev2-01")
        tx.set_seat("ev2-01", state=SeatState.FREE)
    taken: list[str | None] = []

    def take() -> None:
        for _ in range(5):
            with store.begin() as tx:
                seat = tx.claim_seat(event_id, now())
            taken.append(seat.name if seat else None)

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for name in taken if name]
    assert sorted(names) == [f"ev1-{number:02}" for number in range(1, 21)] and taken.count(None) == 5


def test_no_seat_number_is_given_twice(store: Store) -> None:
    with store.begin() as tx:
        event_id = tx.add_event(make_event())
        assert tx.take_seat_numbers(event_id, 2) == [1, 2]
        tx.add_seat(event_id, "ev1-02")
        tx.delete_seat("ev1-02")
        assert tx.take_seat_numbers(event_id, 1) == [3]


def test_who_waits_is_who_has_no_seat(store: Store) -> None:
    with store.begin() as tx:
        event_id = tx.add_event(make_event())
        one = Registration(0, event_id, {"level": "low"}, {"Terms": "hash"}, now(), "192.0.2.1")
        first, second = tx.add_registration(one, "a" * 64), tx.add_registration(one, "b" * 64)
        assert [r.id for r in tx.list_waiting(event_id)] == [first, second]
        tx.seat_registration(first, "ev1-01")
        assert [r.id for r in tx.list_waiting(event_id)] == [second]
        found = tx.find_registration_of("ev1-01")
        assert found == replace(one, id=first, seat_name="ev1-01") == tx.find_registration(event_id, "a" * 64)
        assert tx.find_registration(event_id + 1, "a" * 64) is None


def test_files_are_replaced_and_listed_without_their_content(store: Store) -> None:
    with store.begin() as tx:
        event_id = tx.add_event(make_event())
        tx.set_event_file(event_id, "handout", "b.txt", "", b"1")
        tx.set_event_file(event_id, "handout", "b.txt", "", b"22")
        assert [(f.name, f.size_bytes) for f in tx.list_event_files(event_id, "handout")] == [("b.txt", 2)]
        assert tx.read_event_file(event_id, "handout", "b.txt") == b"22"
        assert tx.read_event_file(event_id, "logo", "b.txt") is None
        assert tx.delete_event_file(event_id, "handout", "b.txt") and not tx.delete_event_file(event_id, "handout", "b")
