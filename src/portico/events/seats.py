"""Seats, as organisers see them: how many, who sits there, secrets for paper, lists in and out."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from portico.accounts import Accounts
from portico.config import Config
from portico.errors import Conflict, Invalid, NotFound
from portico.events.access import get_managed
from portico.events.seat_secrets import hash_foreign_secret, hash_secret, make_secret
from portico.events.settings import SEATS_MAX
from portico.model import Event, EventState, Identity, Reach, Registration, Seat, SeatState, Session, SessionState
from portico.sessions import Sessions
from portico.sessions.rows import Rows
from portico.store import Transaction

IMPORTED_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,28}[0-9]\Z")
"""Ends in a digit, so that a list makes no account that looks like a person's or the system's."""
PASSWORD_MIN: Final = 8
IMPORT_MAX: Final = 200
"""Each line is hashed slowly."""
TOKEN_COLUMNS: Final = ("account", "host", "path", "port", "vncport", "password")


@dataclass(frozen=True)
class SeatView:
    """A seat, who sits there, and what runs."""

    seat: Seat
    registration: Registration | None
    sessions: tuple[Session, ...]
    last_seen: datetime | None

    @property
    def can_be_helped(self) -> bool:
        """Whether somebody is there to agree, and a desktop or terminal to agree to."""
        return self.seat.state is SeatState.TAKEN and any(
            one.state is SessionState.READY and one.reach is not Reach.HTTP for one in self.sessions
        )


@dataclass(frozen=True)
class SeatSecret:
    """A seat's name and its secret, which is shown now and never again."""

    name: str
    secret: str


def add_seats(tx: Transaction, who: Identity, event: Event, count: int) -> list[str]:
    """Add seats, which the keeper makes; return their names.

    Raises:
        Invalid: There would be too many.
    """
    present = len(tx.list_seats(event.id))
    if not 1 <= count <= SEATS_MAX - present:
        raise Invalid(f"An event has 1 to {SEATS_MAX} seats; this one has {present}.", field="seats")
    names = [f"ev{event.id}-{number:02}" for number in tx.take_seat_numbers(event.id, count)]
    for name in names:
        tx.add_seat(event.id, name)
    tx.add_audit(who.user_name, "seat:add", event.slug, f"{names[0]} to {names[-1]}", who.address)
    return names


