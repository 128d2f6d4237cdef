"""What a public listener serves, and who is at the other end: Host headers and forwarded addresses, judged exactly."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from portico.config import LOOPBACK_HOSTS, Config
from portico.gateway.head import Request

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Peer(NamedTuple):
    """Who is at the other end, as far as we believe it."""

    address: str
    scheme: str


@dataclass(frozen=True)
class Listening:
    """What one public listener serves: ``portal``, ``apps``, or both, told apart by the Host header."""

    portal_hosts: frozenset[str]
    app_hosts: frozenset[str]
    apps_domain: str
    scheme: str
    trusted_proxies: frozenset[str] = frozenset()

    def find_listener(self, host: str) -> str:
        """Return which of the two a Host header means; empty for neither. Exact, after lower-casing."""
        host = host.lower()
        if host in self.app_hosts:
            return "apps"
        if host in self.portal_hosts:
            return "portal"
        label, _, rest = host.partition(".")
        if self.apps_domain and rest == self.apps_domain and _LABEL.match(label):
            return "apps"
        return ""

    def find_peer(self, request: Request, address: str) -> Peer:
        """Return whose request it is: the connection's peer, or whom a trusted proxy names."""
        if not self.trusts(address):
            return Peer(address, self.scheme)
        scheme = request.get(b"x-forwarded-proto").strip().lower()
        named = [
            part.strip()
            for name, value in request.headers
            if name.lower() == b"x-forwarded-for"
            for part in value.decode("latin-1").split(",")
        ]
        while named:  # from the right: each entry was written by the proxy to the right of it (RFC 7239, 7.4)
            found = normalise_address(named.pop())
            if not found:
                break
            if not self.trusts(found):
                address = found
                break
        return Peer(address, scheme if scheme in _DEFAULT_PORTS else self.scheme)

    def trusts(self, address: str) -> bool:
        """Return whether ``address`` is a proxy of ours."""
        if not self.trusted_proxies:
            return False
        if address in self.trusted_proxies:
            return True
        return any("/" in one and _is_within(address, one) for one in self.trusted_proxies)


def normalise_address(text: str) -> str:
    """Return an IP address in its one usual form, IPv4 mapped into IPv6 as IPv4; empty where it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def find_household(address: str) -> str:
    """Return what a limit per address counts: the address, or the /64 that one customer of IPv6 has (RFC 6177)."""
    return address if ":" not in address else str(ipaddress.ip_network(f"{address}/64", strict=False))


def make_listening(config: Config, apps_only: bool) -> Listening:
    """Return what a listener serves, by the exact Host headers that it answers to."""
    apps = urlsplit(config.get_apps_origin("x"))
    hosts = _find_hosts(config, apps.netloc if apps_only else urlsplit(config.portal_origin).netloc, apps_only)
    return Listening(
        portal_hosts=frozenset() if apps_only else hosts,
        app_hosts=hosts if apps_only else frozenset(),
        apps_domain="" if apps_only or not config.apps_domain else apps.netloc.lower().removeprefix("x."),
        scheme="https" if config.tls_certificate else "http",
        trusted_proxies=frozenset(normalise_address(one) or one for one in config.trusted_proxies),
    )


def _find_hosts(config: Config, netloc: str, apps_only: bool) -> frozenset[str]:
    hosts = {netloc.lower()}
    if config.host in LOOPBACK_HOSTS and not config.public_url:
        port = config.apps_port if apps_only else config.port
        hosts |= {f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in LOOPBACK_HOSTS}
    default = f":{_DEFAULT_PORTS[config.scheme]}"
    for host in list(hosts):  # a port that goes without saying may be said (RFC 9110, 4.2.3)
        hosts.add(host.removesuffix(default))
        if host.rpartition("]")[2].count(":") == 0:
            hosts.add(host + default)
    return frozenset(hosts)


def _is_within(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
