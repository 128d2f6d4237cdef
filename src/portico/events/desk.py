"""What a participant does on their seat: start the event's apps, files in, everything out.

One's own seat only: there is no argument that could name another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from portico.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unavailable
from portico.events.access import get_own_seat
from portico.events.claims import needs_registration
from portico.events.homes import stream_home
from portico.events.programs import UPLOADS, render_put, run
from portico.events.settings import check_file_name
from portico.model import App, Event, EventState, Identity, Reach, Seat, SeatState, Session, SessionState, UserState
from portico.sessions import BrokerMachine, Sessions
from portico.sessions.images import FIELD
from portico.sessions.rows import Rows
from portico.store import Transaction

UPLOAD_S: Final = 300.0
FILE_LIMIT_BYTES: Final = 2_000_000_000
UPLOAD_ID: Final = re.compile(r"[a-z0-9]{1,32}\Z")
LIVE: Final = (SessionState.QUEUED, SessionState.STARTING, SessionState.READY)


@dataclass(frozen=True)
class Offer:
    """An app of the event, and the session of it that is there."""

    app: App
    session: Session | None


@dataclass(frozen=True)
class View:
    """A participant's home. ``closed`` says why no app can be started; empty where they can."""

    event: Event
    seat: Seat
    offers: tuple[Offer, ...]
    closed: str
    registered: bool


