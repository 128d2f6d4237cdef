"""The organiser's archive of an event: all seats' homes, who sat where, the summary. Streamed, one seat after another.

Each home is read by its own seat's agent and passes through unopened, as a member of its own: a seat that can't be read
is named in the archive, and the rest goes on. Only of events whose participants are told of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from portico.errors import Conflict, NotFound, PorticoError, TooMany
from portico.events.access import get_managed
from portico.events.homes import stream_home
from portico.events.plots import render_page
from portico.events.seats import Seats
from portico.events.summary import Summary, summarise
from portico.events.zip_stream import ZipStream
from portico.model import Event, EventState, Identity, SeatState, UserState
from portico.sessions import BrokerMachine
from portico.sessions.rows import Rows
from portico.store import Transaction

MADE: Final = (SeatState.FREE, SeatState.TAKEN)


@dataclass(frozen=True)
class Progress:
    """An archive that somebody is fetching: the seat that is being read, which one of how many, and bytes so far."""

    seat_name: str
    number: int
    of: int
    size_bytes: int


class Archives:
    """The archives of all events; of each one is fetched at a time.

    Args:
        clock: Returns the time, aware, in UTC.
    """

    def __init__(self, rows: Rows, seats: Seats, machine: BrokerMachine, clock: Callable[[], datetime]) -> None:
        self._rows = rows
        self._seats = seats
        self._machine = machine
        self._clock = clock
        self._fetched: dict[int, Progress] = {}

    def find_progress(self, event: Event) -> Progress | None:
        """Return how far the archive of an event is; None where nobody fetches it."""
        return self._fetched.get(event.id)

    async def summarise(self, who: Identity, slug: str) -> Summary:
        """Return an event's summary: of one that goes on as it is now, else as it was at its end."""
        return await self._rows.read(lambda tx: self._summarise(tx, get_managed(tx, who, slug)))

    def _summarise(self, tx: Transaction, event: Event) -> Summary:
        if event.ended is not None:
            return Summary(event.summary, event.history)
        seats, registrations = tx.list_seats(event.id), tx.list_registrations(event.id)
        return summarise(seats, registrations, tx.list_event_sessions(event.id), self._clock())

    async def open(self, who: Identity, slug: str, names: Sequence[str] = ()) -> AsyncIterator[bytes]:
        """Return the archive of an event in pieces, as fast as they are taken.

        Args:
            who: The organiser.
            slug: Of which event.
            names: Of which seats; by default of all.

        Raises:
            NotFound: A seat is none of this event's.
            Conflict: Its participants were not told of it, or the event's files are gone.
            TooMany: Somebody is fetching it already.
        """

        def write(tx: Transaction) -> tuple[Event, list[str]]:
            event = _get_open(tx, who, slug)
            made = [seat.name for seat in tx.list_seats(event.id, MADE)]
            if unknown := [name for name in names if name not in made]:
                raise NotFound(f"There is no seat {unknown[0][:40]!r} in this event.")
            if event.id in self._fetched:
                raise TooMany(
                    "This archive is being fetched already.", hint="Wait for that, or cancel it.", retry_after_s=30
                )
            wanted = [name for name in made if not names or name in names]
            tx.add_audit(who.user_name, "event:archive", slug, f"{len(wanted)} seats", who.address)
            return event, wanted

        event, wanted = await self._rows.write(write)
        return self._stream(who, event, wanted)

    async def _stream(self, who: Identity, event: Event, names: Sequence[str]) -> AsyncIterator[bytes]:
        if event.id in self._fetched:
            raise TooMany("This archive is being fetched already.", retry_after_s=30)
        self._fetched[event.id] = Progress("", 0, len(names), 0)  # only now: whoever never reads has never begun
        try:
            archive = ZipStream(self._clock())
            people = await self._seats.export_seats(who, event.slug)
            archive.add("participants.csv", people.encode())
            archive.add("summary.html", render_page(event, await self.summarise(who, event.slug)))
            told: dict[str, str] = {}
            size = 0
            for number, name in enumerate(names, 1):
                await self._rows.read(lambda tx: _get_open(tx, who, event.slug))  # it may have changed meanwhile
                self._fetched[event.id] = Progress(name, number, len(names), size)
                async with contextlib.aclosing(self._add(archive, name, told)) as pieces:
                    async for data in pieces:
                        size += len(data)
                        self._fetched[event.id] = Progress(name, number, len(names), size)
                        yield data
            archive.add("CONTENTS.txt", self._describe(event, told).encode())
            if broken := {name: said for name, said in told.items() if not said.startswith(WHOLE)}:
                archive.add("PROBLEMS.txt", _list(broken).encode())
            archive.close()
            yield archive.take()
        finally:
            del self._fetched[event.id]

    async def _add(self, archive: ZipStream, name: str, told: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """Add a seat's home; what became of it is in ``told``."""
        warnings: list[str] = []
        size = 0
        try:
            async with contextlib.aclosing(stream_home(self._machine, name, warnings.append)) as pieces:
                async for data in pieces:
                    if not size:
                        archive.begin(f"{name}.tar.gz")
                    size += len(data)
                    archive.write(data)
                    yield archive.take()
        except PorticoError as error:
            said = f"{error.message} {error.why}".strip()
            told[name] = f"broken off after {size} bytes: {said}" if size else f"not here: {said}"
        else:
            warning = " ".join(filter(None, warnings))
            told[name] = f"{WHOLE}, {size} bytes{f', but: {warning}' if warning else ''}"
        if size:
            archive.end()
            yield archive.take()

    def _describe(self, event: Event, told: dict[str, str]) -> str:
        whole = sum(said.startswith(WHOLE) for said in told.values())
        head = f"{event.title} ({event.slug}), {self._clock():%Y-%m-%d %H:%M} UTC"
        advice = "What is in a seat's archive its participant decided: unpack it as you would a stranger's."
        return f"{head}\n{whole} of {len(told)} seats are whole.\n{advice}\n\n{_list(told)}"


WHOLE: Final = "whole"


def _list(told: dict[str, str]) -> str:
    return "".join(f"{name}: {said}\n" for name, said in told.items())


def _get_open(tx: Transaction, who: Identity, slug: str) -> Event:
    """Return an event of which an archive may be made, for who may have it.

    Raises:
        NotFound: There is none, or not for them, or not any more.
        Conflict: Its participants were not told, or its files are gone.
    """
    event = get_managed(tx, who, slug)
    user = tx.find_user(who.user_name) if who.user_id else None
    if who.user_id and (user is None or user.state is not UserState.ACTIVE):
        raise NotFound("There is no such event.")
    if event.state is EventState.REMOVED:
        raise Conflict("The files of this event are gone.", why="It has been removed.")
    if not event.settings.archive:
        raise Conflict(
            "There is no archive of all seats of this event.",
            why="Its participants were not told of one.",
            hint="Before its end this can be changed: see Change. Participants are told so then.",
        )
    return event
