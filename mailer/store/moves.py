"""The outlet of changes: every move of a delivery passes through `Moves`.

A move is one statement, guarded by the state it leaves, that returns the ids of the rows it moved.
In the same transaction, a sensitive mail is erased with its last delivery, and the events are
collected if anybody listens. They are published after the commit, when the connection is back in
its pool.

Locks are taken in one order: messages before deliveries before bytes, each by id. A statement that
skips locked rows needs no order. Neither does a move that is guarded by the token of a claim: two
transactions want the same rows only if these are doubtful, and `_transact` repeats the one that
PostgreSQL rolls back after a deadlock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mailer.message import Status
from mailer.message.events import AnyEvent, EventKind
from mailer.message.ports import Outlet
from mailer.policy import LaneShares, TenantRules
from mailer.store import erasing, rows
from mailer.store.callers import CallersTransaction
from mailer.store.database import Database
from mailer.store.marks import Marks
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

EVENTS = """
SELECT mailer_delivery.id, mail_id, message_id, recipient, status, lane, tenant, attempts, reply,
    relay, CAST(tags AS text), CAST(metadata AS text)
FROM mailer_delivery
JOIN mailer_message ON mailer_message.id = mail_id
WHERE mailer_delivery.id {ids}
ORDER BY mailer_delivery.id
"""

# Bulk sends count the deliveries that they have finished. See bulk.py.
COUNT_FINISHED = """
INSERT INTO mailer_bulk_count (bulk_id, status, number)
SELECT mail_id, status, COUNT(*) FROM mailer_delivery
WHERE id {ids} AND finished_at IS NOT NULL
    AND EXISTS (SELECT 1 FROM mailer_bulk WHERE mailer_bulk.id = mail_id)
GROUP BY mail_id, status
"""

# What comes back to the queue of a bulk send that is stopped is held in the same transaction: until
# the next sweep, a worker might claim it. The send is locked, so that a resume comes before or
# after, and finds it.
LOCK_STOPPED = """
SELECT id FROM mailer_bulk
WHERE state IN ('paused', 'cancelled')
    AND id IN (SELECT mail_id FROM mailer_delivery WHERE id {ids})
