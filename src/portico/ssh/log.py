"""What sshd says in its log. Pure: lines in, events out (auth.c of OpenSSH 9.2, auth_log)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Anchored: a stranger's text (a user name that does not exist) never stands at the beginning of such a line.
_ACCEPTED: Final = re.compile(
    r"Accepted publickey for (?P<user>[a-z_][a-z0-9_-]{0,31}) from (?P<address>[0-9a-fA-F.:%]+) port \d+ ssh2: "
    r"(?P<kind>\S+) (?P<fingerprint>SHA256:\S+)(?: ID .* \(serial (?P<serial>\d+)\) CA \S+ SHA256:\S+)?\Z"
)


@dataclass(frozen=True)
class Accepted:
    """Somebody was let in. ``serial`` is that of the certificate, None for a plain key."""

    user_name: str
    address: str
    fingerprint: str
    serial: int | None


def parse_line(line: str) -> Accepted | None:
    """Return what a line tells, without a time before it; None for any other line."""
    match = _ACCEPTED.match(line)
    if match is None:
        return None
    serial = match["serial"]
    return Accepted(match["user"], match["address"], match["fingerprint"], None if serial is None else int(serial))
