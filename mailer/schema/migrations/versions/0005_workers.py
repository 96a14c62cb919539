"""Worker heartbeats, the size of each delivery, and fingerprints that are keyed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Nullable, so that processes of the version before can go on queueing.
    op.add_column("mailer_message", sa.Column("fingerprint_key", sa.Text()))
    op.add_column("mailer_delivery", sa.Column("size", sa.BigInteger()))
    op.create_table(
        "mailer_worker",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("lanes", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Float(53), nullable=False),
        sa.Column("seen_at", sa.Float(53), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("delivered_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("mailer_worker")
    op.drop_column("mailer_delivery", "size")
    op.drop_column("mailer_message", "fingerprint_key")
