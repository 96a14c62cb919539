"""Mails with an idempotency key, sensitive mails, and erased bodies."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_KEYED = "idempotency_key IS NOT NULL"
_KEPT = "erased_at IS NULL"
_PRIVATE = "sensitive AND erased_at IS NULL"


def upgrade() -> None:
    op.add_column("mailer_message", sa.Column("idempotency_key", sa.Text()))
    op.add_column("mailer_message", sa.Column("fingerprint", sa.Text()))
    # With a default, so that processes of the version before can go on queueing.
    op.add_column(
        "mailer_message",
        sa.Column("sensitive", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("mailer_message", sa.Column("erased_at", sa.Float(53)))
    op.create_index(
        "mailer_message_keyed",
        "mailer_message",
        ["idempotency_key"],
        unique=True,
        sqlite_where=sa.text(_KEYED),
        postgresql_where=sa.text(_KEYED),
    )
    for name, condition in (("mailer_message_kept", _KEPT), ("mailer_message_private", _PRIVATE)):
        where = sa.text(condition)
        op.create_index(name, "mailer_message", ["id"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in ("mailer_message_private", "mailer_message_kept", "mailer_message_keyed"):
        op.drop_index(name, "mailer_message")
    for column in ("erased_at", "sensitive", "fingerprint", "idempotency_key"):
        op.drop_column("mailer_message", column)
