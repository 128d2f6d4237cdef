"""A batch system as a place: the session's job runs a relay on its node, which dials out and carries the app's streams.

What runs there is seen by the scheduler, and by the relay's connection, which tells of a start sooner than any queue.
"""

from __future__ import annotations

import asyncio
import grp
import json
import logging
import os
import pwd
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from portico.config import ClusterConfig, Config
from portico.errors import Conflict, NotFound
from portico.model import App, Range, Reason, Session, SessionState, now
from portico.schedulers.clusters import Cluster
from portico.schedulers.protocol import Job, JobOptions, JobRequest, JobState, JobStatus, Offer
from portico.schedulers.queue import GB
from portico.schedulers.slurm.scheduler import SlurmScheduler
from portico.sessions.images import render_files
from portico.sessions.machine import BrokerMachine, find_program
from portico.sessions.placement import Choice
from portico.sessions.places import clip, render_env
from portico.sessions.record import parse_record, render_record
from portico.sessions.relays import Relays

log = logging.getLogger(__name__)

SUBMITTED_BY_NOW: Final = timedelta(seconds=15)
"""A session that is younger may just be on its way to the scheduler."""
SCRIPT: Final = b'#!/bin/sh\nexec "$PORTICO_PYTHON" -I "$PORTICO_SESSION_DIR/relay.py"\n'
"""The batch script of every session: nothing of a person's is in it."""


