"""A portal's sessions on a machine that is not there, with a real store: for fast tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from machines import FakeMachine

from portico.accounts import Accounts
from portico.accounts.passwords import hash_token
from portico.config import Config
from portico.model import Identity, Role, Session, SessionState, UserState, Via
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity
from portico.sessions import Catalog, Doors, Sessions
from portico.sessions.local_place import LocalPlace
from portico.store import Store

APP = """
name = "{name}"
reach = "{reach}"
[ready]
path = "{path}"
timeout_s = 5
[resources]
cores = {{ default = 1, minimum = 0.5, maximum = 64 }}
memory_gb = {{ default = 1, minimum = 0.25, maximum = 256 }}
hours = {{ default = 2, minimum = 0.25, maximum = 24 }}
[[fields]]
name = "size"
label = "Size"
kind = "choice"
choices = ["small", "large"]
"""


class Clock:
    """Time that moves when it is told to, and a little with each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def advance(self, **much: float) -> None:
        """Move on."""
        self.now += timedelta(**much)


class Desk:
    """All objects of a portal that concern sessions.

    Args:
        folder: For the store, the spool and the catalog.
    """

    def __init__(self, folder: Path, machine: FakeMachine | None = None, **settings: Any) -> None:
        self.folder, self.machine, self.clock = folder, machine or FakeMachine(), Clock()
        self.config = Config(state_dir=str(folder), apps_port=8001, bind="127.0.0.1", **settings)
        for name, reach in (("shell", "pty"), ("screen", "rfb"), ("pages", "http")):
            app = folder / "catalog" / name
            app.mkdir(parents=True, exist_ok=True)
            (app / "app.toml").write_text(APP.format(name=name, reach=reach, path="api" if reach == "http" else ""))
            (app / "job.sh").write_text("#!/bin/sh\n")
        self.begin()

    def begin(self) -> None:
        """Make the portal's objects, anew after a restart."""
        self.store = Store(self.folder / "portico.db")
        self.store.upgrade()
        self.scheduler = LocalScheduler(self.folder / "local", self.machine, Capacity(4, 8 * 10**9), self.clock)
        self.catalog = Catalog([self.folder / "catalog"], self.folder)
        self.cut: list[str] = []
        self.accounts = Accounts(self.store, self.config, self.machine, self.cut.extend, self.clock)
        self.sessions = Sessions(
            self.store,
            self.config,
            self.catalog,
            self.machine,
            [LocalPlace(self.config, self.machine, self.scheduler, "/usr/bin/python3", self.clock)],
            self.cut.extend,
            self.clock,
        )
        self.doors = Doors(self.store, self.config, self.accounts, self.sessions.connect, self.clock)

    def add_user(self, name: str, role: Role = Role.USER) -> Identity:
        """Return an active user, signed in; the token is remembered in ``tokens``."""
        with self.store.begin() as tx:
            user = tx.find_user(name) or tx.add_user(name, role, UserState.ACTIVE, self.clock())
            tx.set_password(user.id, "a hash")
            token = f"token-of-{name}-{time.monotonic_ns()}"
            expires = self.clock() + timedelta(hours=12)
            sign_in = tx.add_sign_in(user.id, hash_token(token), self.clock(), expires, "10.0.0.1", "a browser")
        self.tokens = getattr(self, "tokens", {}) | {name: token}
        return Identity(user.id, name, role, Via.COOKIE, sign_in, "10.0.0.1")

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Run the keeper meanwhile."""
        task = asyncio.create_task(self.sessions.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def reach(self, who: Identity, session: Session, state: SessionState) -> Session:
        """Wait until a session is in a state."""

        async def is_there() -> Session | None:
            found = await self.sessions.get_session(who, session.id)
            return found if found.state is state else None

        found: Session = await until(is_there)
        return found

    async def start_ready(self, who: Identity, app: str = "shell", **more: Any) -> Session:
        """Start an app and wait until it is ready; the keeper runs."""
        return await self.reach(who, await self.sessions.start(who, app, **more), SessionState.READY)


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10) -> Any:
    """Return the first true value.

    Raises:
        TimeoutError: There was none.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("it was never true")
        await asyncio.sleep(0.005)
    return value


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, within bounds."""
    asyncio.run(asyncio.wait_for(test, 30))
