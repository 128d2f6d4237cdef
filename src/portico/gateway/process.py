"""The gateway process: takes its listening sockets, serves until told to end, and leaves sessions alone."""

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
from portico.gateway.metrics import Metrics
from portico.gateway.plane import PlaneLoop
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


def run(
    config: Config,
    listeners: Mapping[str, socket.socket],
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until told to end; see :func:`serve`."""
    with asyncio.Runner(loop_factory=PlaneLoop) as runner:
        runner.run(serve(config, listeners, tls, limits))


async def serve(
    config: Config,
    listeners: Mapping[str, socket.socket],
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve, on a PlaneLoop, until told to end.

    SIGTERM: accept nothing more, let live streams and requests end by themselves, for ``drain_s`` at most; another
    gateway may have taken over the same listening sockets meanwhile. SIGINT, or SIGTERM again: end them now.

    Args:
        config: The settings.
        listeners: ``listen-portal``, and ``listen-apps`` where apps have a port of their own.
        tls: Where the gateway ends TLS itself.
        limits: Sizes and times.
    """
    limits = limits or Limits()
    limits = replace(limits, connections=raise_descriptor_limit(limits.connections))
    metrics = Metrics()
    routes = Routes(config.socket_paths["routes"], limits, metrics, lambda: gateway.render_metrics())
    gateway = Gateway(config.socket_paths["portal"], routes, limits, metrics)
    draining, ending = asyncio.Event(), asyncio.Event()

    def on_term() -> None:
        (ending if draining.is_set() else draining).set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, ending.set)
    accepting = [
        asyncio.create_task(gateway.listen(make_listening(config, apps_only=name == "listen-apps"), sock, tls))
        for name, sock in listeners.items()
        if name in ("listen-portal", "listen-apps")
    ]
    tasks = [asyncio.create_task(routes.run()), asyncio.create_task(gateway.sweep())]
    told = [asyncio.create_task(_wait(draining)), asyncio.create_task(_wait(ending))]
    log.info("serving %s", config.portal_origin)
    # None of the others ends by itself: one that does has failed, and the supervisor starts us anew.
    done, _ = await asyncio.wait([*told, *accepting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await _stop(accepting)
    for sock in listeners.values():
        sock.close()
    if draining.is_set() and not ending.is_set():
        log.info("draining: what is live goes on, nothing new is accepted")
        drain = asyncio.create_task(gateway.drain(limits.drain_s))
        await asyncio.wait([drain, told[1], *tasks], return_when=asyncio.FIRST_COMPLETED)
        await _stop([drain])
    await gateway.close()
    await _stop([*tasks, *told])
    for task in done - set(told):
        task.result()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
