"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.Float(53)


def only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "mailer_blob",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("used_at", TIME, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "mailer_chore",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "mailer_message",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("date", TIME),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("envelope_from", sa.Text()),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("to", sa.JSON(), nullable=False),
        sa.Column("cc", sa.JSON(), nullable=False),
        sa.Column("reply_to", sa.JSON(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text()),
        sa.Column("html", sa.Text()),
        sa.Column("alternatives", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("mail_options", sa.JSON(), nullable=False),
        sa.Column("rcpt_options", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "mailer_attachment",
        sa.Column("mail_id", sa.Text(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text()),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("content_id", sa.Text()),
        sa.Column("disposition", sa.Text(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["mail_id"], ["mailer_message.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["sha256"], ["mailer_blob.sha256"]),
        sa.PrimaryKeyConstraint("mail_id", "position"),
    )
    op.create_index("ix_mailer_attachment_sha256", "mailer_attachment", ["sha256"])
    op.create_table(
        "mailer_delivery",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("mail_id", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("on_doubt", sa.Text(), nullable=False),
        sa.Column("queued_at", TIME, nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("doubts", sa.SmallInteger(), nullable=False),
        sa.Column("token", sa.Text()),
        sa.Column("lease_until", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("reply", sa.Text()),
        sa.Column("relay", sa.Text()),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) ="
            " (status IN ('bounced', 'cancelled', 'complained', 'expired', 'failed', 'sent',"
            " 'suppressed'))",
            name="mailer_delivery_finished_if_and_only_if_final",
        ),
        sa.CheckConstraint(
            "(token IS NOT NULL AND lease_until IS NOT NULL)"
            " OR status NOT IN ('claimed', 'transmitting')",
            name="mailer_delivery_held_by_somebody",
        ),
        sa.CheckConstraint(
            "due_at IS NOT NULL OR status <> 'queued'",
            name="mailer_delivery_queued_is_due_some_day",
        ),
        sa.CheckConstraint(
            "on_doubt IN ('resend', 'hold')", name="mailer_delivery_on_doubt_is_known"
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'claimed', 'transmitting', 'sent', 'failed', 'doubtful',"
            " 'cancelled', 'expired', 'suppressed', 'bounced', 'complained')",
            name="mailer_delivery_status_is_known",
        ),
        sa.CheckConstraint("lane BETWEEN 0 AND 2", name="mailer_delivery_lane_is_known"),
        sa.ForeignKeyConstraint(["mail_id"], ["mailer_message.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_mailer_delivery_mail_id", "mailer_delivery", ["mail_id"])
    op.create_index(
        "mailer_delivery_doubtful",
        "mailer_delivery",
        ["due_at"],
        **only("status = 'doubtful'"),
    )
    op.create_index(
        "mailer_delivery_due",
        "mailer_delivery",
        ["lane", "due_at"],
        **only("status = 'queued'"),
    )
    op.create_index(
        "mailer_delivery_expiring",
        "mailer_delivery",
        ["expires_at"],
        **only("status = 'queued' AND expires_at IS NOT NULL"),
    )
    op.create_index(
        "mailer_delivery_finished",
        "mailer_delivery",
        ["finished_at"],
        **only("finished_at IS NOT NULL"),
    )
    op.create_index(
        "mailer_delivery_leased",
        "mailer_delivery",
        ["lease_until"],
        **only("lease_until IS NOT NULL"),
    )
    op.create_table(
        "mailer_attempt",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("delivery_id", ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("relay", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["mailer_delivery.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_mailer_attempt_delivery_id", "mailer_attempt", ["delivery_id"])


def downgrade() -> None:
    for table in ("attempt", "delivery", "attachment", "message", "chore", "blob"):
        op.drop_table(f"mailer_{table}")
