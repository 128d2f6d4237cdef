"""Events: what they are, their files, seats and registrations."""

import sqlalchemy as sa
from alembic import op

from portico.store.tables import UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(length=40), nullable=False),
        sa.Column("title", sa.String(length=100), nullable=False),
        sa.Column("organiser_name", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created", UtcTime, nullable=False),
        sa.Column("begins", UtcTime, nullable=False),
        sa.Column("ends", UtcTime, nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("ended", UtcTime, nullable=True),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("next_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("slug", name=op.f("uq_events_slug")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_organiser_name"), "events", ["organiser_name"], unique=False)
    op.create_table(
        "event_files",
        sa.Column("id", sa.Integer(), nullable=False),
        _event("event_files"),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("media_type", sa.String(length=40), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_files")),
    )
    op.create_index("uq_event_files_event_kind_name", "event_files", ["event_id", "kind", "name"], unique=True)
    op.create_table(
        "seats",
        sa.Column("id", sa.Integer(), nullable=False),
        _event("seats"),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("secret", sa.Text(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("taken", UtcTime, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_seats")),
        sa.UniqueConstraint("name", name=op.f("uq_seats_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "registrations",
        sa.Column("id", sa.Integer(), nullable=False),
        _event("registrations"),
        sa.Column("token_hash", sa.String(length=64), nullable=True),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.Column("accepted", sa.JSON(), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("seat_name", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registrations")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_registrations_token_hash")),
        sa.UniqueConstraint("seat_name", name=op.f("uq_registrations_seat_name")),
        sqlite_autoincrement=True,
    )
    for table in ("event_files", "seats", "registrations"):
        op.create_index(op.f(f"ix_{table}_event_id"), table, ["event_id"], unique=False)


def _event(table: str) -> sa.Column[int]:
    key = sa.ForeignKey("events.id", name=op.f(f"fk_{table}_event_id"), ondelete="CASCADE")
    return sa.Column("event_id", sa.Integer(), key, nullable=False)
