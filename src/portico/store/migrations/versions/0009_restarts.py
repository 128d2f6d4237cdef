"""Sessions: how often a cluster has put one back into its queue, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("sessions", sa.Column("restarts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("sessions", sa.Column("put_back", sa.Text(), nullable=False, server_default=""))
