"""Sessions on clusters with several nodes: what was chosen there, where it runs, and what its queue says."""

import sqlalchemy as sa
from alembic import op

from portico.store.tables import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("sessions", sa.Column("placement", sa.JSON(), server_default="{}", nullable=False))
    op.add_column("sessions", sa.Column("node_name", sa.String(length=100), server_default="", nullable=False))
    op.add_column("sessions", sa.Column("position", sa.Integer(), server_default="0", nullable=False))
    op.add_column("sessions", sa.Column("expected_start", UtcTime, nullable=True))
