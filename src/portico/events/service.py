"""The life of events, as organisers see it: create, change, open, close, end, remove; their files.

Who may is decided here, for pages, API and command line alike. Seats are in seats.py, what participants do in
claims.py and desk.py, what has to happen by itself in keeper.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from portico.accounts import Accounts, Permission, may, require
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid
from portico.events.access import get_managed
from portico.events.archive import Archives
from portico.events.claims import Claims
from portico.events.desk import Desk
from portico.events.images import check_logo
from portico.events.keeper import Keeper
from portico.events.seats import Seats, add_seats, refuse_over
from portico.events.settings import (
    check_dates,
    check_file_name,
    check_images,
    check_settings,
    check_slug,
    check_title,
)
from portico.events.steering import Steering, take_wall_down
from portico.model import (
    Event,
    EventFile,
    EventSettings,
    EventState,
    Identity,
    NoticeKind,
    Registration,
    SeatState,
    now,
)
from portico.sessions import BrokerMachine, Sessions
from portico.sessions.rows import Rows
from portico.store import Store, Transaction

LOGO: Final = "logo"
HANDOUT: Final = "handout"
HANDOUT_LIMIT_BYTES: Final = 15_000_000
HANDOUTS_LIMIT_BYTES: Final = 60_000_000
"""Of all of an event together: they stand in the database."""


@dataclass(frozen=True)
class Removal:
    """What the removal of an event takes away. ``too_early`` says why it is not time yet; empty where it is."""

    accounts: tuple[str, ...]
    registrations: int
    files: tuple[str, ...]
    too_early: str


class Events:
    """All events of this portal.

    Args:
        machine: Makes accounts, and asks seats' agents.
        clock: Returns the time, aware, in UTC.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        accounts: Accounts,
        sessions: Sessions,
        machine: BrokerMachine,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._rows = Rows(store, sessions.changes)
        self._sessions = sessions
        self._clock = clock
        self.keeper = Keeper(self._rows, config, accounts, sessions, machine, clock)
        self.seats = Seats(self._rows, config, accounts, sessions, self.keeper.wake, clock)
        self.claims = Claims(self._rows, accounts, clock)
        self.desk = Desk(self._rows, sessions, machine, clock)
        self.steering = Steering(self._rows, accounts, sessions, self.seats, self.desk)
        self.archives = Archives(self._rows, self.seats, machine, clock)

    async def run(self) -> None:
        """Make, seat, end and remove what is due, until cancelled."""
        await self.keeper.run()

    # reading

    async def list_events(self, who: Identity) -> list[Event]:
        """Return one's own events, the newest first; an admin sees all."""
        require(who, Permission.EVENT_CREATE)
        name = None if may(who, Permission.EVENT_MANAGE) else who.user_name
        return await self._rows.read(lambda tx: tx.list_events(name))

    async def get_event(self, who: Identity, slug: str) -> Event:
        """Return an event for its organiser.

        Raises:
            NotFound: There is none, or not for them.
        """
        return await self._rows.read(lambda tx: get_managed(tx, who, slug))

    async def list_registrations(self, who: Identity, slug: str) -> list[Registration]:
        """Return who filled in what, the oldest first."""
        return await self._rows.read(lambda tx: tx.list_registrations(get_managed(tx, who, slug).id))

    # changing

    async def create(
        self,
        who: Identity,
        slug: str,
        title: str,
        begins: datetime,
        ends: datetime,
        settings: EventSettings,
        seats: int = 0,
        organiser_name: str = "",
    ) -> Event:
        """Make an event, a draft, with seats that are made from now on.

        Args:
            who: The organiser.
            slug: Its name in its address.
            title: What people call it.
            begins: From when its apps can be started.
            ends: When all ends.
            settings: The rest.
            seats: How many.
            organiser_name: Whose it is to be; another's name only from an admin.

        Raises:
            Invalid: Something can't be so; ``field`` names it.
            Conflict: There is one of that slug.
        """
        require(who, Permission.EVENT_CREATE)
        organiser_name = organiser_name or who.user_name
        if organiser_name != who.user_name and not may(who, Permission.EVENT_MANAGE):
            raise Forbidden("Only an administrator makes an event for somebody else.")
        check_dates(begins, ends)
        settings = await self._check(settings, EventSettings())
        at = self._clock()
        event = Event(
            0, check_slug(slug), check_title(title), organiser_name, EventState.DRAFT, at, begins, ends, settings
        )

        def write(tx: Transaction) -> Event:
            if organiser_name != who.user_name and tx.find_user(organiser_name) is None:
                raise Invalid(f"There is no user {organiser_name[:40]!r}.", field="organiser_name")
            made = replace(event, id=tx.add_event(event))
            tx.add_audit(who.user_name, Permission.EVENT_CREATE, slug, f"{seats} seats", who.address)
            if seats:
                self.seats.check_possible()
                add_seats(tx, who, made, seats)
            return made

        made = await self._rows.write(write)
        self.keeper.wake()
        return made

    async def _check(self, settings: EventSettings, before: EventSettings) -> EventSettings:
        apps = await asyncio.to_thread(self._sessions.catalog.list_apps)
        settings = check_settings(settings, [app.id for app in apps])
        check_images(settings, apps)
        if (settings.cluster, settings.placement) != (before.cluster, before.placement):  # else it was asked then
            await self._sessions.check_placement(settings.cluster, settings.placement)
        return settings

    async def change(
        self, who: Identity, slug: str, title: str, begins: datetime, ends: datetime, settings: EventSettings
    ) -> Event:
        """Change what an event is; what somebody accepted before stays recorded as it was.

        Raises:
            Invalid: Something can't be so.
            Conflict: It is over.
        """
        title = check_title(title)
        check_dates(begins, ends)
        settings = await self._check(settings, (await self.get_event(who, slug)).settings)

        gone: list[str] = []

        def change(tx: Transaction, event: Event) -> Event:
            refuse_over(event)
            if event.settings.wall and not settings.wall:
                gone.extend(take_wall_down(tx, event))
            if settings.archive and not event.settings.archive:
                self._tell_of_archive(tx, event)
            return replace(event, title=title, begins=begins, ends=ends, settings=settings)

        event = await self._change(who, slug, "event:change", change)
        if gone:
            self._sessions.on_cut(gone)
        return event

    def _tell_of_archive(self, tx: Transaction, event: Event) -> None:
        """Tell those who sit there already; whoever comes later reads it on the way."""
        text = f"{event.organiser_name} can now fetch a copy of all files on your seat."
        for seat in tx.list_seats(event.id, (SeatState.TAKEN,)):
            tx.add_notice(seat.name, self._clock(), NoticeKind.MESSAGE, f"/e/{event.slug}/home", text, event.title)

    async def open(self, who: Identity, slug: str) -> Event:
        """Let people in: show the landing page, take registrations.

        Raises:
            Conflict: It is over, or its end has passed.
        """

        def change(tx: Transaction, event: Event) -> Event:
            refuse_over(event)
            if event.ends <= self._clock():
                raise Conflict("Its end has passed.", hint="Change its dates first.")
            return replace(event, state=EventState.OPEN)

        return await self._change(who, slug, "event:open", change)

    async def close(self, who: Identity, slug: str) -> Event:
        """Take no more registrations; participants go on."""

        def change(tx: Transaction, event: Event) -> Event:
            refuse_over(event)
            return replace(event, state=EventState.CLOSED)

        return await self._change(who, slug, "event:close", change)

    async def end(self, who: Identity, slug: str) -> Event:
        """End an event now: all sessions stop, participants can still fetch their folder for a while."""

        def change(tx: Transaction, event: Event) -> Event:
            return self.keeper.make_ended(tx, event) if event.ended is None else event

        return await self._change(who, slug, "event:end", change)

    async def list_removal(self, who: Identity, slug: str) -> Removal:
        """Return what :meth:`remove` would take away."""
        return await self._rows.read(lambda tx: self._find_removal(tx, get_managed(tx, who, slug)))

    def _find_removal(self, tx: Transaction, event: Event) -> Removal:
        files = [*tx.list_event_files(event.id, LOGO), *tx.list_event_files(event.id, HANDOUT)]
        too_early = ""
        if event.state in (EventState.OPEN, EventState.CLOSED):
            too_early = "It has not ended."
        elif event.fetch_until and event.fetch_until > self._clock():
            too_early = f"Participants can fetch their folders until {event.fetch_until:%Y-%m-%d %H:%M} UTC."
        return Removal(
            accounts=tuple(seat.name for seat in tx.list_seats(event.id)),
            registrations=len(tx.list_registrations(event.id)),
            files=tuple(file.name for file in files),
            too_early=too_early,
        )

    async def remove(self, who: Identity, slug: str, *, early: bool = False) -> Event:
        """Remove an event's accounts, homes, files, answers and texts. Its dates and its summary stay.

        Args:
            who: The organiser.
            slug: Which.
            early: Although participants can still fetch their folders.

        Raises:
            Conflict: It is too early.
        """

        def change(tx: Transaction, event: Event) -> Event:
            removal = self._find_removal(tx, event)
            if event.state in (EventState.OPEN, EventState.CLOSED) or (removal.too_early and not early):
                raise Conflict("It is too early to remove this event.", why=removal.too_early)
            for seat in tx.list_seats(event.id):
                tx.set_seat(seat.name, state=SeatState.REMOVING)
            tx.delete_registrations(event.id)
            tx.delete_event_files(event.id)
            return replace(event, state=EventState.REMOVED, settings=EventSettings(colour=event.settings.colour))

        return await self._change(who, slug, "event:remove", change)

    async def _change(
        self, who: Identity, slug: str, action: str, change: Callable[[Transaction, Event], Event]
    ) -> Event:
        def write(tx: Transaction) -> Event:
            event = get_managed(tx, who, slug)
            changed = change(tx, event)
            if changed != event:
                tx.save_event(changed)
                tx.add_audit(who.user_name, action, slug, changed.state.value, who.address)
            return changed

        event = await self._rows.write(write)
        self.keeper.wake()
        return event

    # files

    async def set_logo(self, who: Identity, slug: str, content: bytes) -> None:
        """Set an event's logo; nothing takes it away.

        Raises:
            Invalid: It is no picture that browsers draw.
        """
        media_type = check_logo(content) if content else ""

        def write(tx: Transaction) -> None:
            event = get_managed(tx, who, slug)
            refuse_over(event)
            if content:
                tx.set_event_file(event.id, LOGO, LOGO, media_type, content)
            else:
                tx.delete_event_file(event.id, LOGO, LOGO)
            tx.add_audit(who.user_name, "event:logo", slug, f"{len(content)} bytes", who.address)

        await self._rows.write(write)

    async def read_logo(self, event: Event) -> tuple[str, bytes] | None:
        """Return the media type and bytes of an event's logo; the caller has looked who may see the event."""

        def read(tx: Transaction) -> tuple[str, bytes] | None:
            files = tx.list_event_files(event.id, LOGO)
            content = tx.read_event_file(event.id, LOGO, LOGO)
            return (files[0].media_type, content) if files and content else None

        return await self._rows.read(read)

    async def add_handout(self, who: Identity, slug: str, name: str, content: bytes) -> None:
        """Add a file that each seat made from now on has in its home.

        Raises:
            Invalid: Its name has path parts, or it is too large.
        """
        name = check_file_name(name)
        if len(content) > HANDOUT_LIMIT_BYTES:
            raise Invalid(f"A hand-out has at most {HANDOUT_LIMIT_BYTES // 1_000_000} MB.", field="file")

        def write(tx: Transaction) -> None:
            event = get_managed(tx, who, slug)
            refuse_over(event)
            others = [file for file in tx.list_event_files(event.id, HANDOUT) if file.name != name]
            if sum(file.size_bytes for file in others) + len(content) > HANDOUTS_LIMIT_BYTES:
                raise Invalid(
                    f"All hand-outs together have at most {HANDOUTS_LIMIT_BYTES // 1_000_000} MB.",
                    hint="Let the start command fetch what is larger.",
                    field="file",
                )
            tx.set_event_file(event.id, HANDOUT, name, "", content)
            tx.add_audit(who.user_name, "event:handout", slug, f"{name}, {len(content)} bytes", who.address)

        await self._rows.write(write)

    async def list_handouts(self, who: Identity, slug: str) -> list[EventFile]:
        """Return an event's hand-outs."""
        return await self._rows.read(lambda tx: tx.list_event_files(get_managed(tx, who, slug).id, HANDOUT))

    async def remove_handout(self, who: Identity, slug: str, name: str) -> None:
        """Remove a hand-out; seats that have it keep it."""

        def write(tx: Transaction) -> None:
            if tx.delete_event_file(get_managed(tx, who, slug).id, HANDOUT, name):
                tx.add_audit(who.user_name, "event:handout", slug, f"{name} removed", who.address)

        await self._rows.write(write)