class RemotePlace:
    """A Slurm cluster; see Place.

    Args:
        settings: The cluster's.
        certificate: Returns what relays trust, PEM; reads the disk.
    """

    def __init__(
        self,
        settings: ClusterConfig,
        config: Config,
        machine: BrokerMachine,
        scheduler: SlurmScheduler,
        relays: Relays,
        certificate: Callable[[], str],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.cluster = Cluster(settings.name, settings.title, settings.kind, scheduler)
        self._settings = settings
        self._config = config
        self._machine = machine
        self._scheduler = scheduler
        self._relays = relays
        self._certificate = certificate
        self._clock = clock

    def watch(self, call: Callable[[], None]) -> None:
        """Have something called when there is news; see Place."""
        self._scheduler.on_news = call
        self._relays.watch(self.cluster.name, call)

    # what may be asked for

    async def _find_offers(self, user_name: str) -> list[Offer]:
        groups = await asyncio.to_thread(find_groups, user_name)
        offers = await self._scheduler.find_offers(user_name, groups)
        first = self._settings.partition
        return sorted(offers, key=lambda offer: offer.partition != first) if first else offers

    async def find_choices(self, user_name: str) -> list[Choice]:
        """Return the partitions that a user may use; see Place."""
        return [
            Choice(
                offer.partition, offer.accounts, tuple(qos.name for qos in offer.qos), offer.reservations, offer.closed
            )
            for offer in await self._find_offers(user_name)
        ]

    async def get_limits(self, user_name: str, app: App) -> tuple[Range, Range, Range]:
        """Return what a form offers: the most that any partition has for this user; see Place."""
        offers = await self._find_offers(user_name)
        hours = [offer.max_time_s / 3600 for offer in offers if offer.max_time_s is not None]
        endless = len(hours) < len(offers) or not offers
        return (
            clip(app.cores, max((offer.max_cores_per_node for offer in offers), default=app.cores.maximum)),
            clip(app.memory_gb, _most_memory_gb(offers) or app.memory_gb.maximum),
            clip(app.hours, self._config.max_hours if endless else min(self._config.max_hours, max(hours))),
        )

    async def refuse_impossible(self, cores: float, memory_bytes: int) -> None:
        """Do nothing: ``check`` says it in the cluster's own terms."""

    async def check(self, session: Session) -> None:
        """Refuse what can never run; see Place."""
        groups = await asyncio.to_thread(find_groups, session.user_name)
        await self._scheduler.check(self._make_request(session, "/nowhere"), groups)

    # a session's job

    async def prepare(self, session: Session, app: App) -> None:
        """Write the session's record, script, relay and secret; see Place."""
        record = render_record(session)
        args = {"session": session.id, "record": record}
        host = self._settings.relay_host or self._config.host
        settings = {
            "hosts": [[host, self._config.relay_port]],
            "certificate": await asyncio.to_thread(self._certificate),
            "token": self._relays.make_token(session.id),
        }
        programs = await asyncio.to_thread(_read_programs)
        scripts = dict(render_files(app, session, self._config.image_dirs))
        await self._machine.ask(session.user_name, "prepare", {**args, "files": scripts})
        files = {**programs, "relay.json": json.dumps(settings)}
        await self._machine.ask(session.user_name, "prepare", {**args, "files": files})

    async def make_request(self, session: Session) -> JobRequest:
        """Return a session's job; see Place."""
        look = await self._machine.look(session.user_name, session.id)
        return self._make_request(session, str(look["folder"]))

    def _make_request(self, session: Session, folder: str) -> JobRequest:
        env = {
            **render_env(session, folder),
            "PORTICO_PYTHON": self._settings.python,
            "PORTICO_TERMINAL": f"{folder}/terminal.py",
            "PORTICO_CONTAINER": f"{folder}/container.py",
            "PORTICO_VNC_DOOR": f"{folder}/vnc_door.py",
            "PORTICO_APPS": self._settings.apps_dir or self._config.install_dir,
        }
        chosen = {"partition": self._settings.partition, **session.placement}
        return JobRequest(
            key=session.id,
            user_name=session.user_name,
            cores=session.cores,
            memory_bytes=session.memory_bytes,
            time_limit_s=session.hours * 3600,
            submitted=session.created,
            env=tuple(env.items()),
            script=SCRIPT,
            options=JobOptions(
                partition=chosen["partition"],
                account=chosen.get("account", ""),
                qos=chosen.get("qos", ""),
                reservation=chosen.get("reservation", ""),
                nodes=1,
                tasks=1,
                output=f"{folder}/log",
                requeue=self._settings.requeue,
            ),
        )

    async def query(self) -> dict[str, JobStatus]:
        """Return what the scheduler knows, and what relays told since; see Place."""
        statuses = await self._scheduler.query()
        return {key: self._complete(status) for key, status in statuses.items() if not status.batch}

    def _complete(self, status: JobStatus) -> JobStatus:
        arrival = self._relays.find_arrival(status.key)
        if arrival is None or arrival.run < status.restarts or status.state is not JobState.QUEUED:
            return status
        names = (arrival.node,)
        return replace(status, state=JobState.RUNNING, started=arrival.at, waiting_for="", node_names=names)

    async def probe(self, session: Session, path: str) -> tuple[bool, str]:
        """Return whether the app answers, as its relay sees it; see Place."""
        return await self._relays.probe(session, path)

    async def connect(self, session: Session) -> int:
        """Return a connection to the app, through its relay; see Place."""
        return await self._relays.connect(session.id)

    async def connect_ssh(self, session: Session, files: Mapping[str, str]) -> int:
        """Return a connection to an sshd that the session's relay starts; see Place."""
        return await self._relays.connect(session.id, files)

    async def let_go(self, session: Session) -> None:
        """Let go of the relay of an earlier run; see Place."""
        await self._relays.let_go(session.id, session.restarts)

    # what was lost

    async def recover(self, session: Session) -> tuple[Reason, str] | None:
        """Deal with a session that is not in the spool; see Place."""
        queue = await self._scheduler.list_jobs()
        if queue.trouble is not None or queue.as_of is None or queue.as_of <= session.created:
            return None  # nobody can say yet
        if job := self._find_orphan(session):
            await self._scheduler.adopt(await self.make_request(session), job)
            return None
        if session.state is SessionState.QUEUED:
            if self._clock() - session.created > SUBMITTED_BY_NOW:
                await self._scheduler.recall(await self.make_request(session))
            return None
        return Reason.LOST, f"{self.cluster.title} no longer knows it"

    async def search(self, user_names: Collection[str]) -> AsyncIterator[Session]:
        """Look for jobs that carry a session's key; see Place."""
        for job in self._scheduler.find_orphans():
            if job.user_name in user_names and (session := await self._read(job)):
                yield session

    async def _read(self, job: Job) -> Session | None:
        """Return the session that a job's folder speaks of; anybody can write a key, and one's own folder."""
        try:
            look = await self._machine.look(job.user_name, job.key)
            session = parse_record(look["record"] or {}, job.key, job.user_name)
        except (NotFound, Conflict, KeyError, TypeError, ValueError, OverflowError):
            return None
        if session.cluster != self.cluster.name:
            return None
        if job.state is JobState.QUEUED:
            return replace(session, state=SessionState.QUEUED)
        started = job.started or self._clock()
        ends = job.ends or started + timedelta(hours=session.hours)
        return replace(session, state=SessionState.STARTING, started=started, ends=ends)

    async def adopt(self, session: Session) -> None:
        """Take up a job that ``search`` found; see Place."""
        job = self._find_orphan(session)
        if job is None:
            raise NotFound("Its job is in the queue no more.")
        await self._scheduler.adopt(await self.make_request(session), job)

    def _find_orphan(self, session: Session) -> Job | None:
        """Return a session's job that is in the queue and not in the spool; a key counts only with its user."""
        mine = (session.id, session.user_name)
        return next((job for job in self._scheduler.find_orphans() if (job.key, job.user_name) == mine), None)


def _read_programs() -> dict[str, str]:
    return {name: find_program(f"{folder}/{name}").read_text() for folder, name in _PROGRAMS}


_PROGRAMS: Final = (
    ("relay", "relay.py"), ("agent", "terminal.py"), ("agent", "container.py"), ("agent", "vnc_door.py"),
)  # fmt: skip


def _most_memory_gb(offers: Sequence[Offer]) -> float:
    return max((int(offer.max_memory_per_node_bytes / GB * 10) / 10 for offer in offers), default=0.0)


def find_groups(user_name: str) -> list[str]:
    """Return the names of the POSIX groups that a user is in (getgrouplist(3)); none for one without an account."""
    try:
        account = pwd.getpwnam(user_name)
    except KeyError:
        return []
    names = []
    for gid in os.getgrouplist(user_name, account.pw_gid):
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue
    return names
