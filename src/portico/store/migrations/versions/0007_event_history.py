"""Events: lines over time, kept with the summary."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; events that have ended before have none."""
    op.add_column("events", sa.Column("history", sa.JSON(), server_default="[]", nullable=False))
