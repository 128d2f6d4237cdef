"""The configuration of Portico's own sshd, and what a site adds to its own instead. Pure (sshd_config(5), 9.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from portico.errors import Invalid

LOOPBACK: Final = "localhost:* 127.0.0.1:* [::1]:*"
# What OpenSSH 9 still has for old clients is left out: SHA-1, CBC, NIST curves for key exchange.
_ALGORITHMS: Final = (
    "KexAlgorithms sntrup761x25519-sha512@openssh.com,curve25519-sha256,curve25519-sha256@libssh.org,"
    "diffie-hellman-group16-sha512,diffie-hellman-group18-sha512,diffie-hellman-group-exchange-sha256",
    "Ciphers chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,aes128-ctr",
    "MACs hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,umac-128-etm@openssh.com,hmac-sha2-256,"
    "hmac-sha2-512",
    "RequiredRSASize 2048",
)
# MaxStartups turns anybody away, PerSourceMaxStartups the one source that has too many (sshd_config(5)): while a source
# alone can't reach the first, it locks nobody else out. Who has one IPv6 address has 2^64 of them.
_NOT_LET_IN_YET: Final = ("MaxStartups 100:30:300", "PerSourceMaxStartups 40", "PerSourceNetBlockSize 32:64")
_PATH: Final = re.compile(r"/[A-Za-z0-9._/@+-]{1,200}\Z")


@dataclass(frozen=True)
class Front:
    """What the front door's sshd is made of; all paths absolute.

    Args:
        listen: Addresses to listen on; empty: all.
        look_up: The command that answers for keys and certificates, without its last words.
        account: The POSIX account that runs it.
        group: POSIX group that may come in; empty: everybody (a Portico without root is its owner's alone).
        forwarding: ``yes``, ``loopback`` (to this machine's own ports alone) or ``no``; of TCP.
        banner: File that is shown before anybody is let in; empty: none.
        pam: Whether the site's PAM decides about accounts, as it must where accounts have no password.
    """

    port: int
    listen: tuple[str, ...]
    host_keys: tuple[str, ...]
    look_up: tuple[str, ...]
    account: str
    user_ca: str
    group: str
    forwarding: str = "yes"
    banner: str = ""
    pam: bool = True


def render_config(front: Front) -> str:
    """Return sshd_config.

    Raises:
        Invalid: A path has what can't stand in it.
    """
    lines = [
        f"Port {front.port}",
        *(f"ListenAddress {address}" for address in front.listen),
        *(f"HostKey {_check(path)}" for path in front.host_keys),
        "PidFile none",
        "LogLevel VERBOSE",
        "AuthenticationMethods publickey",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "HostbasedAuthentication no",
        "PermitRootLogin no",
        "PermitUserEnvironment no",
        "PermitTunnel no",
        "AuthorizedKeysFile none",
        *render_look_up(front),
        *([f"AllowGroups {front.group}"] if front.group else []),
        "MaxAuthTries 10",
        *_NOT_LET_IN_YET,
        "LoginGraceTime 30",
        "ClientAliveInterval 30",
        "ClientAliveCountMax 4",
        f"UsePAM {'yes' if front.pam else 'no'}",
        "PrintMotd no" if front.pam else "PrintMotd yes",
        "AcceptEnv LANG LC_* COLORTERM",
        "Subsystem sftp internal-sftp",
        *render_forwarding(front.forwarding),
        *([f"Banner {_check(front.banner)}"] if front.banner else []),
        *_ALGORITHMS,
    ]
    return "\n".join(lines) + "\n"


def render_look_up(front: Front) -> list[str]:
    """Return the lines that have sshd ask Portico.

    In this order: OpenSSH 9.2 passes over an AuthorizedPrincipalsCommand that comes after an AuthorizedKeysCommand, and
    a certificate that was taken back would be good until its end.
    """
    command = " ".join(_check(word) if "/" in word else word for word in front.look_up)
    return [
        f"AuthorizedPrincipalsCommand {command} principals %u %f %s",
        f"AuthorizedPrincipalsCommandUser {front.account}",
        f"AuthorizedKeysCommand {command} keys %u %f",
        f"AuthorizedKeysCommandUser {front.account}",
        f"TrustedUserCAKeys {_check(front.user_ca)}",
    ]


def render_forwarding(forwarding: str) -> list[str]:
    """Return the lines about forwarding. A user with a shell can carry bytes by other means: it is no wall."""
    tcp = {
        "yes": ["AllowTcpForwarding yes"],
        "loopback": ["AllowTcpForwarding yes", f"PermitOpen {LOOPBACK}", "PermitListen localhost:*"],
        "no": ["AllowTcpForwarding no"],
    }[forwarding]
    return [*tcp, "AllowStreamLocalForwarding yes", "StreamLocalBindMask 0177", "AllowAgentForwarding yes",
            "X11Forwarding yes", "X11UseLocalhost yes", "GatewayPorts no"]  # fmt: skip


def render_drop_in(front: Front) -> str:
    """Return what a site puts into /etc/ssh/sshd_config.d/ to have its own sshd ask Portico."""
    match = f"Match Group {front.group}" if front.group else "Match all"
    lines = [*render_look_up(front), "AuthenticationMethods publickey"]
    return "\n".join([match, *(f"    {line}" for line in lines), "Match all"]) + "\n"


def _check(path: str) -> str:
    if not _PATH.match(path):
        raise Invalid(f"sshd can't be given the path {path!r}.", hint="Letters, digits and . _ - @ + are possible.")
    return path
