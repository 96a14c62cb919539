"""Every query, named by its guard.

Each move of a delivery is one statement, guarded by the state it leaves and by the claim's token, and returns the ids
that really moved: whoever comes second moves nothing.

`claim_due`, `mark_if_claimed`, `record_if_transmitting`, `release_if_held` and `fail_if_claimed` are a worker's;
`requeue_lapsed_claims`, `doubt_lapsed_transmissions`, `resend_doubtful` and `expire_overdue` are the sweep's;
`settle_if_resting` is a person's.
"""

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Text, bindparam, make_url, select, text
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import StaticPool

from mailer import schema
from mailer.errors import StoreUnavailable, UnknownMail
from mailer.message import (
    TRANSITIONS,
    Attachment,
    Delivery,
    Envelope,
    Lane,
    MailStatus,
    Message,
    Outcome,
    Status,
    Verdict,
    could_be_id,
)
from mailer.policy import Move
from mailer.store import rows
from mailer.store.engines import make_engine

_WORKERS = frozenset({Status.CLAIMED, Status.TRANSMITTING})
_EXPIRED_AT_ONCE = 5000
# In seconds. The purge spares bytes for longer than mails rely on them without a look.
_BLOB_IS_FRESH, _BLOB_IS_SPARED = 1800.0, 3600.0


@dataclass(frozen=True, slots=True)
class Result:
    """One finished try, ready to be written."""

    delivery: Delivery
    outcome: Outcome
    move: Move


def _moving(sql: str, *lists: str) -> Any:
    """A statement; the names in `lists` are parameters that take many values."""
    return text(sql).bindparams(*(bindparam(name, expanding=True) for name in lists))


# States stand in the statements as literals: the partial indexes are found only so.
#
# What takes many rows takes them in two steps of one statement. The first chooses, guards and locks; the second has nothing
# but ids to go by. With the guard in it as well, PostgreSQL compares every row of the queue with every chosen one whenever its
# statistics are from a time when the queue was empty.
_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at <= :now AND (expires_at IS NULL OR expires_at > :now)
    ORDER BY due_at LIMIT :most {lock})
UPDATE mailer_delivery
SET status = 'claimed', token = :token, lease_until = :lease_until, attempts = attempts + 1
WHERE id IN (SELECT id FROM due)
RETURNING id, mail_id, recipient, attempts, doubts, queued_at, on_doubt, due_at
"""
_EXPIRE = """
WITH overdue AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'queued' AND expires_at IS NOT NULL AND expires_at <= :now
    ORDER BY expires_at LIMIT :most {lock})
UPDATE mailer_delivery
SET status = 'expired', due_at = NULL, finished_at = :now
WHERE id IN (SELECT id FROM overdue)
RETURNING id
"""
_PURGE = """
WITH old AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE finished_at <= :before
    ORDER BY finished_at LIMIT :most {lock})
