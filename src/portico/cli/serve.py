"""``portico up``, once everything is installed: makes the places, starts the three processes, and waits for the end.

The order is fixed: account and folders, the lock, the sockets, broker, portal, gateway; the end is the reverse. Users'
sessions are nobody's children here, and are neither started nor ended by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from portico.cli import place, show
from portico.cli.client import Client, Target
from portico.cli.process import render_settings
from portico.cli.supervisor import Program, Supervisor, show_on_stderr
from portico.config import Config
from portico.errors import PorticoError, Unavailable

READY_TIMEOUT_S: Final = 60.0
STOP_ORDER: Final = ["gateway", "portal", "broker"]
PASSED_ON: Final = ("LANG", "LC_ALL", "TZ", "PYTHONPATH", "PYTHONWARNINGS", "PYTHONDEVMODE")
"""Variables of the one who starts Portico that its processes see; none of them reaches a user's session."""


class Service:
    """One running Portico.

    Args:
        config: Its settings, complete.
        admin: Who gets a one-time link, unless they have a password.

    """

    def __init__(self, config: Config, admin: str) -> None:
        self._config = config
        self._admin = admin
        self._ended = asyncio.Event()
        self._sockets: dict[str, socket.socket] = {}

    async def run(self) -> bool:
        """Run until SIGINT, SIGTERM, or a process that can't be kept running; return whether the end was wanted.

        Raises:
            PorticoError: It could not start; nothing is left running.

        """
        config = self._config
        if config.multi_user:
            from portico.cli.install import make_shared_socket_folders

            make_shared_socket_folders()
        account = place.make_service_account(config)
        place.make_folders(config, account)
        lock = place.Lock(config)
        lock.take()
        for sentence in place.check_host(config):
            show.tell(f"Note: {sentence}")
        try:
            self._sockets = place.open_sockets(config, account)
            if config.tls_certificate:
                certificate, key = place.copy_tls_files(config, account)
                config = replace(config, tls_certificate=certificate, tls_key=key)
            supervisor = Supervisor(
                Path(config.state_dir) / "log", 0o640 if config.multi_user else 0o600, show_on_stderr
            )
            facts = {
                "url": config.portal_origin,
                "state_dir": config.state_dir,
                "run_dir": config.run_dir,
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "ready": False,
            }
            lock.write(facts)
            async with self._signals_taken(), self._running(supervisor, self._build_programs(config, account)):
                if not await self._wait_until_ready(supervisor):
                    return self._ended.is_set()
                lock.write({**facts, "ready": True, "processes": supervisor.pids})
                await self._announce()
                failure = asyncio.create_task(supervisor.wait_for_failure())
                ended = asyncio.create_task(self._ended.wait())
                await asyncio.wait({failure, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not self._ended.is_set():
                    show.tell(
                        f"The {failure.result()} can't be kept running.\n"
                        f"  Its log: {config.state_dir}/log/{failure.result()}.log"
                    )
                for task in (failure, ended):
                    task.cancel()
                self._say_goodbye(await asyncio.to_thread(self._count_sessions))
                return self._ended.is_set()
        finally:
            for sock in self._sockets.values():
                sock.close()
            lock.release()

    def _build_programs(self, config: Config, account: place.Account) -> list[Program]:
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env |= {"PORTICO_SETTINGS": render_settings(config), "PYTHONUNBUFFERED": "1"}
        if not config.multi_user:
            env |= {
                name: os.environ[name]
                for name in ("HOME", "USER", "LOGNAME", "SHELL", "XDG_RUNTIME_DIR")
                if name in os.environ
            }
        fds = {name: sock.fileno() for name, sock in self._sockets.items()}
        public = {name: fd for name, fd in fds.items() if name.startswith("listen-")}
        ids = {"uid": account.uid, "gid": account.gid} if config.multi_user else {}
        python = (sys.executable, "-s", "-P", "-m", "portico.cli.process")
        own = env | {"PORTICO_ADMIN": self._admin} | ({"HOME": config.state_dir} if config.multi_user else {})
        return [
            Program("broker", (*python, "broker"), env, {"broker": fds["broker"]}),
            Program(
                "portal", (*python, "portal"), own, {name: fds[name] for name in ("portal", "api", "routes")}, **ids
            ),
            Program("gateway", (*python, "gateway"), own, public, **ids),
        ]

    @contextlib.asynccontextmanager
    async def _signals_taken(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._ended.set)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    @contextlib.asynccontextmanager
    async def _running(self, supervisor: Supervisor, programs: list[Program]) -> AsyncIterator[None]:
        try:
            for program in programs:
                await supervisor.start(program)
            yield
        finally:
            await supervisor.stop(STOP_ORDER)

    async def _wait_until_ready(self, supervisor: Supervisor) -> bool:
        """Wait until the portal answers through the gateway; False where the end was asked for before that.

        Raises:
            Unavailable: It is not ready in time, or a process can't be kept running.

        """
        failure = asyncio.create_task(supervisor.wait_for_failure())
        deadline = time.monotonic() + READY_TIMEOUT_S
        try:
            async with self._open_client() as client:
                while not self._ended.is_set():
                    with contextlib.suppress(httpx.HTTPError):
                        answer = await client.get("/api/v1/health")
                        if answer.status_code == 200:
                            return True
                    if failure.done() or time.monotonic() > deadline:
                        name = failure.result() if failure.done() else ""
                        raise Unavailable(
                            f"The {name} could not be started."
                            if name
                            else f"Portico is not ready after {READY_TIMEOUT_S:g} s.",
                            why="The lines above say more.",
                            hint=f"The logs are in {self._config.state_dir}/log.",
                        )
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._ended.wait(), 0.05)
            return False
        finally:
            failure.cancel()

    def _open_client(self) -> httpx.AsyncClient:
        address, port = self._sockets["listen-portal"].getsockname()[:2]
        target = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)  # noqa: S104
        host = self._config.portal_origin.partition("://")[2]
        # Whom we talk to is certain here, the socket is ours: the certificate's name needs no check.
        scheme = "https" if self._config.tls_certificate else "http"
        return httpx.AsyncClient(
            base_url=f"{scheme}://{target}:{port}",
            headers={"Host": host},
            verify=False,  # noqa: S501
            timeout=5,
            trust_env=False,
        )

    async def _announce(self) -> None:
        origin = self._config.portal_origin
        show_on_stderr("")
        show_on_stderr(f"Portico is ready: {origin}/")
        try:
            link = await asyncio.to_thread(self._get_admin_link)
        except PorticoError as error:
            show.show_error(error)
        else:
            if link:
                show_on_stderr(f"{self._admin} has no password yet. This link sets it, once, within 7 days:")
                print(f"  {link}", flush=True)
        show_on_stderr("Ctrl-C stops Portico, not the sessions.")
        show_on_stderr("")

    def _get_admin_link(self) -> str:
        """Return a one-time link for the admin, whom the portal has made; empty where they have a password."""
        with contextlib.closing(Client(Target(run_dir=self._config.run_dir))) as client:
            if client.ask("GET", f"/users/{self._admin}")["state"] != "invited":
                return ""
            return str(client.ask("POST", f"/users/{self._admin}/code")["link"])

    def _count_sessions(self) -> int | None:
        """Return how many sessions go on without us; None where the portal can't tell any more."""
        try:
            with contextlib.closing(Client(Target(run_dir=self._config.run_dir))) as client:
                sessions: list[dict[str, Any]] = client.ask("GET", "/sessions", everyone="true")
        except PorticoError:
            return None
        return sum(1 for session in sessions if session["state"] in ("starting", "ready"))

    def _say_goodbye(self, count: int | None) -> None:
        going_on = {None: "Sessions go on", 0: "No session is running", 1: "1 session goes on"}.get(
            count, f"{count} sessions go on"
        )
        show_on_stderr(
            f"\nStopping Portico. {going_on}; the next `portico up` finds them again."
            if count
            else f"\nStopping Portico. {going_on}."
        )