class Seats:
    """The seats of all events.

    Args:
        wake: Has the keeper look at once.
    """

    def __init__(
        self,
        rows: Rows,
        config: Config,
        accounts: Accounts,
        sessions: Sessions,
        wake: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._rows = rows
        self._config = config
        self._accounts = accounts
        self._sessions = sessions
        self._wake = wake
        self.clock = clock

    def check_possible(self) -> None:
        """Do nothing if this Portico can make accounts.

        Raises:
            Conflict: It is for one person.
        """
        if not self._config.multi_user:
            raise Conflict(
                "This Portico runs without root, for its owner only.", hint="Start it as root to have seats."
            )

    async def list_seats(self, who: Identity, slug: str) -> list[SeatView]:
        """Return an event's seats with what runs on them."""

        def read(tx: Transaction) -> list[SeatView]:
            event = get_managed(tx, who, slug)
            registrations = {one.seat_name: one for one in tx.list_registrations(event.id)}
            running: dict[str, list[Session]] = {}
            for session in tx.list_live_sessions():
                running.setdefault(session.user_name, []).append(session)
            seen: dict[str, datetime] = {}
            for sign_in in tx.list_sign_ins(self.clock(), limit=100_000):
                seen.setdefault(sign_in.user_name, sign_in.last_seen)  # the last used come first
            return [
                SeatView(seat, registrations.get(seat.name), tuple(running.get(seat.name, ())), seen.get(seat.name))
                for seat in tx.list_seats(event.id)
            ]

        return await self._rows.read(read)

    async def add(self, who: Identity, slug: str, count: int) -> list[str]:
        """Add seats; return their names. They are made within seconds; who waits gets them first.

        Raises:
            Invalid: There would be too many.
            Conflict: The event is over.
        """
        self.check_possible()

        def write(tx: Transaction) -> list[str]:
            event = get_managed(tx, who, slug)
            refuse_over(event)
            return add_seats(tx, who, event, count)

        names = await self._rows.write(write)
        self._wake()
        return names

    async def remove(self, who: Identity, slug: str, name: str) -> None:
        """Remove a seat: signed out at once, then its sessions, account and home go.

        Raises:
            NotFound: It is none of this event's.
        """

        def write(tx: Transaction) -> None:
            seat = _get_seat(tx, get_managed(tx, who, slug), name)
            tx.set_seat(seat.name, state=SeatState.REMOVING, trouble="")
            if user := tx.find_user(seat.name):
                tx.delete_sign_ins(user.id)
            tx.add_audit(who.user_name, "seat:remove", name, slug, who.address)

        await self._rows.write(write)
        self._accounts.on_cut([f"user:{name}"])
        self._wake()

    async def renew_secrets(self, who: Identity, slug: str, names: Sequence[str] = ()) -> list[SeatSecret]:
        """Give seats new secrets, and return them; the ones before end, with the sign-ins that they made.

        Args:
            who: The organiser.
            slug: Of which event.
            names: Which seats; by default those that nobody has taken.

        Raises:
            NotFound: A seat is none of this event's.
        """

        def write(tx: Transaction) -> list[SeatSecret]:
            event = get_managed(tx, who, slug)
            refuse_over(event)
            if names:
                seats = [_get_seat(tx, event, name) for name in names]
            else:
                seats = tx.list_seats(event.id, (SeatState.MAKING, SeatState.FREE))
            made = [SeatSecret(seat.name, make_secret()) for seat in seats]
            for one in made:
                tx.set_seat(one.name, secret=hash_secret(one.name, one.secret))
                if user := tx.find_user(one.name):
                    tx.delete_sign_ins(user.id)
            tx.add_audit(who.user_name, "seat:secret", slug, f"{len(made)} seats", who.address)
            return made

        made = await self._rows.write(write)
        self._accounts.on_cut([f"user:{one.name}" for one in made])
        return made

    # lists

    async def import_list(self, who: Identity, slug: str, text: str) -> list[str]:
        """Add the seats of a token list: CSV with ``account`` and ``password``; other columns are not looked at.

        Raises:
            Invalid: A line can't be understood; nothing is added.
            Conflict: There is an account of such a name.
        """
        self.check_possible()
        await self._rows.read(lambda tx: get_managed(tx, who, slug))  # before anything costs time
        pairs = parse_token_list(text)
        hashed = [(name, await asyncio.to_thread(hash_foreign_secret, password)) for name, password in pairs]

        def write(tx: Transaction) -> list[str]:
            event = get_managed(tx, who, slug)
            refuse_over(event)
            if len(tx.list_seats(event.id)) + len(hashed) > SEATS_MAX:
                raise Invalid(f"An event has at most {SEATS_MAX} seats.", field="list")
            for name, secret in hashed:
                if tx.find_user(name):
                    raise Conflict(f"There is a user {name} already.", field="list")
                tx.add_seat(event.id, name, secret)
            names = [name for name, _ in hashed]
            tx.add_audit(who.user_name, "seat:add", slug, f"{names[0]} to {names[-1]}, imported", who.address)
            return names

        names = await self._rows.write(write)
        self._wake()
        return names

    async def export_list(self, who: Identity, slug: str) -> str:
        """Return the token list, with new secrets for seats that nobody has taken; a taken one has no password."""
        secrets = {one.name: one.secret for one in await self.renew_secrets(who, slug)}
        seats = await self.list_seats(who, slug)
        rows = [
            (name, self._config.host, f"/e/{slug}/sign-in", self._config.port, "", secrets.get(name, ""))
            for name in (view.seat.name for view in seats)
        ]
        return render_csv([TOKEN_COLUMNS, *rows])

    async def export_seats(self, who: Identity, slug: str) -> str:
        """Return the organiser's CSV: who sits where, what they answered and accepted."""
        event = await self._rows.read(lambda tx: get_managed(tx, who, slug))
        views = await self.list_seats(who, slug)
        registrations = await self._rows.read(lambda tx: tx.list_registrations(event.id))
        states = {view.seat.name: view.seat.state.value for view in views}
        fields = event.settings.fields
        texts = [name for name, _ in event.settings.texts]
        head = ["seat", "state", "registered", "address", *(f.label for f in fields), *(f"accepted {n}" for n in texts)]
        rows: list[Sequence[object]] = [head]
        for one in registrations:
            rows.append(
                [
                    one.seat_name or "(waits)",
                    states.get(one.seat_name, "removed" if one.seat_name else ""),
                    one.at.isoformat(timespec="seconds"),
                    one.address,
                    *(one.answers.get(field.name, "") for field in fields),
                    *("yes" if name in one.accepted else "" for name in texts),
                ]
            )
        known = {one.seat_name for one in registrations}
        rows += [[name, state] for name, state in states.items() if name not in known]
        return render_csv(rows)


def _get_seat(tx: Transaction, event: Event, name: str) -> Seat:
    seat = tx.find_seat(name)
    if seat is None or seat.event_id != event.id or seat.state is SeatState.REMOVING:
        raise NotFound(f"{event.title} has no seat {name[:40]!r}.")
    return seat


def refuse_over(event: Event) -> None:
    """Do nothing while an event goes on.

    Raises:
        Conflict: It is over.
    """
    if event.state in (EventState.ENDED, EventState.REMOVED):
        raise Conflict("This event is over.", why="What has ended can't be changed.", hint="Make a new one.")


def parse_token_list(text: str) -> list[tuple[str, str]]:
    """Return the accounts and passwords of a token list.

    Raises:
        Invalid: A line is wrong; the message says which.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff")), strict=True))
    except csv.Error as error:
        raise Invalid("The list is no CSV.", why=str(error), field="list") from error
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, password = str(row.get("account") or "").strip(), str(row.get("password") or "").strip()
        if not IMPORTED_NAME.match(name):
            raise Invalid(
                f"Line {number}: {name[:40]!r} can't be a seat's account.",
                hint="Small letters, digits, - and _, a letter first and a digit last. The first line names columns.",
                field="list",
            )
        if name in found:
            raise Invalid(f"Line {number}: {name} is there twice.", field="list")
        if len(password) < PASSWORD_MIN:
            raise Invalid(f"Line {number}: a password has at least {PASSWORD_MIN} characters.", field="list")
        found[name] = password
    if not 1 <= len(found) <= IMPORT_MAX:
        raise Invalid(f"A list has 1 to {IMPORT_MAX} accounts.", field="list")
    return list(found.items())


def render_csv(rows: Sequence[Sequence[object]]) -> str:
    """Return CSV of which no spreadsheet takes a cell for a formula: it gets an apostrophe (OWASP, CSV injection)."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in rows:
        writer.writerow([_escape(str(cell)) for cell in row])
    return out.getvalue()


def _escape(cell: str) -> str:
    return f"'{cell}" if cell.lstrip()[:1] in ("=", "+", "-", "@") or cell[:1] in ("\t", "\r", "\n") else cell
