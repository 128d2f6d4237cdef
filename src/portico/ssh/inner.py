"""What a second sshd inside a session is given: configuration and keys. Pure (sshd(8), sshd_config(5), 9.2).

Whoever starts it (the agent, or the relay on a node) writes these files into a folder of the session's own, 0700, and
puts that folder's path and the job's environment where FOLDER and ENVIRONMENT stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from portico.ssh.front import render_forwarding

FOLDER: Final = "@FOLDER@"
ENVIRONMENT: Final = "@ENVIRONMENT@"
HOST_ALIAS: Final = "portico-session"
"""The name that sessions' host certificates are for; clients look for nothing else (HostKeyAlias)."""


def render_config(forwarding: str) -> str:
    """Return sshd_config for a session. It runs as its user, who alone can come in, and listens on nothing."""
    lines = [
        f"HostKey {FOLDER}/host_key",
        f"HostCertificate {FOLDER}/host_key-cert.pub",
        f"AuthorizedKeysFile {FOLDER}/authorized_keys",
        "PidFile none",
        "UsePAM no",
        "StrictModes no",  # the folder is 0700, but homes above it may be anything
        "AuthenticationMethods publickey",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitUserEnvironment no",
        "PermitTunnel no",
        "PrintMotd yes",  # of the machine that it runs on
        "PrintLastLog no",
        "MaxAuthTries 20",
        "LoginGraceTime 60",
        "ClientAliveInterval 30",
        "ClientAliveCountMax 4",
        "AcceptEnv LANG LC_* COLORTERM",
        f"SetEnv {ENVIRONMENT}",
        "Subsystem sftp internal-sftp",
        *render_forwarding(forwarding),
    ]
    return "\n".join(lines) + "\n"


def render_authorized_keys(keys: Iterable[tuple[str, str]]) -> str:
    """Return the file for these keys, each a kind and its base64."""
    return "".join(f"{kind} {body}\n" for kind, body in keys)


def render_files(
    *, host_key: str, host_certificate: str, keys: Sequence[tuple[str, str]], forwarding: str
) -> dict[str, str]:
    """Return all files by name."""
    return {
        "sshd_config": render_config(forwarding),
        "host_key": host_key,
        "host_key-cert.pub": host_certificate,
        "authorized_keys": render_authorized_keys(keys),
    }
