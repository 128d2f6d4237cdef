"""A portal on a real store, with real accounts, sessions, doors and scheduler; only the machine below is a stand-in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
from table_cluster import FilesRunner, make_cluster

from portico import wire
from portico.accounts import Accounts, SshCertificates, SshKeys
from portico.accounts.passwords import hash_token
from portico.accounts.ssh_entry import SshEntry
from portico.accounts.ssh_guide import SshGuide
from portico.config import Config
from portico.errors import NotFound
from portico.events import Events
from portico.jobs import Jobs
from portico.model import Identity, Role, Session, SessionState, SshConnection, UserState, Via, now
from portico.portal.app import create_app, guard
from portico.portal.context import Services
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity, JobRequest
from portico.sessions import BrokerMachine, Catalog, Doors, Sessions
from portico.sessions.changes import Changes
from portico.sessions.local_place import LocalPlace
from portico.sessions.rows import Rows
from portico.sessions.vnc import VncDoors
from portico.ssh.authority import Authority
from portico.store import Store
from portico.wire import Packet

T = TypeVar("T")

ORIGIN = "http://localhost:8000"
APPS_ORIGIN = "http://localhost:8001"
PASSWORD = "correct horse battery staple"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICz1EdICzNHmEqF7Z0XG6MSvSbgIcCW7Iw7EINrDsDuR alice@laptop"
UIDS = {20001: "alice", 20002: "bob"}

APPS = {
    "shell": 'name = "Shell"\nsummary = "A shell."\nreach = "pty"\n',
    "screen": 'name = "Screen"\nsummary = "A desktop."\nreach = "rfb"\n',
    "book": 'name = "Book"\nsummary = "A notebook."\nreach = "http"\nicon = "icon.svg"\n[ready]\npath = "lab"\n'
    '[[fields]]\nname = "folder"\nlabel = "Folder"\nkind = "text"\npattern = "[a-z]*"\n',
    "absent": 'name = "Absent"\nsummary = "Not here."\nreach = "http"\n'
    'install = "apt-get install no-such-program"\n[needs]\nprograms = ["no-such-program-at-all"]\n',
}


def make_key(comment: str = "") -> str:
    """Return a new public key; nobody has its private half."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + os.urandom(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


class StandInAuthority:
    """A host CA that never signs."""

    host_public = make_key()


