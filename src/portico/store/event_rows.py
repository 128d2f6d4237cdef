"""Rows of events: the events, their files, seats and registrations. A part of Transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from portico.errors import Conflict
from portico.model import (
    Event,
    EventApp,
    EventField,
    EventFile,
    EventSettings,
    EventState,
    FieldKind,
    Line,
    Plot,
    Registration,
    Seat,
    SeatState,
)
from portico.store import tables as t


class EventRows:
    """See Transaction."""

    _db: Connection

    # events

    def add_event(self, event: Event) -> int:
        """Add an event; return its id, for which the one in ``event`` is not looked at.

        Raises:
            Conflict: There is one of that slug.
        """
        values = _from_event(event) | {"next_number": 1}
        try:
            return int(self._db.execute(insert(t.events).values(values)).lastrowid)
        except IntegrityError:
            raise Conflict(f"There is an event {event.slug} already.", field="slug") from None

    def save_event(self, event: Event) -> None:
        """Write an event's present state."""
        self._db.execute(update(t.events).where(t.events.c.id == event.id).values(_from_event(event)))

    def find_event(self, slug: str) -> Event | None:
        """Return an event by its slug."""
        row = self._db.execute(select(t.events).where(t.events.c.slug == slug)).first()
        return _to_event(row) if row else None

    def find_event_of(self, seat_name: str) -> Event | None:
        """Return the event that a seat is of."""
        query = select(t.events).join(t.seats, t.seats.c.event_id == t.events.c.id)
        row = self._db.execute(query.where(t.seats.c.name == seat_name)).first()
        return _to_event(row) if row else None

    def list_events(self, organiser_name: str | None = None, states: Collection[EventState] = ()) -> list[Event]:
        """Return events, the newest first."""
        query = select(t.events)
        if organiser_name is not None:
            query = query.where(t.events.c.organiser_name == organiser_name)
        if states:
            query = query.where(t.events.c.state.in_([state.value for state in states]))
        return [_to_event(row) for row in self._db.execute(query.order_by(t.events.c.id.desc()))]

    # files

    def set_event_file(self, event_id: int, kind: str, name: str, media_type: str, content: bytes) -> None:
        """Add a file, or put it in the place of the one of that kind and name."""
        self.delete_event_file(event_id, kind, name)
        values = {"event_id": event_id, "kind": kind, "name": name, "media_type": media_type, "content": content}
        self._db.execute(insert(t.event_files).values(values))

    def list_event_files(self, event_id: int, kind: str) -> list[EventFile]:
        """Return an event's files of a kind by name, without what is in them."""
        c = t.event_files.c
        query = select(c.name, c.kind, c.media_type, func.length(c.content))
        rows = self._db.execute(query.where(c.event_id == event_id, c.kind == kind).order_by(c.name))
        return [EventFile(*row) for row in rows]

    def read_event_file(self, event_id: int, kind: str, name: str) -> bytes | None:
        """Return what is in a file."""
        c = t.event_files.c
        return self._db.execute(
            select(c.content).where(c.event_id == event_id, c.kind == kind, c.name == name)
        ).scalar_one_or_none()

    def delete_event_file(self, event_id: int, kind: str, name: str) -> bool:
        """Delete a file; return whether there was one."""
        c = t.event_files.c
        where = (c.event_id == event_id, c.kind == kind, c.name == name)
        return bool(self._db.execute(delete(t.event_files).where(*where)).rowcount)

    def delete_event_files(self, event_id: int) -> None:
        """Delete all files of an event."""
        self._db.execute(delete(t.event_files).where(t.event_files.c.event_id == event_id))

    # seats

    def take_seat_numbers(self, event_id: int, count: int) -> list[int]:
        """Return numbers for new seats, which are given to nobody else."""
        c = t.events.c
        statement = update(t.events).where(c.id == event_id).values(next_number=c.next_number + count)
        after = int(self._db.execute(statement.returning(c.next_number)).scalar_one())
        return list(range(after - count, after))

    def add_seat(self, event_id: int, name: str, secret: str | None = None) -> None:
        """Add a seat, which is to be made.

        Raises:
            Conflict: There is one of that name.
        """
        values = {"event_id": event_id, "name": name, "state": SeatState.MAKING.value, "secret": secret, "trouble": ""}
        try:
            self._db.execute(insert(t.seats).values(values))
        except IntegrityError:
            raise Conflict(f"There is a seat {name} already.", field="account") from None

    def list_seats(self, event_id: int | None = None, states: Collection[SeatState] = ()) -> list[Seat]:
        """Return seats, the oldest first: of an event, or of all."""
        query = select(t.seats)
        if event_id is not None:
            query = query.where(t.seats.c.event_id == event_id)
        if states:
            query = query.where(t.seats.c.state.in_([state.value for state in states]))
        return [_to_seat(row) for row in self._db.execute(query.order_by(t.seats.c.id))]

    def find_seat(self, name: str) -> Seat | None:
        """Return a seat by its name."""
        row = self._db.execute(select(t.seats).where(t.seats.c.name == name)).first()
        return _to_seat(row) if row else None

    def find_seat_secret(self, name: str) -> str | None:
        """Return the hash of a seat's secret."""
        return self._db.execute(select(t.seats.c.secret).where(t.seats.c.name == name)).scalar_one_or_none()

    def claim_seat(self, event_id: int, at: datetime) -> Seat | None:
        """Take the first free seat of an event, at once; None where there is none."""
        c = t.seats.c
        first = select(c.id).where(c.event_id == event_id, c.state == SeatState.FREE.value).order_by(c.id).limit(1)
        statement = update(t.seats).where(c.id == first.scalar_subquery())
        row = self._db.execute(statement.values(state=SeatState.TAKEN.value, taken=at).returning(t.seats)).first()
        return _to_seat(row) if row else None

    def set_seat(
        self,
        name: str,
        *,
        state: SeatState | None = None,
        secret: str | None = None,
        trouble: str | None = None,
        taken: datetime | None = None,
    ) -> None:
        """Change what is given of a seat."""
        given = {"state": state.value if state else None, "secret": secret, "trouble": trouble, "taken": taken}
        values = {key: value for key, value in given.items() if value is not None}
        self._db.execute(update(t.seats).where(t.seats.c.name == name).values(values))

    def delete_seat(self, name: str) -> None:
        """Delete a seat; its registration stays."""
        self._db.execute(delete(t.seats).where(t.seats.c.name == name))

    # registrations

    def add_registration(self, registration: Registration, token_hash: str | None) -> int:
        """Add a registration; return its id, for which the one in ``registration`` is not looked at."""
        values = {key: value for key, value in asdict(registration).items() if key != "id"}
        values |= {"token_hash": token_hash, "seat_name": registration.seat_name or None}
        return int(self._db.execute(insert(t.registrations).values(values)).lastrowid)

    def find_registration(self, event_id: int, token_hash: str) -> Registration | None:
        """Return the registration that a form became."""
        c = t.registrations.c
        query = select(t.registrations).where(c.event_id == event_id, c.token_hash == token_hash)
        row = self._db.execute(query).first()
        return _to_registration(row) if row else None

    def find_registration_of(self, seat_name: str) -> Registration | None:
        """Return the registration of whoever sits on a seat."""
        row = self._db.execute(select(t.registrations).where(t.registrations.c.seat_name == seat_name)).first()
        return _to_registration(row) if row else None

    def list_registrations(self, event_id: int) -> list[Registration]:
        """Return an event's registrations, the oldest first."""
        c = t.registrations.c
        rows = self._db.execute(select(t.registrations).where(c.event_id == event_id).order_by(c.id))
        return [_to_registration(row) for row in rows]

    def list_waiting(self, event_id: int) -> list[Registration]:
        """Return who waits for a seat, the longest first."""
        c = t.registrations.c
        query = select(t.registrations).where(c.event_id == event_id, c.seat_name.is_(None)).order_by(c.id)
        return [_to_registration(row) for row in self._db.execute(query)]

    def seat_registration(self, registration_id: int, seat_name: str) -> None:
        """Give a seat to a registration."""
        where = t.registrations.c.id == registration_id
        self._db.execute(update(t.registrations).where(where).values(seat_name=seat_name))

    def delete_registrations(self, event_id: int) -> None:
        """Delete all registrations of an event."""
        self._db.execute(delete(t.registrations).where(t.registrations.c.event_id == event_id))


