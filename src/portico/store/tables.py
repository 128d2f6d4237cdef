"""The tables. Times are UTC, kept as ISO 8601 text; a secret is kept as its hash, never in clear."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time as text that sorts as time does."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """Render; a naive time is a defect."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time")
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Parse."""
        return datetime.fromisoformat(value) if value else None


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(32), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("password", Text),
    Column("created", UtcTime, nullable=False),
    sqlite_autoincrement=True,  # an id is never given twice, so no old row can come to mean a new user
)


def _user() -> Column[int]:
    return Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True)


codes = Table(
    "codes",
    metadata,
    Column("hash", String(64), primary_key=True),
    _user(),
    Column("expires", UtcTime, nullable=False),
)

sign_ins = Table(
    "sign_ins",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    _user(),
    Column("created", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("expires", UtcTime, nullable=False),
    Column("address", String(64), nullable=False),
    Column("browser", String(200), nullable=False),
    sqlite_autoincrement=True,
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    _user(),
    Column("label", String(100), nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("last_used", UtcTime),
    Column("expires", UtcTime, nullable=False),
    sqlite_autoincrement=True,
)

failures = Table(
    "failures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(32), nullable=False),
    Column("address", String(64), nullable=False),
    Column("at", UtcTime, nullable=False, index=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("user_name", String(32), nullable=False, index=True),
    Column("app_id", String(64), nullable=False),
    Column("title", String(100), nullable=False),
    Column("cluster", String(32), nullable=False),
    Column("reach", String(8), nullable=False),
    Column("cores", Float, nullable=False),
    Column("memory_bytes", Integer, nullable=False),
    Column("hours", Float, nullable=False),
    Column("values", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("waiting_for", Text, nullable=False),
    Column("reason", String(32)),
    Column("detail", Text, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("started", UtcTime),
    Column("ready", UtcTime),
    Column("ends", UtcTime),
    Column("ended", UtcTime),
    Column("placement", JSON, nullable=False, server_default="{}"),
    Column("node_name", String(100), nullable=False, server_default=""),
    Column("position", Integer, nullable=False, server_default="0"),
    Column("expected_start", UtcTime),
    Column("restarts", Integer, nullable=False, server_default="0"),
    Column("put_back", Text, nullable=False, server_default=""),
)

shares = Table(
    "shares",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("owner_name", String(32), nullable=False),
    Column("viewer_name", String(32), nullable=False, index=True),
    Column("created", UtcTime, nullable=False),
    Column("control_until", UtcTime),
    Column("brief", Boolean, nullable=False, server_default="0"),
    Index("uq_shares_session_viewer", "session_id", "viewer_name", unique=True),
    sqlite_autoincrement=True,
)

asks = Table(
    "asks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("owner_name", String(32), nullable=False, index=True),
    Column("viewer_name", String(32), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("brief", Boolean, nullable=False),
    Index("uq_asks_session_viewer", "session_id", "viewer_name", unique=True),
    sqlite_autoincrement=True,  # an answer is to one question: no number is given twice
)


def _pass(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("hash", String(64), primary_key=True),
        Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
        Column("sign_in_id", ForeignKey("sign_ins.id", ondelete="CASCADE"), nullable=False, index=True),
        Column("user_name", String(32), nullable=False),
        Column("expires", UtcTime, nullable=False),
    )


tickets = _pass("tickets")
"""One-time, from the portal to an app's own origin."""
grants = _pass("grants")
"""What a ticket became: the cookie of one app in one browser."""

notices = Table(
    "notices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_name", String(32), nullable=False, index=True),
    Column("at", UtcTime, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("path", String(200), nullable=False),
    Column("text", Text, nullable=False),
    Column("hint", Text, nullable=False),
    sqlite_autoincrement=True,
)

ssh_keys = Table(
    "ssh_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_name", String(32), nullable=False),
    Column("label", String(100), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("bits", Integer, nullable=False),
    Column("sources", Text, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("expires", UtcTime),
    Column("last_used", UtcTime),
    Column("last_address", String(64), nullable=False),
    Index("uq_ssh_keys_user_fingerprint", "user_name", "fingerprint", unique=True),
    sqlite_autoincrement=True,
)

ssh_certificates = Table(
    "ssh_certificates",
    metadata,
    Column("serial", Integer, primary_key=True),
    Column("user_name", String(32), nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("sources", Text, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("expires", UtcTime, nullable=False),
    Column("revoked", UtcTime),
    Column("last_used", UtcTime),
    Column("last_address", String(64), nullable=False),
    sqlite_autoincrement=True,  # a serial number is never given twice
)

ssh_connections = Table(
    "ssh_connections",
    metadata,
    Column("pid", Integer, primary_key=True, autoincrement=False),
    Column("start_ticks", Integer, primary_key=True, autoincrement=False),
    Column("boot_id", String(36), primary_key=True),
    Column("credential", String(32), primary_key=True),
    Column("user_name", String(32), nullable=False, index=True),
    Column("at", UtcTime, nullable=False),
)
"""sshd processes that asked for a key or a certificate and got it: ``credential`` is ``key:3`` or ``certificate:4``."""

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("slug", String(40), nullable=False, unique=True),
    Column("title", String(100), nullable=False),
    Column("organiser_name", String(32), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("begins", UtcTime, nullable=False),
    Column("ends", UtcTime, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("ended", UtcTime),
    Column("summary", JSON, nullable=False),
    Column("history", JSON, nullable=False, server_default="[]"),
    Column("next_number", Integer, nullable=False),  # of the next seat: no name is given twice
    sqlite_autoincrement=True,
)


def _event() -> Column[int]:
    return Column("event_id", ForeignKey("events.id", ondelete="CASCADE"), nullable=False, index=True)


event_files = Table(
    "event_files",
    metadata,
    Column("id", Integer, primary_key=True),
    _event(),
    Column("kind", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    Column("media_type", String(40), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("uq_event_files_event_kind_name", "event_id", "kind", "name", unique=True),
)

seats = Table(
    "seats",
    metadata,
    Column("id", Integer, primary_key=True),
    _event(),
    Column("name", String(32), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("secret", Text),
    Column("trouble", Text, nullable=False),
    Column("taken", UtcTime),
    sqlite_autoincrement=True,
)

registrations = Table(
    "registrations",
    metadata,
    Column("id", Integer, primary_key=True),
    _event(),
    Column("token_hash", String(64), unique=True),
    Column("answers", JSON, nullable=False),
    Column("accepted", JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("address", String(64), nullable=False),
    Column("seat_name", String(32), unique=True),  # none: it waits for one
    sqlite_autoincrement=True,
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String(32), nullable=False, index=True),
    Column("action", String(40), nullable=False),
    Column("target", String(100), nullable=False),
    Column("detail", Text, nullable=False),
    Column("address", String(64), nullable=False),
    sqlite_autoincrement=True,
)
