"""Every query, named by its guard.

Each move of a delivery is one statement, guarded by the state it leaves and by the claim's token, and returns the ids
that really moved: whoever comes second moves nothing.

`claim_due`, `mark_if_claimed`, `record_if_transmitting`, `release_if_held`, `set_aside_if_claimed` and `postpone_if_queued`
are a worker's;
`requeue_lapsed_claims`, `doubt_lapsed_transmissions`, `resend_doubtful`, `expire_overdue` and `recall_queued` are the sweep's;
`settle_if_resting`, `cancel_if_due_before`, `hold_if_due_before`, `stop` and `go_on` are a person's.

A move that leads to a final state is made by `_finish`, which erases in the same transaction what a sensitive mail said.

Locks are taken in one order: messages before deliveries before bytes, each by id, in every transaction that waits for them.
What steps over locked rows waits for nobody. A write that PostgreSQL undoes all the same is done once more, see `_transact`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from mailer.errors import CommitLost, StoreUnavailable
from mailer.message import (
    TRANSITIONS,
    Address,
    Delivery,
    Envelope,
    Key,
    Keyed,
    Lane,
    MailStatus,
    Message,
    Outcome,
    Pause,
    Status,
    Verdict,
    could_be_id,
    id_at,
)
from mailer.policy import Move
from mailer.store import blobs, hosts, keys, loading, lookup, outlook, retention, rows, workers
from mailer.store import statements as sql
from mailer.store.aside import Aside
from mailer.store.database import Database
from mailer.store.hosts import Host, HostTransaction, connection_of
from mailer.store.outlook import Outlook
from mailer.store.spelling import packed
from mailer.store.transactions import Transaction

__all__ = ["MOVED_AT_ONCE", "Host", "Outlook", "Result", "Store", "connection_of"]

_RELAY, _LANE, _ALL = "relay", "lane", "all"  # the scopes of pauses
_WORKERS = frozenset({Status.CLAIMED, Status.TRANSMITTING})
#: So many deliveries are moved in one transaction at most: a million of them hold up nobody.
MOVED_AT_ONCE = 5000
# Clocks of machines may differ by so many seconds (or by the chore's period, if that is longer). A date beyond that was
# written by a clock that was wrong, and is not believed.
_CLOCKS_DIFFER = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """One finished try, ready to be written."""

    delivery: Delivery
    outcome: Outcome
    move: Move


class Store(Database):
    """What is asked of the database of one app."""

    def __init__(self, url: str, *, pgbouncer: bool = False) -> None:
        super().__init__(url, pgbouncer=pgbouncer)
        self._aside = Aside(self.insert_mail, self._find_key) if self.is_in_memory else None

    # --- intake -------------------------------------------------------------------------------------------------------

    def insert_mail(self, message: Message, envelope: Envelope, host: Connection | None = None) -> Keyed | None:
        """-> queued: the message and a delivery for each recipient, all or nothing.

        If its key is taken, nothing is written, and the mail that has it is returned. With a host, it is in their transaction.
        """
        if host is not None and self._aside is not None:
            return self._aside.keep(host, message, envelope)
        if host is not None:
            with self._join(host) as transaction:
                return self._insert_mail(transaction, message, envelope)
        insert = partial(self._insert_mail, message=message, envelope=envelope)
        try:
            return self._transact(insert)
        except CommitLost as lost:
            return self._insert_again(insert, message.id, lost)

    def _insert_again(self, insert: Callable[[Transaction], Keyed | None], mail_id: str, lost: CommitLost) -> Keyed | None:
        """Whether the first time was in vain is told by its id: no mail is there twice."""
        try:
            earlier = self._transact(insert)
        except self.engine.dialect.loaded_dbapi.IntegrityError:
            return None
        except StoreUnavailable:
            raise lost from lost.__cause__
        return None if earlier is not None and earlier.id == mail_id else earlier  # its key is its own

    def _insert_mail(self, transaction: Transaction | HostTransaction, message: Message, envelope: Envelope) -> Keyed | None:
        if (earlier := self._insert_message(transaction, message, envelope.key)) is not None:
            return earlier
        if message.attachments:
            is_callers = isinstance(transaction, HostTransaction) and not self._sqlite
            blobs.insert_attachments(transaction, message, self._transact if is_callers else None)
        transaction.execute_many(sql.INSERT_DELIVERY, rows.delivery_rows(message, envelope))
        return None

    def _insert_message(self, transaction: Transaction | HostTransaction, message: Message, key: Key | None) -> Keyed | None:
        row = rows.message_row(message)
        if key is None:
            transaction.execute(sql.INSERT_MESSAGE, row)
            return None
        return keys.insert_keyed(transaction, row, key, limit_waits=not self._sqlite)

    def _find_key(self, name: str) -> Keyed | None:
        with self._look() as transaction:
            return keys.find(transaction, name)

    def after_commit(self, host: Connection, mail_id: str, call: Callable[[], object]) -> None:
        """Call it once the host's transaction has been committed with this mail in it."""
        if self._aside is not None:
            self._aside.after_commit(host, mail_id, call)
            return
        hosts.after_commit(host, mail_id, call, self._spell)

    # --- a worker's ---------------------------------------------------------------------------------------------------

    def claim_due(
        self, most: int, *, token: str, now: float, lease_until: float, lanes: Iterable[Lane] = tuple(Lane)
    ) -> list[Delivery]:
        """queued -> claimed: the most urgent lane first, in it what has been due the longest."""

        def take(transaction: Transaction) -> list[Delivery]:
            claimed: list[Delivery] = []
            for lane in sorted(lanes):
                if len(claimed) == most:
                    break
                values = {"lane": lane, "now": now, "most": most - len(claimed), "token": token, "lease_until": lease_until}
                taken = transaction.execute(sql.CLAIM, values)
                claimed += rows.deliveries(taken, token)
            return claimed

        return self._transact(take)

    def mark_if_claimed(self, ids: Collection[int], *, token: str, now: float, lease_until: float) -> set[int]:
        """claimed -> transmitting, if the lease still holds: from here on a death means doubt."""
        return self._move(sql.MARK, ids=packed(ids), token=token, now=now, lease_until=lease_until)

    def record_if_transmitting(self, results: Iterable[Result], *, now: float, relay: str) -> set[int]:
        """transmitting -> sent, failed, queued or doubtful; a reply that came late settles a doubtful one too."""
        results = sorted(results, key=lambda result: result.delivery.id)
        values = packed(rows.result_row(result.delivery, result.outcome, result.move, now) for result in results)
        mails = {result.delivery.mail_id for result in results}

        def write(transaction: Transaction) -> set[int]:
            moved = self._finish(transaction, sql.RECORD, {"results": values, "relay": relay}, mails=mails, now=now)
            failed = [one for one in results if one.outcome.verdict is not Verdict.SENT and one.delivery.id in moved]
            self._insert_attempts(transaction, failed, now=now, relay=relay)
            return moved

        return self._transact(write)

    def release_if_held(self, waits: Mapping[int, float | None], *, token: str) -> set[int]:
        """claimed, transmitting or doubtful -> queued, as if never claimed; later, where a due time says so.

        Only the worker knows that it did not begin: what the sweep thought to be in doubt meanwhile is not.
        """
        return self._move(sql.RELEASE, waits=packed(waits.items()), token=token) if waits else set()

    def lock_sensitive(self, mail_ids: Collection[str]) -> None:
        """Lock what is sensitive, inside `together()`: before the first of several moves that may be the last of a mail."""
        self._transact(lambda transaction: retention.lock_sensitive(transaction, mail_ids))

    def set_aside_if_claimed(self, results: Iterable[Result], *, now: float, relay: str) -> set[int]:
        """claimed -> queued or failed: what could not be made ready for the relay, with the reason in its history."""
        results = sorted(results, key=lambda result: result.delivery.id)
        values = packed(rows.result_row(result.delivery, result.outcome, result.move, now) for result in results)
        mails = {result.delivery.mail_id for result in results}

        def write(transaction: Transaction) -> set[int]:
            moved = self._finish(transaction, sql.SET_ASIDE, {"results": values}, mails=mails, now=now)
            self._insert_attempts(transaction, [one for one in results if one.delivery.id in moved], now=now, relay=relay)
            return moved

        return self._transact(write)

    def _insert_attempts(self, transaction: Transaction, results: list[Result], *, now: float, relay: str) -> None:
        if results:
            tries = [rows.attempt_row(one.delivery.id, one.outcome, now, relay) for one in results]
            transaction.execute_many(sql.INSERT_ATTEMPT, tries)

    def load_held(self, token: str) -> list[Delivery]:
        """What is in the hands of a worker, and what is in doubt since it was."""
        with self._look() as transaction:
            return rows.deliveries(transaction.execute(sql.HELD, {"token": token}), token)

    def load_messages(self, mail_ids: Collection[str]) -> dict[str, Message]:
        """What is to be said, by id; what is erased is left out, and what somebody has spoilt.

        An error that is no fault of a mail, such as too little memory, is raised.
        """
        if not mail_ids:
            return {}
        with self._look() as transaction:
            found = loading.find(transaction, mail_ids)
        return loading.messages(found)

    def load_sizes(self, mail_ids: Collection[str]) -> dict[str, int]:
        """Measure mails that were queued without a size, in bytes or a little more."""
        with self._look() as transaction:
            return {mail_id: int(size) for mail_id, size in transaction.execute(sql.SIZES, {"mails": packed(mail_ids)})}

    def load_senders(self, mail_ids: Collection[str]) -> dict[str, str]:
        """Who says it, by id: for relays that take the mail of some senders only."""
        with self._look() as transaction:
            found = transaction.execute(sql.SENDERS, {"mails": packed(mail_ids)})
        return {mail_id: Address.stored(sender).email for mail_id, sender in found}

    def head(self, lane: Lane, *, now: float, most: int) -> list[Delivery]:
        """What is due in a lane and in nobody's hands, the longest due first."""
        with self._look() as transaction:
            found = transaction.execute(sql.HEAD, {"lane": lane, "now": now, "most": most})
        return rows.deliveries(found, token="")

    def is_waiting(self, lanes: Iterable[Lane], domain: str, *, now: float, until: float, token: str) -> bool:
        """Whether mail in these lanes is due again by then; of a domain, or of any if it is empty.

        What the worker with this token has in its own hands does not count.
        """
        values = {"domain": domain, "now": now, "until": until, "token": token}
        with self._look() as transaction:
            return any(transaction.execute(sql.IS_WAITING, {"lane": lane, **values}) for lane in lanes)

    def postpone_if_queued(self, waits: Mapping[int, float], *, now: float) -> set[int]:
        """What is due is due later: it waits for its turn at a limit."""
        return self._move(sql.POSTPONE, waits=packed(waits.items()), now=now)

    # --- pauses -------------------------------------------------------------------------------------------------------

    def relay_pauses(self) -> dict[str, Pause]:
        """The relays that are left alone, by name."""
        with self._look() as transaction:
            found = transaction.execute(sql.PAUSES, {"scope": _RELAY})
        return dict(map(rows.pause, found))

    def pause_relay(self, name: str, *, failures: int, now: float, until: float, reason: str) -> bool:
        """Leave a relay alone, unless another worker did so since its `failures` were looked at."""
        values = {"scope": _RELAY, "key": name, "failures": failures, "now": now, "until": until, "reason": rows.storable(reason)}
        return self._does(sql.PAUSE, values)

    def take_probe(self, name: str, *, now: float, until: float) -> bool:
        """Whether this process is the one to try a paused relay again: one of all."""
        values = {"scope": _RELAY, "key": name, "now": now, "until": until}
        return self._does(sql.TAKE_PROBE, values)

    def move_probe(self, name: str, *, taken_until: float, until: float) -> bool:
        """When others may try the relay: later, or at once if nothing came of the try. Only while it is still ours."""
        values = {"scope": _RELAY, "key": name, "taken_until": taken_until, "until": until}
        return self._does(sql.MOVE_PROBE, values)

    def resume_relay(self, name: str) -> bool:
        """The relay answers again; whether it was paused."""
        return self._does(sql.RESUME, {"scope": _RELAY, "key": name})

    def stop(self, lane: Lane | None = None, *, now: float, reason: str) -> None:
        """A person's pause: nothing of a lane is claimed any more, or nothing at all, until `go_on`."""
        values = {**_stopped(lane), "reason": rows.storable(reason), "now": now}
        self._does(sql.STOP, values)

    def go_on(self, lane: Lane | None = None) -> bool:
        """The end of a person's pause; whether there was one."""
        return self._does(sql.RESUME, _stopped(lane))

    def stops(self) -> dict[Lane | None, Pause]:
        """What a person has paused; None stands for everything."""
        with self._look() as transaction:
            found = [transaction.execute(sql.PAUSES, {"scope": scope}) for scope in (_ALL, _LANE)]
        pauses = map(rows.pause, chain.from_iterable(found))
        return {Lane(int(key)) if key else None: pause for key, pause in pauses}

    # --- the sweep's --------------------------------------------------------------------------------------------------

    def requeue_lapsed_claims(self, now: float) -> set[int]:
        """claimed -> queued: their worker is gone, and never began."""
        return self._move(sql.REQUEUE_LAPSED, now=now)

    def doubt_lapsed_transmissions(self, now: float, *, resend_at: float) -> set[int]:
        """transmitting -> doubtful: their worker is gone, and nobody knows how far it came."""
        return self._move(sql.DOUBT_LAPSED, now=now, resend_at=resend_at)

    def resend_doubtful(self, now: float) -> set[int]:
        """doubtful -> queued, where the mail wants it and the time has come."""
        return self._move(sql.RESEND, now=now)

    def expire_overdue(self, now: float) -> set[int]:
        """queued -> expired: too late to be of use. In bites, so that a million of them hold up nobody."""
        values = {"now": now, "most": MOVED_AT_ONCE}
        return set().union(*self._bites(sql.OVERDUE, sql.EXPIRE, values, now=now, waits=False))

    def recall_queued(self, now: float, *, was: float) -> int:
        """The clock was set back: what was due is due, as it was; returns how many. In bites, as above."""
        recalled = 0
        for lane in Lane:
            while bite := self._move(sql.RECALL, lane=lane, now=now, was=was, most=MOVED_AT_ONCE):
                recalled += len(bite)
        return recalled

    def beat(self, worker: workers.Worker) -> None:
        """Write that a worker is alive."""
        self._transact(partial(workers.beat, worker=worker))

    def leave(self, worker_id: str) -> None:
        """Forget a worker, which stops."""
        self._transact(partial(workers.leave, worker_id=worker_id))

    def present_workers(self, now: float, *, silent: float) -> list[workers.Worker]:
        """Return the workers that were seen within so many seconds."""
        with self._look() as transaction:
            return workers.present(transaction, now, silent=silent)

    def worker_seen_at(self, now: float) -> float | None:
        """Return when a worker was seen last, None if none ever was."""
        with self._look() as transaction:
            return workers.last_seen(transaction, now)

    def due(self, now: float) -> workers.Due:
        """Count the mails that are due."""
        with self._look() as transaction:
            return workers.due(transaction, now)

    def is_due(self, now: float) -> bool:
        """Whether there is anything to claim."""
        with self._look() as transaction:
            return any(transaction.execute(sql.IS_DUE, {"lane": lane, "now": now, "most": 1}) for lane in Lane)

    def next_due(self, now: float, *, before: float) -> float | None:
        """When something gets due that is not due yet, if that is soon."""
        with self._look() as transaction:
            values = {"now": now, "before": before}
            found = [transaction.execute(sql.NEXT_DUE, {"lane": lane, **values}) for lane in Lane]
        return min((moment for [(moment,)] in found if moment is not None), default=None)

    def take_chore(self, name: str, *, now: float, every: float) -> bool:
        """Whether this process is the one to do the chore now: one of all, each `every` seconds."""
        values = {"name": name, "now": now, "next": now + every, "latest": now + every + max(every, _CLOCKS_DIFFER)}
        with self._look() as transaction:
            if transaction.execute(sql.CHORE_IS_DONE, values):
                return False
        return self._does(sql.TAKE_CHORE, values)

    def purge_finished(self, before: float, *, most: int) -> int:
        """Delete what finished before then, `most` deliveries at once; returns how many. Mails go with their last."""
        return self._transact(partial(retention.purge_finished, before=before, most=most))

    def purge_orphans(self, *, after: str, most: int) -> str | None:
        """Delete mails that have no delivery any more: of `most` mails that come after this id.

        Returns the last id that was looked at, from where to go on; None at the end.
        """
        with self._look() as transaction:
            found, last = retention.orphans(transaction, after=after, most=most)
        if found:
            self._does(sql.PURGE_MAILS, {"mails": packed(found)})
        return last

    def erase_finished(self, before: float, *, now: float, after: str, most: int) -> str | None:
        """Erase what mails said that finished before then: of `most` mails that come after this id.

        Returns the last id that was looked at, from where to go on; None at the end.
        """
        values = {"after": after, "created_before": id_at(before), "most": most}

        def erase(transaction: Transaction) -> str | None:
            mails: list[str] = [mail_id for (mail_id,) in transaction.execute(sql.SOME_KEPT, values)]
            if mails:
                transaction.execute(sql.LOCK_MAILS, {"mails": packed(mails)})
                retention.erase(transaction, mails, now=now, finished_before=before)
            return mails[-1] if mails else None

        return self._transact(erase)

    def purge_blobs(self, now: float, *, after: str, most: int) -> str | None:
        """Delete bytes that no mail carries any more, in the same manner: of `most`, in the order of their hashes."""
        with self._look() as transaction:
            hashes: list[str] = [sha256 for (sha256,) in transaction.execute(sql.SOME_BLOBS, {"after": after, "most": most})]
        if not hashes:
            return None
        unused_since = now - retention.BLOB_IS_SPARED
        self._transact(lambda transaction: retention.purge_blobs(transaction, hashes, unused_since=unused_since))
        return hashes[-1]

    # --- a person's ---------------------------------------------------------------------------------------------------

    def settle_if_resting(self, mail_id: str, to: Status, *, now: float) -> set[int]:
        """Move a mail's deliveries along the state chart, but into no worker's hands and out of none."""
        leaving = [str(source) for source, target in TRANSITIONS if target is to and not {source, target} & _WORKERS]
        if not leaving or not could_be_id(mail_id):
            return set()
        due_at = now if to is Status.QUEUED else None
        finished_at = now if to.is_final else None
        values = {"mail_id": mail_id, "to": str(to), "leaving": packed(leaving), "due_at": due_at, "finished_at": finished_at}

        def settle(transaction: Transaction) -> set[int]:
            transaction.execute(sql.LOCK_MAILS, {"mails": packed([mail_id])})  # while it is queued again it must not be erased
            return self._finish(transaction, sql.SETTLE, {**values, "now": now}, mails=[mail_id], now=now)

        return self._transact(settle)

    def cancel_if_due_before(self, before: float, *, now: float, lanes: Iterable[Lane] = tuple(Lane)) -> Iterator[set[int]]:
        """queued -> cancelled: what is due before then, bite by bite."""
        for lane in lanes:
            values = {"lane": lane, "before": before, "now": now, "most": MOVED_AT_ONCE}
            yield from self._bites(sql.DUE_BEFORE, sql.CANCEL, values, now=now)

    def hold_if_due_before(self, before: float, *, lanes: Iterable[Lane] = tuple(Lane)) -> set[int]:
        """What is in doubt, and was due before then, is not sent again by itself: a person decides."""
        return set().union(*(self._move(sql.HOLD, lane=lane, before=before) for lane in lanes))

    def outlook(self, *, now: float, most: int) -> Outlook:
        """What would go out by itself, with the `most` domains that get the most, and so many of the first mails."""
        with self._read() as transaction:
            return outlook.look(transaction, now=now, most=most)

    def statuses(self, mail_ids: Collection[str]) -> dict[str, MailStatus]:
        """How mails are doing, by id; ids that are unknown are left out."""
        if self._aside is not None:
            self._aside.settle()
        ids = [mail_id for mail_id in mail_ids if could_be_id(mail_id)]
        values = {"mails": packed(ids)}
        with self._read() as transaction:
            return rows.mail_statuses(*(transaction.execute(query, values) for query in (sql.HEADS, sql.COPIES, sql.TRIES)))

    def status(self, mail_id: str) -> MailStatus:
        """How one mail is doing; raises `UnknownMail`."""
        try:
            return self.statuses([mail_id])[mail_id]
        except (KeyError, TypeError):  # what has no hash is no id either
            raise lookup.unknown(mail_id) from None

    def find_mail(self, given: str) -> str:
        """Return the id of the mail that an operator means; `UnknownMail` if there is none, or more than one."""
        with self._look() as transaction:
            return lookup.find_mail(transaction, given)

    def counts(self) -> list[tuple[Status, Lane, int, float | None]]:
        """(status, lane, how many, the oldest due time), for people."""
        with self._look() as transaction:
            return [(Status(status), Lane(lane), count, due) for status, lane, count, due in transaction.execute(sql.COUNT, {})]

    # --- moves --------------------------------------------------------------------------------------------------------

    def _does(self, statement: str, values: Mapping[str, Any]) -> bool:
        """Whether it changed anything, or says so."""
        return self._transact(lambda transaction: transaction.execute(statement, values)) != []

    def _move(self, statement: str, **values: Any) -> set[int]:
        return {number for (number,) in self._transact(lambda transaction: transaction.execute(statement, values))}

    def _finish(
        self, transaction: Transaction, statement: str, values: Mapping[str, Any], *, mails: Collection[str], now: float
    ) -> set[int]:
        """A move that may be the last of these mails: then what is sensitive in them ends in the same transaction."""
        sensitive = retention.lock_sensitive(transaction, mails)
        return self._finish_locked(transaction, statement, values, sensitive=sensitive, now=now)

    def _finish_locked(
        self, transaction: Transaction, statement: str, values: Mapping[str, Any], *, sensitive: Collection[str], now: float
    ) -> set[int]:
        moved = {number for (number,) in transaction.execute(statement, values)}
        if moved:
            retention.erase_sensitive(transaction, sensitive, now=now)
        return moved

    def _bites(self, choose: str, move: str, values: Mapping[str, Any], *, now: float, waits: bool = True) -> Iterator[set[int]]:
        """Such moves, a transaction each, until nothing is left to move. Without `waits`, what others hold is left to them."""

        def bite(transaction: Transaction) -> set[int]:
            chosen = transaction.execute(choose, values)
            mails = {mail_id for _number, mail_id in chosen if mail_id is not None}
            locked = retention.lock_sensitive(transaction, mails, waits=waits)
            busy = set() if waits else mails - locked
            ids = [number for number, mail_id in chosen if mail_id not in busy]
            if not ids:
                return set()
            return self._finish_locked(transaction, move, {**values, "ids": packed(ids)}, sensitive=locked, now=now)

        while moved := self._transact(bite):
            yield moved


def _stopped(lane: Lane | None) -> dict[str, str]:
    """A person's pause as it is kept."""
    return {"scope": _ALL, "key": ""} if lane is None else {"scope": _LANE, "key": f"{lane:d}"}
