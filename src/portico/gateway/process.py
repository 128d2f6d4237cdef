"""The gateway process: takes its listening sockets, serves until SIGTERM, and leaves sessions alone."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Mapping
from dataclasses import replace

from portico.config import Config
from portico.gateway.limits import Limits, raise_descriptor_limit
from portico.gateway.listening import make_listening
from portico.gateway.routes import Routes
from portico.gateway.server import Gateway

log = logging.getLogger(__name__)


def make_tls(certificate: str, key: str) -> ssl.SSLContext:
    """Return a server's TLS context: TLS 1.2 or later, HTTP/1.1 alone (RFC 7301)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


async def serve(
    config: Config,
    listeners: Mapping[str, socket.socket],
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: The settings.
        listeners: ``listen-portal``, and ``listen-apps`` where apps have a port of their own.
        tls: Where the gateway ends TLS itself.
        limits: Sizes and times.
    """
    limits = limits or Limits()
    limits = replace(limits, connections=raise_descriptor_limit(limits.connections))
    routes = Routes(config.socket_paths["routes"], limits.decisions)
    gateway = Gateway(config.socket_paths["portal"], routes, limits)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    accepting = [
        asyncio.create_task(gateway.listen(make_listening(config, apps_only=name == "listen-apps"), sock, tls))
        for name, sock in listeners.items()
        if name in ("listen-portal", "listen-apps")
    ]
    tasks = [asyncio.create_task(routes.run()), asyncio.create_task(gateway.sweep())]
    ended = asyncio.create_task(_wait(stop))
    log.info("serving %s", config.portal_origin)
    # None of these ends by itself: one that does has failed, and the supervisor starts us anew.
    done, _ = await asyncio.wait([ended, *accepting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await _stop(accepting)
    await gateway.close()
    await _stop([*tasks, ended])
    for task in done - {ended}:
        task.result()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
