"""What leads to a seat: the registration, the waiting list, signing in with a name and a secret, the card to keep.

A form is claimed once, however often it comes: see docs/events.md, "Claiming".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from portico.accounts import Accounts
from portico.accounts.passwords import hash_token
from portico.errors import Conflict, Invalid, NotSignedIn, TooMany
from portico.events.access import get_own_seat, get_visible
from portico.events.seat_secrets import TOKEN, UNSET, derive_secret, hash_secret, verify_code, verify_secret
from portico.events.settings import check_answers
from portico.model import (
    Event,
    EventState,
    Identity,
    Registration,
    Role,
    Seat,
    SeatState,
    User,
    UserState,
)
from portico.sessions.rows import Rows
from portico.store import Transaction

WAITING_MAX: Final = 500
"""Of one event; more would be somebody's program."""


@dataclass(frozen=True)
class Claim:
    """What a form led to: a seat, or a place in the waiting list, from 1. ``cookie`` signs the browser in."""

    seat_name: str = ""
    position: int = 0
    cookie: str = ""


@dataclass(frozen=True)
class Card:
    """What a participant keeps. ``secret`` is empty where this browser's form did not make it."""

    event: Event
    seat: Seat
    secret: str


def seat_waiting(tx: Transaction, event_id: int, at: datetime) -> list[str]:
    """Give free seats to who waits, the longest first; return the seats' names."""
    given = []
    for registration in tx.list_waiting(event_id):
        seat = tx.claim_seat(event_id, at)
        if seat is None:
            break
        tx.set_seat(seat.name, secret=UNSET)
        tx.seat_registration(registration.id, seat.name)
        tx.add_audit(seat.name, "seat:claim", seat.name, "", registration.address)
        given.append(seat.name)
    return given


def needs_registration(event: Event) -> bool:
    """Return whether an event asks or wants anything accepted before somebody begins."""
    return bool(event.settings.fields or event.settings.texts)


