"""Who may see and change which event, in one place; and in whose name seats are made and removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from portico.accounts import ROOT, Permission, may
from portico.errors import NotFound
from portico.model import Event, EventState, Identity, Seat, SeatState
from portico.store import Transaction

KEEPER: Final = replace(ROOT, user_name="portico")
"""In whose name the keeper does what nobody asked for at that moment."""


def make_steward(who: Identity) -> Identity:
    """Return the rights with which a seat is made, stopped or removed for an organiser, in their name.

    Only for users of whom the caller has looked that they are seats of an event that ``who`` manages.
    """
    return replace(ROOT, user_name=who.user_name, address=who.address)


def manages(who: Identity, event: Event) -> bool:
    """Return whether this request may see and change all of an event."""
    own = may(who, Permission.EVENT_CREATE) and event.organiser_name == who.user_name
    return own or may(who, Permission.EVENT_MANAGE)


def get_managed(tx: Transaction, who: Identity, slug: str) -> Event:
    """Return an event for its organiser, or an admin.

    Raises:
        NotFound: There is none, or not for them.
    """
    event = tx.find_event(slug)
    if event is None or not manages(who, event):
        raise NotFound("There is no such event.", hint="Your events are on the page Events.")
    return event


def get_visible(tx: Transaction, slug: str) -> Event:
    """Return an event for whoever comes.

    Raises:
        NotFound: There is none, or it is a draft.
    """
    event = tx.find_event(slug)
    if event is None or event.state is EventState.DRAFT:
        raise NotFound("There is no such event.", hint="Look at the link again, or ask who gave it to you.")
    return event


def get_own_seat(tx: Transaction, who: Identity, slug: str) -> tuple[Event, Seat]:
    """Return an event and the seat of whoever asks.

    Raises:
        NotFound: They have none there.
    """
    event, seat = get_visible(tx, slug), tx.find_seat(who.user_name)
    if seat is None or seat.event_id != event.id or seat.state is SeatState.REMOVING:
        raise NotFound("You have no seat in this event.", hint=f"Begin at its page: /e/{event.slug}")
    return event, seat
