"""The life of sessions: start, look, extend, stop, share, and the keeper that makes the store agree with what runs.

Truth is what runs (docs/design.md). The store follows it: by :meth:`Sessions.run`, at every turn and after every
restart. Who may see what is decided here, for pages and API alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import string
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from portico.accounts import Permission, may, require
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError, TooMany, Unavailable
from portico.model import (
    App,
    Identity,
    Range,
    Reach,
    Reason,
    Session,
    SessionState,
    Share,
    UserState,
    now,
)
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity, JobRequest, JobState, JobStatus
from portico.schedulers.queue import GB
from portico.sessions.catalog import Catalog, check_value
from portico.sessions.changes import Changes
from portico.sessions.machine import BrokerMachine
from portico.store import Store, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")

TURN_S: Final = 1.0
PRUNE_S: Final = 600.0
PROBE_FIRST_S: Final = 0.02
PROBE_LAST_S: Final = 0.5
TITLE_LIMIT: Final = 100


def make_session_id() -> str:
    """Return a new session id: a letter, then 11 of 36 characters."""
    alphabet = string.ascii_lowercase + string.digits
    return secrets.choice(string.ascii_lowercase) + "".join(secrets.choice(alphabet) for _ in range(11))


class Sessions:
    """All sessions of this portal.

    Args:
        on_cut: Called with tags of streams that must end (docs/protocol.md).
        python: The interpreter that runs Portico's own programs inside a job.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        catalog: Catalog,
        machine: BrokerMachine,
        scheduler: LocalScheduler,
        python: str,
        on_cut: Callable[[list[str]], None] = lambda tags: None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.catalog = catalog
        self.changes = Changes()
        self._store = store
        self._config = config
        self._machine = machine
        self._scheduler = scheduler
        self._python = python
        self.on_cut = on_cut
        self._clock = clock
        self._poke = asyncio.Event()
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._starting = asyncio.Lock()

    # reading

    async def list_sessions(self, who: Identity, everyone: bool = False) -> list[Session]:
        """Return one's own sessions, the newest first; or everyone's."""
        if everyone:
            require(who, Permission.SESSION_LIST)
        return await self._read(lambda tx: tx.list_sessions(None if everyone else who.user_name))

    async def get_session(self, who: Identity, session_id: str) -> Session:
        """Return a session of one's own, or anybody's with the permission.

        Raises:
            NotFound: There is none, or not for this user.
        """
        session = await self._read(lambda tx: tx.find_session(session_id))
        if session is None or (session.user_name != who.user_name and not may(who, Permission.SESSION_LIST)):
            raise NotFound("There is no such session.", hint="It may have been removed. Your sessions are at home.")
        return session

    async def _get_own(self, who: Identity, session_id: str) -> Session:
        session = await self.get_session(who, session_id)
        if session.user_name != who.user_name:
            raise Forbidden("Only whose session it is may do this.")
        return session

    async def read_log(self, who: Identity, session_id: str, lines: int = 40) -> str:
        """Return the last lines of a session's log, which are its user's alone.

        Raises:
            NotFound: There is no such session.
        """
        session = await self._get_own(who, session_id)
        if session.state is SessionState.QUEUED:
            return ""
        try:
            packet = await self._machine.ask(session.user_name, "log", {"session": session.id, "lines": lines})
        except NotFound:
            return ""
        return str(packet.body["text"])

    async def get_capacity(self) -> Capacity:
        """Return what the machine has and what is held."""
        return await self._scheduler.get_capacity()

    async def get_limits(self, app: App) -> tuple[Range, Range, Range]:
        """Return the cores, memory (GB) and hours that a form of this app offers here."""
        capacity = await self._scheduler.get_capacity()
        return (
            _clip(app.cores, capacity.cores),
            _clip(app.memory_gb, int(capacity.memory_bytes / GB * 10) / 10),
            _clip(app.hours, self._config.max_hours),
        )

    # starting and ending

    async def start(
        self,
        who: Identity,
        app_id: str,
        *,
        cores: float | None = None,
        memory_gb: float | None = None,
        hours: float | None = None,
        values: dict[str, str] | None = None,
        title: str = "",
    ) -> Session:
        """Start an app; return its session, which is queued.

        Raises:
            Invalid: A field is out of its limits; ``field`` names it.
            NotFound: There is no such app.
            TooMany: This user has as many sessions as one may have.
            Unavailable: The app's programs are not installed, or the user's home is full.
            Conflict: The POSIX account may not be used.
        """
        if not who.user_id:
            raise Conflict("root on this machine is no user of the portal.", hint="Sign in as a user.")
        app = self.catalog.get(app_id)
        if app.missing:
            raise Unavailable(f"{app.name} can't be started.", why=app.missing, hint=app.install_hint)
        session = await self._make_session(who, app, cores, memory_gb, hours, values or {}, title)
        async with self._starting:  # so that two at once can't pass the limit
            if await self._read(lambda tx: tx.count_live(who.user_name)) >= self._config.max_sessions_per_user:
                raise TooMany(
                    f"You have {self._config.max_sessions_per_user} sessions already, as many as one may have.",
                    hint="Stop one that you no longer need.",
                )
            await self._machine.make(who.user_name)
            await self._machine.ask(
                who.user_name,
                "prepare",
                {"session": session.id, "record": render_record(session), "files": {"job.sh": app.script}},
            )
            request = await self._make_request(session)

            def add(tx: Transaction) -> None:
                tx.add_session(session)
                tx.add_audit(who.user_name, "session:start", session.id, app.id, who.address)

            await self._write(add)
            try:
                await self._scheduler.submit(request)
            except PorticoError:
                await self._write(lambda tx: tx.delete_session(session.id))
                await self._forget_folder(session)
                raise
        self.changes.tell(session.user_name)
        self._poke.set()
        return session

    async def _make_session(
        self,
        who: Identity,
        app: App,
        cores: float | None,
        memory_gb: float | None,
        hours: float | None,
        values: dict[str, str],
        title: str,
    ) -> Session:
        limits = await self.get_limits(app)
        cores = _check_range("cores", "Cores", cores, limits[0])
        memory_gb = _check_range("memory_gb", "Memory (GB)", memory_gb, limits[1])
        hours = _check_range("hours", "Hours", hours, limits[2])
        if unknown := values.keys() - {field.name for field in app.fields}:
            raise Invalid(f"{app.name} has no field {sorted(unknown)[0][:40]!r}.", field=sorted(unknown)[0][:40])
        checked = {field.name: check_value(field, values.get(field.name, field.default)) for field in app.fields}
        if len(title) > TITLE_LIMIT or (title and not title.isprintable()):
            raise Invalid(f"A title has at most {TITLE_LIMIT} characters, on one line.", field="title")
        return Session(
            id=make_session_id(),
            user_name=who.user_name,
            app_id=app.id,
            title=title.strip() or app.name,
            cluster="local",
            reach=app.reach,
            cores=cores,
            memory_bytes=int(memory_gb * GB),
            hours=hours,
            values=checked,
            waiting_for="its turn",
            created=self._clock(),
        )

    async def _make_request(self, session: Session) -> JobRequest:
        look = await self._machine.look(session.user_name, session.id)
        folder, run = str(look["folder"]), str(look["run"])
        env = {
            "PORTICO_SESSION": session.id,
            "PORTICO_SESSION_DIR": folder,
            "PORTICO_SOCKET": f"{run}/app.sock",
            "PORTICO_BASE_PATH": session.base_path,
            "PORTICO_CORES": f"{session.cores:g}",
            "PORTICO_MEMORY_BYTES": str(session.memory_bytes),
            "PORTICO_PYTHON": self._python,
            "PORTICO_APPS": self._config.install_dir,
            **{f"PORTICO_FORM_{name.upper()}": value for name, value in session.values.items()},
        }
        return JobRequest(
            key=session.id,
            user_name=session.user_name,
            cores=session.cores,
            memory_bytes=session.memory_bytes,
            time_limit_s=session.hours * 3600,
            submitted=session.created,
            argv=(f"{folder}/job.sh",),
            env=tuple(env.items()),
        )

    async def stop(self, who: Identity, session_id: str) -> Session:
        """Stop a session: one's own, or anybody's with the permission. One that has ended stays as it is."""
        session = await self.get_session(who, session_id)
        if session.user_name != who.user_name:
            require(who, Permission.SESSION_STOP)
        if session.state is SessionState.ENDED:
            return session
        reason = Reason.STOPPED if session.user_name == who.user_name else Reason.STOPPED_BY_ADMIN
        try:
            await self._scheduler.cancel(session_id, reason)
        except NotFound:
            await self._finish(session, reason, "")
        changed = await self._update(
            session_id,
            lambda s: replace(s, waiting_for="its end") if s.state is not SessionState.ENDED else None,
            lambda tx: tx.add_audit(who.user_name, Permission.SESSION_STOP, session_id, session.user_name, who.address),
        )
        self._poke.set()
        return changed or session

    async def stop_all_of(self, who: Identity, user_name: str, timeout_s: float = 15.0) -> None:
        """Stop all sessions of a user who is about to be removed, and wait for their ends as long as allowed."""
        require(who, Permission.SESSION_STOP)
        deadline = time.monotonic() + timeout_s
        while True:
            live = [s for s in await self._read(lambda tx: tx.list_live_sessions()) if s.user_name == user_name]
            if not live or time.monotonic() > deadline:
                return
            for session in live:
                if session.waiting_for != "its end":
                    await self.stop(who, session.id)
            self._poke.set()
            await asyncio.sleep(0.2)

    async def extend(self, who: Identity, session_id: str) -> Session:
        """Give a session of one's own more time.

        Raises:
            Conflict: It does not run, or has all the time that it may have.
        """
        session = await self._get_own(who, session_id)
        if session.ends is None or session.started is None or session.state is SessionState.ENDED:
            raise Conflict("Only what runs can be extended.")
        most = session.started + timedelta(hours=self._config.max_extended_hours)
        ends = min(session.ends + timedelta(hours=self._config.extend_hours), most)
        if ends <= session.ends:
            raise Conflict(
                f"It has all the time that it may have: {self._config.max_extended_hours:g} hours.",
                hint="Save your work and start a new one when it ends.",
            )
        await self._scheduler.extend(session_id, ends)
        changed = await self._update(
            session_id,
            lambda s: replace(s, ends=ends),
            lambda tx: tx.add_audit(who.user_name, "session:extend", session_id, ends.isoformat(), who.address),
        )
        return changed or session

    async def forget(self, who: Identity, session_id: str) -> None:
        """Remove an ended session of one's own from the list, with its folder.

        Raises:
            Conflict: It still runs.
        """
        session = await self._get_own(who, session_id)
        if session.state is not SessionState.ENDED:
            raise Conflict("It still runs.", hint="Stop it first.")
        await self._scheduler.forget(session_id)
        await self._forget_folder(session)

        def delete(tx: Transaction) -> None:
            tx.delete_session(session_id)
            tx.add_audit(who.user_name, "session:forget", session_id, "", who.address)

        await self._write(delete)
        self.changes.tell(session.user_name)

    async def _forget_folder(self, session: Session) -> None:
        with contextlib.suppress(PorticoError):
            await self._machine.ask(session.user_name, "forget", {"session": session.id})

    # sharing

    async def share(self, who: Identity, session_id: str, viewer_name: str) -> Share:
        """Let a named colleague look at one's own desktop or terminal, without touching it.

        Raises:
            Invalid: There is no such user, or it is oneself.
            Conflict: This app can't be shared, or is shared with them already.
        """
        session = await self._get_own(who, session_id)
        if session.reach is Reach.HTTP:
            raise Conflict("Only desktops and terminals can be shared.", why="Their streams can be made view-only.")
        if session.state is SessionState.ENDED:
            raise Conflict("It has ended.")
        if viewer_name == who.user_name:
            raise Invalid("This is your own session.", field="viewer_name")

        def write(tx: Transaction) -> Share:
            viewer = tx.find_user(viewer_name)
            if viewer is None or viewer.state is not UserState.ACTIVE:
                raise Invalid(f"There is no user {viewer_name[:40]!r} who could look.", field="viewer_name")
            if tx.find_share(session_id, viewer_name):
                raise Conflict(f"{viewer_name} may look at it already.", field="viewer_name")
            tx.add_audit(who.user_name, "share:add", session_id, viewer_name, who.address)
            return tx.add_share(session_id, who.user_name, viewer_name, self._clock())

        share = await self._write(write)
        self.changes.tell(who.user_name, viewer_name)
        return share

    async def unshare(self, who: Identity, session_id: str, share_id: int) -> None:
        """Take a share back; who looks is cut off at once.

        Raises:
            NotFound: There is no such share.
        """
        await self._get_own(who, session_id)

        def write(tx: Transaction) -> Share:
            for share in tx.list_shares(session_id):
                if share.id == share_id:
                    tx.delete_share(share_id)
                    tx.add_audit(who.user_name, "share:revoke", session_id, share.viewer_name, who.address)
                    return share
            raise NotFound("There is no such share.")

        share = await self._write(write)
        self.on_cut([f"share:{share_id}"])
        self.changes.tell(who.user_name, share.viewer_name)

    async def list_shares(self, who: Identity, session_id: str) -> list[Share]:
        """Return who may look at a session of one's own."""
        await self._get_own(who, session_id)
        return await self._read(lambda tx: tx.list_shares(session_id))

    async def list_shared_with(self, who: Identity) -> list[tuple[Share, Session]]:
        """Return what colleagues let one look at."""

        def read(tx: Transaction) -> list[tuple[Share, Session]]:
            pairs = [(share, tx.find_session(share.session_id)) for share in tx.list_shares_for(who.user_name)]
            return [(share, s) for share, s in pairs if s is not None and s.state is not SessionState.ENDED]

        return await self._read(read)

    async def get_shared(self, who: Identity, session_id: str) -> tuple[Share, Session]:
        """Return a session that a colleague lets one look at.

        Raises:
            NotFound: There is none.
        """
        for share, session in await self.list_shared_with(who):
            if session.id == session_id:
                return share, session
        raise NotFound("There is no such shared session.", hint="It may have ended, or been taken back.")

    # the keeper

    async def run(self) -> None:
        """Keep the store in agreement with what runs, until cancelled. One session's trouble stops no other."""
        recovered, pruned = False, 0.0
        while True:
            self._poke.clear()
            try:
                if not recovered:
                    await self._recover()
                    recovered = True
                await self._turn()
                if time.monotonic() - pruned > PRUNE_S:
                    pruned = time.monotonic()
                    await self._prune()
                self._machine.close_idle()
            except PorticoError as error:
                log.warning("keeper: %s %s", error.message, error.why)
            except Exception:  # a defect; sessions must not lose their keeper for it
                log.exception("keeper")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), TURN_S)

    async def _turn(self) -> None:
        statuses = await self._scheduler.query()
        for session in await self._read(lambda tx: tx.list_live_sessions()):
            try:
                await self._follow(session, statuses.get(session.id))
            except PorticoError as error:
                log.warning("session %s: %s %s", session.id, error.message, error.why)

    async def _follow(self, session: Session, status: JobStatus | None) -> None:
        if status is None:
            await self._follow_lost(session)
        elif status.state is JobState.QUEUED:
            if session.waiting_for != status.waiting_for:
                await self._update(session.id, lambda s: replace(s, waiting_for=status.waiting_for))
        elif status.state is JobState.ENDED:
            await self._finish(session, status.reason or Reason.LOST, status.detail)
        elif session.state is SessionState.QUEUED:
            started = await self._update(
                session.id,
                lambda s: replace(
                    s,
                    state=SessionState.STARTING,
                    started=status.started,
                    ends=status.deadline,
                    waiting_for="the app to open its socket",
                ),
            )
            self._start_probing(started or session)
        elif session.state is SessionState.STARTING:
            self._start_probing(session)

    async def _follow_lost(self, session: Session) -> None:
        """A live session that the scheduler does not know: its spool was lost."""
        look = await self._machine.look(session.user_name, session.id)
        if look["running"]:
            request = replace(await self._make_request(session), submitted=session.created)
            started = session.started or self._clock()
            deadline = session.ends or started + timedelta(hours=session.hours)
            await self._scheduler.adopt(request, started, deadline)
        elif session.state is SessionState.QUEUED and look["record"]:
            await self._scheduler.submit(await self._make_request(session))
        else:
            await self._finish(session, Reason.LOST, "the machine was restarted" if not look["this_boot"] else "")

    def _start_probing(self, session: Session) -> None:
        task = self._probing.get(session.id)
        if task is None or task.done():
            task = asyncio.create_task(self._probe(session))
            self._probing[session.id] = task
            task.add_done_callback(lambda _: self._probing.pop(session.id, None))

    async def _probe(self, session: Session) -> None:
        """Ask the app, ever less often, until it is ready, has ended, or its time for that is over."""
        try:
            app = self.catalog.get(session.app_id)
            path, timeout_s = app.ready_path, app.ready_timeout_s
        except NotFound:  # the app was taken out of the catalog; what runs still counts
            path, timeout_s = "", 60.0
        interval, since = PROBE_FIRST_S, session.started or self._clock()
        args = {"session": session.id, "reach": session.reach.value, "path": f"{session.base_path}{path}"}
        while True:
            try:
                answer = (await self._machine.ask(session.user_name, "probe", args)).body
            except PorticoError as error:
                answer = {"ready": False, "waiting_for": error.message}
            found = await self._read(lambda tx: tx.find_session(session.id))
            if found is None or found.state is not SessionState.STARTING:
                return
            if answer["ready"]:
                await self._update(session.id, self._make_ready)
                return
            waited_s = (self._clock() - since).total_seconds()
            if waited_s > timeout_s:
                log.warning("session %s never got ready: %s", session.id, answer["waiting_for"])
                await self._scheduler.cancel(session.id, Reason.NEVER_READY)
                self._poke.set()
                return
            if answer["waiting_for"] != found.waiting_for and found.waiting_for != "its end":
                said = str(answer["waiting_for"])
                await self._update(session.id, lambda s, said=said: replace(s, waiting_for=said))  # type: ignore[misc]
            status = (await self._machine.look(session.user_name, session.id)) if waited_s > 0.3 else {"running": True}
            if not status["running"]:
                self._poke.set()  # the scheduler will say why
            await asyncio.sleep(interval)
            interval = min(interval * 1.2, PROBE_LAST_S)

    async def _update(
        self,
        session_id: str,
        change: Callable[[Session], Session | None],
        audit: Callable[[Transaction], None] | None = None,
    ) -> Session | None:
        """Change a session in one transaction; ``change`` sees it as it is then, and returns None for no change."""

        def write(tx: Transaction) -> tuple[Session | None, bool]:
            found = tx.find_session(session_id)
            changed = change(found) if found else None
            if changed:
                tx.save_session(changed)
            if audit:
                audit(tx)
            return changed or found, changed is not None

        session, changed = await self._write(write)
        if session and changed:
            self.changes.tell(session.user_name)
        return session

    def _make_ready(self, session: Session) -> Session | None:
        if session.state is not SessionState.STARTING:
            return None
        return replace(session, state=SessionState.READY, ready=self._clock(), waiting_for="")

    async def _finish(self, session: Session, reason: Reason, detail: str) -> None:
        def write(tx: Transaction) -> list[Share]:
            found = tx.find_session(session.id)
            if found is None or found.state is SessionState.ENDED:
                return []
            ended = replace(found, state=SessionState.ENDED, reason=reason, detail=detail, ended=self._clock())
            tx.save_session(replace(ended, waiting_for=""))
            tx.delete_grants(session.id)
            return tx.delete_shares(session.id)

        shares = await self._write(write)
        await self._scheduler.forget(session.id)
        self.on_cut([f"session:{session.id}"])
        self.changes.tell(session.user_name, *(share.viewer_name for share in shares))

    async def _recover(self) -> None:
        """Find again what runs and the store does not know, because it was lost or restored from a backup."""
        for user in await self._read(lambda tx: tx.list_users()):
            if user.state is UserState.INVITED:
                continue
            try:
                looks = (await self._machine.ask(user.name, "sessions", {})).body["sessions"]
            except PorticoError:
                continue  # has no POSIX account yet, say
            for look in looks:
                if look["running"] and isinstance(look["record"], dict):
                    await self._adopt(user.name, look)

    async def _adopt(self, user_name: str, look: dict[str, Any]) -> None:
        try:
            session = parse_record(look["record"], user_name)
        except (KeyError, TypeError, ValueError):
            return
        if session.id != look["session"] or await self._read(lambda tx: tx.find_session(session.id)):
            return
        cells = await self._machine.cells()
        if cells is not None and not cells.get(session.id, {}).get("processes"):
            return  # its owner can write what he likes into his folders; a cell only the broker makes
        deadline = look["deadline"]
        ends = (
            datetime.fromtimestamp(deadline, tz=session.created.tzinfo)
            if isinstance(deadline, (int, float))
            else self._clock() + timedelta(hours=session.hours)
        )
        most = self._clock() + timedelta(hours=self._config.max_extended_hours)
        adopted = replace(session, state=SessionState.STARTING, started=self._clock(), ends=min(ends, most))
        await self._scheduler.adopt(await self._make_request(session), adopted.started or ends, adopted.ends or ends)

        def add(tx: Transaction) -> None:
            tx.add_session(adopted)
            tx.add_audit("", "session:adopt", session.id, user_name)

        await self._write(add)
        log.info("session %s of %s was found again", session.id, user_name)

    async def _prune(self) -> None:
        before = self._clock() - timedelta(days=self._config.keep_ended_days)
        for session in await self._read(lambda tx: tx.list_sessions(states=(SessionState.ENDED,))):
            if session.ended and session.ended < before:
                await self._forget_folder(session)
                await self._write(lambda tx, key=session.id: tx.delete_session(key))  # type: ignore[misc]

    async def _read(self, function: Callable[[Transaction], T]) -> T:
        def run() -> T:
            with self._store.read() as tx:
                return function(tx)

        return await asyncio.to_thread(run)

    async def _write(self, function: Callable[[Transaction], T]) -> T:
        def run() -> T:
            with self._store.begin() as tx:
                return function(tx)

        return await asyncio.to_thread(run)


