"""A real broker with real POSIX accounts, and the portal's side of it in this process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import portico
from portico import wire
from portico.accounts import Accounts
from portico.cli.place import make_service_account
from portico.config import Config
from portico.model import Identity, Role, Session, SessionState, User, UserState, Via, now
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity
from portico.sessions import BrokerMachine, Catalog, Doors, Sessions
from portico.sessions.local_place import LocalPlace
from portico.sessions.machine import find_catalog
from portico.store import Store

SOURCE = Path(portico.__file__).resolve().parent.parent
_SETRESUID = {"x86_64": 117, "aarch64": 147}[platform.machine()]
_libc = ctypes.CDLL(None, use_errno=True)


def find_reason_to_skip() -> str:
    """Return why no broker can be run here; empty where it can."""
    return "" if os.geteuid() == 0 else "needs root: real POSIX users"


async def wait_for(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10, what: str = "a condition") -> Any:
    """Return the first true value of ``condition``.

    Raises:
        TimeoutError: It was false all the time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not true within {timeout_s:g} s")
        await asyncio.sleep(0.01)
    return value


class Brokered:
    """A broker, and as many lives of a portal on it as a test wants.

    Args:
        capacity: What sessions may hold.
        settings: More settings.
    """

    def __init__(self, capacity: Capacity, **settings: Any) -> None:
        self.suffix = secrets.token_hex(2)
        self.folder = Path(tempfile.mkdtemp(prefix=f"pt{self.suffix}-", dir="/run"))
        os.chmod(self.folder, 0o755)
        self.config = Config(
            run_dir=str(self.folder),
            state_dir=str(self.folder / "state"),
            install_dir=str(self.folder),
            home_base=str(self.folder / "home"),
            instance=f"pt{self.suffix}",
            apps_port=8001,
            **settings,
        )
        make_service_account(self.config)  # which a machine does not have on which Portico never ran
        for name in ("state", "home", "users", "catalog"):
            (self.folder / name).mkdir(mode=0o755)
        # The interpreter of jobs: -I would ignore where the source is, which an installed Portico has in its own place.
        self.python = self.folder / "python"
        self.python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={SOURCE} exec {sys.executable} "$@"\n')
        self.python.chmod(0o755)
        self.capacity = capacity
        self.names: list[str] = []
        self._broker: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None

    # the life of Portico

    def start_broker(self) -> None:
        """Start the broker."""
        listener = wire.listen(self.config.socket_paths["broker"])
        os.chown(self.config.socket_paths["broker"], pwd.getpwnam("portico").pw_uid, -1)
        code = (
            "import socket, sys; from portico.broker.server import run; from portico.config import Config;"
            f"run({self.config!r}, socket.socket(fileno={listener.fileno()}))"
        )
        self._broker = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[listener.fileno()],
            env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        )
        listener.close()

    async def start_portal(self, *, keeper: bool = True) -> None:
        """Make the portal's objects anew, and start the keeper."""
        self.store = Store(Path(self.config.state_dir) / "portico.db")
        self.store.upgrade()
        self.machine = _PortalsMachine(self.config.socket_paths["broker"])
        self.catalog = Catalog([find_catalog(), self.folder / "catalog"], Path(self.config.install_dir))
        self.scheduler = LocalScheduler(Path(self.config.state_dir) / "local", self.machine, self.capacity)
        self.cut: list[str] = []
        self.sessions = Sessions(
            self.store,
            self.config,
            self.catalog,
            self.machine,
            [LocalPlace(self.config, self.machine, self.scheduler, str(self.python))],
            on_cut=self.cut.extend,
        )
        self.accounts = Accounts(self.store, self.config, self.machine)
        self.doors = Doors(self.store, self.config, self.accounts, self.sessions.connect)
        if keeper:
            self._keeper = asyncio.create_task(self.sessions.run())

    async def kill_everything(self) -> None:
        """End every process of Portico with no chance to tidy up; sessions go on."""
        for pid in self._list_agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._broker:
            self._broker.kill()
            self._broker.wait(10)
            self._broker = None
        await self.stop_portal()

    async def stop_portal(self) -> None:
        """End the portal's side."""
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self.machine.close()
        self.store.close()

    def _list_agents(self) -> list[int]:
        if self._broker is None:
            return []
        return [
            int(pid)
            for path in Path(f"/proc/{self._broker.pid}/task").glob("*/children")
            for pid in path.read_text().split()
        ]

    async def destroy(self) -> None:
        """Remove all that was made, processes and accounts too."""
        for name in self.names:
            with contextlib.suppress(Exception):
                await self.machine.remove(name, True)
        for cell in (await self.machine.cells()) or {}:
            await self.machine.end_cell(cell)
        await self.kill_everything()
        for mount in ("cpu", "cpuacct", "memory", "pids", ""):
            with contextlib.suppress(OSError):
                os.rmdir(f"/sys/fs/cgroup/{mount}/portico-{self.config.instance}".replace("//", "/"))
        for name in self.names:
            with contextlib.suppress(KeyError):
                pwd.getpwnam(name)
                subprocess.run(["userdel", "-rf", name], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # people and what they do

    def add_user(self, first_name: str) -> Identity:
        """Add an active user of the portal; the POSIX account is made by the first start."""
        name = f"pt-{self.suffix}-{first_name}"
        if name not in self.names:
            self.names.append(name)
        with self.store.begin() as tx:
            user: User = tx.find_user(name) or tx.add_user(name, Role.USER, UserState.ACTIVE, now())
        return Identity(user.id, name, Role.USER, Via.COOKIE, 0, "127.0.0.1")

    def add_app(self, app_id: str, script: str, **lines: str) -> None:
        """Add a pty app: its job is a script that calls ``listen PROGRAM`` to become ready."""
        folder = self.folder / "catalog" / app_id
        folder.mkdir(mode=0o755)
        listen = 'listen() { "$PORTICO_PYTHON" -I "$PORTICO_TERMINAL" --socket "$PORTICO_SOCKET" -- "$@"; }\n'
        (folder / "job.sh").write_text(f"#!/bin/sh\n{listen}{script}\n")
        text = {"ready": "[ready]\ntimeout_s = 30\n", **lines}
        (folder / "app.toml").write_text(
            f'name = "{app_id}"\nreach = "pty"\n{text["ready"]}[resources]\n'
            "cores = { default = 1, minimum = 0.1, maximum = 64 }\n"
            "memory_gb = { default = 0.5, minimum = 0.05, maximum = 64 }\n"
            "hours = { default = 1, minimum = 0.0001, maximum = 24 }\n"
        )

    async def wait(self, who: Identity, session: Session, state: SessionState, timeout_s: float = 15) -> Session:
        """Wait until a session is in ``state``.

        Raises:
            AssertionError: It has ended instead.
            TimeoutError: Neither.
        """

        async def reached() -> Session | None:
            found = await self.sessions.get_session(who, session.id)
            if found.state is SessionState.ENDED and state is not SessionState.ENDED:
                raise AssertionError(f"{found} {await self.sessions.read_log(who, session.id)}")
            return found if found.state is state else None

        found: Session = await wait_for(reached, timeout_s, f"session {session.id} {state}")
        return found

    def find_home(self, who: Identity) -> Path:
        """Return a user's home."""
        return Path(pwd.getpwnam(who.user_name).pw_dir)


class _PortalsMachine(BrokerMachine):
    """Connects as the account that the broker answers, which only this thread becomes, and only meanwhile."""

    async def _connect_broker(self) -> wire.Channel:
        uid = pwd.getpwnam("portico").pw_uid
        _libc.syscall(_SETRESUID, -1, uid, -1)
        try:
            return await super()._connect_broker()
        finally:
            _libc.syscall(_SETRESUID, -1, 0, -1)


def as_admin(who: Identity) -> Identity:
    """Return the same person with an admin's role."""
    return replace(who, role=Role.ADMIN)