ORDER BY id {wait}
"""
HOLD_OF_STOPPED = """
UPDATE mailer_delivery SET status = 'held', due_at = NULL, rank = NULL
WHERE id {ids} AND COALESCE(status, '') = 'queued' AND mail_id = :id
RETURNING id
"""
#: A release begins anew, and finds what is held behind its place.
NOTE_HELD_AGAIN = """
UPDATE mailer_bulk SET released = released - :held, released_to = 0 WHERE id = :id
"""

#: The kind of event of each delivery that moves, or one kind for all of them.
Kinds = EventKind | Mapping[int, EventKind]

#: The event of a move to a state. The other moves have none, or one of their own.
EVENT_OF = {
    Status.SENT: EventKind.SENT,
    Status.FAILED: EventKind.FAILED,
    Status.DOUBTFUL: EventKind.DOUBTFUL,
    Status.EXPIRED: EventKind.EXPIRED,
    Status.CANCELLED: EventKind.CANCELLED,
}

#: The most deliveries that one transaction moves, so that no lock is held for long.
MOVED_AT_ONCE = 5000


class Nobody:
    """An outlet without listeners."""

    def listens_to(self, _kind: EventKind) -> bool:
        return False

    def publish(self, events: Sequence[AnyEvent]) -> None:
        """Do nothing."""


class Moves(Database):
    """The moves of deliveries."""

    def __init__(
        self,
        url: str,
        *,
        pgbouncer: bool = False,
        outlet: Outlet | None = None,
        rules: TenantRules | None = None,
    ) -> None:
        super().__init__(url, pgbouncer=pgbouncer)
        self._outlet: Outlet = outlet or Nobody()
        self._rules: TenantRules = rules or TenantRules()
        self._marks: Marks = Marks()
        self._lane_shares: LaneShares = LaneShares()

    # The values of a move have `now` if it finishes deliveries or has an event.

    def _move(self, statement: str, *, kind: EventKind | None = None, **values: Any) -> set[int]:
        """Move deliveries in a transaction of their own, none of them to a final state."""
        return self._transact(
            lambda transaction: self._moved(transaction, statement, values, kinds=kind)
        )

    def _finish(
        self,
        transaction: Transaction,
        statement: str,
        values: Mapping[str, Any],
        *,
        mails: Collection[str],
        has_bulk: bool,
        kinds: Kinds | None,
    ) -> set[int]:
        """Move deliveries. Erase those of `mails` that are sensitive and finished by that.

        With `has_bulk`, count the deliveries of bulk sends that are finished by that.
        """
        sensitive = erasing.lock_sensitive(transaction, mails)
        moved = self._moved(transaction, statement, values, kinds=kinds)
        if moved:
            erasing.erase_sensitive(transaction, sensitive, now=values["now"])
        if moved and has_bulk:
            transaction.execute(COUNT_FINISHED, {"ids": packed(moved)})
        return moved

    def _hold_of_stopped(self, transaction: Transaction, queued: Collection[int]) -> None:
        """Hold those of these queued deliveries whose bulk send is paused or cancelled."""
        ids = packed(queued)
        for (bulk_id,) in transaction.execute(LOCK_STOPPED, {"ids": ids}) if queued else ():
            held = transaction.execute(HOLD_OF_STOPPED, {"ids": ids, "id": bulk_id})
            transaction.execute(NOTE_HELD_AGAIN, {"id": bulk_id, "held": len(held)})

    def _finish_in_steps(
        self,
        choose: str,
        move: str,
        values: Mapping[str, Any],
        *,
        kind: EventKind,
        waits: bool = True,
    ) -> Iterator[set[int]]:
        """Finish deliveries, a transaction for each step, until none is left.

        Without `waits`, leave out deliveries of sensitive mails that somebody else has locked.
        """

        def step(transaction: Transaction) -> set[int] | None:
            chosen = transaction.execute(choose, values)
            sensitive = {mail_id for _number, mail_id in chosen if mail_id is not None}
            locked = erasing.lock_sensitive(transaction, sensitive, waits=waits)
            busy = set() if waits else sensitive - locked
            ids = [number for number, mail_id in chosen if mail_id not in busy]
            if not ids:
                return None
            moved = self._moved(transaction, move, {**values, "ids": packed(ids)}, kinds=kind)
            if moved:
                erasing.erase_sensitive(transaction, locked, now=values["now"])
                transaction.execute(COUNT_FINISHED, {"ids": packed(moved)})
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
        kinds: Kinds | None,
    ) -> set[int]:
        """Execute a move and collect its events. Return the ids of the deliveries that moved."""
        moved = {number for (number,) in transaction.execute(statement, values)}
        if moved and kinds is not None:
            self._note(transaction, moved, kinds, values["now"])
        return moved

    def _note(
        self,
        transaction: Transaction | CallersTransaction,
        moved: Collection[int],
        kinds: Kinds,
        now: float,
    ) -> None:
        """Collect the events of a move to which anybody listens.

        A reliable outlet would write its rows here, in the same transaction.
        """
        by_id = kinds if isinstance(kinds, Mapping) else dict.fromkeys(moved, kinds)
        heard = {kind for kind in set(by_id.values()) if self._outlet.listens_to(kind)}
        told = {number: by_id[number] for number in moved if by_id.get(number) in heard}
        if told:
            found = transaction.execute(EVENTS, {"ids": packed(told)})
            transaction.events += [rows.event(row, told[row[0]], now) for row in found]

    def _publish(self, events: Sequence[AnyEvent]) -> None:
        with suppress(Exception):  # the change is committed, and must not look as if it failed
            self._outlet.publish(events)
