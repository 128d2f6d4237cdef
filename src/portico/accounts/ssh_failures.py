"""Who was not let in by SSH, for the audit log: added up, so that a flood of attempts is no flood of rows."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from portico.model import USER_NAME
from portico.ssh.log import Failed

WINDOW_S: Final = 30.0
"""The first attempt from an address is told at once, what follows it once in so long."""
ROWS: Final = 20
"""So many addresses are told of in that time; the others together, in one row more."""
ADDRESSES: Final = 1000
NAMES: Final = 3
NAME_LIMIT: Final = 32


@dataclass(frozen=True)
class FailureRow:
    """A row of the audit log. ``names`` are bounded and printable."""

    names: str
    detail: str
    address: str


@dataclass
class _Tally:
    due: float
    count: int = 0
    addresses: int = 0
    names: dict[str, None] = field(default_factory=dict)
    has_more: bool = False

    def add(self, name: str) -> None:
        if name not in self.names and len(self.names) == NAMES:
            self.has_more = True
        else:
            self.names[name] = None

    def take(self, address: str) -> FailureRow:
        connections = f"{self.count} connection{'s' if self.count > 1 else ''}"
        if self.addresses:
            connections += f" from {self.addresses} more address{'es' if self.addresses > 1 else ''}"
        row = FailureRow(", ".join([*self.names, *(["…"] if self.has_more else [])]), connections, address)
        self.count = self.addresses = 0
        self.names, self.has_more = {}, False
        return row


class SshFailures:
    """Attempts that were not told yet. Of one thread.

    Args:
        clock: Seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tallies: dict[str, _Tally] = {}
        self._rest = _Tally(clock())
        self._told: list[float] = []

    def add(self, failed: Failed) -> None:
        """Add one."""
        key = _find_network(failed.address)
        tally = self._tallies.get(key)
        if tally is None and len(self._tallies) < ADDRESSES:
            tally = self._tallies[key] = _Tally(self._clock())
        if tally is None:
            tally = self._rest
            tally.addresses += 1
        tally.count += 1
        tally.add(clean_name(failed.user_name))

    def take(self, *, everything: bool = False) -> list[FailureRow]:
        """Return what is to be told now, or all that was not; never more than ROWS + 1 rows in WINDOW_S."""
        now = self._clock()
        self._told = [at for at in self._told if now - at < WINDOW_S]
        rows = []
        for key, tally in list(self._tallies.items()):
            if now < tally.due and not everything:
                continue
            if not tally.count:
                del self._tallies[key]
                continue
            if len(self._told) < ROWS:
                self._told.append(now)
                rows.append(tally.take(key))
            else:
                self._rest.count += tally.count
                self._rest.addresses += 1
                for name in tally.names:
                    self._rest.add(name)
                self._rest.has_more |= tally.has_more
                tally.take(key)
            tally.due = now + WINDOW_S
        if self._rest.count and (now >= self._rest.due or everything):
            self._rest.due = now + WINDOW_S
            rows.append(self._rest.take(""))
        return rows


def clean_name(text: str) -> str:
    """Return a name that a stranger gave, short and printable; one that is no user name, in quotes."""
    if USER_NAME.match(text):
        return text
    return ascii(text[:NAME_LIMIT]) + ("…" if len(text) > NAME_LIMIT else "")


def _find_network(address: str) -> str:
    """Return the address, or of IPv6 the /64, which one guest of a network has (RFC 6177)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address) or found.is_loopback:
        return str(found)
    return str(ipaddress.ip_network((found, 64), strict=False))
