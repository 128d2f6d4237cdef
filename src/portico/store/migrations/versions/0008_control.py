"""Control: shares whose viewer may type and point for a while, and who asks for that."""

import sqlalchemy as sa
from alembic import op

from portico.store.tables import UtcTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("shares", sa.Column("control_until", UtcTime, nullable=True))
    op.add_column("shares", sa.Column("brief", sa.Boolean(), nullable=False, server_default="0"))
    op.create_table(
        "asks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.String(length=12), nullable=False),
        sa.Column("owner_name", sa.String(length=32), nullable=False),
        sa.Column("viewer_name", sa.String(length=32), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("brief", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name=op.f("fk_asks_session_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_asks")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_asks_owner_name"), "asks", ["owner_name"], unique=False)
    op.create_index("uq_asks_session_viewer", "asks", ["session_id", "viewer_name"], unique=True)
