"""Bulk sends, the state `held`, and the fair order of tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TIME = sa.Float(53)
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

CHECK = "mailer_delivery_status_is_known"
BEFORE = (
    "status IN ('queued', 'claimed', 'transmitting', 'sent', 'failed', 'doubtful',"
    " 'cancelled', 'expired', 'suppressed', 'bounced', 'complained')"
)
AFTER = BEFORE.replace("'queued', ", "'queued', 'held', ")

OVER_QUOTA = "status = 'held' AND due_at IS NOT NULL"
INDEXES_BEFORE = {
    "mailer_delivery_due": (["lane", "due_at"], "status = 'queued'"),
    "mailer_delivery_expiring": (["expires_at"], "status = 'queued' AND expires_at IS NOT NULL"),
}
INDEXES = {
    "mailer_delivery_due": (
        ["lane", "due_at"],
        "status = 'queued' AND rank IS NULL AND tenant = '' AND attempts = 0",
    ),
    "mailer_delivery_unranked": (
        ["lane", "due_at"],
        "status = 'queued' AND rank IS NULL AND (tenant <> '' OR attempts > 0)",
    ),
    "mailer_delivery_ranked": (["lane", "rank"], "status = 'queued' AND rank > 0"),
    "mailer_delivery_tails": (
        ["lane", "tenant", "rank"],
        "status = 'queued' AND rank IS NOT NULL",
    ),
    "mailer_delivery_over_quota": (["tenant", "lane", "due_at"], OVER_QUOTA),
    "mailer_delivery_expiring": (
        ["expires_at"],
        f"expires_at IS NOT NULL AND (status = 'queued' OR ({OVER_QUOTA}))",
    ),
}


def upgrade() -> None:
    change_check(BEFORE, AFTER)
    add_tenants()
    op.create_table(
        "mailer_bulk",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("snapshot", sa.Text(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("max_failed_share", sa.Float(53), nullable=False),
        sa.Column("is_complete", sa.Boolean(), nullable=False),
        sa.Column("rows_read", sa.BigInteger(), nullable=False),
        sa.Column("rows_digest", sa.Text(), nullable=False),
        sa.Column("accepted", sa.BigInteger(), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.BigInteger(), nullable=False),
        sa.Column("released", sa.BigInteger(), nullable=False),
        sa.Column("released_to", sa.BigInteger(), nullable=False),
        sa.Column("importer", sa.Text()),
        sa.Column("importer_until", TIME),
        sa.Column("starts_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("calendar", sa.Text()),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.ForeignKeyConstraint(["id"], ["mailer_message.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "mailer_bulk_zone",
        sa.Column("bulk_id", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("released_to", sa.BigInteger(), nullable=False),
        sa.Column("has_held", sa.Boolean(), nullable=False),
        sa.Column("queued_to", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bulk_id"], ["mailer_bulk.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("bulk_id", "time_zone"),
    )
    op.create_table(
        "mailer_bulk_recipient",
        sa.Column("delivery_id", ID, nullable=False, autoincrement=False),
        sa.Column("bulk_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("own", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text()),
        sa.ForeignKeyConstraint(["delivery_id"], ["mailer_delivery.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("delivery_id"),
    )
    columns = ["bulk_id", "address"]
    op.create_index("mailer_bulk_recipient_once", "mailer_bulk_recipient", columns, unique=True)
    op.create_index(
        "mailer_bulk_recipient_in_order", "mailer_bulk_recipient", ["bulk_id", "delivery_id"]
    )
    named = sa.text("time_zone IS NOT NULL")
    op.create_index(
        "mailer_bulk_recipient_in_zone",
        "mailer_bulk_recipient",
        ["bulk_id", "time_zone", "delivery_id"],
        sqlite_where=named,
        postgresql_where=named,
    )
    op.create_table(
        "mailer_bulk_error",
        sa.Column("bulk_id", sa.Text(), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["bulk_id"], ["mailer_bulk.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("bulk_id", "row"),
    )
    op.create_table(
        "mailer_bulk_count",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("bulk_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bulk_id"], ["mailer_bulk.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_mailer_bulk_count_bulk_id", "mailer_bulk_count", ["bulk_id"])
    # An older worker would send the mail of a bulk send without its text.
    op.execute("UPDATE mailer_version SET readable_from = '0007'")


def downgrade() -> None:
    op.execute("UPDATE mailer_version SET readable_from = '0004'")
    # An older worker can't render them, and does not know `held`.
    op.execute("DELETE FROM mailer_delivery WHERE mail_id IN (SELECT id FROM mailer_bulk)")
    op.execute("DELETE FROM mailer_attachment WHERE mail_id IN (SELECT id FROM mailer_bulk)")
    op.execute("DELETE FROM mailer_message WHERE id IN (SELECT id FROM mailer_bulk)")
    for table in ("count", "error", "recipient", "zone"):
        op.drop_table(f"mailer_bulk_{table}")
    op.drop_table("mailer_bulk")
    op.execute("UPDATE mailer_delivery SET status = 'queued' WHERE status = 'held'")
    drop_tenants()
    change_check(AFTER, BEFORE)


def add_tenants() -> None:
    op.add_column(
        "mailer_delivery", sa.Column("tenant", sa.Text(), nullable=False, server_default="")
    )
    op.add_column("mailer_delivery", sa.Column("rank", sa.Float(53)))
    for name in INDEXES_BEFORE:
        op.drop_index(name, "mailer_delivery")
    create_indexes(INDEXES)
    op.create_table(
        "mailer_quota",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("seconds", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("began_at", TIME, nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "seconds"),
    )


def drop_tenants() -> None:
    op.drop_table("mailer_quota")
    for name in INDEXES:
        op.drop_index(name, "mailer_delivery")
    op.drop_column("mailer_delivery", "rank")
    op.drop_column("mailer_delivery", "tenant")
    create_indexes(INDEXES_BEFORE)


def create_indexes(indexes: dict[str, tuple[list[str], str]]) -> None:
    for name, (columns, condition) in indexes.items():
        where = sa.text(condition)
        op.create_index(
            name, "mailer_delivery", columns, sqlite_where=where, postgresql_where=where
        )


def change_check(before: str, after: str) -> None:
    """Change the check of a delivery's states. SQLite need not copy the table for that."""
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.drop_constraint(CHECK, "mailer_delivery")
        # Validated at once, which reads the table: SQLAlchemy can't reflect NOT VALID.
        op.create_check_constraint(CHECK, "mailer_delivery", after)
        return
    version = bind.scalar(sa.text("PRAGMA schema_version"))
    op.execute("PRAGMA writable_schema = ON")
    bind.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after)"
            " WHERE type = 'table' AND name = 'mailer_delivery'"
        ),
        {"before": before, "after": after},
    )
    op.execute(f"PRAGMA schema_version = {version + 1}")  # other connections read it anew
    op.execute("PRAGMA writable_schema = OFF")
