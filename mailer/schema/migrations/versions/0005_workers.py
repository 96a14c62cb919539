"""The heartbeats of workers, the size of each delivery, and keyed fingerprints."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


# Marks that outlast dropped tables, and show that there were some.
SQLITE_MARK = 0x4D41494C
POSTGRESQL_MARK = "mailer_was_here"


def upgrade() -> None:
    # Code of 0004 can work with these tables, but refuses all that are not its own.
    op.add_column("mailer_version", sa.Column("readable_from", sa.Text()))
    op.execute("UPDATE mailer_version SET readable_from = '0004'")
    mark()
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
        sa.Column("delivered_at", sa.Float(53)),
        sa.PrimaryKeyConstraint("id"),
    )


def mark() -> None:
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.execute(f"CREATE SEQUENCE IF NOT EXISTS {POSTGRESQL_MARK}")
    # Unless the application has one of its own.
    elif bind.scalar(sa.text("PRAGMA application_id")) == 0:
        op.execute(f"PRAGMA application_id = {SQLITE_MARK}")


def unmark() -> None:
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.execute(f"DROP SEQUENCE IF EXISTS {POSTGRESQL_MARK}")
    elif bind.scalar(sa.text("PRAGMA application_id")) == SQLITE_MARK:
        op.execute("PRAGMA application_id = 0")


def downgrade() -> None:
    unmark()
    op.drop_column("mailer_version", "readable_from")
    op.drop_table("mailer_worker")
    op.drop_column("mailer_delivery", "size")
    op.drop_column("mailer_message", "fingerprint_key")
