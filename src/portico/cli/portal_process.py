"""The portal's composition: builds its objects and hands them to each other."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from portico.accounts import Accounts
from portico.config import Config
from portico.portal import serve
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity
from portico.sessions import BrokerMachine, Catalog, Doors, Sessions
from portico.sessions.machine import find_catalog, read_capacity
from portico.store import Store


def run_portal(config: Config, listeners: Mapping[str, socket.socket]) -> None:
    """Run the portal until SIGTERM.

    Raises:
        Unavailable: The database can't be used; the message says why and what to do.
    """
    store = Store(Path(config.state_dir) / "portico.db")
    store.upgrade()
    asyncio.run(_run(config, store, listeners))


async def _run(config: Config, store: Store, listeners: Mapping[str, socket.socket]) -> None:
    machine = BrokerMachine(config.socket_paths["broker"])
    capacity = Capacity(*read_capacity(config.cores, config.memory_gb))
    scheduler = LocalScheduler(Path(config.state_dir) / "local", machine, capacity)
    catalog = Catalog([find_catalog(), *(Path(folder) for folder in config.catalog_dirs)], Path(config.install_dir))
    accounts = Accounts(store, config, machine)
    sessions = Sessions(store, config, catalog, machine, scheduler, sys.executable)
    doors = Doors(store, config, accounts, machine)
    try:
        await serve(config, accounts, sessions, doors, listeners)
    finally:
        machine.close()
        store.close()
