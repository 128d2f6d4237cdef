"""A notice says which page tells more: a session's, or a job's."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Put the path of the page in the place of the session's id."""
    with op.batch_alter_table("notices") as table:
        table.add_column(sa.Column("path", sa.String(length=200), nullable=False, server_default=""))
    op.execute("UPDATE notices SET path = '/sessions/' || session_id")
    with op.batch_alter_table("notices") as table:
        table.drop_column("session_id")
        table.alter_column("path", server_default=None)