def _clip(offered: Range, most: float) -> Range:
    maximum = min(offered.maximum, most)
    minimum = min(offered.minimum, maximum)
    return Range(min(max(offered.default, minimum), maximum), minimum, maximum)


def _check_range(field: str, label: str, value: float | None, limits: Range) -> float:
    if value is None:
        return limits.default
    if not limits.minimum <= value <= limits.maximum:  # false for NaN too
        raise Invalid(f"{label}: from {limits.minimum:g} to {limits.maximum:g}.", field=field)
    return float(value)


def render_record(session: Session) -> dict[str, Any]:
    """Return what session.json keeps: enough to find the session again without the database."""
    return {
        "id": session.id,
        "user_name": session.user_name,
        "app_id": session.app_id,
        "title": session.title,
        "cluster": session.cluster,
        "reach": session.reach.value,
        "cores": session.cores,
        "memory_bytes": session.memory_bytes,
        "hours": session.hours,
        "values": session.values,
        "created": session.created.isoformat(),
    }


def parse_record(record: dict[str, Any], user_name: str) -> Session:
    """Return the session that session.json, which its owner can write, speaks of.

    Raises:
        KeyError, TypeError, ValueError: It speaks of none, or of another user's.
    """
    if record["user_name"] != user_name:
        raise ValueError("another user's")
    cores, memory_bytes, hours = float(record["cores"]), int(record["memory_bytes"]), float(record["hours"])
    if not (0 < cores <= 4096 and 0 < memory_bytes < 1 << 50 and 0 < hours <= 24 * 365):
        raise ValueError("out of bounds")
    return Session(
        id=str(record["id"]),
        user_name=user_name,
        app_id=str(record["app_id"])[:64],
        title=str(record["title"])[:TITLE_LIMIT],
        cluster="local",
        reach=Reach(record["reach"]),
        cores=cores,
        memory_bytes=memory_bytes,
        hours=hours,
        values={str(k)[:40]: str(v)[:200] for k, v in dict(record["values"]).items()},
        created=datetime.fromisoformat(record["created"]),
    )
