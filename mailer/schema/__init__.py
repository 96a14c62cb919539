"""The tables and their migrations.

Times are seconds since the epoch, in UTC, as floating-point numbers on SQLite and PostgreSQL.
`message` is written once, and its bodies may be erased. `delivery` is the queue: small rows, with
partial indexes for the queries of every second.
"""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    false,
    text,
)

from mailer.errors import SchemaMismatch
from mailer.message import FINAL, Lane, OnDoubt, Status
from mailer.schema import found
from mailer.schema.foreign import include_name, include_object
from mailer.schema.found import GONE, Found
from mailer.schema.online import change_online

__all__ = [
    "GONE",
    "REVISION",
    "Found",
    "check",
    "complete_metadata",
    "include_name",
    "include_object",
    "look",
    "metadata",
    "migrate",
    "revision_of",
]

#: The newest migration in migrations/versions.
REVISION = "0007"
_NAME = re.compile(r"head|base|\d{4}")

metadata: MetaData = MetaData()
_Time = Float(53)
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER keys


def _one_of(column: str, values: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


version: Table = Table(
    "mailer_version",
    MetaData(),
    Column("version_num", Text, primary_key=True),
    Column("readable_from", Text),  # the oldest revision whose code can work with these tables
)

message: Table = Table(
    "mailer_message",
    metadata,
    Column("id", Text, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("created_at", _Time, nullable=False),
    Column("date", _Time),
    Column("sender", Text, nullable=False),
    Column("envelope_from", Text),
    Column("subject", Text, nullable=False),
    Column("to", JSON, nullable=False),
    Column("cc", JSON, nullable=False),
    Column("reply_to", JSON, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("text", Text),
    Column("html", Text),
    Column("alternatives", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("mail_options", JSON, nullable=False),
    Column("rcpt_options", JSON, nullable=False),
    Column("idempotency_key", Text),
    Column("fingerprint", Text),  # of the mail under that key: another mail with it is refused
    Column("sensitive", Boolean, nullable=False, server_default=false()),
    Column("erased_at", _Time),  # since then, the content is erased
    Column("metadata", JSON, nullable=False, server_default="[]"),
    Column("fingerprint_key", Text),  # the id of the key that made the fingerprint, if it is keyed
)

#: The bytes of attachments, stored once however many mails carry them.
blob: Table = Table(
    "mailer_blob",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("used_at", _Time, nullable=False),  # by the last mail: the purge spares recent ones
    Column("data", LargeBinary, nullable=False),
)

attachment: Table = Table(
    "mailer_attachment",
    metadata,
    Column("mail_id", ForeignKey(message.c.id, ondelete="CASCADE"), primary_key=True),
    Column("position", SmallInteger, primary_key=True),
    Column("sha256", ForeignKey(blob.c.sha256), nullable=False, index=True),
    Column("filename", Text),
    Column("content_type", Text, nullable=False),
    Column("content_id", Text),
    Column("disposition", Text, nullable=False),
    Column("headers", JSON, nullable=False),
)

delivery: Table = Table(
    "mailer_delivery",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("mail_id", ForeignKey(message.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("recipient", Text, nullable=False),
    Column("domain", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("lane", SmallInteger, nullable=False),
    Column("on_doubt", Text, nullable=False),
    Column("queued_at", _Time, nullable=False),
    Column("due_at", _Time),  # NULL if final, and if `doubtful` until a person decides
    Column("expires_at", _Time),
    Column("attempts", SmallInteger, nullable=False),
    Column("doubts", SmallInteger, nullable=False),
    Column("token", Text),  # of the claim
    Column("lease_until", _Time),
    Column("finished_at", _Time),
    Column("reply", Text),
    Column("relay", Text),
    Column("size", BigInteger),  # bytes of the mail before encoding; NULL from an older version
    Column("tenant", Text, nullable=False, server_default=""),
    Column("rank", Float(53)),  # the place in the fair order, from when it is due; see store/turns
    CheckConstraint(_one_of("status", Status), name="mailer_delivery_status_is_known"),
    CheckConstraint(_one_of("on_doubt", OnDoubt), name="mailer_delivery_on_doubt_is_known"),
    CheckConstraint(
        f"lane BETWEEN {min(Lane):d} AND {max(Lane):d}", name="mailer_delivery_lane_is_known"
    ),
    CheckConstraint(
        f"(finished_at IS NOT NULL) = ({_one_of('status', sorted(FINAL))})",
        name="mailer_delivery_finished_if_and_only_if_final",
    ),
    CheckConstraint(
        "(token IS NOT NULL AND lease_until IS NOT NULL)"
        " OR status NOT IN ('claimed', 'transmitting')",
        name="mailer_delivery_held_by_somebody",
    ),
    CheckConstraint(
        "due_at IS NOT NULL OR status <> 'queued'", name="mailer_delivery_queued_is_due_some_day"
    ),
)


#: Failed tries: a mail that is sent at once has no row here.
attempt: Table = Table(
    "mailer_attempt",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column(
        "delivery_id", ForeignKey(delivery.c.id, ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("at", _Time, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("reply", Text, nullable=False),
    Column("relay", Text, nullable=False),
)

#: The periodic tasks of the installation: the process that moves `due_at` runs the task.
chore: Table = Table(
    "mailer_chore",
    metadata,
    Column("name", Text, primary_key=True),
    Column("due_at", _Time, nullable=False),
)


#: The pauses of relays, of lanes and of everything.
pause: Table = Table(
    "mailer_pause",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("until", _Time),  # NULL: until a person resumes
    Column("failures", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", _Time, nullable=False),
)

#: The machine that uses the SQLite file, and when it was last seen. Empty in PostgreSQL.
home: Table = Table(
    "mailer_home",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("machine", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("seen_at", _Time, nullable=False),
    CheckConstraint("id = 1", name="mailer_home_is_one"),
)

#: A row for each worker, renewed every few seconds. Those who queue mail look for them.
worker: Table = Table(
    "mailer_worker",
    metadata,
    Column("id", Text, primary_key=True),
    Column("machine", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("lanes", Text, nullable=False),
    Column("started_at", _Time, nullable=False),
    Column("seen_at", _Time, nullable=False),
    Column("delivered_at", _Time),  # when a relay last accepted a mail from it
)

#: A bulk send: its message has one delivery for each recipient, and each recipient a context.
bulk: Table = Table(
    "mailer_bulk",
    metadata,
    Column("id", ForeignKey(message.c.id, ondelete="CASCADE"), primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Text),  # why it is paused or cancelled
    Column("snapshot", Text, nullable=False),  # of the templates and the shared context
    Column("lane", SmallInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("max_failed_share", Float(53), nullable=False),  # it pauses if more of its mail fails
    Column("is_complete", Boolean, nullable=False),  # all recipients are stored
    Column("rows_read", BigInteger, nullable=False),
    Column("rows_digest", Text, nullable=False),
    Column("accepted", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("released", BigInteger, nullable=False),  # that left held, less those held again
    Column("released_to", BigInteger, nullable=False),  # no delivery up to this id is held
    Column("importer", Text),
    Column("importer_until", _Time),
    Column("starts_at", _Time, nullable=False),
    Column("expires_at", _Time),
    Column("calendar", Text),  # the hours in which its mail may go out, as JSON
    Column("started_at", _Time),
    Column("finished_at", _Time),
)

#: The time zones of the recipients of a bulk send with a calendar, each released by itself.
bulk_zone: Table = Table(
    "mailer_bulk_zone",
    metadata,
    Column("bulk_id", ForeignKey(bulk.c.id, ondelete="CASCADE"), primary_key=True),
    Column("time_zone", Text, primary_key=True),
    Column("released_to", BigInteger, nullable=False),  # none of the zone up to this id is held
    Column("has_held", Boolean, nullable=False),  # deliveries after that place may be held
    Column("queued_to", BigInteger, nullable=False),  # up to this id, some may be queued; 0: none
)

#: The recipients of bulk sends, each once.
bulk_recipient: Table = Table(
    "mailer_bulk_recipient",
    metadata,
    Column(
        "delivery_id",
        _Id,
        ForeignKey(delivery.c.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("bulk_id", Text, nullable=False),
    Column("address", Text, nullable=False),  # in lower case
    Column("row", BigInteger, nullable=False),  # in the recipients that were given
    Column("own", Text, nullable=False),  # the context, the locale and the headers
    Column("time_zone", Text),  # NULL: the send has no calendar
)

#: The rows of the recipients that were refused.
bulk_error: Table = Table(
    "mailer_bulk_error",
    metadata,
    Column("bulk_id", ForeignKey(bulk.c.id, ondelete="CASCADE"), primary_key=True),
    Column("row", BigInteger, primary_key=True),
    Column("address", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

#: How many deliveries of a bulk send came into a state, or left it. The sweep sums the rows up.
bulk_count: Table = Table(
    "mailer_bulk_count",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("bulk_id", ForeignKey(bulk.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("status", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
)

#: The mails that a tenant has sent in the present period of each of its quotas.
quota: Table = Table(
    "mailer_quota",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("seconds", BigInteger, primary_key=True, autoincrement=False),  # of the period
    Column("began_at", _Time, nullable=False),
    Column("used", BigInteger, nullable=False),
)


@cache
def complete_metadata() -> MetaData:
    """Return the tables with their partial indexes, for code that compares or creates tables.

    No query needs these, and SQLAlchemy would load the dialects of both databases for them.
    """

    def add(name: str, *columns: Column[Any], only: str, unique: bool = False) -> None:
        condition = text(only)
        Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)

    keyed = "idempotency_key IS NOT NULL"
    add("mailer_message_keyed", message.c.idempotency_key, unique=True, only=keyed)
    add("mailer_message_kept", message.c.id, only="erased_at IS NULL")
    add("mailer_message_private", message.c.id, only="sensitive AND erased_at IS NULL")
    # The queue has three parts, see store/turns.py.
    plain = "status = 'queued' AND rank IS NULL AND tenant = '' AND attempts = 0"
    add("mailer_delivery_due", delivery.c.lane, delivery.c.due_at, only=plain)
    unranked = "status = 'queued' AND rank IS NULL AND (tenant <> '' OR attempts > 0)"
    add("mailer_delivery_unranked", delivery.c.lane, delivery.c.due_at, only=unranked)
    ranked = "status = 'queued' AND rank > 0"
    add("mailer_delivery_ranked", delivery.c.lane, delivery.c.rank, only=ranked)
    # Not "rank > 0": PostgreSQL might look for the tail of a tenant in the index above.
    tails = "status = 'queued' AND rank IS NOT NULL"
    add(
        "mailer_delivery_tails",
        delivery.c.lane,
        delivery.c.tenant,
        delivery.c.rank,
        only=tails,
    )
    over_quota = "status = 'held' AND due_at IS NOT NULL"
    add(
        "mailer_delivery_over_quota",
        delivery.c.tenant,
        delivery.c.lane,
        delivery.c.due_at,
        only=over_quota,
    )
    expiring = f"expires_at IS NOT NULL AND (status = 'queued' OR ({over_quota}))"
    add("mailer_delivery_expiring", delivery.c.expires_at, only=expiring)
    add("mailer_delivery_leased", delivery.c.lease_until, only="lease_until IS NOT NULL")
    add("mailer_delivery_doubtful", delivery.c.due_at, only="status = 'doubtful'")
    Index(
        "mailer_bulk_recipient_once",
        bulk_recipient.c.bulk_id,
        bulk_recipient.c.address,
        unique=True,
    )
    Index("mailer_bulk_recipient_in_order", bulk_recipient.c.bulk_id, bulk_recipient.c.delivery_id)
    add(
        "mailer_bulk_recipient_in_zone",
        bulk_recipient.c.bulk_id,
        bulk_recipient.c.time_zone,
        bulk_recipient.c.delivery_id,
        only="time_zone IS NOT NULL",
    )
    add("mailer_delivery_finished", delivery.c.finished_at, only="finished_at IS NOT NULL")
    return metadata


def look(connection: Connection) -> Found:
    """Return the tables of Mailer in this database."""
    return found.look(connection, frozenset(metadata.tables), version.name)


def revision_of(connection: Connection) -> str | None:
    """Return the revision of this database. Return None without tables."""
    return look(connection).revision


def check(tables: Found) -> None:
    """Raise SchemaMismatch for tables that this code can't use."""
    found.check(tables, REVISION)


_here = threading.local()


@contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Silence the log lines of Alembic about each step, in this thread."""
    for name in ("alembic.runtime.migration", "alembic.runtime.plugins"):
        logging.getLogger(name).addFilter(_is_to_be_logged)
    _here.migrates = True
    try:
        yield
    finally:
        _here.migrates = False


def _is_to_be_logged(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not getattr(_here, "migrates", False)


def migrate(engine: Engine, to: str = "head", *, new_tables: bool = False) -> None:
    """Migrate the tables to a revision in one transaction, which may be interrupted and repeated.

    With `new_tables`, dropped tables are made anew, and empty.
    """
    if not _NAME.fullmatch(to):
        raise SchemaMismatch(
            f"{to!r} is not a revision: give head, base, or a number such as {REVISION}."
        )
    change_online(engine, partial(_migrate, to=to, new_tables=new_tables))


@_quiet_alembic()
def _migrate(connection: Connection, to: str, *, new_tables: bool) -> None:
    tables = look(connection)
    if to == "head" and tables.revision == REVISION:
        return  # another process has just made them

    # Imported here: it takes 0.1 s, and only migrations need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "mailer.schema:migrations")
    config.set_main_option("path_separator", "os")
    if tables.has_vanished and not new_tables:
        check(tables)
    if tables.revision is not None and tables.revision > REVISION:
        check(tables)
        if to == "head":
            return  # this process runs beside newer ones
        raise SchemaMismatch(found.too_new(tables.revision, REVISION))
    config.attributes["connection"] = connection
    upwards = to == "head" or (to != "base" and (tables.revision or "") <= to)
    try:
        (command.upgrade if upwards else command.downgrade)(config, to)
    except CommandError as error:
        raise SchemaMismatch(
            f"There is no migration to {to!r}: {error}. The newest is {REVISION}."
        ) from error
