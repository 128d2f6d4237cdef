"""Serves the portal: HTTP for the gateway and for this machine's users, and the routes socket for gateways."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from portico import wire
from portico.accounts import Accounts
from portico.config import Config
from portico.errors import NotFound, PorticoError
from portico.portal.app import create_app, guard
from portico.sessions import Doors, Sessions

log = logging.getLogger(__name__)


class PortalProtocol(HttpToolsProtocol):
    """HTTP that knows by which socket a connection came, and which uid the kernel says is at its other end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the other end."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        is_api = str(sock.getsockname()).endswith("/api.sock")
        self._arrival = {"socket": "api" if is_api else "portal", "peer_uid": wire.get_credentials(sock).uid}

    def on_message_begin(self) -> None:
        """Tell the application."""
        super().on_message_begin()
        self.scope["portico"] = dict(self._arrival)  # type: ignore[typeddict-unknown-key]


class Gateways:
    """The gateways that are connected: answers them, and tells them what to cut.

    Args:
        doors: Who decides.
        accounts: Who knows which sign-ins and users are gone.
    """

    def __init__(self, doors: Doors, sessions: Sessions, accounts: Accounts) -> None:
        self._doors = doors
        self._channels: set[wire.Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        accounts.on_cut = self.cut_soon
        sessions.on_cut = self.cut_soon

    def cut_soon(self, tags: list[str]) -> None:
        """Have streams with any of these tags cut; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._start_cut, tags)

    def _start_cut(self, tags: list[str]) -> None:
        task = self._loop.create_task(self._cut(tags))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cut(self, tags: list[str]) -> None:
        for channel in list(self._channels):
            try:
                await channel.ask("cut", {"tags": tags}, timeout_s=5)
            except PorticoError as error:
                log.error("a gateway did not cut %s: %s", tags, error)
                channel.close()  # it asks again what still holds when it comes back

    async def listen(self, listener: socket.socket) -> None:
        """Accept gateways, until cancelled."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            if wire.get_credentials(sock).uid not in (os.geteuid(), 0):
                sock.close()
                continue
            channel = wire.Channel(sock, self._handle, name="gateway")
            self._channels.add(channel)
            task = loop.create_task(self._forget(channel))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forget(self, channel: wire.Channel) -> None:
        await channel.wait_closed()
        self._channels.discard(channel)

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
    config: Config,
    accounts: Accounts,
    sessions: Sessions,
    doors: Doors,
    listeners: Mapping[str, socket.socket],
) -> None:
    """Serve until SIGTERM.

    Args:
        config: The settings.
        accounts: Users.
        sessions: What they run; its keeper runs here.
        doors: What gateways ask.
        listeners: ``portal``, ``api`` and ``routes``.
    """
    app: FastAPI = create_app(accounts, sessions, doors, config)
    server = uvicorn.Server(
        uvicorn.Config(
            guard(app, config),
            http=PortalProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=3,
        )
    )
    gateways = Gateways(doors, sessions, accounts)
    tasks = [asyncio.ensure_future(gateways.listen(listeners["routes"])), asyncio.ensure_future(sessions.run())]
    try:
        await server.serve(sockets=[listeners["portal"], listeners["api"]])
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
