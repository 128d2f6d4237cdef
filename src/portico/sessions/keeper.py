"""The keeper: makes the store agree with what runs, at every turn and after every restart.

Truth is what runs (docs/design.md); the store follows it. One session's trouble stops no other: whatever asks a
user's agent happens in a task of that session's own. It never decides who may do what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from portico.config import Config
from portico.errors import Conflict, NotFound, PorticoError
from portico.model import Reason, Session, SessionState, Share, UserState
from portico.schedulers.ending import explain_end
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import JobRequest, JobState, JobStatus
from portico.schedulers.queue import WAIT_START
from portico.sessions.catalog import Catalog
from portico.sessions.changes import Changes
from portico.sessions.doors import find_signed_in
from portico.sessions.machine import BrokerMachine, is_in_cell
from portico.sessions.reasons import WAIT_END, WAIT_SOCKET
from portico.sessions.record import clean_text, parse_record
from portico.sessions.rows import Rows
from portico.store import Transaction

log = logging.getLogger(__name__)

TURN_S: Final = 1.0
TURN_HURRY_S: Final = 0.1
"""While somebody waits for a start or an end that is under way."""
PRUNE_S: Final = 600.0
CUT_S: Final = 15.0
"""Between two looks for sign-ins that ran out, whose streams are cut then. What a person ends is cut at once."""
SEARCH_S: Final = 10.0
"""Between two searches for sessions that nobody knows."""
PROBE_FIRST_S: Final = 0.02
PROBE_LAST_S: Final = 0.5


class Keeper:
    """Follows the scheduler. One for all sessions.

    Args:
        make_request: Returns a session's job; asks its user's agent.
        cut: Called with tags of streams that must end.
    """

    def __init__(
        self,
        rows: Rows,
        changes: Changes,
        config: Config,
        catalog: Catalog,
        machine: BrokerMachine,
        scheduler: LocalScheduler,
        make_request: Callable[[Session], Awaitable[JobRequest]],
        cut: Callable[[list[str]], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._rows = rows
        self._changes = changes
        self._config = config
        self._catalog = catalog
        self._machine = machine
        self._scheduler = scheduler
        self._make_request = make_request
        self._cut = cut
        self._clock = clock
        self._news = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._said: dict[str, str] = {}
        self._searched: tuple[frozenset[str], frozenset[str]] | None = None
        self._search_at = 0.0
        self._prune_at = 0.0
        self._cut_at = 0.0
        self._signed_in: set[int] = set()
        self._turn_s = TURN_S
        self._first = True

    def wake(self) -> None:
        """Begin the next turn now."""
        self._news.set()

    async def run(self) -> None:
        """Turn after turn, until cancelled."""
        self._scheduler.on_news = self.wake
        try:
            while True:
                self._news.clear()
                await self._guard("keeper", self._turn())
                self._machine.close_idle()
                # Not wait_for: where news and cancellation come at once, Python 3.11's forgets the latter (gh-86296).
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._turn_s):
                        await self._news.wait()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._scheduler.close()

    async def _turn(self) -> None:
        live = await self._rows.read(lambda tx: tx.list_live_sessions())
        statuses = await self._scheduler.query()
        hurry = any(s.waiting_for == WAIT_END for s in live) or any(
            status.waiting_for == WAIT_START for status in statuses.values()
        )
        self._turn_s = TURN_HURRY_S if hurry else TURN_S
        for session in live:
            await self._guard(session.id, self._follow(session, statuses.get(session.id)))
        self._first = False
        known = {session.id for session in live}
        for status in statuses.values():
            if status.key not in known:
                await self._guard(status.key, self._follow_stray(status))
        if time.monotonic() >= self._search_at:
            self._search_at = time.monotonic() + SEARCH_S
            self._beside("search", self._search())
        if time.monotonic() >= self._cut_at:
            self._cut_at = time.monotonic() + CUT_S
            self._beside("cut", self._cut_expired())
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_S
            self._beside("prune", self._prune())

    async def _guard(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Await something whose failure is told, once while it stays the same, and goes no further."""
        try:
            await work
        except Exception as error:  # a defect too: no session must lose its keeper for it
            expected = isinstance(error, PorticoError)
            said = f"{error.message} {error.why}" if isinstance(error, PorticoError) else repr(error)
            if self._said.get(name) != said:
                self._said[name] = said
                log.warning("%s: %s", name, said, exc_info=None if expected else error)
        else:
            self._said.pop(name, None)

    def _beside(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something that may take long; at most one of a name at a time."""
        if name in self._tasks:
            work.close()
            return
        task = self._tasks[name] = asyncio.create_task(self._guard(name, work))
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    # following the scheduler

    async def _follow(self, session: Session, status: JobStatus | None) -> None:
        if status is None:
            self._beside(f"lost {session.id}", self.follow_lost(session))
        elif status.state is JobState.QUEUED:
            if session.waiting_for not in (status.waiting_for, WAIT_END):
                await self._rows.update(session.id, lambda s: _say(s, status.waiting_for))
        elif status.state is JobState.ENDED:
            await self.finish(session, status.reason or Reason.LOST, status.detail)
        else:
            if self._first and session.waiting_for == WAIT_END:  # Portico died between the word and the deed
                await self._scheduler.cancel(session.id, Reason.STOPPED)
            found: Session | None = session
            if session.state is SessionState.QUEUED or session.ends != status.deadline:
                found = await self._rows.update(session.id, lambda s: _take_up(s, status))
            if found and found.state is SessionState.STARTING:
                self._beside(session.id, self._probe(found))

    async def follow_lost(self, session: Session) -> None:
        """Deal with a live session that the scheduler does not know, because its spool was lost."""
        try:
            look: Mapping[str, Any] = await self._machine.look(session.user_name, session.id)
        except (NotFound, Conflict) as error:
            look = {"running": False, "ended": None, "record": None, "gone": error.message.rstrip(".")}
        if look["running"]:
            started = session.started or self._clock()
            ends = session.ends or started + timedelta(hours=session.hours)
            await self._scheduler.adopt(await self._make_request(session), started, ends)
        elif session.state is SessionState.QUEUED and look["record"] and not look["ended"]:
            await self._scheduler.submit(await self._make_request(session))
        else:
            await self._machine.end_cell(session.id)
            await self.finish(session, *explain_end(look, None, oom_kills=0))
        self.wake()

    async def _follow_stray(self, status: JobStatus) -> None:
        """Deal with a job that no live session belongs to."""
        row = await self._rows.read(lambda tx: tx.find_session(status.key))
        if row and row.state is not SessionState.ENDED:
            return  # it came just now
        if status.state is JobState.ENDED:
            await self._scheduler.forget(status.key)
        elif row:  # people were told that it has ended
            await self._scheduler.cancel(status.key, row.reason or Reason.LOST)
        elif await self._rows.read(lambda tx: tx.find_user(status.user_name)):
            self._beside(f"adopt {status.key}", self._adopt_job(status))

    async def finish(self, session: Session, reason: Reason, detail: str) -> None:
        """Record an end, take back what hangs on the session, and cut its streams."""

        def write(tx: Transaction) -> list[Share]:
            found = tx.find_session(session.id)
            if found is None or found.state is SessionState.ENDED:
                return []
            ended = replace(found, state=SessionState.ENDED, reason=reason, detail=detail, ended=self._clock())
            tx.save_session(replace(ended, waiting_for=""))
            tx.delete_grants(session.id)
            return tx.delete_shares(session.id)

        shares = await self._rows.write(write)
        await self._scheduler.forget(session.id)
        self._cut([f"session:{session.id}"])
        self._changes.tell(session.user_name, *(share.viewer_name for share in shares))

    # getting ready

    async def _probe(self, session: Session) -> None:
        """Ask the app, ever less often, until it is ready, has ended, or its time for that is over."""
        path, timeout_s = await asyncio.to_thread(self._find_ready, session)
        interval, since = PROBE_FIRST_S, session.started or self._clock()
        args = {"session": session.id, "reach": session.reach.value, "path": f"{session.base_path}{path}"}
        while True:
            try:
                answer = (await self._machine.ask(session.user_name, "probe", args)).body
                ready, waiting_for = answer["ready"] is True, clean_text(str(answer["waiting_for"]), 200)
            except PorticoError as error:
                ready, waiting_for = False, f"an answer: {error.message}"
            found = await self._rows.read(lambda tx: tx.find_session(session.id))
            if found is None or found.state is not SessionState.STARTING or found.waiting_for == WAIT_END:
                return
            if ready:
                await self._rows.update(session.id, self._make_ready)
                return
            waited_s = (self._clock() - since).total_seconds()
            if waited_s > timeout_s:
                log.warning("session %s did not get ready: it waited for %s", session.id, waiting_for)
                await self._rows.update(session.id, lambda s: _say(s, WAIT_END))
                await self._scheduler.cancel(session.id, Reason.NEVER_READY)
                self.wake()
                return
            if waiting_for != found.waiting_for:
                await self._rows.update(session.id, lambda s, said=waiting_for: _say(s, said))  # type: ignore[misc]
            await asyncio.sleep(interval)
            interval = min(interval * 1.2, PROBE_LAST_S)

    def _find_ready(self, session: Session) -> tuple[str, float]:
        try:
            app = self._catalog.get(session.app_id)
        except NotFound:  # it was taken out of the catalog; what runs still counts
            return "", 60.0
        return app.ready_path, app.ready_timeout_s

    def _make_ready(self, session: Session) -> Session | None:
        if session.state is not SessionState.STARTING or session.waiting_for == WAIT_END:
            return None
        return replace(session, state=SessionState.READY, ready=self._clock(), waiting_for="")

    # finding again what the store does not know

    async def _search(self) -> None:
        """Ask the users' agents for sessions that run and that neither store nor spool knows.

        That happens only after both were lost. Where there are cells, one that nobody knows is the sign.
        """
        cells, has_cells = self._scheduler.unknown_cells, self._scheduler.has_cells
        if has_cells and not cells:
            return
        users = await self._rows.read(lambda tx: tx.list_users())
        names = frozenset(user.name for user in users if user.state is not UserState.INVITED)
        if (names, cells) == self._searched:
            return
        complete = True
        for name in sorted(names):
            try:
                await self._search_user(name, cells if has_cells else None)
            except (NotFound, Conflict):
                continue  # no POSIX account yet, or one that is not for us
            except PorticoError as error:
                complete = False
                log.warning("sessions of %s could not be looked for: %s %s", name, error.message, error.why)
        if complete:
            self._searched = (names, cells)

    async def _search_user(self, name: str, cells: frozenset[str] | None) -> None:
        answer = (await self._machine.ask(name, "sessions", {})).body
        looks = {str(look["session"]): look for look in answer["sessions"]}
        if answer["more"]:  # the rest did not fit the answer
            for key in (cells or frozenset()) - looks.keys():
                looks[key] = await self._machine.look(name, key)
        for key, look in looks.items():
            if look["running"] and (cells is None or (key in cells and is_in_cell(look["pid"], key))):
                await self._guard(f"adopt {key}", self._adopt_running(name, look))

    async def _adopt_running(self, user_name: str, look: Mapping[str, Any]) -> None:
        """Adopt what runs; the caller has seen that it really does, and as whom."""
        session = parse_record(look["record"], look["session"], user_name)
        at = self._clock()
        most = at + timedelta(hours=self._config.max_extended_hours)
        try:
            ends = datetime.fromtimestamp(float(look["deadline"]), tz=at.tzinfo)
        except (TypeError, ValueError, OverflowError, OSError):
            ends = at + timedelta(hours=session.hours)
        ends = min(ends, most)
        row = await self._rows.read(lambda tx: tx.find_session(session.id))
        if row is None:
            await self._scheduler.adopt(await self._make_request(session), at, ends)
            await self._add_adopted(replace(session, state=SessionState.STARTING, started=at, ends=ends))

    async def _adopt_job(self, status: JobStatus) -> None:
        """Adopt a job that the spool knows, and the store does not."""
        look = await self._machine.look(status.user_name, status.key)
        session = parse_record(look["record"] or {}, status.key, status.user_name)
        state = SessionState.QUEUED if status.state is JobState.QUEUED else SessionState.STARTING
        await self._add_adopted(replace(session, state=state, started=status.started, ends=status.deadline))

    async def _add_adopted(self, session: Session) -> None:
        def add(tx: Transaction) -> None:
            tx.add_session(session)
            tx.add_audit("", "session:adopt", session.id, session.user_name)

        await self._rows.write(add)
        log.info("session %s of %s was found again", session.id, session.user_name)
        self._changes.tell(session.user_name)
        self.wake()

    async def _cut_expired(self) -> None:
        """Cut the streams of sign-ins whose time is over, or that were not used for too long."""
        signed_in = await self._rows.read(lambda tx: find_signed_in(tx, self._config, self._clock()))
        if gone := self._signed_in - signed_in:
            self._cut([f"sign-in:{sign_in_id}" for sign_in_id in gone])
        self._signed_in = signed_in

    async def _prune(self) -> None:
        """Remove what ended long ago, with its folder."""
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


def _say(session: Session, waiting_for: str) -> Session | None:
    if session.state in (SessionState.READY, SessionState.ENDED) and waiting_for != WAIT_END:
        return None
    return None if session.waiting_for == WAIT_END else replace(session, waiting_for=waiting_for)


def _take_up(session: Session, status: JobStatus) -> Session | None:
    if session.state is SessionState.ENDED:
        return None
    session = replace(session, ends=status.deadline)
    if session.state is not SessionState.QUEUED:
        return session
    waiting_for = session.waiting_for if session.waiting_for == WAIT_END else WAIT_SOCKET
    return replace(session, state=SessionState.STARTING, started=status.started, waiting_for=waiting_for)
