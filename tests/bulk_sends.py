"""Bulk sends in a store, as an import leaves them."""

from collections.abc import Sequence
from typing import Any

from mailer import Calendar
from mailer.content import Snapshot
from mailer.message import Delivery, Envelope, Lane, Message, Status, new_bulk_id
from mailer.message.bulk import BulkError, BulkSend, BulkState, OwnPart
from mailer.store import Chunk, Importer, NewBulk, NewRecipient, Store
from tests.mails import NOW, a_message, carry, in_the_hands_of_a_worker

IMPORTER = Importer("importer", NOW + 60)


def a_bulk_message(now: float = NOW, **changes: Any) -> Message:
    bulk_id = new_bulk_id(now)
    given = {"id": bulk_id, "message_id": f"<{bulk_id}@example.com>", "text": None, "to": ()}
    return a_message(**{**given, **changes})


def begin(
    store: Store,
    *,
    subject: str = "News for {{ name }}",
    text: str = "Hello {{ name }}",
    now: float = NOW,
    state: BulkState = BulkState.IMPORTING,
    max_failed_share: float = 0.5,
    headers: tuple[tuple[str, str], ...] = (),
    calendar: Calendar | None = None,
    **envelope: Any,
) -> NewBulk:
    """Insert a bulk send without recipients."""
    new = NewBulk(
        message=a_bulk_message(now, subject=subject, headers=headers),
        envelope=Envelope(**{"recipients": (), "due_at": now, "lane": Lane.BULK, **envelope}),
        snapshot=Snapshot(subject, "mail/news", {"mail/news.txt": text}, {}).to_json(),
        state=state,
        max_failed_share=max_failed_share,
        calendar=calendar,
    )
    store.insert_bulk(new, IMPORTER)
    return new


def recipient(number: int, zone: str | None = None, **context: Any) -> NewRecipient:
    own = OwnPart({"name": f"Reader {number}", **context}).to_json()
    return NewRecipient(f"reader{number}@example.com", number, own, 100, zone)


def add(
    store: Store,
    new: NewBulk,
    recipients: Sequence[NewRecipient],
    errors: Sequence[BulkError] = (),
    *,
    before: int = 0,
) -> bool:
    """Store a chunk of recipients and refused rows after `before` rows."""
    chunk = Chunk(recipients, errors, len(recipients) + len(errors), before, "digest")
    return store.store_chunk(new.message.id, chunk, new.envelope, IMPORTER)


def make(
    store: Store,
    number: int,
    *,
    to: BulkState = BulkState.RUNNING,
    zones: Sequence[str | None] = (None,),
    **options: Any,
) -> BulkSend:
    """Make a bulk send to so many readers, all of them held. They are in these zones by turns."""
    new = begin(store, **options)
    numbers = range(1, number + 1)
    add(store, new, [recipient(one, zones[(one - 1) % len(zones)]) for one in numbers])
    store.end_import(new.message.id, IMPORTER, to)
    return store.load_bulk(new.message.id)


def bring(store: Store, status: Status, **options: Any) -> Delivery:
    """Bring the only delivery of a bulk send into this state."""
    bulk = make(store, 1, **options)
    if status is Status.HELD:
        return in_the_hands_of_a_worker(store, bulk.id)
    if bulk.calendar is None:
        store.release_held(bulk.id, now=NOW, most=1)
    else:
        store.release_held_in_zone(bulk.id, bulk.calendar.time_zone, now=NOW, most=1)
    return carry(store, bulk.id, status)
