"""``portico up``, once everything is installed: makes the places, starts the processes, and waits for the end.

The order is fixed: account and folders, the lock, the sockets, broker, portal, gateways; the end is the reverse. SIGHUP
reads settings and certificate again. Users' sessions are nobody's children here, and are neither started nor ended by
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from portico.cli import place, show
from portico.cli.client import Client, Target
from portico.cli.programs import STOP_ORDER, Programs, build_programs, concerns_portal, concerns_sshd, keep_fixed
from portico.cli.supervisor import Program, Supervisor, show_on_stderr
from portico.config import Config
from portico.errors import PorticoError, Unavailable

READY_TIMEOUT_S: Final = 60.0


class Service:
    """One running Portico.

    Args:
        read_config: Returns its settings, complete; asked at the start, and again for each reload.
        admin: Who gets a one-time link, unless they have a password.

    """

    def __init__(self, read_config: Callable[[], Config], admin: str) -> None:
        self._read_config = read_config
        self._config = read_config()
        self._admin = admin
        self._ended = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        # nohup(1) is the wish to outlive the terminal.
        self._has_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        self._sockets: dict[str, socket.socket] = {}
        self._facts: dict[str, Any] = {}

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
        if why := place.find_reason_without_ssh(config):
            show.tell(f"Note: SSH is off: {why}")
            self._config = config = replace(config, ssh_port=0)
        try:
            self._sockets = place.open_sockets(config, account)
            programs = self._build_programs(account)
            supervisor = Supervisor(
                Path(config.state_dir) / "log", 0o640 if config.multi_user else 0o600, show_on_stderr
            )
            self._facts = {
                "url": config.portal_origin,
                "state_dir": config.state_dir,
                "run_dir": config.run_dir,
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "ready": False,
                "reloads": 0,
            }
            supervisor.on_change = lambda: self._write_facts(lock, supervisor)
            supervisor.on_change()
            async with self._signals_taken(), self._running(supervisor, programs.all):
                if not await self._wait_until_ready(supervisor):
                    return self._ended.is_set()
                self._facts["ready"] = True
                supervisor.on_change()
                await self._announce()
                failure = asyncio.create_task(supervisor.wait_for_failure())
                ended = asyncio.create_task(self._ended.wait())
                reloading = asyncio.create_task(self._reload_when_wanted(supervisor, account))
                await asyncio.wait({failure, ended, reloading}, return_when=asyncio.FIRST_COMPLETED)
                if failure.done() and not self._ended.is_set():
                    show.tell(
                        f"The {failure.result()} can't be kept running.\n"
                        f"  Its log: {config.state_dir}/log/{failure.result()}.log"
                    )
                for task in (failure, ended, reloading):
                    task.cancel()
                await asyncio.gather(failure, ended, reloading, return_exceptions=True)
                self._say_goodbye(await asyncio.to_thread(self._count_sessions))
                return self._ended.is_set()
        finally:
            for sock in self._sockets.values():
                sock.close()
            lock.release()

    @contextlib.asynccontextmanager
    async def _signals_taken(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGINT: self._ended.set, signal.SIGTERM: self._ended.set, signal.SIGHUP: self._on_hangup}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _on_hangup(self) -> None:
        if self._has_terminal and not has_terminal():  # its window was closed, which is not a wish for a reload
            self._ended.set()
        else:
            self._reload_wanted.set()

    @contextlib.asynccontextmanager
    async def _running(self, supervisor: Supervisor, programs: list[Program]) -> AsyncIterator[None]:
        try:
            for program in programs:
                await supervisor.start(program)
            yield
        finally:
            await supervisor.stop(STOP_ORDER)

    def _build_programs(self, account: place.Account) -> Programs:
        config = self._config
        if config.tls_certificate:
            certificate, key = place.copy_tls_files(config, account)
            config = replace(config, tls_certificate=certificate, tls_key=key)
        return build_programs(config, account, self._sockets, self._admin)

    def _write_facts(self, lock: place.Lock, supervisor: Supervisor) -> None:
        lock.write({**self._facts, "processes": supervisor.pids, "draining": supervisor.draining})

    async def _reload_when_wanted(self, supervisor: Supervisor, account: place.Account) -> None:
        """Reload at each SIGHUP, until cancelled; what goes wrong is told, and all goes on as it was."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            failure: dict[str, Any] | None = None
            kept: list[str] = []
            try:
                kept = await self._reload(supervisor, account)
            except (PorticoError, OSError) as error:
                told = error if isinstance(error, PorticoError) else Unavailable("The reload failed.", why=str(error))
                show.show_error(told)
                failure = told.to_wire()
            number = self._facts["reloads"] + 1
            self._facts |= {"reloads": number, "reload_error": failure, "reload_kept": kept}
            supervisor.on_change()

    async def _reload(self, supervisor: Supervisor, account: place.Account) -> list[str]:
        """Read settings and certificate again, and run new gateways; return the settings that only a start changes.

        Raises:
            PorticoError: Something is wrong with them, or a new gateway did not get ready.

        """
        before = self._config
        wanted, kept = keep_fixed(self._read_config(), before)
        self._config = wanted
        try:
            if wanted.clusters and "listen-relays" not in self._sockets:
                self._sockets["listen-relays"] = place.open_relay_socket(wanted)
            programs = self._build_programs(account)
            if programs.rendezvous and not supervisor.has(programs.rendezvous.name):  # the first cluster
                await supervisor.start(programs.rendezvous)
            if concerns_portal(wanted, before):
                await supervisor.change(programs.broker)
                await supervisor.change(programs.portal)
                await asyncio.to_thread(self._wait_for_portal)
            if programs.sshd and concerns_sshd(wanted, before):
                await supervisor.change(programs.sshd)
            await supervisor.replace("gateway", programs.gateways)
        except BaseException:
            self._config = before
            raise
        self._facts["url"] = wanted.portal_origin
        show_on_stderr(f"Reloaded. Gateways: {', '.join(str(supervisor.pids[one.name]) for one in programs.gateways)}.")
        if kept:
            show_on_stderr(f"Only a new start changes {', '.join(kept)}.")
        return kept

    def _wait_for_portal(self) -> None:
        """Wait until the portal answers on this machine's own socket.

        Raises:
            Unavailable: It is not ready in time.

        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                with contextlib.closing(Client(Target(run_dir=self._config.run_dir))) as client:
                    client.ask("GET", "/health")
                    return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

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
        if self._config.ssh_port:
            show_on_stderr(f"SSH: port {self._config.ssh_port}, with the keys of people's account pages.")
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


def has_terminal() -> bool:
    """Return whether this process has a terminal that controls it (tty(4)); one that was hung up is none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
