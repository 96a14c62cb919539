"""Mails: inserting and reading them.

A mail is a message and a delivery for each of its recipients, inserted in one transaction.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from mailer.errors import CommitLost, StoreUnavailable
from mailer.message import (
    Address,
    Envelope,
    Key,
    Keyed,
    Lane,
    MailStatus,
    Message,
    Status,
    could_be_id,
    is_bulk_id,
)
from mailer.message.events import EventKind
from mailer.message.ports import Outlet
from mailer.policy import NO_TENANT, TenantRules
from mailer.store import blobs, callers, keys, loading, lookup, rows, turns
from mailer.store.aside import Aside
from mailer.store.callers import AfterCommit, CallersTransaction
from mailer.store.moves import Moves
from mailer.store.sql import insert_into, packed
from mailer.store.transactions import Transaction

INSERT_MESSAGE = insert_into("mailer_message", rows.MESSAGE_COLUMNS)
INSERT_DELIVERY = insert_into("mailer_delivery", rows.DELIVERY_COLUMNS)
DELIVERIES_OF = "SELECT id FROM mailer_delivery WHERE mail_id = :mail_id"
# For mails that were queued without a size. Neither database reads a text to measure its length.
SIZES = """
SELECT id, {octets_of_text} + COALESCE((
    SELECT SUM({octets_of_file}) FROM mailer_attachment
    JOIN mailer_blob ON mailer_blob.sha256 = mailer_attachment.sha256
    WHERE mail_id = mailer_message.id), 0)
FROM mailer_message
WHERE id {mails}
"""
SENDERS = "SELECT id, sender FROM mailer_message WHERE id {mails}"
HEADS = """
SELECT id, message_id, subject, created_at, sensitive, erased_at,
    CAST(tags AS text), CAST(metadata AS text)
