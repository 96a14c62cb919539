"""Mails in a store, in any state, and what a move did to them."""

from collections.abc import Callable, Collection
from itertools import count
from typing import Any

import pytest
from sqlalchemy import select

from mailer import schema
from mailer.message import Address, Delivery, Envelope, Message, Outcome, Status, Verdict
from mailer.policy import LaneShares, Move
from mailer.store import Result, Store
from mailer.store.marks import Marks

NOW = 1_800_000_000.0
LEASE = NOW + 300
#: By then every lease is over, every resend is due and what can expire has expired.
LATER = NOW + 86_400
TOKEN = "this worker's"

#: Marks a test of what SQLite, with its one writer, can't get wrong.
postgresql_only = pytest.mark.parametrize("databases", ["postgresql"], indirect=True)

_numbers = count(1)


def a_message(**changes: Any) -> Message:
    """One of its own, with changes."""
    mail_id = f"mail{next(_numbers)}"
    given = {
        "id": mail_id,
        "message_id": f"<{mail_id}@example.com>",
        "created_at": NOW,
        "sender": Address("mailer@example.com", "Mailer"),
        "subject": "Welcome",
        "text": "Hello",
        "html": None,
        "to": (Address("ada@example.com"),),
    }
    return Message(**{**given, **changes})


def insert(store: Store, *recipients: str, message: Message | None = None, **options: Any) -> str:
    """Queue a mail that is due now, and return its id; options are those of an envelope."""
    message = message or a_message()
    given = {"recipients": recipients or ("ada@example.com",), "due_at": NOW}
    store.insert_mail(message, Envelope(**{**given, **options}))
    return message.id


def claim(
    store: Store,
    most: int = 100,
    *,
    now: float = NOW,
    token: str = TOKEN,
    lease_until: float = LEASE,
) -> list[Delivery]:
    return store.claim_due(most, token=token, now=now, lease_until=lease_until)


def mark(store: Store, *deliveries: Delivery, now: float = NOW, token: str = TOKEN) -> set[int]:
    return store.mark_if_claimed(
        [one.id for one in deliveries], token=token, now=now, lease_until=LEASE
    )


#: What a try came to, by where the delivery goes from there.
_VERDICTS = {
    Status.SENT: Verdict.SENT,
    Status.QUEUED: Verdict.DEFERRED,
    Status.FAILED: Verdict.REFUSED,
    Status.DOUBTFUL: Verdict.DOUBTFUL,
}


def record(
    store: Store, *deliveries: Delivery, to: Status, reply: str = "250 queued as 1", **move: Any
) -> set[int]:
    due_at = {"due_at": LATER} if to in (Status.QUEUED, Status.DOUBTFUL) else {}
    outcome = Outcome(_VERDICTS[to], reply)
    results = [
        Result(delivery, outcome, Move(to=to, **{**due_at, **move})) for delivery in deliveries
    ]
    return store.record_if_transmitting(results, now=NOW, relay="relay.example.com")


def set_aside(
    store: Store,
    delivery: Delivery,
    *,
    to: Status = Status.FAILED,
    reply: str = "it can't be composed",
) -> set[int]:
    """Record what could not be made ready."""
    move = Move(to=to, due_at=LATER if to is Status.QUEUED else None)
    result = Result(delivery, Outcome(Verdict.DEFERRED, reply), move)
    return store.set_aside_if_claimed([result], now=NOW, relay="relay.example.com")


def bring(store: Store, status: Status, **options: Any) -> Delivery:
    """Bring a delivery into this state. A worker that holds it owns `TOKEN`."""
    return carry(store, insert(store, **options), status)


def carry(store: Store, mail_id: str, status: Status) -> Delivery:
    """Bring the queued delivery of a mail into this state."""
    if status in (Status.CANCELLED, Status.EXPIRED, Status.SUPPRESSED):
        store.settle_if_resting(mail_id, status, now=NOW)
        return in_the_hands_of_a_worker(store, mail_id)
    if status is Status.QUEUED:
        return in_the_hands_of_a_worker(store, mail_id)
    [delivery] = [one for one in claim(store) if one.mail_id == mail_id]
    if status is Status.CLAIMED:
        return delivery
    mark(store, delivery)
    if status in _VERDICTS:
        record(store, delivery, to=status)
    if status in (Status.BOUNCED, Status.COMPLAINED):
        record(store, delivery, to=Status.SENT)
        store.settle_if_resting(mail_id, status, now=NOW)
    return delivery


def in_the_hands_of_a_worker(store: Store, mail_id: str) -> Delivery:
    """What a worker that thinks it has claimed this mail would have in its hands."""
    [row] = [row for row in table(store).values() if row["mail_id"] == mail_id]
    values = {
        name: row[name]
        for name in (
            "id",
            "mail_id",
            "recipient",
            "domain",
            "lane",
            "attempts",
            "doubts",
            "queued_at",
            "on_doubt",
        )
    }
    return Delivery(**values, token=TOKEN)


def table(store: Store) -> dict[int, dict[str, Any]]:
    """Every delivery as it stands in the database, by id, in the order of the ids."""
    query = select(schema.delivery).order_by(schema.delivery.c.id)
    with store.engine.connect() as connection:
        return {row["id"]: dict(row) for row in connection.execute(query).mappings()}


def emptied(store: Store) -> Store:
    """The same store, as good as new."""
    with store.engine.begin() as connection:
        for one in reversed(schema.metadata.sorted_tables):
            connection.execute(one.delete())
    store._marks, store._lane_shares = Marks(), LaneShares()
    return store


def row(store: Store, delivery: Delivery) -> dict[str, Any]:
    return table(store)[delivery.id]


def moved_by(store: Store, move: Callable[[], Collection[int]]) -> dict[int, tuple[Status, Status]]:
    """Make a move; what went from where to where, by id.

    Both ends agree: the ids it returned are the rows that changed.
    """
    before = table(store)
    returned = move()
    after = table(store)
    assert {number for number in after if after[number] != before[number]} == set(returned)
    return {
        number: (Status(before[number]["status"]), Status(after[number]["status"]))
        for number in returned
    }


def assert_moved(
    store: Store, move: Callable[[], Collection[int]], deliveries: Collection[Delivery], to: Status
) -> None:
    """The move takes exactly these deliveries there, and touches nothing else."""
    targets = {number: target for number, (_source, target) in moved_by(store, move).items()}
    assert targets == {delivery.id: to for delivery in deliveries}