class StandInMachine:
    """A machine on which every job runs at once and nothing happens; commands really run, in a folder for a home."""

    def __init__(self, homes: Path) -> None:
        self.homes = homes
        self.running: set[str] = set()
        self.log = "a line\n"
        self.made: list[str] = []
        self.passwords: dict[str, list[str]] = {}
        self.agents = 0

    async def make(self, name: str) -> None:
        self.made.append(name)

    async def lock(self, name: str, locked: bool) -> None:
        if name not in self.made:
            raise NotFound("No such account.")

    async def remove(self, name: str, remove_home: bool) -> None:
        await self.lock(name, True)
        self.made = [made for made in self.made if made != name]
        if remove_home:
            shutil.rmtree(self.homes / name, ignore_errors=True)

    async def ask(self, user_name: str, op: str, args: dict[str, Any], *, timeout_s: float = 10.0) -> Packet:
        if op == "look":
            return Packet(await self.look(user_name, args["session"]), [])
        if op == "vnc":
            if "passwords" in args:
                self.passwords[args["session"]] = args["passwords"]
            return Packet({"takes": True, "has": bool(self.passwords.get(args["session"]))}, [])
        return Packet({"log": {"text": self.log}, "sessions": {"sessions": [], "more": False}}.get(op, {}), [])

    async def ask_once(
        self, user_name: str, op: str, args: dict[str, Any], fds: Sequence[int], *, timeout_s: float
    ) -> tuple[dict[str, Any], list[int]]:
        assert op == "command"
        home = self.homes / user_name
        home.mkdir(parents=True, exist_ok=True)
        stream = args.get("stream") is True
        process = await asyncio.create_subprocess_exec(
            *args["argv"], cwd=home, env={"HOME": str(home), "PATH": os.defpath}, stderr=asyncio.subprocess.PIPE,
            stdin=fds[0] if fds and not stream else asyncio.subprocess.DEVNULL,
            stdout=fds[0] if stream else asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        wire.close_all(fds)
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        return {"status": process.returncode, "stderr": said.decode(), "timed_out": False, "cut": False}, []

    async def look(self, user_name: str, key: str) -> dict[str, Any]:
        running = key in self.running
        return {
            "session": key, "running": running, "pid": 1 if running else None, "deadline": None, "ended": None,
            "record": {}, "socket": True, "folder": f"/home/{user_name}/{key}", "run": f"/run/{key}",
            "home": f"/home/{user_name}",
        }  # fmt: skip

    async def prepare(self, request: JobRequest) -> None:
        pass

    async def forget(self, user_name: str, key: str) -> None:
        pass

    async def launch(self, request: JobRequest, deadline: datetime) -> None:
        self.running.add(request.key)

    async def cells(self) -> dict[str, Any] | None:
        return None

    async def end_cell(self, key: str) -> None:
        self.running.discard(key)

    async def signal(self, user_name: str, key: str, name: str) -> None:
        self.running.discard(key)

    async def set_deadline(self, user_name: str, key: str, deadline: datetime) -> None:
        pass

    async def connect(self, user_name: str, key: str) -> int:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()

    async def end_ssh(self, connection: SshConnection) -> None:
        pass

    def close_idle(self) -> None:
        pass


class World:
    """A portal, and who is around it.

    Args:
        folder: Of its own.
        settings: More settings.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        for name in ("state", "run", "install", "catalog"):
            (folder / name).mkdir()
        self.config = Config(
            state_dir=str(folder / "state"), run_dir=str(folder / "run"), install_dir=str(folder / "install"),
            apps_port=8001, max_sessions_per_user=10_000, **settings,
        )  # fmt: skip
        (folder / "install/assets/xterm").mkdir(parents=True)
        (folder / "install/assets/xterm/xterm.mjs").write_text("export const a = 1;\n")
        for name, text in APPS.items():
            self.write_app(name, text)
        self.loop = asyncio.new_event_loop()
        self.store = Store(folder / "state/portico.db")
        self.store.upgrade()
        self.machine = StandInMachine(folder / "homes")
        machine = cast(BrokerMachine, self.machine)
        self.catalog = Catalog([folder / "catalog"], folder / "install", self.config.image_dirs)
        self.scheduler = LocalScheduler(folder / "state/local", self.machine, Capacity(10_000, 10**14))
        self.accounts = Accounts(self.store, self.config, self.machine)
        self.ssh_keys = SshKeys(self.store, self.config, self.machine)
        place = LocalPlace(self.config, machine, self.scheduler, "/usr/bin/python3")
        self.sessions = Sessions(self.store, self.config, self.catalog, machine, [place])
        self.doors = Doors(self.store, self.config, self.accounts, self.sessions.connect)
        self.files = FilesRunner()
        cluster, self.slurm = make_cluster()
        self.jobs = Jobs(
            Rows(self.store, Changes()), machine, self.files, [place.cluster, cluster], self.sessions.notices
        )
        authority = Authority(folder / "state/ssh")
        self.ssh_certificates = SshCertificates(self.store, self.config, authority, self.machine)
        (folder / "run/ssh").mkdir()
        (folder / "run/ssh/host_keys.pub").write_text(f"{make_key()} portico\n")
        entry = SshEntry(self.store, self.config, self.machine.end_ssh)
        self.guide = SshGuide(self.config, entry, StandInAuthority())
        self.events = Events(self.store, self.config, self.accounts, self.sessions, machine)
        self.services = Services(
            self.config, self.accounts, self.sessions, self.doors, self.jobs, self.events, self.ssh_keys,
            self.ssh_certificates, self.guide, VncDoors(Rows(self.store, Changes()), self.sessions, machine),
        )  # fmt: skip
        self.fastapi = create_app(self.services)
        self.app = guard(self.fastapi, self.config)
        for name, role in (
            ("root-of-all", Role.ADMIN),
            ("olga", Role.ORGANISER),
            ("alice", Role.USER),
            ("bob", Role.USER),
            ("carol", Role.USER),
        ):
            self.add_user(name, role)

    def write_app(self, name: str, text: str) -> None:
        """Write a catalog entry."""
        (self.folder / "catalog" / name).mkdir(exist_ok=True)
        (self.folder / "catalog" / name / "app.toml").write_text(text)
        (self.folder / "catalog" / name / "job.sh").write_text("#!/bin/sh\nsleep 1000\n")
        (self.folder / "catalog" / name / "icon.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')

    def close(self) -> None:
        """End it."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.store.close()

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        """Run something in the portal's event loop."""
        return self.loop.run_until_complete(what)

    # people

    def add_user(self, name: str, role: Role = Role.USER, state: UserState = UserState.ACTIVE) -> None:
        """Add a user, who has no password."""
        with self.store.begin() as tx:
            tx.add_user(name, role, state, now())

    def identify(self, name: str) -> Identity:
        """Return a user as a browser's request would be known."""
        user = self.accounts.get_user(name)
        token = self.sign_in(name)
        return (
            self.accounts.authenticate(token, "192.0.2.1") if token else Identity(user.id, name, user.role, Via.COOKIE)
        )

    def sign_in(self, name: str) -> str:
        """Return the token of a new sign-in."""
        token = secrets.token_urlsafe(32)
        with self.store.begin() as tx:
            user = tx.find_user(name)
            assert user
            tx.add_sign_in(user.id, hash_token(token), now(), now() + timedelta(hours=1), "192.0.2.1", "Firefox/1")
        return token

    def make_token(self, name: str) -> str:
        """Return a new API token."""
        return self.accounts.make_api_token(self.identify(name), "test", 1)

    def sign_ssh(self, name: str) -> int:
        """Return the serial number of a new SSH certificate, of which its user has no other."""
        who = self.identify(name)
        for old in self.ssh_certificates.list_certificates(who):
            self.ssh_certificates.revoke(who, old.serial)
        begun = self.ssh_certificates.begin(SSH_KEY, "192.0.2.7")
        row = self.run(self.ssh_certificates.confirm(who, begun.user_code))
        self.ssh_certificates.collect(begun.device_code)
        return row.serial

    # sessions

    def start(self, name: str = "alice", app: str = "shell", state: SessionState = SessionState.READY) -> Session:
        """Start a session, and bring it into a state."""

        async def start() -> Session:
            session = await self.sessions.start(who, app)
            if state is not SessionState.QUEUED:
                await self.scheduler.query()
            return session

        who = self.identify(name)
        session = self.run(start())
        at = now()
        changed = replace(session, state=state, waiting_for="")
        if state is not SessionState.QUEUED:
            changed = replace(changed, started=at, ends=at + timedelta(hours=8), ready=at)
        with self.store.begin() as tx:
            tx.save_session(changed)
        return changed

    # requests

    def ask(
        self,
        method: str,
        path: str,
        *,
        cookie: str = "",
        bearer: str = "",
        peer_uid: int | None = None,
        origin: str | None = ORIGIN,
        listener: str = "portal",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """Return the answer to one request, as it comes from the gateway, or from the API's socket with ``peer_uid``."""
        sent = {"Host": "localhost:8000", "X-Portico-Listener": listener, "X-Forwarded-For": "192.0.2.7"}
        if origin is not None:
            sent["Origin"] = origin
        if cookie:
            sent["Cookie"] = f"portico={cookie}"
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"

        async def app(scope: Any, receive: Any, send: Any) -> None:
            arrival = {"socket": "portal", "peer_uid": os.getuid()}
            if peer_uid is not None:
                arrival = {"socket": "api", "peer_uid": peer_uid}
            await self.app({**scope, "portico": arrival}, receive, send)

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
                return await client.request(method, path, headers=sent | (headers or {}), **more)

        return self.run(ask())
