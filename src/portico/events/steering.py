"""What an organiser does while an event goes on: start apps ahead, stop or extend all, tell something, look.

The wall shows desktops of participants who were told so when they took their seat: shares, view only, which the gateway
enforces as it does every share.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from portico.accounts import Accounts
from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError
from portico.events.access import get_managed, make_steward
from portico.events.desk import Desk
from portico.events.seats import Seats, SeatView, refuse_over
from portico.model import Event, Identity, NoticeKind, Reach, Role, SeatState, Session, SessionState, Via
from portico.sessions import Sessions
from portico.sessions.rows import Rows
from portico.store import Transaction

log = logging.getLogger(__name__)

MESSAGE_LIMIT: Final = 500
STARTS_AT_ONCE: Final = 4


class Action(enum.StrEnum):
    """What can be done to all seats."""

    WARM = "warm"  # start an app on every seat that has none of it
    STOP = "stop"
    EXTEND = "extend"


@dataclass(frozen=True)
class Done:
    """How many sessions something was done to, and why not to others, each reason once."""

    count: int
    troubles: tuple[str, ...]


class Steering:
    """All seats of an event at once, or one of them."""

    def __init__(self, rows: Rows, accounts: Accounts, sessions: Sessions, seats: Seats, desk: Desk) -> None:
        self._rows = rows
        self._accounts = accounts
        self._sessions = sessions
        self._seats = seats
        self._desk = desk

    async def act(self, who: Identity, slug: str, action: Action, app_id: str = "", names: Sequence[str] = ()) -> Done:
        """Do something to all seats, or to some.

        Args:
            who: The organiser.
            slug: Of which event.
            action: What.
            app_id: To which app's sessions; for WARM which one to start.
            names: Of which seats; by default of all.

        Raises:
            NotFound: A seat is none of this event's, or it does not offer this app.
            Conflict: The event is over.
        """
        event = await self._rows.read(lambda tx: get_managed(tx, who, slug))
        refuse_over(event)
        views = await self._find_seats(who, slug, names)
        if action is Action.WARM and app_id not in {app.app_id for app in event.settings.apps}:
            raise NotFound("This event does not offer that app.")
        detail = f"{action} {app_id} {' '.join(names)}".strip()
        await self._rows.write(lambda tx: tx.add_audit(who.user_name, "event:act", slug, detail, who.address))
        turns = asyncio.Semaphore(STARTS_AT_ONCE)

        async def act(view: SeatView) -> int:
            async with turns:
                return await self._act_on(who, event, view, action, app_id)

        seated = [view for view in views if view.seat.state in (SeatState.FREE, SeatState.TAKEN)]
        results = await asyncio.gather(*map(act, seated), return_exceptions=True)
        troubles: dict[str, None] = {}
        for result in results:
            if isinstance(result, PorticoError):
                troubles[f"{result.message} {result.why}".strip()] = None
            elif isinstance(result, BaseException):
                raise result
        return Done(sum(result for result in results if isinstance(result, int)), tuple(troubles))

    async def _find_seats(self, who: Identity, slug: str, names: Sequence[str]) -> list[SeatView]:
        views = {view.seat.name: view for view in await self._seats.list_seats(who, slug)}
        if unknown := [name for name in names if name not in views]:
            raise NotFound(f"There is no seat {unknown[0][:40]!r} in this event.")
        return [view for name, view in views.items() if not names or name in names]

    async def _act_on(self, who: Identity, event: Event, view: SeatView, action: Action, app_id: str) -> int:
        seat = await self._identify(view.seat.name)
        sessions = [one for one in view.sessions if not app_id or one.app_id == app_id]
        if action is Action.WARM:
            if sessions:
                return 0
            await self._desk.start_ahead(seat, event, app_id)
            return 1
        for session in sessions:
            if action is Action.STOP:
                await self._sessions.stop(make_steward(who), session.id)
            else:
                await self._sessions.extend(seat, session.id)
        return len(sessions)

    async def _identify(self, name: str) -> Identity:
        """Return a seat's own rights, for what only its participant may; the caller has looked whose event it is."""
        user = await asyncio.to_thread(self._accounts.get_user, name)
        if user.role is not Role.PARTICIPANT:
            raise Conflict(f"{name} is no participant.")
        return Identity(user.id, user.name, user.role, Via.SOCKET)

    async def restart(self, who: Identity, slug: str, name: str) -> list[str]:
        """Stop what runs on a seat and start the same apps again; return their names.

        Raises:
            NotFound: It is none of this event's.
            Conflict: Nothing runs there.
        """
        event = await self._rows.read(lambda tx: get_managed(tx, who, slug))
        refuse_over(event)
        view = (await self._find_seats(who, slug, [name]))[0]
        if not view.sessions:
            raise Conflict(f"Nothing runs on {name}.")
        await self._rows.write(
            lambda tx: tx.add_audit(who.user_name, "event:act", slug, f"restart {name}", who.address)
        )
        await self._sessions.stop_all_of(make_steward(who), name)
        seat, again = await self._identify(name), []
        offered = {app.app_id for app in event.settings.apps}
        for app_id in dict.fromkeys(session.app_id for session in view.sessions):
            if app_id in offered:
                again.append((await self._desk.start_ahead(seat, event, app_id)).title)
        return again

    async def help(self, who: Identity, slug: str, name: str, session_id: str = "") -> Session:
        """Ask a participant to let one type and point on a desktop or terminal of theirs; return which.

        Nothing is let in by this: the participant's yes does that (sessions/control.py).

        Args:
            who: The organiser.
            slug: Of which event.
            name: The seat.
            session_id: What of it; by default the desktop that was started last.

        Raises:
            NotFound: It is none of this event's.
            Forbidden: It is another's event; an admin's rights don't reach into desktops.
            Conflict: Nobody sits there, or nothing runs there that can be shared.
        """
        event = await self._rows.read(lambda tx: get_managed(tx, who, slug))
        if event.organiser_name != who.user_name:
            raise Forbidden("Only the organiser of the event may ask this.")
        refuse_over(event)
        view = (await self._find_seats(who, slug, [name]))[0]
        if view.seat.state is not SeatState.TAKEN:
            raise Conflict(f"Nobody sits on {name}.", why="A participant has to agree.")
        ready = [one for one in view.sessions if one.state is SessionState.READY and one.reach is not Reach.HTTP]
        if session_id:
            ready = [one for one in ready if one.id == session_id]
        if not ready:
            raise Conflict(f"No desktop or terminal of {name} is ready.")
        chosen = max(ready, key=lambda one: (one.reach is Reach.RFB, one.created))
        await self._sessions.control.ask(who, chosen.id, invited=True)
        return chosen

    async def tell(self, who: Identity, slug: str, text: str, names: Sequence[str] = ()) -> int:
        """Show a message to all participants, or to some, on whatever page they are; return to how many.

        Raises:
            Invalid: It is empty or too long.
            NotFound: A seat is none of this event's.
        """
        text = " ".join(text.split())
        if not 1 <= len(text) <= MESSAGE_LIMIT or not text.isprintable():
            raise Invalid(f"A message has 1 to {MESSAGE_LIMIT} characters.", field="text")
        event = await self._rows.read(lambda tx: get_managed(tx, who, slug))
        views = await self._find_seats(who, slug, names)
        told = [view.seat.name for view in views if view.seat.state is SeatState.TAKEN]

        def write(tx: Transaction) -> None:
            for name in told:
                tx.add_notice(name, self._seats.clock(), NoticeKind.MESSAGE, f"/e/{slug}/home", text, event.title)
            tx.add_audit(who.user_name, "event:message", slug, text, who.address)

        await self._rows.write(write)
        self._sessions.changes.tell(*told)
        return len(told)

    async def list_wall(self, who: Identity, slug: str) -> list[tuple[str, Session]]:
        """Return the seats' desktops that whoever asks may look at, by their name.

        Raises:
            Conflict: The event has no wall: participants were not told.
        """
        event = await self._rows.read(lambda tx: get_managed(tx, who, slug))
        if not event.settings.wall:
            raise Conflict("This event has no wall.", hint="Participants are told of it first: see Change.")

        def read(tx: Transaction) -> list[tuple[str, Session]]:
            shared = {share.session_id for share in tx.list_shares_for(who.user_name)}
            names = {seat.name for seat in tx.list_seats(event.id)}
            return [
                (session.user_name, session)
                for session in tx.list_live_sessions()
                if session.user_name in names and session.id in shared
                if session.reach is Reach.RFB and session.state is SessionState.READY
            ]

        return sorted(await self._rows.read(read), key=lambda pair: pair[0])


def take_wall_down(tx: Transaction, event: Event) -> list[str]:
    """Take back what the organiser could look at; return the tags of streams that must end."""
    names = {seat.name for seat in tx.list_seats(event.id)}
    taken = [share for share in tx.list_shares_for(event.organiser_name) if share.owner_name in names]
    for share in taken:
        tx.delete_share(share.id)
    return [f"share:{share.id}" for share in taken]
