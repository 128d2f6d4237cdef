"""The housekeeper: what has to be done now and then, whatever cluster it concerns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from portico.config import Config
from portico.errors import PorticoError
from portico.model import Session, SessionState
from portico.sessions.changes import Changes
from portico.sessions.control import Control
from portico.sessions.doors import find_signed_in
from portico.sessions.machine import BrokerMachine
from portico.sessions.notices import Notices
from portico.sessions.rows import Rows
from portico.sessions.tasks import Tasks

log = logging.getLogger(__name__)

TURN_S: Final = 1.0
PRUNE_S: Final = 600.0
TELL_S: Final = 30.0
"""Between two looks for sessions that end soon."""
CONTROL_S: Final = 5.0
"""Between two looks for control whose time is over; the doors let nobody in with it meanwhile."""
CUT_S: Final = 15.0
"""Between two looks for sign-ins that ran out, whose streams are cut then. What a person ends is cut at once."""


class Housekeeper:
    """One for all sessions.

    Args:
        cut: Called with tags of streams that must end.
    """

    def __init__(
        self,
        rows: Rows,
        changes: Changes,
        config: Config,
        machine: BrokerMachine,
        cut: Callable[[list[str]], None],
        notices: Notices,
        control: Control,
        clock: Callable[[], datetime],
    ) -> None:
        self._rows = rows
        self._changes = changes
        self._config = config
        self._machine = machine
        self._cut = cut
        self._notices = notices
        self._control = control
        self._control_at = 0.0
        self._tell_at = 0.0
        self._clock = clock
        self._tasks = Tasks(log)
        self._prune_at = 0.0
        self._cut_at = 0.0
        self._signed_in: set[int] = set()

    async def run(self) -> None:
        """Turn after turn, until cancelled."""
        try:
            while True:
                if time.monotonic() >= self._cut_at:
                    self._cut_at = time.monotonic() + CUT_S
                    self._tasks.begin("cut", self._cut_expired())
                if time.monotonic() >= self._control_at:
                    self._control_at = time.monotonic() + CONTROL_S
                    self._tasks.begin("control", self._control.end_old())
                if time.monotonic() >= self._tell_at:
                    self._tell_at = time.monotonic() + TELL_S
                    self._tasks.begin("notices", self._notices.tell_soon())
                if time.monotonic() >= self._prune_at:
                    self._prune_at = time.monotonic() + PRUNE_S
                    self._tasks.begin("prune", self._prune())
                self._machine.close_idle()
                await asyncio.sleep(TURN_S)
        finally:
            await self._tasks.close()
            await self._notices.close()

    async def _cut_expired(self) -> None:
        """Cut the streams of sign-ins whose time is over, or that were not used for too long."""
        signed_in = await self._rows.read(lambda tx: find_signed_in(tx, self._config, self._clock()))
        if gone := self._signed_in - signed_in:
            self._cut([f"sign-in:{sign_in_id}" for sign_in_id in gone])
        self._signed_in = signed_in

    async def _prune(self) -> None:
        """Remove what ended long ago, with its folder."""
        await self._notices.prune()
        before = self._clock() - timedelta(days=self._config.keep_ended_days)
        ended = await self._rows.read(lambda tx: tx.list_sessions(states=(SessionState.ENDED,), limit=100_000))
        for session in ended:
            if session.ended and session.ended < before:
                await self.forget_folder(session)
                await self._rows.write(lambda tx, key=session.id: tx.delete_session(key))  # type: ignore[misc]
                self._changes.tell(session.user_name)

    async def forget_folder(self, session: Session) -> None:
        """Remove a session's folder, if its user's agent can."""
        with contextlib.suppress(PorticoError):
            await self._machine.ask(session.user_name, "forget", {"session": session.id})
