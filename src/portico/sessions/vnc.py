"""Passwords of desktops, for VNC viewers that refuse a server without one: made on demand, told once, and kept by
nobody but the session's folder. Who has one still has to come through a tunnel of its user's.
"""

from __future__ import annotations

import contextlib
import secrets
import string
from dataclasses import dataclass
from typing import Any, Final

from portico.errors import Conflict, PorticoError
from portico.model import Identity, Reach, Session, SessionState
from portico.sessions.machine import BrokerMachine
from portico.sessions.rows import Rows
from portico.sessions.service import Sessions

LENGTH: Final = 8
"""What VNC Authentication looks at (RFC 6143, 7.2.2)."""
ALPHABET: Final = "".join(sorted(set(string.ascii_letters + string.digits) - set("0O1lI")))
"""They are read from a page and typed."""


@dataclass(frozen=True, repr=False)
class VncPasswords:
    """One for all, one for looking only."""

    full: str
    view_only: str


class VncDoors:
    """The VNC passwords of all desktops.

    Args:
        rows: For the audit log.
    """

    def __init__(self, rows: Rows, sessions: Sessions, machine: BrokerMachine) -> None:
        self._rows = rows
        self._sessions = sessions
        self._machine = machine

    async def has_passwords(self, who: Identity, session_id: str) -> bool:
        """Return whether a desktop of one's own has passwords.

        Raises:
            Conflict: It is no desktop, or does not run.
        """
        return await self._ask(await self._get_desktop(who, session_id))

    async def make_passwords(self, who: Identity, session_id: str) -> VncPasswords:
        """Give a desktop of one's own new passwords, in place of earlier ones.

        Raises:
            Conflict: It is no desktop, does not run, or takes none.
            Unavailable: They can't be written.
        """
        session = await self._get_desktop(who, session_id)
        made = VncPasswords(make_password(), make_password())
        await self._ask(session, passwords=[made.full, made.view_only])
        try:
            await self._take_down(who, session, "made")
        except BaseException:
            with contextlib.suppress(PorticoError):
                await self._ask(session, passwords=[])
            raise
        return made

    async def remove_passwords(self, who: Identity, session_id: str) -> None:
        """Take the passwords of a desktop of one's own away; viewers that came in with them are cut off.

        Raises:
            Conflict: It is no desktop, or does not run.
        """
        session = await self._get_desktop(who, session_id)
        await self._ask(session, passwords=[])
        await self._take_down(who, session, "removed")

    async def _get_desktop(self, who: Identity, session_id: str) -> Session:
        session = await self._sessions.get_own(who, session_id)
        if session.reach is not Reach.RFB:
            raise Conflict("Only desktops have VNC passwords.")
        if session.state not in (SessionState.STARTING, SessionState.READY):
            raise Conflict("The desktop does not run.", why=f"It is {session.state.value}.")
        return session

    async def _ask(self, session: Session, **args: Any) -> bool:
        packet = await self._machine.ask(session.user_name, "vnc", {"session": session.id, **args}, timeout_s=15)
        return packet.body["has"] is True

    async def _take_down(self, who: Identity, session: Session, what: str) -> None:
        await self._rows.write(
            lambda tx: tx.add_audit(who.user_name, "session:vnc-passwords", session.id, what, who.address)
        )


def make_password() -> str:
    """Return a new password, of some 46 bits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
