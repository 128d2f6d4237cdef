"""The gateway process: takes its listening sockets, serves until SIGTERM, and leaves sessions alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from portico.config import LOOPBACK_HOSTS, Config
from portico.gateway.http import HEAD_LIMIT_BYTES
from portico.gateway.routes import Routes
from portico.gateway.server import Gateway, Listening

log = logging.getLogger(__name__)

DRAIN_S: Final = 3.0


def make_listening(config: Config, apps_only: bool) -> Listening:
    """Return what a listener serves, by the exact Host headers that it answers to."""
    portal_hosts = _find_hosts(config, urlsplit(config.portal_origin).netloc, config.port)
    app_hosts: set[str] = set()
    if not config.apps_domain:
        app_hosts = _find_hosts(config, urlsplit(config.get_apps_origin("x")).netloc, config.apps_port)
    return Listening(
        portal_hosts=frozenset() if apps_only else frozenset(portal_hosts),
        app_hosts=frozenset(app_hosts) if apps_only else frozenset(),
        apps_domain="" if apps_only else _with_port(config.apps_domain, config),
        scheme="https" if config.tls_certificate else "http",
        trusted_proxies=frozenset(config.trusted_proxies),
    )


def _find_hosts(config: Config, netloc: str, port: int) -> set[str]:
    hosts = {netloc.lower()}
    if config.host in LOOPBACK_HOSTS and not config.public_url:
        names = [f"[{name}]" if ":" in name else name for name in LOOPBACK_HOSTS]
        hosts |= {f"{name}:{port}" for name in names}
        if port == (443 if config.tls_certificate else 80):
            hosts |= set(names)
    return hosts


def _with_port(domain: str, config: Config) -> str:
    if not domain:
        return ""
    return urlsplit(config.get_apps_origin("x")).netloc.lower().removeprefix("x.")


def make_tls(certificate: str, key: str) -> ssl.SSLContext:
    """Return a server's TLS context: TLS 1.2 or later, HTTP/1.1 alone (RFC 7301)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


async def serve(config: Config, listeners: Mapping[str, socket.socket], tls: ssl.SSLContext | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: The settings.
        listeners: ``listen-portal``, and ``listen-apps`` where apps have a port of their own.
        tls: Where the gateway ends TLS itself.
    """
    routes = Routes(config.socket_paths["routes"])
    gateway = Gateway(config.socket_paths["portal"], routes)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = []
    for name in ("listen-portal", "listen-apps"):
        if name in listeners:
            listening = make_listening(config, apps_only=name == "listen-apps")
            servers.append(
                await asyncio.start_server(
                    lambda reader, writer, listening=listening: gateway.serve(listening, reader, writer),  # type: ignore[misc]
                    sock=listeners[name],
                    ssl=tls,
                    ssl_handshake_timeout=10 if tls else None,
                    limit=HEAD_LIMIT_BYTES * 2,
                    backlog=1024,
                )
            )
    tasks = [asyncio.ensure_future(routes.run()), asyncio.ensure_future(gateway.sweep())]
    log.info("serving %s", config.portal_origin)
    await stop.wait()
    for server in servers:
        server.close()
    await gateway.close(DRAIN_S)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)
