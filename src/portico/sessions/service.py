"""The life of sessions, as people see it: start, look, extend, stop, share. Who may see what is decided here, for pages
and API alike.

What becomes of a session afterwards is the keeper's (keeper.py); what really runs, the scheduler's and the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from portico.accounts import Permission, may, require
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unavailable
from portico.model import (
    App,
    Field,
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
from portico.schedulers.clusters import LOCAL, Cluster
from portico.schedulers.protocol import Capacity, Reservation
from portico.schedulers.queue import GB
from portico.sessions.catalog import Catalog, check_value
from portico.sessions.changes import Changes
from portico.sessions.control import Control
from portico.sessions.housekeeper import Housekeeper
from portico.sessions.keeper import Keeper
from portico.sessions.machine import BrokerMachine
from portico.sessions.notices import Notices, make_mailer
from portico.sessions.placement import Choice, check_names, choose
from portico.sessions.places import Place
from portico.sessions.reasons import WAIT_END, WAIT_TURN
from portico.sessions.record import TITLE_LIMIT
from portico.sessions.rows import Rows
from portico.store import Store, Transaction

STOP_ALL_S: Final = 15.0


def make_session_id() -> str:
    """Return a new session id: a letter, then 11 of 36 characters."""
    alphabet = string.ascii_lowercase + string.digits
    return secrets.choice(string.ascii_lowercase) + "".join(secrets.choice(alphabet) for _ in range(11))


class Sessions:
    """All sessions of this portal.

    Args:
        places: The clusters, the one that forms offer first at the beginning.
        on_cut: Called with tags of streams that must end (docs/protocol.md).
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        catalog: Catalog,
        machine: BrokerMachine,
        places: Sequence[Place],
        on_cut: Callable[[list[str]], None] = lambda tags: None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.catalog = catalog
        self.changes = Changes()
        self._rows = Rows(store, self.changes)
        self._config = config
        self._machine = machine
        self._places = {place.cluster.name: place for place in places}
        self.on_cut = on_cut
        self._clock = clock
        self._starting: dict[str, asyncio.Lock] = {}
        self.notices = Notices(self._rows, self.changes, config.portal_origin, make_mailer(config), clock)
        self._keepers = {
            name: Keeper(self._rows, self.changes, catalog, machine, place, self._cut, self.notices, clock)
            for name, place in self._places.items()
        }
        for place in self._places.values():
            place.watch(self._keepers[place.cluster.name].wake)
        self.control = Control(self._rows, self.changes, self._cut, config.control_minutes, clock)
        self._housekeeper = Housekeeper(
            self._rows, self.changes, config, machine, self._cut, self.notices, self.control, clock
        )

    def _cut(self, tags: list[str]) -> None:
        self.on_cut(tags)

    async def run(self) -> None:
        """Keep the store in agreement with what runs, until cancelled."""
        runs = [self._housekeeper.run(), *(keeper.run() for keeper in self._keepers.values())]
        tasks = [asyncio.create_task(run) for run in runs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def clusters(self) -> list[Cluster]:
        """Where sessions can run, the default first."""
        return [place.cluster for place in self._places.values()]

    def _find_place(self, name: str) -> Place:
        place = self._places.get(name)
        if place is None:
            raise Unavailable(
                f"The cluster {name[:40]!r} is not there any more.",
                why="It is not in the configuration.",
                hint="Ask who runs this portal.",
            )
        return place

    async def connect(self, session: Session) -> int:
        """Return a descriptor that is connected to a session's app; the caller owns it, and has looked who may.

        Raises:
            PorticoError: The app does not answer.
        """
        return await self._find_place(session.cluster).connect(session)

    async def connect_ssh(self, who: Identity, session: Session, files: Mapping[str, str]) -> int:
        """Return a descriptor that is connected to an sshd inside a session; the caller owns it, and looked who may.

        Args:
            who: Whose it is.
            session: Which.
            files: What the sshd is given, by name.

        Raises:
            PorticoError: Its machine does not answer, or has no sshd.
        """
        fd = await self._find_place(session.cluster).connect_ssh(session, files)
        try:
            await self._rows.write(
                lambda tx: tx.add_audit(who.user_name, "session:ssh", session.id, session.title, who.address)
            )
        except BaseException:
            os.close(fd)
            raise
        return fd

    # reading

    async def list_sessions(self, who: Identity, everyone: bool = False) -> list[Session]:
        """Return one's own sessions, the newest first; or everyone's."""
        if everyone:
            require(who, Permission.SESSION_LIST)
        return await self._rows.read(lambda tx: tx.list_sessions(None if everyone else who.user_name))

    async def get_session(self, who: Identity, session_id: str) -> Session:
        """Return a session of one's own, or anybody's with the permission.

        Raises:
            NotFound: There is none, or not for this user.
        """
        session = await self._rows.read(lambda tx: tx.find_session(session_id))
        if session is None or (session.user_name != who.user_name and not may(who, Permission.SESSION_LIST)):
            raise NotFound("There is no such session.", hint="It may have been removed. Your sessions are at home.")
        return session

    async def get_own(self, who: Identity, session_id: str) -> Session:
        """Return a session of one's own.

        Raises:
            NotFound: There is none, or not for this user.
            Forbidden: It is another's, of whom this user may know.
        """
        session = await self.get_session(who, session_id)
        if session.user_name != who.user_name:
            raise Forbidden("Only whose session it is may do this.")
        return session

    async def read_log(self, who: Identity, session_id: str, lines: int = 40) -> str:
        """Return the last lines of a session's log, which are its user's alone.

        Raises:
            NotFound: There is no such session.
        """
        session = await self.get_own(who, session_id)
        if session.state is SessionState.QUEUED:
            return ""
        try:
            packet = await self._machine.ask(session.user_name, "log", {"session": session.id, "lines": lines})
        except NotFound:
            return ""
        return str(packet.body["text"])

    async def count_sessions(self, who: Identity) -> dict[tuple[str, str], int]:
        """Return how many sessions there are, by state and app; for figures, without names."""
        require(who, Permission.METRICS_READ)
        return await self._rows.read(lambda tx: tx.count_sessions())

    def count_agents(self) -> int:
        """Return how many users' agents are at work."""
        return self._machine.agents

    async def get_capacity(self) -> Capacity:
        """Return what this machine has and what is held."""
        return await self._find_place(LOCAL).cluster.scheduler.get_capacity()

    async def get_limits(self, who: Identity, app: App, cluster: str = "") -> tuple[Range, Range, Range]:
        """Return the cores, memory (GB) and hours that a form of this app offers, on the default cluster or another.

        Raises:
            Unavailable: The cluster does not answer.
        """
        return await self._choose_place(cluster).get_limits(who.user_name, app)

    async def find_choices(self, who: Identity, cluster: str = "") -> list[Choice]:
        """Return where on a cluster one may run sessions; empty where there is nothing to choose.

        Raises:
            Unavailable: The cluster does not answer.
        """
        return await self._choose_place(cluster).find_choices(who.user_name)

    async def list_reservations(self, cluster: str = "") -> list[Reservation]:
        """Return what is reserved on a cluster, for whomever.

        Raises:
            Unavailable: The cluster does not answer.
        """
        return await self._choose_place(cluster).cluster.scheduler.list_reservations()

    async def check_placement(self, cluster: str, placement: Mapping[str, str]) -> None:
        """Do nothing if others may be sent to a place on a cluster; what each may use, the cluster says in their turn.

        Raises:
            Invalid: There is no such place; ``field`` names the part.
            Unavailable: The cluster does not answer.
        """
        place = self._choose_place(cluster)
        check_names(placement)
        if wanted := placement.get("reservation"):
            names = [one.name for one in await place.cluster.scheduler.list_reservations()]
            if wanted not in names:
                raise Invalid(
                    f"There is no reservation {wanted[:40]!r} on {place.cluster.title}.",
                    hint=f"There are: {', '.join(names)}." if names else "There is none.",
                    field="reservation",
                )

    def _choose_place(self, name: str) -> Place:
        if name and name not in self._places:
            raise Invalid(f"There is no cluster {name[:40]!r}.", field="cluster")
        return self._places[name] if name else next(iter(self._places.values()))

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
        cluster: str = "",
        placement: Mapping[str, str] | None = None,
    ) -> Session:
        """Start an app; return its session, which is queued. ``placement`` has the parts of a Choice that were chosen.

        Raises:
            Invalid: A field is out of its limits; ``field`` names it.
            NotFound: There is no such app.
            TooMany: This user has as many sessions as one may have.
            Unavailable: The app's programs are not installed, or the user's home is full.
            Conflict: The POSIX account may not be used.
        """
        if not who.user_id:
            raise Conflict("root on this machine is no user of the portal.", hint="Sign in as a user.")
        app = await asyncio.to_thread(self.catalog.get, app_id)
        place = self._choose_place(cluster)
        if place.cluster.name != LOCAL:  # a batch system knows nobody without a POSIX account
            await self._machine.make(who.user_name)
        if app.missing and place.cluster.name == LOCAL:
            raise Unavailable(f"{app.name} can't be started.", why=app.missing, hint=app.install_hint)
        session = await self._make_session(place, who, app, cores, memory_gb, hours, values or {}, title)
        session = replace(session, placement=choose(await place.find_choices(who.user_name), placement or {}))
        await place.check(session)
        async with self._starting.setdefault(who.user_name, asyncio.Lock()):  # two at once can't pass the limit
            if await self._rows.read(lambda tx: tx.count_live(who.user_name)) >= self._config.max_sessions_per_user:
                raise TooMany(
                    f"You have {self._config.max_sessions_per_user} sessions already, as many as one may have.",
                    hint="Stop one that you no longer need.",
                )
            await self._machine.make(who.user_name)
            try:
                await self._submit(place, who, app, session)
            except BaseException:
                await self._housekeeper.forget_folder(session)
                raise
        self.changes.tell(session.user_name)
        self._keepers[session.cluster].wake()
        return session

    async def _submit(self, place: Place, who: Identity, app: App, session: Session) -> None:
        await place.prepare(session, app)
        request = await place.make_request(session)

        def add(tx: Transaction) -> None:
            tx.add_session(session)
            tx.add_audit(who.user_name, "session:start", session.id, app.id, who.address)

        def take_back(tx: Transaction) -> None:
            tx.delete_session(session.id)
            tx.add_audit(who.user_name, "session:start", session.id, "failed: it could not be queued", who.address)

        await self._rows.write(add)
        try:
            await place.cluster.scheduler.submit(request)
        except BaseException:
            await self._rows.write(take_back)
            raise

    async def _make_session(
        self,
        place: Place,
        who: Identity,
        app: App,
        cores: float | None,
        memory_gb: float | None,
        hours: float | None,
        values: dict[str, str],
        title: str,
    ) -> Session:
        limits = await place.get_limits(who.user_name, app)
        finite = [value if value is not None and 0 < value < 1e9 else 0.0 for value in (cores, memory_gb)]
        await place.refuse_impossible(finite[0], int(finite[1] * GB))
        cores = _check_range("cores", "Cores", cores, limits[0])
        memory_gb = _check_range("memory_gb", "Memory (GB)", memory_gb, limits[1])
        hours = _check_range("hours", "Hours", hours, limits[2])
        if unknown := values.keys() - {field.name for field in app.fields}:
            raise Invalid(f"{app.name} has no field {sorted(unknown)[0][:40]!r}.", field=sorted(unknown)[0][:40])
        checked = {field.name: check_value(field, _fill_in(field, values)) for field in app.fields}
        if len(title) > TITLE_LIMIT or (title and not title.isprintable()):
            raise Invalid(f"A title has at most {TITLE_LIMIT} characters, on one line.", field="title")
        return Session(
            id=make_session_id(),
            user_name=who.user_name,
            app_id=app.id,
            title=title.strip() or app.name,
            cluster=place.cluster.name,
            reach=app.reach,
            cores=cores,
            memory_bytes=int(memory_gb * GB),
            hours=hours,
            values=checked,
            waiting_for=WAIT_TURN,
            created=self._clock(),
        )

    async def stop(self, who: Identity, session_id: str) -> Session:
        """Stop a session: one's own, or anybody's with the permission. One that has ended stays as it is."""
        session = await self.get_session(who, session_id)
        if session.user_name != who.user_name:
            require(who, Permission.SESSION_STOP)
        if session.state is SessionState.ENDED:
            return session
        scheduler, keeper = self._find_place(session.cluster).cluster.scheduler, self._keepers[session.cluster]
        reason = Reason.STOPPED if session.user_name == who.user_name else Reason.STOPPED_BY_ADMIN
        changed = await self._rows.update(
            session_id,
            lambda s: replace(s, waiting_for=WAIT_END) if s.state is not SessionState.ENDED else None,
            lambda tx: tx.add_audit(who.user_name, Permission.SESSION_STOP, session_id, session.user_name, who.address),
        )
        try:
            await scheduler.cancel(session_id, reason)
        except NotFound:  # its spool was lost: then it is looked for now, and not at the keeper's next turn
            await keeper.follow_lost(session)
            with contextlib.suppress(NotFound):
                await scheduler.cancel(session_id, reason)
        keeper.wake()
        return changed or session

    async def stop_all_of(self, who: Identity, user_name: str) -> None:
        """Stop all sessions of a user, and wait a while for their end.

        Raises:
            Forbidden: Without the permission.
        """
        require(who, Permission.SESSION_STOP)
        with self.changes.subscribe(user_name) as news, contextlib.suppress(TimeoutError):
            for session in await self._list_live_of(user_name):
                await self.stop(who, session.id)
            async with asyncio.timeout(STOP_ALL_S):
                while await self._list_live_of(user_name):
                    await news.wait()
                    news.clear()

    async def _list_live_of(self, user_name: str) -> list[Session]:
        sessions = await self._rows.read(lambda tx: tx.list_sessions(user_name))
        return [session for session in sessions if session.state is not SessionState.ENDED]

    async def extend(self, who: Identity, session_id: str) -> Session:
        """Give a session of one's own more time.

        Raises:
            Conflict: It does not run, or has all the time that it may have.
        """
        session = await self.get_own(who, session_id)
        if session.ends is None or session.started is None or session.state is SessionState.ENDED:
            raise Conflict("Only what runs can be extended.")
        most = session.started + timedelta(hours=self._config.max_extended_hours)
        ends = min(session.ends + timedelta(hours=self._config.extend_hours), most)
        if ends <= session.ends:
            raise Conflict(
                f"It has all the time that it may have: {self._config.max_extended_hours:g} hours.",
                hint="Save your work and start a new one when it ends.",
            )
        await self._find_place(session.cluster).cluster.scheduler.extend(session_id, ends)
        changed = await self._rows.update(
            session_id,
            lambda s: replace(s, ends=ends) if s.state is not SessionState.ENDED else None,
            lambda tx: tx.add_audit(who.user_name, "session:extend", session_id, ends.isoformat(), who.address),
        )
        return changed or session

    async def forget(self, who: Identity, session_id: str) -> None:
        """Remove an ended session of one's own from the list, with its folder.

        Raises:
            Conflict: It still runs.
        """
        session = await self.get_own(who, session_id)
        if session.state is not SessionState.ENDED:
            raise Conflict("It still runs.", hint="Stop it first.")
        if place := self._places.get(session.cluster):
            await place.cluster.scheduler.forget(session_id)
        await self._housekeeper.forget_folder(session)

        def delete(tx: Transaction) -> None:
            tx.delete_session(session_id)
            tx.add_audit(who.user_name, "session:forget", session_id, "", who.address)

        await self._rows.write(delete)
        self.changes.tell(session.user_name)

    # sharing

    async def share(self, who: Identity, session_id: str, viewer_name: str) -> Share:
        """Let a named colleague look at one's own desktop or terminal, without touching it.

        Raises:
            Invalid: There is no such user, or it is oneself.
            Conflict: This app can't be shared, or is shared with them already.
        """
        session = await self.get_own(who, session_id)
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

        share = await self._rows.write(write)
        self.changes.tell(who.user_name, viewer_name)
        return share

    async def unshare(self, who: Identity, session_id: str, share_id: int) -> None:
        """Take a share back; who looks is cut off at once.

        Raises:
            NotFound: There is no such share.
        """
        await self.get_own(who, session_id)

        def write(tx: Transaction) -> Share:
            for share in tx.list_shares(session_id):
                if share.id == share_id:
                    tx.delete_share(share_id)
                    if ask := tx.find_ask(session_id, viewer_name=share.viewer_name):
                        tx.delete_ask(ask.id)
                    tx.add_audit(who.user_name, "share:revoke", session_id, share.viewer_name, who.address)
                    return share
            raise NotFound("There is no such share.")

        share = await self._rows.write(write)
        self.on_cut([f"share:{share_id}"])
        self.changes.tell(who.user_name, share.viewer_name)

    async def list_shares(self, who: Identity, session_id: str) -> list[Share]:
        """Return who may look at a session of one's own."""
        await self.get_own(who, session_id)
        return await self._rows.read(lambda tx: tx.list_shares(session_id))

    async def list_shared_with(self, who: Identity) -> list[tuple[Share, Session]]:
        """Return what colleagues let one look at."""

        def read(tx: Transaction) -> list[tuple[Share, Session]]:
            pairs = [(share, tx.find_session(share.session_id)) for share in tx.list_shares_for(who.user_name)]
            return [(share, s) for share, s in pairs if s is not None and s.state is not SessionState.ENDED]

        return await self._rows.read(read)


def _fill_in(field: Field, values: Mapping[str, str]) -> str:
    """Return what was given for a field, or its default; where something is needed, nothing is none."""
    given = values.get(field.name)
    return field.default if given is None or (field.required and not given) else given


def _check_range(field: str, label: str, value: float | None, limits: Range) -> float:
    if value is None:
        return limits.default
    if not limits.minimum <= value <= limits.maximum:  # false for NaN too
        raise Invalid(f"{label}: from {limits.minimum:g} to {limits.maximum:g}.", field=field)
    return float(value)
