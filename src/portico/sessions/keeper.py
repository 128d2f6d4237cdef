"""The keeper: makes the store agree with what runs on one cluster, at every turn and after every restart.

Truth is what runs (docs/design.md); the store follows it. One session's trouble stops no other: whatever asks a
user's agent happens in a task of that session's own. It never decides who may do what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from portico.errors import NotFound, PorticoError
from portico.model import Reason, Session, SessionState, Share, UserState
from portico.schedulers.protocol import JobState, JobStatus
from portico.schedulers.queue import WAIT_START
from portico.sessions.catalog import Catalog
from portico.sessions.changes import Changes
from portico.sessions.machine import BrokerMachine
from portico.sessions.notices import Notices
from portico.sessions.places import Place
from portico.sessions.reasons import WAIT_END, WAIT_SOCKET
from portico.sessions.record import clean_text, parse_record
from portico.sessions.rows import Rows
from portico.sessions.tasks import Tasks
from portico.store import Transaction

log = logging.getLogger(__name__)

TURN_S: Final = 1.0
TURN_HURRY_S: Final = 0.1
"""While somebody waits for a start or an end that is under way."""
SEARCH_S: Final = 10.0
"""Between two searches for sessions that nobody knows."""
TROUBLE_LIMIT: Final = 400
PROBE_FIRST_S: Final = 0.02
PROBE_LAST_S: Final = 0.5


class Keeper:
    """Follows one place.

    Args:
        cut: Called with tags of streams that must end.
    """

    def __init__(
        self,
        rows: Rows,
        changes: Changes,
        catalog: Catalog,
        machine: BrokerMachine,
        place: Place,
        cut: Callable[[list[str]], None],
        notices: Notices,
        clock: Callable[[], datetime],
    ) -> None:
        self._rows = rows
        self._changes = changes
        self._catalog = catalog
        self._machine = machine
        self._place = place
        self._scheduler = place.cluster.scheduler
        self._cut = cut
        self._notices = notices
        self._clock = clock
        self._news = asyncio.Event()
        self._tasks = Tasks(log)
        self._search_at = 0.0
        self._turn_s = TURN_S
        self._first = True

    def wake(self) -> None:
        """Begin the next turn now."""
        self._news.set()

    async def run(self) -> None:
        """Turn after turn, until cancelled."""
        try:
            while True:
                self._news.clear()
                await self._tasks.guard(self._place.cluster.name, self._turn())
                # Not wait_for: where news and cancellation come at once, Python 3.11's forgets the latter (gh-86296).
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._turn_s):
                        await self._news.wait()
        finally:
            await self._tasks.close()
            await self._scheduler.close()

    async def _turn(self) -> None:
        name = self._place.cluster.name
        live = [one for one in await self._rows.read(lambda tx: tx.list_live_sessions()) if one.cluster == name]
        statuses = await self._place.query()
        hurry = any(s.waiting_for == WAIT_END for s in live) or any(
            status.waiting_for == WAIT_START for status in statuses.values()
        )
        self._turn_s = TURN_HURRY_S if hurry else TURN_S
        for session in live:
            await self._tasks.guard(session.id, self._follow(session, statuses.get(session.id)))
        self._first = False
        known = {session.id for session in live}
        for status in statuses.values():
            if status.key not in known:
                await self._tasks.guard(status.key, self._follow_stray(status))
        if time.monotonic() >= self._search_at:
            self._search_at = time.monotonic() + SEARCH_S
            self._tasks.begin("search", self._search())

    # following the scheduler

    async def _follow(self, session: Session, status: JobStatus | None) -> None:
        if status is None:
            self._tasks.begin(f"lost {session.id}", self.follow_lost(session))
        elif status.restarts > session.restarts and status.state is not JobState.ENDED:
            await self._begin_again(session, status)
        elif status.state is JobState.QUEUED:
            if session.waiting_for != WAIT_END and _describe_queue(session) != _describe_queue(status):
                await self._rows.update(session.id, lambda s: _take_queue(s, status))
        elif status.state is JobState.ENDED and status.reason is Reason.FAILED:
            self._tasks.begin(f"end {session.id}", self._finish_failed(session, status.detail))
        elif status.state is JobState.ENDED:
            await self.finish(session, status.reason or Reason.LOST, status.detail)
        else:
            if self._first and session.waiting_for == WAIT_END:  # Portico died between the word and the deed
                await self._scheduler.cancel(session.id, Reason.STOPPED)
            found: Session | None = session
            moved = session.ends != status.deadline or session.node_name != _find_node(status)
            if session.state is SessionState.QUEUED or moved:
                found = await self._rows.update(session.id, lambda s: _take_up(s, status))
            if found and found.state is SessionState.STARTING:
                self._tasks.begin(session.id, self._probe(found))

    async def _begin_again(self, session: Session, status: JobStatus) -> None:
        """Take note that a session was put back into its queue: what ran of it is over, and its streams with it."""
        again = await self._rows.update(session.id, lambda s: _put_back(s, status))
        if again is None or again.state is not SessionState.QUEUED:
            return
        self._cut([f"session:{session.id}"])
        await self._place.let_go(again)
        if again.waiting_for != WAIT_END:
            await self._notices.on_put_back(again)
        self.wake()

    async def follow_lost(self, session: Session) -> None:
        """Deal with a live session that the scheduler does not know, because its spool was lost."""
        if ended := await self._place.recover(session):
            await self.finish(session, *ended)
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
            self._tasks.begin(f"adopt {status.key}", self._adopt_job(status))

    async def _finish_failed(self, session: Session, detail: str) -> None:
        """Record a failure with what the session itself has said of it, if it has."""
        with contextlib.suppress(PorticoError):
            detail = str((await self._machine.look(session.user_name, session.id)).get("trouble") or detail)
        await self.finish(session, Reason.FAILED, clean_text(detail, TROUBLE_LIMIT))
        self.wake()

    async def finish(self, session: Session, reason: Reason, detail: str) -> None:
        """Record an end, take back what hangs on the session, and cut its streams."""

        def write(tx: Transaction) -> tuple[Session | None, list[Share]]:
            found = tx.find_session(session.id)
            if found is None or found.state is SessionState.ENDED:
                return None, []
            ended = replace(found, state=SessionState.ENDED, reason=reason, detail=detail, ended=self._clock())
            tx.save_session(replace(ended, waiting_for=""))
            tx.delete_grants(session.id)
            return ended, tx.delete_shares(session.id)

        ended, shares = await self._rows.write(write)
        await self._scheduler.forget(session.id)
        self._cut([f"session:{session.id}"])
        self._changes.tell(session.user_name, *(share.viewer_name for share in shares))
        if ended:
            await self._notices.on_end(ended)

    # getting ready

    async def _probe(self, session: Session) -> None:
        """Ask the app, ever less often, until it is ready, has ended, or its time for that is over."""
        path, timeout_s = await asyncio.to_thread(self._find_ready, session)
        interval, since = PROBE_FIRST_S, session.started or self._clock()
        while True:
            try:
                ready, waiting_for = await self._place.probe(session, f"{session.base_path}{path}")
            except PorticoError as error:
                ready, waiting_for = False, f"an answer: {error.message}"
            found = await self._rows.read(lambda tx: tx.find_session(session.id))
            if found is None or found.state is not SessionState.STARTING or found.waiting_for == WAIT_END:
                return
            if ready:
                made = await self._rows.update(session.id, self._make_ready)
                if made and made.state is SessionState.READY:
                    await self._notices.on_ready(made)
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
        """Look for sessions that run and that neither store nor spool knows: both were lost."""
        users = await self._rows.read(lambda tx: tx.list_users())
        names = [user.name for user in users if user.state is not UserState.INVITED]
        async for session in self._place.search(names):
            await self._tasks.guard(f"adopt {session.id}", self._adopt_running(session))

    async def _adopt_running(self, session: Session) -> None:
        row = await self._rows.read(lambda tx: tx.find_session(session.id))
        if row is None:
            await self._place.adopt(session)
            await self._add_adopted(session)

    async def _adopt_job(self, status: JobStatus) -> None:
        """Adopt a job that the spool knows, and the store does not."""
        look = await self._machine.look(status.user_name, status.key)
        session = parse_record(look["record"] or {}, status.key, status.user_name)
        state = SessionState.QUEUED if status.state is JobState.QUEUED else SessionState.STARTING
        at_place = replace(session, cluster=self._place.cluster.name)
        await self._add_adopted(replace(at_place, state=state, started=status.started, ends=status.deadline))

    async def _add_adopted(self, session: Session) -> None:
        def add(tx: Transaction) -> None:
            tx.add_session(session)
            tx.add_audit("", "session:adopt", session.id, session.user_name)

        await self._rows.write(add)
        log.info("session %s of %s was found again", session.id, session.user_name)
        self._changes.tell(session.user_name)
        self.wake()


def _say(session: Session, waiting_for: str) -> Session | None:
    if session.state in (SessionState.READY, SessionState.ENDED) and waiting_for != WAIT_END:
        return None
    return None if session.waiting_for == WAIT_END else replace(session, waiting_for=waiting_for)


def _describe_queue(one: Session | JobStatus) -> tuple[str, int, datetime | None]:
    return one.waiting_for, one.position, one.expected_start


def _take_queue(session: Session, status: JobStatus) -> Session | None:
    found = _say(session, status.waiting_for)
    if found is None:
        return None
    # Its relay may have come and gone while the queue still had it waiting.
    return replace(found, state=SessionState.QUEUED, position=status.position, expected_start=status.expected_start)


def _put_back(session: Session, status: JobStatus) -> Session | None:
    if session.state is SessionState.ENDED:
        return None
    return replace(
        session,
        state=SessionState.QUEUED,
        waiting_for=session.waiting_for if session.waiting_for == WAIT_END else status.waiting_for,
        position=status.position,
        expected_start=status.expected_start,
        started=None,
        ready=None,
        ends=None,
        node_name="",
        restarts=status.restarts,
        put_back=status.put_back,
    )


def _find_node(status: JobStatus) -> str:
    return ", ".join(status.node_names)[:100]


def _take_up(session: Session, status: JobStatus) -> Session | None:
    if session.state is SessionState.ENDED:
        return None
    session = replace(session, ends=status.deadline, node_name=_find_node(status), position=0, expected_start=None)
    if session.state is not SessionState.QUEUED:
        return session
    waiting_for = session.waiting_for if session.waiting_for == WAIT_END else WAIT_SOCKET
    return replace(session, state=SessionState.STARTING, started=status.started, waiting_for=waiting_for)
