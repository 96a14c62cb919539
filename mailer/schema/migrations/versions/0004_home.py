"""The machine that uses a SQLite file."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "mailer_home",
        sa.Column("id", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.CheckConstraint("id = 1", name="mailer_home_is_one"),
    )


def downgrade() -> None:
    op.drop_table("mailer_home")