class Desk:
    """The seats, from within.

    Args:
        clock: Returns the time, aware, in UTC.
    """

    def __init__(self, rows: Rows, sessions: Sessions, machine: BrokerMachine, clock: Callable[[], datetime]) -> None:
        self._rows = rows
        self._sessions = sessions
        self._machine = machine
        self._clock = clock
        self._starting: dict[str, asyncio.Lock] = {}
        self._archiving: set[str] = set()

    async def view(self, who: Identity, slug: str) -> View:
        """Return one's own home in an event.

        Raises:
            NotFound: One has no seat there.
        """

        def read(tx: Transaction) -> tuple[Event, Seat, list[Session], bool]:
            event, seat = get_own_seat(tx, who, slug)
            registered = not needs_registration(event) or tx.find_registration_of(seat.name) is not None
            return event, seat, tx.list_sessions(seat.name, LIVE), registered

        event, seat, live, registered = await self._rows.read(read)
        offers = []
        for offered in event.settings.apps:
            try:
                app = await asyncio.to_thread(self._sessions.catalog.get, offered.app_id)
            except NotFound:  # its folder was taken away since
                continue
            offers.append(Offer(app, next((one for one in live if one.app_id == app.id), None)))
        return View(event, seat, tuple(offers), self._find_closed(event), registered)

    def _find_closed(self, event: Event) -> str:
        if event.state in (EventState.ENDED, EventState.REMOVED) or event.ends <= self._clock():
            return "The event has ended."
        if event.begins > self._clock():
            return f"The event begins at {event.begins:%Y-%m-%d %H:%M} UTC."
        return ""

    async def start(self, who: Identity, slug: str, app_id: str) -> Session:
        """Start one of the event's apps with the event's limits; one that is there already is gone on with.

        Raises:
            NotFound: One has no seat there, or the event does not offer this app.
            Conflict: The event has not begun, or has ended.
            Forbidden: The registration comes first.
        """
        async with self._starting.setdefault(who.user_name, asyncio.Lock()):  # two clicks are one session
            view = await self.view(who, slug)
            offer = next((one for one in view.offers if one.app.id == app_id), None)
            if offer is None:
                raise NotFound("This event does not offer that.", hint=f"What it offers is on its page: /e/{slug}")
            if offer.session:
                return offer.session
            if view.closed:
                raise Conflict(view.closed)
            if not view.registered:
                raise Forbidden("Please register first.", hint=f"Fill in the form: /e/{slug}/register")
            return await self._start(who, view.event, app_id)

    async def start_ahead(self, who: Identity, event: Event, app_id: str) -> Session:
        """Start one of the event's apps on a seat, for its organiser, who may do so before anybody sits there."""
        async with self._starting.setdefault(who.user_name, asyncio.Lock()):
            return await self._start(who, event, app_id)

    async def _start(self, who: Identity, event: Event, app_id: str) -> Session:
        wanted = next(one for one in event.settings.apps if one.app_id == app_id)
        session = await self._sessions.start(
            who,
            app_id,
            cores=wanted.cores,
            memory_gb=wanted.memory_gb,
            hours=wanted.hours,
            values={FIELD: wanted.image} if wanted.image else {},
            cluster=event.settings.cluster,
            placement=event.settings.placement,
        )
        if event.settings.wall and session.reach is Reach.RFB:
            await self._rows.write(lambda tx: self._show_on_wall(tx, event, session))
        return session

    def _show_on_wall(self, tx: Transaction, event: Event, session: Session) -> None:
        """Let the organiser look, as the participant was told; never without being an organiser's own user."""
        organiser = tx.find_user(event.organiser_name)
        if organiser is not None and organiser.state is UserState.ACTIVE:
            tx.add_share(session.id, session.user_name, organiser.name, self._clock())
            tx.add_audit(session.user_name, "share:add", session.id, f"{organiser.name}, wall of {event.slug}")

    # files

    async def put(
        self, who: Identity, slug: str, name: str, content: bytes, *, upload: str, offset: int, last: bool
    ) -> str:
        """Write a file, or a part of one, into the folder Uploads of one's own seat; return the file's path.

        Args:
            who: Whose.
            slug: Of which event.
            name: Of the file, without a folder.
            content: The part.
            upload: The same for all parts of a file, and another for another file.
            offset: Where in the file this part begins.
            last: Whether the file is complete with it.

        Raises:
            Invalid: The name has path parts, or the file is too large.
            Unavailable: It could not be written: the disk is full, say. There is no part of it left.
        """
        await self._get_seat(who, slug)
        name = check_file_name(name)
        if not UPLOAD_ID.match(upload) or not 0 <= offset <= FILE_LIMIT_BYTES - len(content):
            raise Invalid(f"A file has at most {FILE_LIMIT_BYTES // 1_000_000_000} GB.", field="file")
        ours, theirs = socket.socketpair()
        argv = render_put(UPLOADS, name, part=upload, offset=offset, last=last)
        writing = asyncio.create_task(_write_all(ours, content))
        try:
            await run(self._machine, who.user_name, argv, [theirs.detach()], timeout_s=UPLOAD_S)
        except Unavailable as error:
            raise Unavailable(f"{name} could not be kept.", why=error.why or error.message, hint=error.hint) from error
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            ours.close()
        if last:
            await self._rows.write(
                lambda tx: tx.add_audit(who.user_name, "file:put", f"{UPLOADS}/{name}"[:100], slug, who.address)
            )
        return f"{UPLOADS}/{name}"

    async def _get_seat(self, who: Identity, slug: str) -> Seat:
        event, seat = await self._rows.read(lambda tx: get_own_seat(tx, who, slug))
        if seat.state is not SeatState.TAKEN or event.state is EventState.REMOVED:
            raise Conflict("This seat is not in use any more.")
        return seat

    async def archive(self, who: Identity, slug: str) -> AsyncIterator[bytes]:
        """Return one's own home as a compressed archive, in pieces, as fast as they are taken.

        Raises:
            NotFound: One has no seat there.
            TooMany: One is fetching it already.
        """
        seat = await self._get_seat(who, slug)
        if seat.name in self._archiving:
            raise TooMany(
                "Your files are being fetched already.", hint="Wait for that, or cancel it.", retry_after_s=30
            )
        await self._rows.write(lambda tx: tx.add_audit(who.user_name, "file:archive", seat.name, slug, who.address))
        return self._stream(seat.name)

    async def _stream(self, name: str) -> AsyncIterator[bytes]:
        self._archiving.add(name)  # only now: whoever never reads has never begun
        try:
            async with contextlib.aclosing(stream_home(self._machine, name)) as pieces:
                async for data in pieces:
                    yield data
            # Where tar failed the answer breaks off, and is not taken for the whole.
        finally:
            self._archiving.discard(name)


async def _write_all(sock: socket.socket, content: bytes) -> None:
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(sock, content)
    sock.shutdown(socket.SHUT_WR)