FROM mailer_message
WHERE id {mails}
"""
# + 0: with statistics of a small table, PostgreSQL would read all rows in the order of their ids.
COPIES = """
SELECT mail_id, id, recipient, status, lane, tenant, attempts, due_at, finished_at, reply, relay
FROM mailer_delivery WHERE mail_id {mails}
ORDER BY id + 0
"""
TRIES = """
SELECT delivery_id, at, verdict, phase, mailer_attempt.reply, mailer_attempt.relay
FROM mailer_attempt
JOIN mailer_delivery ON mailer_delivery.id = delivery_id
WHERE mail_id {mails}
ORDER BY mailer_attempt.id + 0
"""
COUNT = """
SELECT status, lane, COUNT(*), MIN(due_at) FROM mailer_delivery
GROUP BY status, lane
ORDER BY lane, status
"""


class Mails(Moves):
    """Mails: their intake, their content and their status."""

    def __init__(
        self,
        url: str,
        *,
        pgbouncer: bool = False,
        outlet: Outlet | None = None,
        rules: TenantRules | None = None,
    ) -> None:
        super().__init__(url, pgbouncer=pgbouncer, outlet=outlet, rules=rules)
        self._aside = Aside(self.insert_mail, self._find_key) if self.is_in_memory else None

    # --- intake ----------------------------------------------------------------------------------

    def insert_mail(
        self, message: Message, envelope: Envelope, caller: Connection | None = None
    ) -> Keyed | None:
        """Insert a message and a queued delivery for each recipient, all or nothing.

        If the idempotency key is taken, write nothing and return the mail that has it. With the
        connection of a caller, the mail is part of the caller's transaction.
        """
        if caller is not None and self._aside is not None:
            return self._aside.keep(caller, message, envelope)
        if caller is not None:
            return self._insert_for(caller, message, envelope)
        insert = partial(self._insert_mail, message=message, envelope=envelope)
        try:
            return self._transact(insert)
        except CommitLost as lost:
            return self._insert_again(insert, message.id, lost)

    def _insert_for(self, caller: Connection, message: Message, envelope: Envelope) -> Keyed | None:
        with self._join(caller) as transaction:
            earlier = self._insert_mail(transaction, message, envelope)
        if transaction.events:
            self.after_commit(caller, message.id, lambda _mails: self._publish(transaction.events))
        return earlier

    def _insert_again(
        self, insert: Callable[[Transaction], Keyed | None], mail_id: str, lost: CommitLost
    ) -> Keyed | None:
        """Insert again after an unanswered commit. If that commit was done, the id is taken."""
        try:
            earlier = self._transact(insert)
        except self.engine.dialect.loaded_dbapi.IntegrityError:
            return None
        except StoreUnavailable:
            raise lost from lost.__cause__
        return None if earlier is not None and earlier.id == mail_id else earlier

    def _insert_mail(
        self, transaction: Transaction | CallersTransaction, message: Message, envelope: Envelope
    ) -> Keyed | None:
        if (earlier := self._insert_message(transaction, message, envelope.key)) is not None:
            return earlier
        if message.attachments:
            is_callers = isinstance(transaction, CallersTransaction) and not self._sqlite
            write = self._transact if is_callers else None
            blobs.insert_attachments(transaction, message, write)
        transaction.execute_many(
            INSERT_DELIVERY, self._delivery_rows(transaction, message, envelope)
        )
        if self._outlet.listens_to(EventKind.QUEUED):
            found = transaction.execute(DELIVERIES_OF, {"mail_id": message.id})
            ids = [number for (number,) in found]
            self._note(transaction, ids, EventKind.QUEUED, message.created_at)
        return None

    def _delivery_rows(
        self, transaction: Transaction | CallersTransaction, message: Message, envelope: Envelope
    ) -> list[dict[str, Any]]:
        """Return the rows of a mail's deliveries. A quota holds mail at first."""
        tenant, now = envelope.tenant, message.created_at
        has_quota = bool(self._rules.quotas_of(tenant))
        ranks: Sequence[float | None] = [None] * len(envelope.recipients)
        # A caller's transaction reads nothing of others: in SERIALIZABLE, they would conflict. The
        # claim ranks its mail.
        is_own = isinstance(transaction, Transaction)
        if is_own and tenant != NO_TENANT and not has_quota and envelope.due_at <= now:
            tenants = [tenant] * len(envelope.recipients)
            ranks = turns.next_ranks(transaction, self._rules, envelope.lane, tenants, now=now)
        status = Status.HELD if has_quota else Status.QUEUED
        return rows.delivery_rows(message, envelope, status, ranks)

    def _insert_message(
        self, transaction: Transaction | CallersTransaction, message: Message, key: Key | None
    ) -> Keyed | None:
        row = rows.message_row(message)
        if key is None:
            transaction.execute(INSERT_MESSAGE, row)
            return None
        return keys.insert_keyed(transaction, row, key, limit_waits=not self._sqlite)

    def _find_key(self, name: str) -> Keyed | None:
        with self._look() as transaction:
            return keys.find(transaction, name)

    def after_commit(self, caller: Connection, mail_id: str, call: AfterCommit) -> None:
        """Make a call once the caller's transaction has been committed with this mail in it.

        One call is made for all mails of the transaction that it is given for.
        """
        if self._aside is not None:
            self._aside.after_commit(caller, mail_id, call)
            return
        callers.after_commit(caller, mail_id, call, self._render)

    def settle_aside(self) -> None:
        """Queue the mails of callers that have committed, if this database is in memory."""
        if self._aside is not None:
            self._aside.settle()

    # --- loading ---------------------------------------------------------------------------------

    def load_messages(self, mail_ids: Collection[str]) -> dict[str, Message]:
        """Return messages by id. Leave out those that are erased or damaged.

        Raise an error that is no fault of a mail, such as too little memory.
        """
        if not mail_ids:
            return {}
        with self._look() as transaction:
            found = loading.find(transaction, mail_ids)
        return loading.messages(found)

    def load_sizes(self, mail_ids: Collection[str]) -> dict[str, int]:
        """Return the sizes of mails in bytes, or more: SQLite counts letters instead of bytes."""
        with self._look() as transaction:
            found = transaction.execute(SIZES, {"mails": packed(mail_ids)})
        return {mail_id: int(size) for mail_id, size in found}

    def load_senders(self, mail_ids: Collection[str]) -> dict[str, str]:
        """Return the sender's address of each mail."""
        with self._look() as transaction:
            found = transaction.execute(SENDERS, {"mails": packed(mail_ids)})
        return {mail_id: Address.stored(sender).email for mail_id, sender in found}

    # --- questions -------------------------------------------------------------------------------

    def statuses(self, mail_ids: Collection[str]) -> dict[str, MailStatus]:
        """Return the status of each mail by id. Leave out unknown ids, and those of bulk sends."""
        self.settle_aside()
        ids = [one for one in mail_ids if could_be_id(one) and not is_bulk_id(one)]
        values = {"mails": packed(ids)}
        with self._read() as transaction:
            found = [transaction.execute(query, values) for query in (HEADS, COPIES, TRIES)]
        return rows.mail_statuses(*found)

    def status(self, mail_id: str) -> MailStatus:
        """Return the status of one mail. Raise `UnknownMail` if no mail has this id."""
        try:
            return self.statuses([mail_id])[mail_id]
        except (KeyError, TypeError):  # an unhashable value is no id either
            raise lookup.unknown(mail_id) from None

    def find_mail(self, given: str) -> str:
        """Return the id of the mail that an operator means.

        Raise `UnknownMail` if there is none, or more than one.
        """
        with self._look() as transaction:
            return lookup.find_mail(transaction, given)

    def counts(self) -> list[tuple[Status, Lane, int, float | None]]:
        """Return (status, lane, number of deliveries, oldest due time)."""
        with self._look() as transaction:
            found = transaction.execute(COUNT, {})
        return [(Status(status), Lane(lane), count, due) for status, lane, count, due in found]
