"""This machine as a place: apps are reached by their users' agents, what runs is seen in cells and session folders."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from portico.config import Config
from portico.errors import Conflict, Invalid, NotFound, PorticoError
from portico.model import App, Range, Reason, Session, SessionState, now
from portico.schedulers.batch import is_batch
from portico.schedulers.batch import parse_record as parse_batch
from portico.schedulers.clusters import LOCAL, Cluster
from portico.schedulers.ending import explain_end
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import JobRequest, JobStatus
from portico.schedulers.queue import GB, refuse_impossible
from portico.sessions.images import render_files
from portico.sessions.machine import BrokerMachine, find_program, is_in_cell
from portico.sessions.placement import Choice
from portico.sessions.places import clip, render_env
from portico.sessions.record import clean_text, parse_record, render_record

log = logging.getLogger(__name__)


class LocalPlace:
    """This machine; see Place.

    Args:
        python: The interpreter that runs Portico's own programs inside a job.
    """

    def __init__(
        self,
        config: Config,
        machine: BrokerMachine,
        scheduler: LocalScheduler,
        python: str,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.cluster = Cluster(LOCAL, "This machine", LOCAL, scheduler)
        self._config = config
        self._machine = machine
        self._scheduler = scheduler
        self._python = python
        self._clock = clock
        self._searched: tuple[frozenset[str], frozenset[str]] | None = None

    def watch(self, call: Callable[[], None]) -> None:
        """Have something called when there is news; see Place."""
        self._scheduler.on_news = call

    async def find_choices(self, user_name: str) -> list[Choice]:
        """Return nothing: there is nothing to choose."""
        return []

    async def get_limits(self, user_name: str, app: App) -> tuple[Range, Range, Range]:
        """Return what a form offers; see Place."""
        capacity = await self._scheduler.get_capacity()
        return (
            clip(app.cores, capacity.cores),
            clip(app.memory_gb, int(capacity.memory_bytes / GB * 10) / 10),
            clip(app.hours, self._config.max_hours),
        )

    async def refuse_impossible(self, cores: float, memory_bytes: int) -> None:
        """Refuse what this machine never has; see Place."""
        request = JobRequest("", "", cores, memory_bytes, 0, self._clock())
        refuse_impossible(request, await self._scheduler.get_capacity())

    async def check(self, session: Session) -> None:
        """Do nothing; see Place."""

    async def prepare(self, session: Session, app: App) -> None:
        """Write the session's record and script; see Place."""
        files = dict(render_files(app, session, self._config.image_dirs))
        record = {"session": session.id, "record": render_record(session), "files": files}
        await self._machine.ask(session.user_name, "prepare", record)

    async def make_request(self, session: Session) -> JobRequest:
        """Return a session's job; see Place."""
        look = await self._machine.look(session.user_name, session.id)
        folder, run = str(look["folder"]), str(look["run"])
        env = {
            **render_env(session, folder),
            "PORTICO_SOCKET": f"{run}/app.sock",
            "PORTICO_PYTHON": self._python,
            "PORTICO_TERMINAL": str(find_program("agent/terminal.py")),
            "PORTICO_CONTAINER": str(find_program("agent/container.py")),
            "PORTICO_VNC_DOOR": str(find_program("agent/vnc_door.py")),
            "PORTICO_APPS": self._config.install_dir,
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

    async def query(self) -> dict[str, JobStatus]:
        """Return what the scheduler knows of sessions; see Place."""
        return {key: status for key, status in (await self._scheduler.query()).items() if not status.batch}

    async def probe(self, session: Session, path: str) -> tuple[bool, str]:
        """Return whether the app answers; see Place."""
        args = {"session": session.id, "reach": session.reach.value, "path": path}
        answer = (await self._machine.ask(session.user_name, "probe", args)).body
        return answer["ready"] is True, clean_text(str(answer["waiting_for"]), 200)

    async def connect(self, session: Session) -> int:
        """Return a connection to the app; see Place."""
        return await self._machine.connect(session.user_name, session.id)

    async def connect_ssh(self, session: Session, files: Mapping[str, str]) -> int:
        """Return a connection to an sshd in the session's cell; see Place."""
        return await self._machine.connect_ssh(session, files)

    # what was lost

    async def let_go(self, session: Session) -> None:
        """Do nothing: what ran here once is not begun again."""

    async def recover(self, session: Session) -> tuple[Reason, str] | None:
        """Deal with a session that is not in the spool; see Place."""
        try:
            look: Mapping[str, Any] = await self._machine.look(session.user_name, session.id)
        except (NotFound, Conflict) as error:
            look = {"running": False, "ended": None, "record": None, "gone": error.message.rstrip(".")}
        if look["running"]:
            started = session.started or self._clock()
            ends = session.ends or started + timedelta(hours=session.hours)
            await self._scheduler.adopt(await self.make_request(session), started, ends)
            return None
        if session.state is SessionState.QUEUED and look["record"] and not look["ended"]:
            await self._scheduler.submit(await self.make_request(session))
            return None
        await self._machine.end_cell(session.id)
        return explain_end(look, None, oom_kills=0)

    async def search(self, user_names: Collection[str]) -> AsyncIterator[Session]:
        """Ask the users' agents for what runs; see Place. Where there are cells, one that nobody knows is the sign."""
        cells, has_cells = self._scheduler.unknown_cells, self._scheduler.has_cells
        if has_cells and not cells:
            return
        names = frozenset(user_names)
        if (names, cells) == self._searched:
            return
        complete = True
        for name in sorted(names):
            try:
                for session in await self._search_user(name, cells if has_cells else None):
                    yield session
            except (NotFound, Conflict):
                continue  # no POSIX account yet, or one that is not for us
            except PorticoError as error:
                complete = False
                log.warning("sessions of %s could not be looked for: %s %s", name, error.message, error.why)
        if complete:
            self._searched = (names, cells)

    async def _search_user(self, name: str, cells: frozenset[str] | None) -> list[Session]:
        answer = (await self._machine.ask(name, "sessions", {})).body
        looks = {str(look["session"]): look for look in answer["sessions"]}
        if answer["more"]:  # the rest did not fit the answer
            for key in (cells or frozenset()) - looks.keys():
                looks[key] = await self._machine.look(name, key)
        found = []
        for key, look in looks.items():
            if look["running"] and (cells is None or (key in cells and is_in_cell(look["pid"], key))):
                try:
                    if is_batch(look["record"]):
                        await self._adopt_batch(name, look)
                    else:
                        found.append(self._read(name, look))
                except (KeyError, TypeError, ValueError, OverflowError, Invalid) as error:
                    log.warning("session %s of %s runs, and its record can't be read: %r", key, name, error)
        return found

    async def _adopt_batch(self, user_name: str, look: Mapping[str, Any]) -> None:
        """Take up a batch job that runs and whose spool was lost; the store knows nothing of any."""
        key, longest_s = str(look["session"]), self._scheduler.longest_s
        request = parse_batch(look["record"], key, user_name, longest_s)
        at = self._clock()
        ends = self._find_end(look, timedelta(seconds=request.time_limit_s), timedelta(seconds=longest_s))
        await self._scheduler.adopt(request, at, ends)

    def _read(self, user_name: str, look: Mapping[str, Any]) -> Session:
        session = parse_record(look["record"], look["session"], user_name)
        most = timedelta(hours=self._config.max_extended_hours)
        ends = self._find_end(look, timedelta(hours=session.hours), most)
        return replace(session, cluster=LOCAL, state=SessionState.STARTING, started=self._clock(), ends=ends)

    def _find_end(self, look: Mapping[str, Any], asked: timedelta, most: timedelta) -> datetime:
        at = self._clock()
        try:
            ends = datetime.fromtimestamp(float(look["deadline"]), tz=at.tzinfo)
        except (TypeError, ValueError, OverflowError, OSError):
            ends = at + asked
        return min(ends, at + most)

    async def adopt(self, session: Session) -> None:
        """Take up what runs; see Place."""
        assert session.started and session.ends
        await self._scheduler.adopt(await self.make_request(session), session.started, session.ends)