def _from_event(event: Event) -> dict[str, Any]:
    values = {key: value for key, value in asdict(event).items() if key != "id"}
    return values | {"state": event.state.value, "history": [_from_plot(plot) for plot in event.history]}


def _from_plot(plot: Plot) -> dict[str, Any]:
    return asdict(plot) | {"begins": plot.begins.isoformat(), "ends": plot.ends.isoformat()}


def _to_plot(value: dict[str, Any]) -> Plot:
    lines = tuple(Line(line["name"], tuple(line["values"])) for line in value["lines"])
    return Plot(value["title"], datetime.fromisoformat(value["begins"]), datetime.fromisoformat(value["ends"]), lines)


def _to_event(row: Any) -> Event:
    values = {key: value for key, value in row._mapping.items() if key != "next_number"}
    values |= {"state": EventState(row.state), "settings": parse_settings(row.settings)}
    return Event(**{**values, "history": tuple(_to_plot(plot) for plot in row.history)})


def parse_settings(value: dict[str, Any]) -> EventSettings:
    """Return settings from their JSON; what a newer version added is an error, what an older one lacked a default."""
    lists: dict[str, Any] = {
        "apps": tuple(EventApp(**app) for app in value.get("apps", ())),
        "fields": tuple(
            EventField(**{**field, "kind": FieldKind(field["kind"]), "choices": tuple(field["choices"])})
            for field in value.get("fields", ())
        ),
        "texts": tuple((str(name), str(text)) for name, text in value.get("texts", ())),
    }
    # Whoever came while there was no archive of all was not told of one.
    return EventSettings(**{"archive": False, **value, **lists})


def _to_seat(row: Any) -> Seat:
    return Seat(row.id, row.event_id, row.name, SeatState(row.state), row.secret is not None, row.trouble, row.taken)


def _to_registration(row: Any) -> Registration:
    values = {key: value for key, value in row._mapping.items() if key != "token_hash"}
    return Registration(**{**values, "seat_name": row.seat_name or ""})
