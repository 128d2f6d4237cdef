"""Serves the portal: HTTP for the gateway and for this machine's users, and the routes socket for gateways.

It builds no object of the domain and listens on nothing itself: both are handed to it by ``cli``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from portico import wire
from portico.errors import NotFound, PorticoError
from portico.portal.app import create_app, guard
from portico.portal.context import Services
from portico.portal.feeds import Feeds
from portico.portal.ssh_door import SshDoor
from portico.sessions import Doors, Relays

log = logging.getLogger(__name__)

CUT_TIMEOUT_S: Final = 5.0
METRICS_TIMEOUT_S: Final = 1.0
TAGS_MAX: Final = 2000
"""In one request to a gateway: more would not fit into a message (docs/protocol.md)."""


class PortalProtocol(HttpToolsProtocol):
    """HTTP that knows by which socket a connection came, and which uid the kernel says is at its other end."""

    api_path = ""
    """The address of the socket that everybody may connect to; set by :func:`serve`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the other end; refuse whoever is not the gateway on the portal's socket."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        uid = wire.get_credentials(sock).uid
        is_api = sock.getsockname() == self.api_path
        self._arrival = {"socket": "api" if is_api else "portal", "peer_uid": uid}
        if not is_api and not is_own(uid):
            log.error("uid %d connected to the portal's socket, which is the gateway's alone", uid)
            transport.abort()

    def on_message_begin(self) -> None:
        """Tell the application."""
        super().on_message_begin()
        self.scope["portico"] = dict(self._arrival)  # type: ignore[typeddict-unknown-key]


def is_own(uid: int) -> bool:
    """Return whether a peer's uid is that of our own processes, or root."""
    return uid in (os.geteuid(), 0)


class Gateways:
    """The gateways that are connected: answers them, and tells them and the pages' feeds what to cut.

    Args:
        doors: Who decides.
        feeds: The pages' feeds.
    """

    def __init__(self, doors: Doors, feeds: Feeds) -> None:
        self._doors = doors
        self._feeds = feeds
        self._channels: set[wire.Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def cut_soon(self, tags: list[str]) -> None:
        """Have streams and feeds with any of these tags cut; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._start_cut, tags)

    def _start_cut(self, tags: list[str]) -> None:
        self._feeds.cut(tags)
        for channel in self._channels:
            for at in range(0, len(tags), TAGS_MAX):
                self._keep(self._cut(channel, tags[at : at + TAGS_MAX]))

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cut(self, channel: wire.Channel, tags: list[str]) -> None:
        try:
            await channel.ask("cut", {"tags": tags}, timeout_s=CUT_TIMEOUT_S)
        except PorticoError as error:
            if not channel.closed:
                log.error("a gateway did not cut %s: %s", tags, error)
                channel.close()  # it asks again what still holds when it comes back

    async def ask_metrics(self) -> dict[int, dict[str, Any] | None]:
        """Return what each gateway counts, by pid; None where one does not answer soon."""

        async def ask(channel: wire.Channel) -> dict[str, Any] | None:
            try:
                return (await channel.ask("metrics", timeout_s=METRICS_TIMEOUT_S)).body
            except PorticoError:
                return None

        channels = list(self._channels)
        answers = await asyncio.gather(*map(ask, channels))
        return {channel.credentials.pid: answer for channel, answer in zip(channels, answers, strict=True)}

    async def listen(self, listener: socket.socket) -> None:
        """Accept gateways, until cancelled."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            if not is_own(wire.get_credentials(sock).uid):
                sock.close()
                continue
            channel = wire.Channel(sock, self._handle, name="gateway")
            self._channels.add(channel)
            self._keep(self._forget(channel))

    async def _forget(self, channel: wire.Channel) -> None:
        await channel.wait_closed()
        self._channels.discard(channel)

    def close(self) -> None:
        """Let all gateways go."""
        for channel in list(self._channels):
            channel.close()
        for task in self._tasks:
            task.cancel()

    async def _handle(self, op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
        wire.close_all(fds)
        if op == "route":
            return await self._doors.route(args)
        if op == "connect":
            return {}, [await self._doors.connect(str(args.get("key", "")))]
        if op == "hello":
            gone = await self._doors.find_gone([str(tag) for tag in args.get("tags", ())])
            if gone:
                self._start_cut(gone)
            return None
        raise NotFound(f"The portal knows no {op!r}.")


async def serve(
    services: Services,
    listeners: Mapping[str, socket.socket],
    relays: Relays | None = None,
    ssh: SshDoor | None = None,
) -> None:
    """Serve until SIGTERM.

    Args:
        services: What is served; the keepers of sessions, jobs and events run here.
        listeners: ``portal``, ``api``, ``routes``, ``relays`` and ``ssh``.
        relays: What the rendezvous asks, where there is one.
        ssh: What sshd and its users ask.
    """
    config, sessions = services.config, services.sessions
    app: FastAPI = create_app(services)
    feeds: Feeds = app.state.context.feeds
    gateways = Gateways(services.doors, feeds)

    def cut(tags: list[str]) -> None:
        gateways.cut_soon(tags)
        if ssh is not None:
            ssh.cut_soon(tags)

    for one in (services.accounts, services.ssh_keys, services.ssh_certificates, sessions):
        one.on_cut = cut
    metrics = app.state.context.metrics
    metrics.ask_gateways = gateways.ask_metrics
    protocol = type("Protocol", (PortalProtocol,), {"api_path": listeners["api"].getsockname()})
    server = _Server(
        uvicorn.Config(
            guard(app, config),
            http=protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=3,
        ),
        feeds,
    )
    tasks = [
        asyncio.create_task(server.serve(sockets=[listeners["portal"], listeners["api"]])),
        asyncio.create_task(gateways.listen(listeners["routes"])),
        asyncio.create_task(sessions.run()),
        asyncio.create_task(services.jobs.run()),
        asyncio.create_task(services.events.run()),
        asyncio.create_task(metrics.watch_lag()),
    ]
    if ssh is not None:
        tasks.append(asyncio.create_task(ssh.listen(listeners["ssh"])))
        tasks.append(asyncio.create_task(ssh.follow(Path(config.state_dir) / "log/sshd.log")))
    if relays is not None:
        tasks.append(asyncio.create_task(_listen_to_rendezvous(listeners["relays"], relays)))
    try:
        # Neither the keeper nor the routes may be gone while pages still answer: then all ends, and is started anew.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gateways.close()
        if ssh is not None:
            ssh.close()


async def _listen_to_rendezvous(listener: socket.socket, relays: Relays) -> None:
    """Take the rendezvous' connections, until cancelled."""
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    channel: wire.Channel | None = None
    try:
        while True:
            sock, _ = await loop.sock_accept(listener)
            if not is_own(wire.get_credentials(sock).uid):
                sock.close()
                continue
            channel = wire.Channel(sock, relays.handle, name="rendezvous")
            relays.accept(channel)
    finally:
        if channel:
            channel.close()


class _Server(uvicorn.Server):
    """Ends the pages' feeds first of all, so that a restart need not wait for them."""

    def __init__(self, config: uvicorn.Config, feeds: Feeds) -> None:
        super().__init__(config)
        self._feeds = feeds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at SIGTERM and SIGINT as after any other work: uvicorn's own way would die by the signal afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End gracefully."""
        self._feeds.close()
        await super().shutdown(sockets)
