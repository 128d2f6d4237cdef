"""What ``portico up`` runs, and the environment, descriptors and uid that each process gets.

Pure: starts nothing. The supervisor does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from portico.cli.place import Account
from portico.cli.process import render_settings
from portico.cli.supervisor import Program
from portico.config import COMMAND_LINE_ONLY, Config

STOP_ORDER: Final = ("sshd", "gateway", "rendezvous", "portal", "broker")
PASSED_ON: Final = ("LANG", "LC_ALL", "TZ", "PYTHONPATH", "PYTHONWARNINGS", "PYTHONDEVMODE")
"""Variables of the one who starts Portico that its processes see; none of them reaches a user's session."""

FIXED: Final = COMMAND_LINE_ONLY | {"bind", "port", "apps_port", "apps_domain", "relay_port", "ssh_port"}
"""Settings that only a new start can change: sockets, folders and sessions' cells hang on them."""

GATEWAY_ONLY: Final = frozenset({"tls_certificate", "tls_key", "gateways"})
"""Settings that the portal and the broker don't look at (but whether there is TLS)."""


def keep_fixed(wanted: Config, running: Config) -> tuple[Config, list[str]]:
    """Return ``wanted`` with what can't change while Portico runs as it is, and the names of what was kept so."""
    kept = [name for name in sorted(FIXED) if getattr(wanted, name) != getattr(running, name)]
    return replace(wanted, **{name: getattr(running, name) for name in FIXED}), kept


def concerns_portal(wanted: Config, running: Config) -> bool:
    """Return whether broker and portal need a new start for these settings."""
    changed = {field.name for field in fields(Config) if getattr(wanted, field.name) != getattr(running, field.name)}
    return bool(changed - GATEWAY_ONLY) or wanted.scheme != running.scheme


def concerns_sshd(wanted: Config, running: Config) -> bool:
    """Return whether sshd needs a new start for these settings; connections that are there go on."""
    return any(getattr(wanted, name) != getattr(running, name) for name in ("ssh_forwarding", "ssh_banner"))


@dataclass(frozen=True)
class Programs:
    """What is to run; a rendezvous only where there are clusters whose sessions dial in."""

    broker: Program
    portal: Program
    rendezvous: Program | None
    sshd: Program | None
    gateways: list[Program]

    @property
    def all(self) -> list[Program]:
        """All of them, in the order of their start."""
        maybe = [program for program in (self.rendezvous, self.sshd) if program]
        return [self.broker, self.portal, *maybe, *self.gateways]


def build_programs(config: Config, account: Account, sockets: Mapping[str, socket.socket], admin: str) -> Programs:
    """Return what is to run.

    Args:
        config: The settings, with the certificate where gateways can read it.
        account: Whom portal and gateways run as.
        sockets: The listening sockets, by the names of docs/protocol.md.
        admin: Whom the portal makes where there is no such user.

    """
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env |= {"PORTICO_SETTINGS": render_settings(config), "PYTHONUNBUFFERED": "1"}
    if not config.multi_user:
        own_names = ("HOME", "USER", "LOGNAME", "SHELL", "XDG_RUNTIME_DIR")
        env |= {name: os.environ[name] for name in own_names if name in os.environ}
    fds = {name: sock.fileno() for name, sock in sockets.items()}
    public = {name: fd for name, fd in fds.items() if name in ("listen-portal", "listen-apps")}
    uid, gid = (account.uid, account.gid) if config.multi_user else (None, None)
    python = (sys.executable, "-s", "-P", "-m", "portico.cli.process")
    own = env | {"PORTICO_ADMIN": admin} | ({"HOME": config.state_dir} if config.multi_user else {})
    internal = {name: fds[name] for name in ("portal", "api", "routes", "relays", "ssh")}
    names = [f"gateway-{number}" for number in range(1, config.gateways + 1)]
    gateways = [
        Program(name, (*python, name), own, public, uid, gid, signal.SIGINT, has_siblings=len(names) > 1)
        for name in names
    ]
    dialled = {"listen-relays": fds["listen-relays"]} if "listen-relays" in fds else {}
    return Programs(
        broker=Program("broker", (*python, "broker"), env, {"broker": fds["broker"]}),
        portal=Program("portal", (*python, "portal"), own, internal, uid, gid),
        rendezvous=Program("rendezvous", (*python, "rendezvous"), own, dialled, uid, gid) if dialled else None,
        # Without it all else is of use: it is started again and again, and never given up.
        sshd=Program("sshd", (*python, "sshd"), env, has_siblings=True) if config.ssh_port else None,
        gateways=gateways,
    )