DELETE FROM mailer_delivery
WHERE id IN (SELECT id FROM old)
RETURNING mail_id
"""
_MARK = _moving(
    "UPDATE mailer_delivery SET status = 'transmitting', lease_until = :lease_until"
    # COALESCE keeps PostgreSQL from looking through all leases for a few ids.
    " WHERE id IN :ids AND token = :token AND status = 'claimed' AND COALESCE(lease_until, 0) > :now RETURNING id",
    "ids",
)
_RECORD = text(
    "UPDATE mailer_delivery SET status = :to, due_at = :due_at, finished_at = :finished_at, reply = :reply, relay = :relay,"
    " attempts = attempts - :uncounted, token = NULL, lease_until = NULL"
    " WHERE id = :id AND token = :token AND status IN ('transmitting', 'doubtful') RETURNING id"
)
# The token stays: should the reply come after all, its worker may still record it.
_DOUBT = text(
    "UPDATE mailer_delivery SET status = 'doubtful', due_at = :due_at, reply = :reply, relay = :relay, doubts = doubts + 1,"
    " lease_until = NULL WHERE id = :id AND token = :token AND status = 'transmitting' RETURNING id"
)
_RELEASE = _moving(
    "UPDATE mailer_delivery SET status = 'queued', due_at = COALESCE(:due_at, due_at), attempts = attempts - 1,"
    " token = NULL, lease_until = NULL"
    " WHERE id IN :ids AND token = :token AND status IN ('claimed', 'transmitting') RETURNING id",
    "ids",
)
_FAIL = text(
    "UPDATE mailer_delivery SET status = 'failed', due_at = NULL, finished_at = :now, reply = :reply,"
    " token = NULL, lease_until = NULL"
    " WHERE id = :id AND token = :token AND status = 'claimed' RETURNING id"
)
_REQUEUE_LAPSED = text(
    "UPDATE mailer_delivery SET status = 'queued', attempts = attempts - 1, token = NULL, lease_until = NULL"
    " WHERE status = 'claimed' AND lease_until <= :now RETURNING id"
)
_DOUBT_LAPSED = text(
    "UPDATE mailer_delivery SET status = 'doubtful', doubts = doubts + 1, lease_until = NULL,"
    " reply = 'the worker died or lost its connection before the reply was recorded',"
    " due_at = CASE WHEN on_doubt = 'resend' AND doubts = 0 THEN :resend_at END"
    " WHERE status = 'transmitting' AND lease_until <= :now RETURNING id"
)
_RESEND = text(
    "UPDATE mailer_delivery SET status = 'queued', token = NULL WHERE status = 'doubtful' AND due_at <= :now RETURNING id"
)
_SETTLE = _moving(
    "UPDATE mailer_delivery SET status = :to, due_at = :due_at, finished_at = :finished_at, token = NULL,"
    " attempts = CASE WHEN :to = 'queued' THEN 0 ELSE attempts END,"
    " queued_at = CASE WHEN :to = 'queued' THEN :now ELSE queued_at END"
    " WHERE mail_id = :mail_id AND status IN :leaving RETURNING id",
    "leaving",
)
_IS_DUE = text(
    "SELECT 1 FROM mailer_delivery WHERE status = 'queued' AND lane = :lane AND due_at <= :now"
    " AND (expires_at IS NULL OR expires_at > :now) LIMIT 1"
)
# A date beyond the next one was written by a clock that ran ahead: it must not stop the chore until then.
_CHORE_IS_DONE = text("SELECT 1 FROM mailer_chore WHERE name = :name AND due_at > :now AND due_at <= :next")
_TAKE_CHORE = text(
    "INSERT INTO mailer_chore (name, due_at) VALUES (:name, :next) ON CONFLICT (name) DO UPDATE SET due_at = :next"
    " WHERE mailer_chore.due_at <= :now OR mailer_chore.due_at > :next RETURNING name"
)
_COUNT = text("SELECT status, lane, COUNT(*), MIN(due_at) FROM mailer_delivery GROUP BY status, lane ORDER BY lane, status")
_PURGE_MAILS = text(
    "DELETE FROM mailer_message WHERE id IN :ids AND NOT EXISTS (SELECT 1 FROM mailer_delivery WHERE mail_id = mailer_message.id)"
).bindparams(bindparam("ids", expanding=True, type_=Text))
_PURGE_BLOBS = text(
    "DELETE FROM mailer_blob WHERE used_at <= :unused_since AND NOT EXISTS"
    " (SELECT 1 FROM mailer_attachment WHERE mailer_attachment.sha256 = mailer_blob.sha256)"
)


class Store:
    """The database of one app. Safe to share between threads, and to carry over a fork."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(make_url(url))
        self._sqlite = self.engine.dialect.name == "sqlite"
        lock = "" if self._sqlite else "FOR UPDATE SKIP LOCKED"
        self._claim, self._expire, self._purge = (text(sql.format(lock=lock)) for sql in (_CLAIM, _EXPIRE, _PURGE))
        self._checked = False
        self._in_file = self._sqlite and not isinstance(self.engine.pool, StaticPool)
        self._turn = self._new_turn()
        self._parents_pool: Any = None
        _survive_forks(self)

    # --- intake -------------------------------------------------------------------------------------------------------

    def insert_mail(self, message: Message, envelope: Envelope) -> None:
        """-> queued: the message and a delivery for each recipient, all or nothing."""
        with self._write() as connection:
            connection.execute(schema.message.insert(), rows.message_row(message))
            if message.attachments:
                self._insert_attachments(connection, message)
            connection.execute(schema.delivery.insert(), rows.delivery_rows(message, envelope))

    def _insert_attachments(self, connection: Connection, message: Message) -> None:
        """Bytes that are there already are neither sent again nor locked: many mails carry the same logo at the same time."""
        hashes = [hashlib.sha256(attachment.data).hexdigest() for attachment in message.attachments]
        blobs = {sha256: attachment.data for sha256, attachment in zip(hashes, message.attachments, strict=True)}
        blob = schema.blob.c
        fresh = select(blob.sha256).where(blob.sha256.in_(blobs), blob.used_at > message.created_at - _BLOB_IS_FRESH)
        new = blobs.keys() - connection.execute(fresh).scalars()
        for sha256 in sorted(new):  # in one order for all: else two mails with the same files may wait for each other
            self._upsert_blob(connection, sha256, message.created_at, blobs[sha256])
        attached = zip(hashes, message.attachments, strict=True)
        values = [rows.attachment_row(message.id, position, *one) for position, one in enumerate(attached)]
        connection.execute(schema.attachment.insert(), values)

    def _upsert_blob(self, connection: Connection, sha256: str, used_at: float, data: bytes) -> None:
        insert = sqlite.insert if self._sqlite else postgresql.insert
        blob = insert(schema.blob).values(sha256=sha256, used_at=used_at, data=data)
        connection.execute(blob.on_conflict_do_update(index_elements=["sha256"], set_={"used_at": used_at}))

    # --- a worker's ---------------------------------------------------------------------------------------------------

    def claim_due(self, most: int, *, token: str, now: float, lease_until: float) -> list[Delivery]:
        """queued -> claimed: the most urgent lane first, in it what has been due the longest."""
        claimed: list[Delivery] = []
        with self._write() as connection:
            for lane in Lane:
                if len(claimed) == most:
                    break
                values = {"lane": lane, "now": now, "most": most - len(claimed), "token": token, "lease_until": lease_until}
                taken = connection.execute(self._claim, values).all()
                taken = sorted(taken, key=lambda row: (row.due_at, row.id))
                claimed += [rows.delivery(row, token, lease_until) for row in taken]
        return claimed

    def mark_if_claimed(self, ids: Collection[int], *, token: str, now: float, lease_until: float) -> set[int]:
        """claimed -> transmitting, if the lease still holds: from here on a death means doubt."""
        return self._move(_MARK, ids=list(ids), token=token, now=now, lease_until=lease_until)

    def record_if_transmitting(self, results: Iterable[Result], *, now: float, relay: str) -> set[int]:
        """transmitting -> sent, failed, queued or doubtful; a reply that came late settles a doubtful one too."""
        moved: set[int] = set()
        with self._write() as connection:
            for result in results:
                values = {
                    "id": result.delivery.id,
                    "token": result.delivery.token,
                    "due_at": result.move.due_at,
                    "reply": rows.storable(result.outcome.reply),
                    "relay": relay,
                }
                if result.move.to is Status.DOUBTFUL:
                    ids = connection.execute(_DOUBT, values).scalars().all()
                else:
                    values |= {
                        "to": str(result.move.to),
                        "finished_at": now if result.move.to.is_final else None,
                        "uncounted": int(not result.move.counts),
                    }
                    ids = connection.execute(_RECORD, values).scalars().all()
                if ids and result.outcome.verdict is not Verdict.SENT:
                    connection.execute(schema.attempt.insert(), rows.attempt_row(result.delivery.id, result.outcome, now, relay))
                moved.update(ids)
        return moved

    def release_if_held(self, ids: Collection[int], *, token: str, due_at: float | None = None) -> set[int]:
        """claimed or (not begun) transmitting -> queued, as if never claimed; later, if there is a reason to wait."""
        return self._move(_RELEASE, ids=list(ids), token=token, due_at=due_at) if ids else set()

    def fail_if_claimed(self, delivery: Delivery, reason: str, *, now: float) -> bool:
        """claimed -> failed: a mail that can't even be composed."""
        return bool(self._move(_FAIL, id=delivery.id, token=delivery.token, now=now, reply=rows.storable(reason)))

    def load_messages(self, mail_ids: Collection[str]) -> dict[str, Message]:
        """What is to be said, by id."""
        if not mail_ids:
            return {}
        with self._read() as connection:
            table = schema.message
            mails = connection.execute(select(table).where(table.c.id.in_(list(mail_ids)))).all()
            joined = select(schema.attachment, schema.blob.c.data).join(schema.blob).order_by(schema.attachment.c.position)
            attached = connection.execute(joined.where(schema.attachment.c.mail_id.in_(list(mail_ids)))).all()
        attachments: dict[str, list[Attachment]] = {}
        for row in attached:
            attachments.setdefault(row.mail_id, []).append(rows.attachment(row))
        return {mail.id: rows.message(mail, attachments.get(mail.id, ())) for mail in mails}

    # --- the sweep's --------------------------------------------------------------------------------------------------

    def requeue_lapsed_claims(self, now: float) -> set[int]:
        """claimed -> queued: their worker is gone, and never began."""
        return self._move(_REQUEUE_LAPSED, now=now)

    def doubt_lapsed_transmissions(self, now: float, *, resend_at: float) -> set[int]:
        """transmitting -> doubtful: their worker is gone, and nobody knows how far it came."""
        return self._move(_DOUBT_LAPSED, now=now, resend_at=resend_at)

    def resend_doubtful(self, now: float) -> set[int]:
        """doubtful -> queued, where the mail wants it and the time has come."""
        return self._move(_RESEND, now=now)

    def expire_overdue(self, now: float) -> set[int]:
        """queued -> expired: too late to be of use. In bites, so that a million of them hold up nobody."""
        expired: set[int] = set()
        while bite := self._move(self._expire, now=now, most=_EXPIRED_AT_ONCE):
            expired |= bite
        return expired

    def is_due(self, now: float) -> bool:
        """Whether there is anything to claim."""
        with self._read() as connection:
            return any(connection.execute(_IS_DUE, {"lane": lane, "now": now}).first() for lane in Lane)

    def take_chore(self, name: str, *, now: float, every: float) -> bool:
        """Whether this process is the one to do the chore now: one of all, each `every` seconds."""
        values = {"name": name, "now": now, "next": now + every}
        with self._read() as connection:
            if connection.execute(_CHORE_IS_DONE, values).first():
                return False
        with self._write() as connection:
            return connection.execute(_TAKE_CHORE, values).first() is not None

    def purge_finished(self, before: float, *, most: int) -> int:
        """Delete what finished before then, `most` deliveries at once; returns how many. Mails and bytes go with their last."""
        with self._write() as connection:
            purged = connection.execute(self._purge, {"before": before, "most": most}).scalars().all()
            connection.execute(_PURGE_MAILS, {"ids": list(set(purged))})
            connection.execute(_PURGE_BLOBS, {"unused_since": before - _BLOB_IS_SPARED})
        return len(purged)

    # --- a person's ---------------------------------------------------------------------------------------------------

    def settle_if_resting(self, mail_id: str, to: Status, *, now: float) -> set[int]:
        """Move a mail's deliveries along the state chart, but into no worker's hands and out of none."""
        leaving = [str(source) for source, target in TRANSITIONS if target is to and not {source, target} & _WORKERS]
        if not leaving or not could_be_id(mail_id):
            return set()
        due_at = now if to is Status.QUEUED else None
        finished_at = now if to.is_final else None
        return self._move(_SETTLE, mail_id=mail_id, to=str(to), leaving=leaving, due_at=due_at, finished_at=finished_at, now=now)

    def statuses(self, mail_ids: Collection[str]) -> dict[str, MailStatus]:
        """How mails are doing, by id; ids that are unknown are left out."""
        ids = [mail_id for mail_id in mail_ids if could_be_id(mail_id)]
        mail, delivery, attempt = schema.message.c, schema.delivery.c, schema.attempt.c
        heads: Select[Any] = select(mail.id, mail.message_id, mail.subject, mail.created_at).where(mail.id.in_(ids))
        copies = select(schema.delivery).where(delivery.mail_id.in_(ids)).order_by(delivery.id)
        tries = select(schema.attempt).join(schema.delivery).where(delivery.mail_id.in_(ids)).order_by(attempt.id)
        with self._read() as connection:
            mails, deliveries, attempts = (connection.execute(query).all() for query in (heads, copies, tries))
        return rows.mail_statuses(mails, deliveries, attempts)

    def status(self, mail_id: str) -> MailStatus:
        try:
            return self.statuses([mail_id])[mail_id]
        except KeyError:
            raise UnknownMail(f"No mail has the id {mail_id!r}: it was never queued here, or it has been purged.") from None

    def counts(self) -> list[tuple[Status, Lane, int, float | None]]:
        """(status, lane, how many, the oldest due time), for people."""
        with self._read() as connection:
            return [(Status(status), Lane(lane), count, due) for status, lane, count, due in connection.execute(_COUNT)]

    # --- transactions -------------------------------------------------------------------------------------------------

    def migrate(self, to: str = "head") -> None:
        """Bring the tables to the revision this code needs, or to another one."""
        with _mapped_errors(), self._turn:
            schema.migrate(self.engine, to)

    def check_schema(self) -> None:
        """Refuse tables that do not fit this code; a new SQLite file gets them."""
        if self._checked:
            return
        with _mapped_errors(), self._turn:
            with self.engine.connect() as connection:
                found = schema.revision_of(connection)
            if found is None and self._sqlite:
                schema.migrate(self.engine)
            else:
                schema.check_revision(found)
        self._checked = True

    def _move(self, statement: Any, **values: Any) -> set[int]:
        with self._write() as connection:
            return set(connection.execute(statement, values).scalars())

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        self.check_schema()
        with _mapped_errors(), self._turn, self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        self.check_schema()
        with _mapped_errors(), self._turn, self.engine.connect().execution_options(mailer_reads=True) as connection:
            yield connection

    def _new_turn(self) -> AbstractContextManager[Any]:
        """SQLite has one writer: threads wait for their turn here, which is cheaper than in its busy loop."""
        return threading.Lock() if self._sqlite else nullcontext()

    # --- forks --------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """SQLite in a child would take its parent's locks for its own, hold none, and write into a log that others delete."""
        self._turn.__enter__()
        if self._in_file:
            self.engine.dispose()

    def after_fork_in_parent(self) -> None:
        self._turn.__exit__(None, None, None)

    def after_fork_in_child(self) -> None:
        """What connections there are belong to the parent. Kept, so that no garbage collector closes them."""
        self._turn = self._new_turn()
        self._parents_pool = self.engine.pool
        self.engine.dispose(close=False)


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (sqlalchemy_errors.IntegrityError, sqlalchemy_errors.DataError, sqlalchemy_errors.ProgrammingError):
        raise  # a mistake of ours, which trying again does not mend
    except (sqlalchemy_errors.DatabaseError, sqlalchemy_errors.InterfaceError, sqlalchemy_errors.TimeoutError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise StoreUnavailable(
            f"The database of Mailer (MAILER_DATABASE_URL) did not do it, and nothing was queued or changed: {reason}"
        ) from error


def _survive_forks(store: Store) -> None:
    reference = weakref.ref(store)

    def tell(moment: str) -> Callable[[], None]:
        def forking() -> None:
            if (survivor := reference()) is not None:
                getattr(survivor, moment)()

        return forking

    os.register_at_fork(
        before=tell("before_fork"), after_in_parent=tell("after_fork_in_parent"), after_in_child=tell("after_fork_in_child")
    )