class Claims:
    """Who gets which seat, and in.

    Args:
        clock: Returns the time, aware, in UTC.
    """

    def __init__(self, rows: Rows, accounts: Accounts, clock: Callable[[], datetime]) -> None:
        self._rows = rows
        self._accounts = accounts
        self._clock = clock

    async def get_event(self, slug: str) -> Event:
        """Return an event for whoever comes.

        Raises:
            NotFound: There is none, or it is a draft.
        """
        return await self._rows.read(lambda tx: get_visible(tx, slug))

    async def find_event_of(self, who: Identity) -> Event | None:
        """Return the event of a participant."""
        return await self._rows.read(lambda tx: tx.find_event_of(who.user_name))

    async def register(
        self,
        slug: str,
        token: str,
        answers: dict[str, str],
        accepted: Collection[str],
        address: str,
        browser: str,
        who: Identity | None = None,
        code: str = "",
    ) -> Claim:
        """Take a registration: claim a seat, or a place in the waiting list. The same form again leads to the same.

        Args:
            slug: Which event.
            token: Of the form.
            answers: What was filled in, by field.
            accepted: The names of the texts that were accepted.
            address: Where it came from.
            browser: Its User-Agent.
            who: Whoever is signed in in that browser.
            code: The event's entry code as it was typed.

        Raises:
            Invalid: Something is missing or wrong; ``field`` names it.
            Conflict: The event takes no registrations, or the form's seat is not there any more.
            TooMany: The waiting list is full, or too many attempts failed from this address.
        """
        if not TOKEN.match(token):
            raise Invalid("This form is not complete.", hint="Open the registration anew.")

        def write(tx: Transaction) -> Claim | Invalid:
            event = get_visible(tx, slug)
            _refuse_over(event)
            seated = self._find_own(tx, event, who)
            if seated and tx.find_registration_of(seated):
                return Claim(seated)
            known = tx.find_registration(event.id, hash_token(token))
            if known is None:
                if not seated:
                    _refuse_closed(event)
                    if wrong := self._find_wrong_code(tx, event, code, address):
                        return wrong  # not raised: that the attempt failed is kept
                made = self._make(tx, event, answers, accepted, address, seated)
                tx.add_registration(made, None if seated else hash_token(token))
                tx.add_audit(seated, "event:register", slug, "", address)
                if seated:
                    return Claim(seated)
            seat_waiting(tx, event.id, self._clock())
            known = tx.find_registration(event.id, hash_token(token))
            assert known is not None
            if known.seat_name:
                return self._admit(tx, event, known, token, address, browser)
            return Claim(position=[one.id for one in tx.list_waiting(event.id)].index(known.id) + 1)

        found = await self._rows.write(write)
        if isinstance(found, Invalid):
            raise found
        return found

    def _find_wrong_code(self, tx: Transaction, event: Event, code: str, address: str) -> Invalid | None:
        """Return why a code does not let in, after the failure was recorded; None where it does, or none is asked for.

        Raises:
            TooMany: Too many attempts failed from this address; this one is not looked at.
        """
        if not event.settings.entry_code:
            return None
        self._accounts.entrance.throttle_address(tx, address)
        if verify_code(code, event.settings.entry_code):
            return None
        if not code.strip():  # nothing was tried
            return Invalid("This event asks for a code.", hint="It stands where the link stands.", field="code")
        count = self._accounts.entrance.record_wrong_code(tx, address)
        tx.add_audit("", "event:code-fail", event.slug, f"{count} lately from this address", address)
        return Invalid("The code is wrong.", hint="Look at it again, or ask who gave it to you.", field="code")

    def _make(
        self,
        tx: Transaction,
        event: Event,
        answers: dict[str, str],
        accepted: Collection[str],
        address: str,
        seated: str,
    ) -> Registration:
        """Return a new registration."""
        checked = check_answers(event.settings, answers)
        for number, (name, _) in enumerate(event.settings.texts):
            if name not in accepted:
                raise Invalid(f"{name}: please read and accept this.", field=f"accept-{number}")
        if not seated and len(tx.list_waiting(event.id)) >= WAITING_MAX:
            raise TooMany("The waiting list is full.", hint="Ask the organiser.")
        # The hash says later which wording it was, after the organiser has changed the text.
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in event.settings.texts}
        return Registration(0, event.id, checked, hashes, self._clock(), address[:64], seated)

    def _find_own(self, tx: Transaction, event: Event, who: Identity | None) -> str:
        seat = tx.find_seat(who.user_name) if who and who.role is Role.PARTICIPANT else None
        return seat.name if seat and seat.event_id == event.id and seat.state is SeatState.TAKEN else ""

    def _admit(
        self, tx: Transaction, event: Event, known: Registration, token: str, address: str, browser: str
    ) -> Claim:
        name = known.seat_name
        seat, user, stored = tx.find_seat(name), tx.find_user(name), tx.find_seat_secret(name)
        if seat is None or user is None or seat.state is not SeatState.TAKEN or user.state is not UserState.ACTIVE:
            raise Conflict("Your seat is not there any more.", why="The organiser has removed it.")
        secret = derive_secret(token, event.id, name)
        if stored == UNSET:  # it was given to this registration a moment ago, or while they waited
            tx.set_seat(name, secret=hash_secret(name, secret))
        elif not verify_secret(name, secret, stored):
            raise Conflict(
                "Your seat has another secret now.", hint=f"Sign in as {name} with the one that the organiser gave you."
            )
        _, cookie = self._accounts.entrance.admit(tx, user, address, browser)
        return Claim(name, cookie=cookie)

    async def find_claim(self, slug: str, token: str) -> Claim | None:
        """Return what a form has led to so far, without signing in; None for a form that was not sent."""

        def read(tx: Transaction) -> Claim | None:
            event = get_visible(tx, slug)
            known = tx.find_registration(event.id, hash_token(token)) if TOKEN.match(token) else None
            if known is None:
                return None
            if known.seat_name:
                return Claim(known.seat_name)
            return Claim(position=[one.id for one in tx.list_waiting(event.id)].index(known.id) + 1)

        return await self._rows.read(read)

    async def sign_in(self, slug: str, name: str, secret: str, address: str, browser: str) -> Claim:
        """Sign a participant in; a seat from a printed sheet is taken by that.

        Raises:
            NotSignedIn: Wrong name or secret; which of the two is not told.
            TooMany: Too many attempts failed.
            Conflict: The event is over.
        """
        name = name.strip().lower()[:32]
        await asyncio.to_thread(self._accounts.entrance.throttle, name, address)

        def look(tx: Transaction) -> tuple[Event, Seat | None, str | None, User | None]:
            return get_visible(tx, slug), tx.find_seat(name), tx.find_seat_secret(name), tx.find_user(name)

        event, seat, stored, user = await self._rows.read(look)
        if event.state is EventState.REMOVED:
            raise Conflict("This event is over.", why="Its seats have been removed.")
        right = await asyncio.to_thread(verify_secret, name, secret, stored)
        here = seat is not None and seat.event_id == event.id and seat.state in (SeatState.FREE, SeatState.TAKEN)
        if not right or not here or user is None or user.state is not UserState.ACTIVE:
            await asyncio.to_thread(self._accounts.entrance.record_failure, name, address)
            raise NotSignedIn("The name or the secret is wrong.", hint="Both are on your card.")

        def write(tx: Transaction) -> Claim:
            present = tx.find_seat(name)
            if present is None or tx.find_seat_secret(name) != stored or present.state is SeatState.REMOVING:
                raise NotSignedIn("The seat has changed in this moment.", hint="Try again.")
            if present.state is SeatState.FREE:
                tx.set_seat(name, state=SeatState.TAKEN, taken=self._clock())
                tx.add_audit(name, "seat:claim", name, "with its secret", address)
            tx.clear_failures(name, address)
            _, cookie = self._accounts.entrance.admit(tx, user, address, browser)
            return Claim(name, cookie=cookie)

        return await self._rows.write(write)

    async def get_card(self, who: Identity, slug: str, token: str) -> Card:
        """Return one's own card; the secret only to the browser whose form made it.

        Raises:
            NotFound: One has no seat there.
        """

        def read(tx: Transaction) -> Card:
            event, seat = get_own_seat(tx, who, slug)
            secret = derive_secret(token, event.id, seat.name) if TOKEN.match(token) else ""
            known = secret and verify_secret(seat.name, secret, tx.find_seat_secret(seat.name))
            return Card(event, seat, secret if known else "")

        return await self._rows.read(read)


def _refuse_closed(event: Event) -> None:
    """A seat on paper is taken at any time, any other while the event is open."""
    if event.state is not EventState.OPEN or not event.settings.registration:
        raise Conflict(
            "This event takes no registrations.", hint="If you have a card with a name and a secret, sign in with them."
        )


def _refuse_over(event: Event) -> None:
    if event.state is EventState.ENDED:
        raise Conflict("This event has ended.", hint="Participants can sign in and fetch their folder.")
    if event.state is EventState.REMOVED:
        raise Conflict("This event is over.", why="Its seats have been removed.")
