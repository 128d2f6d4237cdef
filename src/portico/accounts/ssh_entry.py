"""Who gets in by SSH: what sshd's look-ups are answered, what its log says, and which connections are ended.

A look-up comes from the sshd process of one connection, which is kept with the key or certificate that was good. When
that is taken back, or the user locked, the broker ends the process.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from portico.accounts.ssh_failures import FailureRow
from portico.config import Config
from portico.errors import NotFound, PorticoError, Unavailable
from portico.model import USER_NAME, SshConnection, UserState, now
from portico.ssh.log import Accepted
from portico.store import Store, Transaction

log = logging.getLogger(__name__)

KEPT: Final = timedelta(days=7)
"""Rows of connections are looked through so long; a connection lives as long as its process does."""


@dataclass(frozen=True)
class Process:
    """An sshd process, as its look-up saw it."""

    pid: int
    start_ticks: int
    boot_id: str


class SshEntry:
    """What sshd asks and says.

    Args:
        end: Ends an sshd process, if it still is the one that let this user in.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        end: Callable[[SshConnection], Awaitable[None]],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._config = config
        self._end = end
        self._clock = clock

    # look-ups

    def find_keys(self, user_name: str, fingerprint: str, process: Process | None) -> list[str]:
        """Return the lines of authorized_keys (sshd(8)) that let this key in; none where it is not good now."""

        def find(tx: Transaction) -> tuple[str, list[str]]:
            key = tx.find_ssh_key(user_name, fingerprint) if self._may_come(tx, user_name) else None
            if key is None or _is_over(key.expires, self._clock()) or not self._are_keys_good(tx, user_name):
                return "", []
            options = f'from="{",".join(key.sources)}" ' if key.sources else ""
            return f"key:{key.id}", [f"{options}{key.kind} {key.body}"]

        return self._find(find, process, user_name)

    def find_principals(self, user_name: str, fingerprint: str, serial: int, process: Process | None) -> list[str]:
        """Return the one principal that lets a certificate in as this user; none where it was taken back.

        That it was signed by us, holds now and comes from the right address, sshd looks at itself.
        """

        def find(tx: Transaction) -> tuple[str, list[str]]:
            one = tx.find_ssh_certificate(user_name, serial) if self._may_come(tx, user_name) else None
            if one is None or one.fingerprint != fingerprint or one.revoked or _is_over(one.expires, self._clock()):
                return "", []
            return f"certificate:{serial}", [user_name]

        return self._find(find, process, user_name)

    def list_inner(self, user_name: str) -> list[tuple[str, str]]:
        """Return the keys, each a kind and its base64, that are good inside a session now."""
        at = self._clock()
        with self._store.read() as tx:
            found = [(one.kind, one.body) for one in tx.list_ssh_certificates(user_name, at)]
            if self._are_keys_good(tx, user_name):
                keys = tx.list_ssh_keys(user_name)
                found += [(key.kind, key.body) for key in keys if not _is_over(key.expires, at)]
        return list(dict.fromkeys(found))

    def _may_come(self, tx: Transaction, user_name: str) -> bool:
        user = tx.find_user(user_name) if USER_NAME.match(user_name) else None
        return user is not None and user.state is UserState.ACTIVE

    def _are_keys_good(self, tx: Transaction, user_name: str) -> bool:
        """Return whether the site takes plain keys of this user now."""
        if not self._config.ssh_keys:
            return False
        if not self._config.ssh_sign_in_hours:
            return True
        user = tx.find_user(user_name)
        since = self._clock() - timedelta(hours=self._config.ssh_sign_in_hours)
        return user is not None and any(one.created >= since for one in tx.list_sign_ins(self._clock(), user.id))

    def _find(
        self, find: Callable[[Transaction], tuple[str, list[str]]], process: Process | None, user_name: str
    ) -> list[str]:
        """Look, and keep which connection it is at once: what is taken back afterwards finds it."""
        try:
            with self._store.begin() as tx:
                credential, lines = find(tx)
                if lines and process:
                    one = SshConnection(process.pid, process.start_ticks, process.boot_id, credential, user_name)
                    tx.add_ssh_connection(one, self._clock())
        except Unavailable as error:  # a full disk must not keep anybody out
            log.error("an SSH connection of %s is not kept: %s", user_name, error)
            with self._store.read() as tx:
                _, lines = find(tx)
        return lines

    # what sshd's log says

    def record(self, accepted: Accepted) -> None:
        """Take down that somebody was let in."""
        at = self._clock()
        with self._store.begin() as tx:
            if accepted.serial is None:
                key = tx.find_ssh_key(accepted.user_name, accepted.fingerprint)
                detail = f"key {accepted.fingerprint}"
                if key:
                    tx.touch_ssh_key(key.id, at, accepted.address)
            else:
                detail = f"certificate {accepted.serial}"
                if tx.find_ssh_certificate(accepted.user_name, accepted.serial):
                    tx.touch_ssh_certificate(accepted.serial, at, accepted.address)
            tx.add_audit(accepted.user_name, "ssh:sign-in", accepted.user_name, detail, accepted.address)

    def record_failures(self, rows: Sequence[FailureRow]) -> None:
        """Take down who was not let in."""
        if rows:
            with self._store.begin() as tx:
                for row in rows:
                    tx.add_audit("", "ssh:fail", row.names, row.detail, row.address)

    # what ends

    async def cut(self, tags: Sequence[str]) -> None:
        """End what lives by these: ``user:alice``, ``key:3``, ``certificate:4``; other tags are nothing to SSH."""
        users = [tag.removeprefix("user:") for tag in tags if tag.startswith("user:")]
        credentials = [tag for tag in tags if tag.startswith(("key:", "certificate:"))]
        if not users and not credentials:
            return
        with self._store.read() as tx:
            found = tx.list_ssh_connections(user_names=users, credentials=credentials)
        for connection in found:
            try:
                await self._end(connection)
            except NotFound:
                pass  # it has ended by itself
            except PorticoError as error:
                log.error("an SSH connection of %s does not end: %s %s", connection.user_name, error.message, error.why)
                continue
            with self._store.begin() as tx:
                tx.delete_ssh_connection(connection)

    def tidy(self, is_there: Callable[[SshConnection], bool]) -> None:
        """Forget connections that have ended, and certificates long expired.

        Args:
            is_there: Whether that process is there.
        """
        with self._store.read() as tx:
            gone = [one for one in tx.list_all_ssh_connections() if not is_there(one)]
        with self._store.begin() as tx:
            for one in gone:
                tx.delete_ssh_connection(one)
            tx.delete_ssh_certificates(self._clock() - KEPT)


def _is_over(expires: datetime | None, at: datetime) -> bool:
    return expires is not None and expires <= at
