"""Rows of SSH: public keys, certificates, and the connections that live by them. A part of Transaction."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from portico.errors import Conflict
from portico.model import SshCertificate, SshConnection, SshKey
from portico.store import tables as t


class SshRows:
    """See Transaction."""

    _db: Connection

    # keys

    def add_ssh_key(self, key: SshKey) -> int:
        """Add a key; return its id, for which the one in ``key`` is not looked at.

        Raises:
            Conflict: Its user has it already.
        """
        try:
            return int(self._db.execute(insert(t.ssh_keys).values(_to_row(key, "id"))).lastrowid)
        except IntegrityError:
            raise Conflict("You have this key already.", field="key") from None

    def list_ssh_keys(self, user_name: str) -> list[SshKey]:
        """Return a user's keys, the oldest first."""
        query = select(t.ssh_keys).where(t.ssh_keys.c.user_name == user_name).order_by(t.ssh_keys.c.id)
        return [_to_key(row) for row in self._db.execute(query)]

    def find_ssh_key(self, user_name: str, fingerprint: str) -> SshKey | None:
        """Return a user's key of that fingerprint."""
        c = t.ssh_keys.c
        query = select(t.ssh_keys).where(c.user_name == user_name, c.fingerprint == fingerprint)
        row = self._db.execute(query).first()
        return _to_key(row) if row else None

    def delete_ssh_key(self, user_name: str, key_id: int) -> SshKey | None:
        """Delete one of a user's keys; return it."""
        c = t.ssh_keys.c
        mine = (c.user_name == user_name, c.id == key_id)
        row = self._db.execute(select(t.ssh_keys).where(*mine)).first()
        self._db.execute(delete(t.ssh_keys).where(*mine))
        return _to_key(row) if row else None

    def touch_ssh_key(self, key_id: int, at: datetime, address: str) -> None:
        """Record that a key let its user in."""
        values = {"last_used": at, "last_address": address[:64]}
        self._db.execute(update(t.ssh_keys).where(t.ssh_keys.c.id == key_id).values(values))

    # certificates

    def add_ssh_certificate(self, certificate: SshCertificate) -> int:
        """Add a certificate that is about to be signed; return its serial number, which is a new one."""
        return int(self._db.execute(insert(t.ssh_certificates).values(_to_row(certificate, "serial"))).lastrowid)

    def list_ssh_certificates(self, user_name: str, at: datetime) -> list[SshCertificate]:
        """Return a user's certificates that are good at that time, the oldest first."""
        c = t.ssh_certificates.c
        query = select(t.ssh_certificates).where(c.user_name == user_name, c.expires > at, c.revoked.is_(None))
        return [_to_certificate(row) for row in self._db.execute(query.order_by(c.serial))]

    def find_ssh_certificate(self, user_name: str, serial: int) -> SshCertificate | None:
        """Return a user's certificate, whether it is good or not."""
        c = t.ssh_certificates.c
        row = self._db.execute(select(t.ssh_certificates).where(c.user_name == user_name, c.serial == serial)).first()
        return _to_certificate(row) if row else None

    def revoke_ssh_certificate(self, user_name: str, serial: int, at: datetime) -> bool:
        """Take one of a user's certificates back; return whether it was good."""
        c = t.ssh_certificates.c
        good = (c.user_name == user_name, c.serial == serial, c.expires > at, c.revoked.is_(None))
        return bool(self._db.execute(update(t.ssh_certificates).where(*good).values(revoked=at)).rowcount)

    def touch_ssh_certificate(self, serial: int, at: datetime, address: str) -> None:
        """Record that a certificate let its user in."""
        values = {"last_used": at, "last_address": address[:64]}
        self._db.execute(update(t.ssh_certificates).where(t.ssh_certificates.c.serial == serial).values(values))

    def delete_ssh_certificates(self, before: datetime) -> None:
        """Delete the rows of certificates that expired before a time."""
        self._db.execute(delete(t.ssh_certificates).where(t.ssh_certificates.c.expires < before))

    # connections

    def add_ssh_connection(self, connection: SshConnection, at: datetime) -> None:
        """Record a connection, unless it is known."""
        values = {
            "pid": connection.pid,
            "start_ticks": connection.start_ticks,
            "boot_id": connection.boot_id,
            "credential": connection.credential,
        }
        c = t.ssh_connections.c
        known = select(c.pid).where(*(c[name] == value for name, value in values.items()))
        if self._db.execute(known).first() is None:
            values |= {"user_name": connection.user_name, "at": at}
            self._db.execute(insert(t.ssh_connections).values(values))

    def list_ssh_connections(
        self, *, user_names: Collection[str] = (), credentials: Collection[str] = ()
    ) -> list[SshConnection]:
        """Return the connections of these users, and those that live by these credentials."""
        c = t.ssh_connections.c
        query = select(t.ssh_connections).where(c.user_name.in_(user_names) | c.credential.in_(credentials))
        return [_to_connection(row) for row in self._db.execute(query)]

    def list_all_ssh_connections(self) -> list[SshConnection]:
        """Return all connections."""
        return [_to_connection(row) for row in self._db.execute(select(t.ssh_connections))]

    def delete_ssh_connection(self, connection: SshConnection) -> None:
        """Delete a process with all that it is known by."""
        c = t.ssh_connections.c
        same = (
            c.pid == connection.pid,
            c.start_ticks == connection.start_ticks,
            c.boot_id == connection.boot_id,
        )
        self._db.execute(delete(t.ssh_connections).where(*same))

    def delete_ssh(self, user_name: str) -> None:
        """Delete all keys and certificates of a user; their connections stay known until they are ended."""
        self._db.execute(delete(t.ssh_keys).where(t.ssh_keys.c.user_name == user_name))
        self._db.execute(delete(t.ssh_certificates).where(t.ssh_certificates.c.user_name == user_name))


def _to_row(value: SshKey | SshCertificate, own: str) -> dict[str, Any]:
    row = {name: item for name, item in vars(value).items() if name != own}
    return row | {"sources": " ".join(value.sources)}


def _to_connection(row: Any) -> SshConnection:
    return SshConnection(row.pid, row.start_ticks, row.boot_id, row.credential, row.user_name)


def _to_key(row: Any) -> SshKey:
    return SshKey(**{**row._mapping, "sources": tuple(row.sources.split())})


def _to_certificate(row: Any) -> SshCertificate:
    return SshCertificate(**{**row._mapping, "sources": tuple(row.sources.split())})
