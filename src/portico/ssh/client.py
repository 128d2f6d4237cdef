"""What goes into a person's own ~/.ssh: how to come in, and whom to trust. Pure (ssh_config(5), sshd(8))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from portico.ssh.inner import HOST_ALIAS

INCLUDE: Final = "portico_config"
KNOWN_HOSTS: Final = "portico_known_hosts"
CERTIFIED: Final = "~/.ssh/portico_ed25519"
"""Where `portico ssh login` puts its key."""


def render_ssh_config(*, host: str, port: int, user_name: str, connect: str) -> str:
    """Return the file that ~/.ssh/config includes: ``portico`` is the front door, ``NAME.portico`` a session.

    Args:
        host: The front door, as clients reach it.
        port: Its port.
        user_name: Who comes in.
        connect: The program there that joins a client to a session.
    """
    return f"""\
# Portico at {host}. In ~/.ssh/config, above everything else: Include {INCLUDE}
Host portico
    HostName {host}
    Port {port}
    HostKeyAlias {render_alias(host)}
Host *.portico
    HostKeyAlias {HOST_ALIAS}
    ProxyCommand ssh -q -a -x portico {connect} %n
    CheckHostIP no
Host portico *.portico
    User {user_name}
    UserKnownHostsFile ~/.ssh/{KNOWN_HOSTS}
    StrictHostKeyChecking yes
    IdentityFile {CERTIFIED}
    IdentityFile ~/.ssh/id_ed25519
    IdentityFile ~/.ssh/id_ecdsa
    IdentityFile ~/.ssh/id_rsa
    ServerAliveInterval 30
"""


def render_known_hosts(*, host: str, host_keys: Sequence[str], host_ca: str) -> str:
    """Return whom to trust: the front door's own keys, and for sessions whatever this installation's CA has signed.

    Args:
        host: The front door, as clients reach it.
        host_keys: Lines of .pub files.
        host_ca: Line of the CA's .pub file.
    """
    lines = [f"{render_alias(host)} {_take_key(line)}" for line in host_keys]
    return "\n".join([*lines, f"@cert-authority {HOST_ALIAS} {_take_key(host_ca)}"]) + "\n"


def render_alias(host: str) -> str:
    """Return the name by which clients know the front door's keys, whatever address they reach it by."""
    return f"portico-{host}"


def _take_key(line: str) -> str:
    kind, body = line.split()[:2]
    return f"{kind} {body}"
