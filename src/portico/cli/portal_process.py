"""The portal's composition: builds its objects and hands them to each other."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from portico.accounts import ROOT, Accounts, SshCertificates, SshKeys
from portico.accounts.ssh_entry import SshEntry
from portico.accounts.ssh_guide import SshGuide
from portico.cli.relay_files import read_certificate, read_secret
from portico.config import ClusterConfig, Config
from portico.errors import NotFound
from portico.events import Events
from portico.jobs import Jobs, Templates
from portico.model import Role
from portico.portal import serve
from portico.portal.context import Services
from portico.portal.ssh_door import SshDoor
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity
from portico.schedulers.slurm.scheduler import SlurmScheduler
from portico.sessions import BrokerMachine, Catalog, Doors, Relays, Sessions
from portico.sessions.changes import Changes
from portico.sessions.commands import CommandRunner
from portico.sessions.local_place import LocalPlace
from portico.sessions.machine import find_catalog, read_capacity
from portico.sessions.places import Place
from portico.sessions.remote_place import RemotePlace
from portico.sessions.rows import Rows
from portico.sessions.ssh import SshSessions
from portico.sessions.vnc import VncDoors
from portico.ssh.authority import Authority
from portico.store import Store

SWITCH_S: Final = 0.0005
COLLECT_AFTER: Final = (20_000, 20, 20)
"""Objects made until the youngest are looked through, and how often until the older ones are (gc.set_threshold)."""


def run_portal(config: Config, listeners: Mapping[str, socket.socket]) -> None:
    """Run the portal until SIGTERM.

    Raises:
        Unavailable: The database can't be used; the message says why and what to do.
    """
    store = Store(Path(config.state_dir) / "portico.db")
    store.upgrade()
    asyncio.run(_run(config, store, listeners))


def make_admin(accounts: Accounts, name: str) -> None:
    """Make the admin whom ``portico up`` was told, without a password, unless there is a user of that name.

    Whoever starts Portico may name its first admin; without root there is nobody else who could ask for one.
    """
    try:
        accounts.get_user(name)
    except NotFound:
        accounts.add_user(replace(ROOT, user_name="portico up"), name, Role.ADMIN)


def make_scheduler(settings: ClusterConfig, config: Config, runner: CommandRunner) -> SlurmScheduler:
    """Return the scheduler of a cluster of the configuration.

    Raises:
        Unavailable: Its spool's folder can't be used.
    """
    environment = [("SLURM_CONF", settings.conf)] if settings.conf else []
    if settings.programs:
        environment.append(("PATH", f"{settings.programs}:{os.defpath}"))
    return SlurmScheduler(
        Path(config.state_dir) / "clusters" / settings.name,
        runner,
        environment=tuple(environment),
        interval_s=settings.interval_s,
        operator=settings.operator,
    )


def take_turns() -> None:
    """Have pages wait for nothing else that this process does.

    A queue of ten thousand jobs is read in a thread: whoever has the interpreter gives it up after half a millisecond
    (ten times as often as by default, sys.setswitchinterval), as each page asks for it again some ten times. What is
    there by now stays, so that the garbage collector need not look at all of it each time, which takes 0.1 s.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def _run(config: Config, store: Store, listeners: Mapping[str, socket.socket]) -> None:
    machine = BrokerMachine(config.socket_paths["broker"])
    capacity = Capacity(*read_capacity(config.cores, config.memory_gb))
    scheduler = LocalScheduler(
        Path(config.state_dir) / "local",
        machine,
        capacity,
        batch_cores=min(capacity.cores, len(os.sched_getaffinity(0))),  # unlike sessions they do not idle
        longest_s=config.max_hours * 3600,
    )
    places: list[Place] = [LocalPlace(config, machine, scheduler, sys.executable)]
    relays = None
    rows, runner = Rows(store, Changes()), CommandRunner(machine)
    if config.clusters:
        read_certificate(config)  # what can't be made is told now
        relays = Relays(read_secret(config), lambda session_id: rows.read(lambda tx: tx.find_session(session_id)))
        places += [
            RemotePlace(
                one, config, machine, make_scheduler(one, config, runner), relays, partial(read_certificate, config)
            )
            for one in config.clusters
        ]
    folders = [find_catalog(), *(Path(folder) for folder in config.catalog_dirs)]
    catalog = Catalog(folders, Path(config.install_dir), config.image_dirs)
    accounts, ssh_keys = Accounts(store, config, machine), SshKeys(store, config, machine)
    authority = Authority(Path(config.state_dir) / "ssh")
    ssh_certificates = SshCertificates(store, config, authority, machine)
    sessions = Sessions(store, config, catalog, machine, places)
    doors = Doors(store, config, accounts, sessions.connect)
    templates = Templates([Path(folder) for folder in config.job_template_dirs])
    clusters = [place.cluster for place in places]
    jobs = Jobs(rows, machine, runner, clusters, sessions.notices, templates, Path(config.state_dir) / "samples")
    events = Events(store, config, accounts, sessions, machine)
    await asyncio.to_thread(lambda: authority.user_public)  # sshd waits for it
    entry = SshEntry(store, config, machine.end_ssh)
    ssh = SshDoor(config, accounts, entry, SshSessions(sessions, entry, authority, config))
    if admin := os.environ.get("PORTICO_ADMIN"):
        make_admin(accounts, admin)
    take_turns()
    try:
        services = Services(
            config=config,
            accounts=accounts,
            sessions=sessions,
            doors=doors,
            jobs=jobs,
            events=events,
            ssh_keys=ssh_keys,
            ssh_certificates=ssh_certificates,
            guide=SshGuide(config, entry, authority),
            vnc=VncDoors(rows, sessions, machine),
        )
        await serve(services, listeners, relays, ssh)
    finally:
        machine.close()
        store.close()
