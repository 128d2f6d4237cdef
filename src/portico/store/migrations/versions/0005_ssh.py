"""SSH: public keys, certificates that were signed, and the connections that live by them."""

import sqlalchemy as sa
from alembic import op

from portico.store.tables import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "ssh_keys",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_name", sa.String(length=32), nullable=False),
        sa.Column("label", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("bits", sa.Integer(), nullable=False),
        sa.Column("sources", sa.Text(), nullable=False),
        sa.Column("created", UtcTime, nullable=False),
        sa.Column("expires", UtcTime, nullable=True),
        sa.Column("last_used", UtcTime, nullable=True),
        sa.Column("last_address", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ssh_keys")),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_ssh_keys_user_fingerprint", "ssh_keys", ["user_name", "fingerprint"], unique=True)
    op.create_table(
        "ssh_certificates",
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("user_name", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("sources", sa.Text(), nullable=False),
        sa.Column("created", UtcTime, nullable=False),
        sa.Column("expires", UtcTime, nullable=False),
        sa.Column("revoked", UtcTime, nullable=True),
        sa.Column("last_used", UtcTime, nullable=True),
        sa.Column("last_address", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_ssh_certificates")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_ssh_certificates_user_name"), "ssh_certificates", ["user_name"], unique=False)
    op.create_table(
        "ssh_connections",
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("start_ticks", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.String(length=36), nullable=False),
        sa.Column("credential", sa.String(length=32), nullable=False),
        sa.Column("user_name", sa.String(length=32), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("pid", "start_ticks", "boot_id", "credential", name=op.f("pk_ssh_connections")),
    )
    op.create_index(op.f("ix_ssh_connections_user_name"), "ssh_connections", ["user_name"], unique=False)
