"""Control: who looks at a session may type and point there for a while, if its owner says so.

A viewer asks and the owner agrees, or the owner lets them unasked. Either ends it at any moment, and it ends by itself.
An answer is to one question, which it uses up. What is told here is held by the gateway: the doors say what a stream
may do, and a stream that may do more or less from now on is cut, and comes back as what it is then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from portico.errors import Conflict, NotFound, TooMany
from portico.model import Ask, Identity, NoticeKind, Reach, Session, SessionState, Share, UserState
from portico.sessions.changes import Changes
from portico.sessions.rows import Rows
from portico.store import Transaction

ANSWER: Final = timedelta(minutes=5)
"""Who is asked and says nothing for so long has said no."""
AGAIN_S: Final = 30.0
"""After a no, for so long nobody is asked the same again."""
KEEPER: Final = "portico"
"""In whose name that ends which nobody ended."""


@dataclass(frozen=True)
class Controls:
    """What an owner is asked, and who controls what of theirs, with the sessions; ``minutes`` is how long at most."""

    asks: tuple[tuple[Ask, Session], ...]
    shares: tuple[tuple[Share, Session], ...]
    minutes: float


@dataclass(frozen=True)
class Viewing:
    """What a viewer has of a colleague's session: a share, a question that waits for its answer, or both."""

    session: Session
    share: Share | None
    ask: Ask | None
    is_controlled: bool


