"""The outlet of changes: every move of a delivery passes through `Moves`.

A move is one statement, guarded by the state it leaves, that returns the ids which moved. In the
same transaction, what a sensitive mail said is erased with its last delivery, and the events are
noted for those who listen. They are published after the commit, when the connection is back in its
pool.

Locks are taken in one order: messages before deliveries before bytes, each by id, in every
transaction that waits for them. A statement that steps over locked rows waits for nobody.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mailer.message.events import Event, EventKind
from mailer.message.ports import Outlet
from mailer.store import erasing, rows
from mailer.store.callers import CallersTransaction
from mailer.store.database import Database
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

EVENTS = """
SELECT mailer_delivery.id, mail_id, message_id, recipient, status, lane, attempts, reply, relay, CAST(tags AS text),
    CAST(metadata AS text)
FROM mailer_delivery JOIN mailer_message ON mailer_message.id = mail_id
WHERE mailer_delivery.id {ids}
ORDER BY mailer_delivery.id
"""

#: The kind of event of each delivery that moves, or the one of all of them. None: it is not told.
Kinds = EventKind | Mapping[int, EventKind] | None

#: The deliveries that one transaction moves at most: a million of them hold up nobody.
MOVED_AT_ONCE = 5000


class Nobody:
    """An outlet without listeners."""

    def listens_to(self, _kind: EventKind) -> bool:
        return False

    def publish(self, events: Sequence[Event]) -> None:
        """Do nothing."""


class Moves(Database):
    """The moves of deliveries."""

    def __init__(self, url: str, *, pgbouncer: bool = False, outlet: Outlet | None = None) -> None:
        super().__init__(url, pgbouncer=pgbouncer)
        self._outlet: Outlet = outlet or Nobody()

    def _move(self, statement: str, *, kind: EventKind | None = None, **values: Any) -> set[int]:
        """Move deliveries, none of them into a final state."""

        def move(transaction: Transaction) -> set[int]:
            return self._moved(transaction, statement, values, kinds=kind, now=values.get("now"))

        return self._transact(move)

    def _finish(
        self,
        transaction: Transaction,
        statement: str,
        values: Mapping[str, Any],
        *,
        mails: Collection[str],
        kinds: Kinds,
        now: float,
    ) -> set[int]:
        """Move deliveries, perhaps the last ones of these mails. Then erase sensitive content."""
        sensitive = erasing.lock_sensitive(transaction, mails)
        moved = self._moved(transaction, statement, values, kinds=kinds, now=now)
        if moved:
            erasing.erase_sensitive(transaction, sensitive, now=now)
        return moved

    def _finish_in_steps(
        self,
        choose: str,
        move: str,
        values: Mapping[str, Any],
        *,
        kind: EventKind,
        now: float,
        waits: bool = True,
    ) -> Iterator[set[int]]:
        """Finish deliveries, a transaction for each step, until none is left.

        Without `waits`, deliveries of mails that somebody else has locked are left out.
        """

        def step(transaction: Transaction) -> set[int] | None:
            chosen = transaction.execute(choose, values)
            sensitive = {mail_id for _number, mail_id in chosen if mail_id is not None}
            locked = erasing.lock_sensitive(transaction, sensitive, waits=waits)
            busy = set() if waits else sensitive - locked
            ids = [number for number, mail_id in chosen if mail_id not in busy]
            if not ids:
                return None
            given = {**values, "ids": packed(ids)}
            moved = self._moved(transaction, move, given, kinds=kind, now=now)
            if moved:
                erasing.erase_sensitive(transaction, locked, now=now)
            return moved if moved or waits else None

        while (moved := self._transact(step)) is not None:
            yield moved

    # --- the outlet ------------------------------------------------------------------------------

    def _moved(
        self,
        transaction: Transaction | CallersTransaction,
        statement: str,
        values: Mapping[str, Any],
        *,
        kinds: Kinds,
        now: float | None,
    ) -> set[int]:
        """Execute a move. Return the ids of the deliveries that moved."""
        moved = {number for (number,) in transaction.execute(statement, values)}
        if moved and kinds is not None and now is not None:
            self._note(transaction, moved, kinds, now)
        return moved

    def _note(
        self,
        transaction: Transaction | CallersTransaction,
        moved: Collection[int],
        kinds: Kinds,
        now: float,
    ) -> None:
        """Note the events of a move, as far as somebody listens.

        A reliable outlet would write its rows here, in the same transaction.
        """
        by_id = kinds if isinstance(kinds, Mapping) else dict.fromkeys(moved, kinds)
        told = {
            number: kind
            for number in moved
            if (kind := by_id.get(number)) is not None and self._outlet.listens_to(kind)
        }
        if told:
            found = transaction.execute(EVENTS, {"ids": packed(told)})
            transaction.events += [rows.event(row, told[row[0]], now) for row in found]

    def _publish(self, events: Sequence[Event]) -> None:
        with suppress(Exception):  # the change is committed: nobody must believe it failed
            self._outlet.publish(events)
