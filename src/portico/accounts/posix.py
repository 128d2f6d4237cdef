"""The seam to POSIX accounts: what accounts/ needs of them; sessions/machine.py does it through the broker."""

from __future__ import annotations

from typing import Protocol


class PosixAccounts(Protocol):
    """Makes, locks and removes POSIX accounts, each of the same name as its user.

    Every method raises PorticoError: Conflict where policy forbids it, Unavailable where it failed.
    """

    async def make(self, name: str) -> None:
        """Make the account, unless it is there."""

    async def lock(self, name: str, locked: bool) -> None:
        """Lock or unlock it; NotFound where there is none yet."""

    async def remove(self, name: str, remove_home: bool) -> None:
        """End its processes and remove it; NotFound where there is none."""
