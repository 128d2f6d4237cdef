"""What sshd says in its log. Pure: lines in, events out (auth.c and packet.c of OpenSSH 9.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Anchored: a stranger's text (a user name that does not exist) never stands at the beginning of such a line.
_ACCEPTED: Final = re.compile(
    r"Accepted publickey for (?P<user>[a-z_][a-z0-9_-]{0,31}) from (?P<address>[0-9a-fA-F.:%]+) port \d+ ssh2: "
    r"(?P<kind>\S+) (?P<fingerprint>SHA256:\S+)(?: ID .* \(serial (?P<serial>\d+)\) CA \S+ SHA256:\S+)?\Z"
)
# One such line for each connection that has named a user and was not let in, however many keys it tried. The name is a
# stranger's and may look like anything; what follows it is sshd's, so the last address is the true one.
_FAILED: Final = re.compile(
    r"(?:Connection (?:closed|reset) by|Disconnected from|Disconnecting) (?:authenticating|invalid) user "
    r"(?P<user>.*) (?P<address>[0-9a-fA-F.:]{2,45}(?:%\w{1,16})?) port \d{1,5}(?:: [^:]{0,100})? \[preauth\]\Z",
    re.DOTALL,
)


@dataclass(frozen=True)
class Accepted:
    """Somebody was let in. ``serial`` is that of the certificate, None for a plain key."""

    user_name: str
    address: str
    fingerprint: str
    serial: int | None


@dataclass(frozen=True)
class Failed:
    """Somebody was not let in. ``user_name`` is what they said, as sshd shows it."""

    user_name: str
    address: str


def parse_line(line: str) -> Accepted | Failed | None:
    """Return what a line tells, without a time before it; None for any other line."""
    match = _ACCEPTED.match(line)
    if match is None:
        found = _FAILED.match(line)
        return Failed(found["user"], found["address"]) if found else None
    serial = match["serial"]
    return Accepted(match["user"], match["address"], match["fingerprint"], None if serial is None else int(serial))