class Control:
    """All questions and answers.

    Args:
        cut: Called with tags of streams that must end.
        minutes: How long control lasts.
        clock: Returns the time, aware, in UTC.
    """

    def __init__(
        self,
        rows: Rows,
        changes: Changes,
        cut: Callable[[list[str]], None],
        minutes: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._rows = rows
        self._changes = changes
        self._cut = cut
        self._clock = clock
        self._refused: dict[tuple[str, str], float] = {}
        self._minutes = minutes

    # the viewer

    async def ask(self, who: Identity, session_id: str, *, invited: bool = False) -> Ask:
        """Ask the owner of a session for control; one who waits for an answer already goes on waiting.

        Args:
            who: Who asks.
            session_id: For what.
            invited: The caller has looked that they may ask about a session that they can't see: they see it once its
                owner agrees, and no longer than they control it.

        Raises:
            NotFound: They may not look at it.
            Conflict: They control it already, or it is not ready.
            TooMany: Its owner has just said no.
        """
        at = self._clock()
        if time.monotonic() < self._refused.get((session_id, who.user_name), 0.0):
            raise TooMany("They have just said no.", hint="Talk to them.", retry_after_s=AGAIN_S)

        def write(tx: Transaction) -> Ask:
            session, share = tx.find_session(session_id), tx.find_share(session_id, who.user_name)
            if session is None or not (share or invited) or session.user_name == who.user_name:
                raise NotFound("There is no such shared session.")
            if session.state is not SessionState.READY or session.reach is Reach.HTTP:
                raise Conflict("Only a desktop or terminal that is ready can be controlled.")
            if share and share.is_controlled(at):
                raise Conflict("You control it already.")
            if waiting := tx.find_ask(session_id, viewer_name=who.user_name):
                if at - waiting.at < ANSWER:
                    return waiting
                tx.delete_ask(waiting.id)
            tx.add_audit(who.user_name, "control:ask", session_id, session.user_name, who.address)
            return tx.add_ask(session_id, session.user_name, who.user_name, at, brief=share is None)

        ask = await self._rows.write(write)
        self._changes.tell(ask.owner_name, ask.viewer_name)
        return ask

    async def view(self, who: Identity, session_id: str) -> Viewing:
        """Return what one has of a colleague's session.

        Raises:
            NotFound: Nothing, or it has ended.
        """

        def read(tx: Transaction) -> Viewing:
            session, share = tx.find_session(session_id), tx.find_share(session_id, who.user_name)
            ask = tx.find_ask(session_id, viewer_name=who.user_name)
            if ask and self._clock() - ask.at >= ANSWER:
                ask = None
            if session is None or session.state is SessionState.ENDED or not (share or ask):
                raise NotFound(
                    "There is no such shared session.", hint="It may have ended, been taken back, or been refused."
                )
            return Viewing(session, share, ask, share is not None and share.is_controlled(self._clock()))

        return await self._rows.read(read)

    async def give_up(self, who: Identity, session_id: str) -> None:
        """End one's control of a colleague's session, or ask for it no more.

        Raises:
            NotFound: One neither has it nor asks for it.
        """

        def write(tx: Transaction) -> tuple[str, list[str]]:
            ask, share = tx.find_ask(session_id, viewer_name=who.user_name), tx.find_share(session_id, who.user_name)
            if ask:
                tx.delete_ask(ask.id)
                tx.add_audit(who.user_name, "control:withdraw", session_id, ask.owner_name, who.address)
                return ask.owner_name, []
            if share is None or share.control_until is None:
                raise NotFound("You don't control this session.")
            tx.add_audit(who.user_name, "control:end", session_id, share.viewer_name, who.address)
            return share.owner_name, _end(tx, share)

        owner_name, tags = await self._rows.write(write)
        self._cut(tags)
        self._changes.tell(owner_name, who.user_name)

    # the owner

    async def list_mine(self, who: Identity) -> Controls:
        """Return what one is asked, and who may control what of one's own."""
        at = self._clock()

        def read(tx: Transaction) -> Controls:
            asks = [(ask, tx.find_session(ask.session_id)) for ask in tx.list_asks(who.user_name)]
            shares = [(share, tx.find_session(share.session_id)) for share in tx.list_controlled(who.user_name)]
            return Controls(
                tuple((ask, session) for ask, session in asks if session and at - ask.at < ANSWER),
                tuple((share, session) for share, session in shares if session and share.is_controlled(at)),
                self._minutes,
            )

        return await self._rows.read(read)

    async def agree(self, who: Identity, session_id: str, ask_id: int) -> Share:
        """Say yes to one question.

        Raises:
            NotFound: Nobody asks that any more: it was answered, withdrawn, or is too old.
            Conflict: The session is not ready.
        """
        at = self._clock()

        def write(tx: Transaction) -> Share:
            ask = _get_ask(tx, who, session_id, ask_id)
            session, viewer = tx.find_session(session_id), tx.find_user(ask.viewer_name)
            share = tx.find_share(session_id, ask.viewer_name)
            if at - ask.at >= ANSWER or viewer is None or viewer.state is not UserState.ACTIVE:
                raise NotFound("Nobody asks that any more.")
            if session is None or session.state is not SessionState.READY:
                raise Conflict("It is not ready.")
            if share is None and not ask.brief:
                raise NotFound("Nobody asks that any more.", why="The share was taken back.")
            if share is None:
                share = tx.add_share(session_id, who.user_name, ask.viewer_name, at, brief=True)
            tx.delete_ask(ask.id)
            tx.set_control(share.id, at + timedelta(minutes=self._minutes))
            tx.add_audit(who.user_name, "control:agree", session_id, ask.viewer_name, who.address)
            return share

        share = await self._rows.write(write)
        self._cut([f"share:{share.id}"])  # it comes back with control
        self._changes.tell(share.owner_name, share.viewer_name)
        return share

    async def refuse(self, who: Identity, session_id: str, ask_id: int) -> None:
        """Say no to one question.

        Raises:
            NotFound: Nobody asks that any more.
        """

        def write(tx: Transaction) -> Ask:
            ask = _get_ask(tx, who, session_id, ask_id)
            tx.add_audit(who.user_name, "control:refuse", session_id, ask.viewer_name, who.address)
            self._close(tx, ask, f"{who.user_name} said no.")
            return ask

        ask = await self._rows.write(write)
        at = time.monotonic()
        self._refused = {key: until for key, until in self._refused.items() if until > at}
        self._refused[session_id, ask.viewer_name] = at + AGAIN_S
        self._changes.tell(ask.owner_name, ask.viewer_name)

    async def allow(self, who: Identity, session_id: str, share_id: int) -> Share:
        """Let a viewer of one's own session control it, unasked, or longer.

        Raises:
            NotFound: There is no such share.
            Conflict: The session has ended.
        """

        def write(tx: Transaction) -> tuple[Share, bool]:
            share = _get_share(tx, who, session_id, share_id)
            session = tx.find_session(session_id)
            if session is None or session.state is SessionState.ENDED:
                raise Conflict("It has ended.")
            if ask := tx.find_ask(session_id, viewer_name=share.viewer_name):
                tx.delete_ask(ask.id)
            at = self._clock()
            until = at + timedelta(minutes=self._minutes)
            tx.set_control(share.id, until)
            tx.add_audit(who.user_name, "control:allow", session_id, share.viewer_name, who.address)
            return replace(share, control_until=until), share.is_controlled(at)

        share, was_controlled = await self._rows.write(write)
        if not was_controlled:
            self._cut([f"share:{share.id}"])
        self._changes.tell(share.owner_name, share.viewer_name)
        return share

    async def stop(self, who: Identity, session_id: str, share_id: int) -> None:
        """Take control of one's own session back; a viewer goes on looking.

        Raises:
            NotFound: Nobody has it.
        """

        def write(tx: Transaction) -> tuple[Share, list[str]]:
            share = _get_share(tx, who, session_id, share_id)
            if share.control_until is None:
                raise NotFound(f"{share.viewer_name} does not control it.")
            tx.add_audit(who.user_name, "control:end", session_id, share.viewer_name, who.address)
            return share, _end(tx, share)

        share, tags = await self._rows.write(write)
        self._cut(tags)
        self._changes.tell(share.owner_name, share.viewer_name)

    # by itself

    async def end_old(self) -> None:
        """End what has lasted for its time, and questions that nobody answered."""
        at = self._clock()

        def is_due(tx: Transaction) -> bool:
            return any(not share.is_controlled(at) for share in tx.list_controlled()) or any(
                at - ask.at >= ANSWER for ask in tx.list_asks()
            )

        def write(tx: Transaction) -> tuple[set[str], list[str]]:
            told: set[str] = set()
            tags: list[str] = []
            for share in tx.list_controlled():
                if not share.is_controlled(at):
                    tx.add_audit(KEEPER, "control:end", share.session_id, f"{share.viewer_name}: its time was over")
                    tags += _end(tx, share)
                    told |= {share.owner_name, share.viewer_name}
            for ask in tx.list_asks():
                if at - ask.at >= ANSWER:
                    tx.add_audit(KEEPER, "control:refuse", ask.session_id, f"{ask.viewer_name}: no answer")
                    self._close(tx, ask, f"{ask.owner_name} did not answer.")
                    told |= {ask.owner_name, ask.viewer_name}
            return told, tags

        if await self._rows.read(is_due):
            told, tags = await self._rows.write(write)
            self._cut(tags)
            self._changes.tell(*told)

    def _close(self, tx: Transaction, ask: Ask, text: str) -> None:
        tx.delete_ask(ask.id)
        path = "/" if ask.brief else f"/shared/{ask.session_id}"
        tx.add_notice(ask.viewer_name, self._clock(), NoticeKind.MESSAGE, path, text, "You asked to control a session.")


def _get_ask(tx: Transaction, who: Identity, session_id: str, ask_id: int) -> Ask:
    ask = tx.find_ask(session_id, ask_id=ask_id)
    if ask is None or ask.owner_name != who.user_name:
        raise NotFound("Nobody asks that any more.")
    return ask


def _get_share(tx: Transaction, who: Identity, session_id: str, share_id: int) -> Share:
    for share in tx.list_shares(session_id):
        if share.id == share_id and share.owner_name == who.user_name:
            return share
    raise NotFound("There is no such share.")


def _end(tx: Transaction, share: Share) -> list[str]:
    """Take control away, and a brief share with it; return the tags of streams that must end."""
    if share.brief:
        tx.delete_share(share.id)
        return [f"share:{share.id}"]
    tx.set_control(share.id, None)
    return [f"control:{share.id}"]
