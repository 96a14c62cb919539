"""The metadata that applications attach to their mails."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # With a default, so that processes of the version before can go on queueing.
    column = sa.Column("metadata", sa.JSON(), nullable=False, server_default="[]")
    op.add_column("mailer_message", column)


def downgrade() -> None:
    op.drop_column("mailer_message", "metadata")
