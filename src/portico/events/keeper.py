"""The events' keeper: makes, seats, ends and removes what is due, turn after turn.

What is due stands in the store, so a portal that was killed goes on where it was. One seat's trouble stops no other's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pwd
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from portico import wire
from portico.accounts import Accounts
from portico.config import Config
from portico.errors import Conflict, NotFound, PorticoError, Unavailable
from portico.events.access import KEEPER
from portico.events.claims import seat_waiting
from portico.events.programs import render_complete, render_put, run
from portico.events.summary import summarise
from portico.model import Event, EventState, Role, Seat, SeatState, UserState
from portico.sessions import BrokerMachine, Sessions
from portico.sessions.rows import Rows
from portico.store import Transaction

log = logging.getLogger(__name__)

TURN_S: Final = 1.0
RETRY_S: Final = 20.0
COMMAND_S: Final = 240.0
MAKES_AT_ONCE: Final = 8
ENDS_AT_ONCE: Final = 16
"""Each waits most of its time for the end of what it has stopped."""


@dataclass(frozen=True)
class _Due:
    """What is to be done in a turn; ``waiting`` has events in whose list somebody waits."""

    ending: list[Event]
    running_over: list[Seat]
    removing: list[Seat]
    making: list[Seat]
    waiting: list[int]


class Keeper:
    """One for all events."""

    def __init__(
        self,
        rows: Rows,
        config: Config,
        accounts: Accounts,
        sessions: Sessions,
        machine: BrokerMachine,
        clock: Callable[[], datetime],
    ) -> None:
        self._rows = rows
        self._config = config
        self._accounts = accounts
        self._sessions = sessions
        self._machine = machine
        self._clock = clock
        self._again: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._making: set[str] = set()
        self._makes, self._ends = asyncio.Semaphore(MAKES_AT_ONCE), asyncio.Semaphore(ENDS_AT_ONCE)
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Have it look at once."""
        self._news.set()

    async def run(self) -> None:
        """Turn after turn, until cancelled."""
        try:
            while True:
                try:
                    await self._begin()
                except Exception as error:  # a defect too: no event must lose its keeper for it
                    expected = isinstance(error, PorticoError)
                    log.warning("events: %s", error, exc_info=None if expected else error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), TURN_S)
                self._news.clear()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def turn(self) -> None:
        """Do what is due now and wait for it. :meth:`run` does not wait, so that no seat holds up an event's end."""
        await self._begin()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _begin(self) -> None:
        due = await self._rows.read(self._find_due)
        for event in due.ending:
            await self._rows.write(lambda tx, slug=event.slug: self._end(tx, slug))  # type: ignore[misc]
        if due.waiting:
            await self._rows.write(lambda tx: [seat_waiting(tx, event_id, self._clock()) for event_id in due.waiting])
        for seat in due.removing:
            if seat.name in self._making and (task := self._tasks.get(seat.name)):
                task.cancel()  # its start command may take minutes
            self._work(seat, self._remove, self._ends)
        for seat in due.running_over:
            self._work(seat, self._stop, self._ends)
        for seat in due.making:
            self._work(seat, self._make, self._makes)

    def _work(self, seat: Seat, work: Callable[[Seat], Awaitable[None]], turns: asyncio.Semaphore) -> None:
        """Have something done for a seat, unless something is, or has just failed."""
        if seat.name in self._tasks or self._again.get(seat.name, 0) > time.monotonic():
            return
        task = self._tasks[seat.name] = asyncio.create_task(self._try(seat, work, turns))
        task.add_done_callback(lambda _: self._tasks.pop(seat.name, None))

    def _find_due(self, tx: Transaction) -> _Due:
        events = {event.id: event for event in tx.list_events()}
        going = (EventState.OPEN, EventState.CLOSED)
        seats = tx.list_seats()
        live = {session.user_name for session in tx.list_live_sessions()} if seats else set()
        users = {user.name for user in tx.list_users()} if seats else set()
        # Of a seat whose user an administrator has removed nothing is left but its row.
        gone = [s for s in seats if s.state in (SeatState.FREE, SeatState.TAKEN) and s.name not in users]
        return _Due(
            ending=[e for e in events.values() if e.state in going and e.ends <= self._clock()],
            running_over=[s for s in seats if s.name in live and events[s.event_id].state is EventState.ENDED],
            removing=[*(s for s in seats if s.state is SeatState.REMOVING), *gone],
            making=[s for s in seats if s.state is SeatState.MAKING],
            waiting=[e.id for e in events.values() if e.state in going and tx.list_waiting(e.id)],
        )

    async def _try(self, seat: Seat, work: Callable[[Seat], Awaitable[None]], turns: asyncio.Semaphore) -> None:
        try:
            async with turns:
                await work(seat)
        except Exception as error:  # a defect too: it is this seat's trouble and no other's
            expected = isinstance(error, PorticoError)
            retry_s = error.retry_after_s if isinstance(error, PorticoError) else None
            self._again[seat.name] = time.monotonic() + (retry_s or RETRY_S)
            said = f"{error.message} {error.why}".strip() if isinstance(error, PorticoError) else repr(error)
            if said != seat.trouble:
                log.warning("seat %s: %s", seat.name, said, exc_info=None if expected else error)
                await self._rows.write(lambda tx: tx.set_seat(seat.name, trouble=said))
        else:
            self._again.pop(seat.name, None)

    # ending

    def make_ended(self, tx: Transaction, event: Event) -> Event:
        """Return an event as it is from its end on, with what can be said of it without names."""
        at = self._clock()
        found = summarise(
            tx.list_seats(event.id), tx.list_registrations(event.id), tx.list_event_sessions(event.id), at
        )
        return replace(event, state=EventState.ENDED, ended=at, summary=found.numbers, history=found.plots)

    def _end(self, tx: Transaction, slug: str) -> None:
        event = tx.find_event(slug)
        if event and event.ended is None:
            tx.save_event(self.make_ended(tx, event))
            tx.add_audit(KEEPER.user_name, "event:end", slug, "its time is over")

    async def _stop(self, seat: Seat) -> None:
        await self._sessions.stop_all_of(KEEPER, seat.name)

    # seats

    async def _make(self, seat: Seat) -> None:
        event = await self._rows.write(lambda tx: self._add_user(tx, seat))
        if event is None:
            return
        self._making.add(seat.name)
        try:
            await self._machine.make(seat.name)
            await self._complete(seat)
            trouble = await self._furnish(event, seat)
        finally:
            self._making.discard(seat.name)

        def write(tx: Transaction) -> None:
            present = tx.find_seat(seat.name)
            if present and present.state is SeatState.MAKING:  # it may have been removed meanwhile
                tx.set_seat(seat.name, state=SeatState.FREE, trouble=trouble)
                tx.add_audit(KEEPER.user_name, "seat:make", seat.name, trouble)
                seat_waiting(tx, event.id, self._clock())

        await self._rows.write(write)

    def _add_user(self, tx: Transaction, seat: Seat) -> Event | None:
        """Add the seat's user; return its event.

        Raises:
            Conflict: Somebody else has that name, here or on this machine. Theirs must not become a guest's.
        """
        event, user = tx.find_event_of(seat.name), tx.find_user(seat.name)
        if event is None:
            return None
        if user is None:
            if self._config.multi_user and _has_account(seat.name):
                raise Conflict(f"There is a POSIX account {seat.name} already.", why="It was not made for this event.")
            tx.add_user(seat.name, Role.PARTICIPANT, UserState.ACTIVE, self._clock())
            tx.add_audit(KEEPER.user_name, "user:add", seat.name, f"seat of {event.slug}")
        elif user.role is not Role.PARTICIPANT:
            raise Conflict(f"There is a user {seat.name} already.", why="They are no participant.")
        return event

    async def _complete(self, seat: Seat) -> None:
        """See that a seat's home is whole.

        Raises:
            Unavailable: It is not; the seat is not given to anybody yet.
        """
        try:
            await run(self._machine, seat.name, render_complete())
        except Unavailable as error:
            raise Unavailable("The seat's home can't be written.", why=error.why or error.message) from error

    async def _furnish(self, event: Event, seat: Seat) -> str:
        """Copy the hand-outs and run the start command; return what failed, for the organiser."""
        trouble = []
        files = await self._rows.read(
            lambda tx: [
                (file.name, tx.read_event_file(event.id, "handout", file.name) or b"")
                for file in tx.list_event_files(event.id, "handout")
            ]
        )
        for name, content in files:
            try:
                await run(self._machine, seat.name, render_put("", name), [wire.seal(content)])
            except PorticoError as error:
                trouble.append(f"{name}: {error.message} {error.why}")
        if event.settings.start_command:
            argv = ["/bin/bash", "-c", event.settings.start_command]
            try:
                await run(self._machine, seat.name, argv, timeout_s=COMMAND_S)
            except PorticoError as error:
                trouble.append(f"Start command: {error.message} {error.why}")
        return " ".join(trouble)[:1000]

    async def _remove(self, seat: Seat) -> None:
        user = await self._rows.read(lambda tx: tx.find_user(seat.name))
        if user is not None and user.role is Role.PARTICIPANT:
            await self._sessions.stop_all_of(KEEPER, seat.name)
            with contextlib.suppress(NotFound):
                await self._accounts.remove_user(KEEPER, seat.name, True)

        def write(tx: Transaction) -> None:
            tx.delete_seat(seat.name)
            tx.add_audit(KEEPER.user_name, "seat:remove", seat.name, "account and home are gone")

        await self._rows.write(write)


def _has_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
