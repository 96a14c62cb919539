"""Bulk sends after their import: release, delivery, pauses, counts, the end."""

from collections import Counter

import pytest

from mailer.blackbox import Remains
from mailer.delivery import Dispatcher
from mailer.delivery.feeding import Feeder
from mailer.delivery.settling import settle
from mailer.errors import UnknownMail
from mailer.message import Delivery, Lane, Status
from mailer.message.bulk import BulkError, BulkState, OwnPart
from mailer.store import Filter, NewRecipient, Store
from tests.bulk_sends import IMPORTER, add, begin, make, recipient
from tests.mails import LATER, NOW, TOKEN, claim, mark, record, set_aside, table
from tests.services.dispatchers import Clock, MakeDispatcher, queue
from tests.services.sink import Sink

NAMES = "held queued doubtful sent failed cancelled expired suppressed".split()


def numbers(store: Store, bulk_id: str) -> dict[str, int]:
    """Return the numbers of recipients by state, without zeros. Assert that they are truthful."""
    progress = store.bulk_progress(bulk_id, now=NOW)
    counted = {name: number for name in NAMES if (number := getattr(progress, name))}
    in_hand = (Status.CLAIMED, Status.TRANSMITTING)
    assert counted == Counter(
        "queued" if row["status"] in in_hand else row["status"]
        for row in table(store).values()
        if row["mail_id"] == bulk_id
    )
    return counted


def take(store: Store, number: int) -> list[Delivery]:
    """Claim and mark deliveries, as a worker does before it sends them."""
    taken = claim(store, number)
    mark(store, *taken)
    return taken


def state_of(store: Store, bulk_id: str) -> BulkState:
    return store.load_bulk(bulk_id).state


@pytest.fixture
def dispatcher(make_dispatcher: MakeDispatcher) -> Dispatcher:
    return make_dispatcher()


@pytest.fixture
def feeder(dispatcher: Dispatcher) -> Feeder:
    return Feeder(dispatcher._services)


# --- release ------------------------------------------------------------------------------------


def test_nothing_is_released_before_the_import_is_complete(store: Store) -> None:
    """The recipients of an import are held: nothing releases, cancels or claims them."""
    new = begin(store)
    add(store, new, [recipient(1), recipient(2)])

    assert store.release_held(new.message.id, now=LATER, most=10) is None
    assert store.cancel_held(new.message.id, now=LATER) is None
    assert claim(store, now=LATER) == []
    assert numbers(store, new.message.id) == {"held": 2}


def test_portions_in_the_order_of_the_rows(store: Store) -> None:
    """Each release takes the next recipients, until none is held."""
    bulk = make(store, 5)
    released = [store.release_held(bulk.id, now=NOW, most=2) for _step in range(4)]

    assert [len(step) if step else step for step in released] == [2, 2, 1, None]
    assert [one.recipient for one in claim(store)] == [
        f"reader{number}@example.com" for number in range(1, 6)
    ]
    assert numbers(store, bulk.id) == {"queued": 5}


def test_a_scheduled_send_waits_for_its_time(store: Store) -> None:
    """No delivery is released before `send_at`."""
    bulk = make(store, 2, due_at=NOW + 3600)

    assert store.release_held(bulk.id, now=NOW + 3599, most=10) is None
    assert len(store.release_held(bulk.id, now=NOW + 3600, most=10) or ()) == 2


def test_the_queue_of_a_lane_stays_short(
    store: Store, feeder: Feeder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep releases so much that the lane has a window of due mail, shared by all sends."""
    monkeypatch.setattr("mailer.delivery.feeding._WINDOW", 10)
    one, other = make(store, 20, now=clock.time()), make(store, 20, now=clock.time())
    for _ in range(3):
        queue(store, "ada@example.com", lane=Lane.BULK)

    feeder.advance(clock.time())

    assert [numbers(store, bulk.id)["queued"] for bulk in (one, other)] == [3, 3]
    assert store.count_due(Lane.BULK, "", now=clock.time(), most=100) == 9


@pytest.mark.parametrize(
    ("state", "send_at"),
    [
        (BulkState.READY, NOW),
        (BulkState.PAUSED, NOW),
        (BulkState.RUNNING, NOW + 3600),
    ],
)
def test_a_send_that_can_not_go_on_costs_no_transaction(
    store: Store,
    feeder: Feeder,
    monkeypatch: pytest.MonkeyPatch,
    state: BulkState,
    send_at: float,
) -> None:
    """A sweep only reads about a send that waits for a person or for its time."""
    bulk = make(store, 2, due_at=send_at)
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], state)

    def refuse() -> None:
        raise AssertionError("the sweep began a transaction that writes")

    with monkeypatch.context() as patch:
        patch.setattr(store._transactions, "write", refuse)
        feeder.advance(NOW)

    assert numbers(store, bulk.id) == {"held": 2}


# --- delivery -----------------------------------------------------------------------------------


def test_each_recipient_gets_the_own_mail(
    store: Store, dispatcher: Dispatcher, feeder: Feeder, sink: Sink, clock: Clock
) -> None:
    """A worker renders each mail, names only its recipient, and gives each its Message-ID."""
    bulk = make(store, 3, now=clock.time())
    feeder.advance(clock.time())
    dispatcher.deliver(60)
    feeder.advance(clock.time())

    assert sorted(
        (mail["To"], mail["Subject"]) for mail in (one.parsed for one in sink.messages)
    ) == [(f"reader{number}@example.com", f"News for Reader {number}") for number in (1, 2, 3)]
    bodies = {one.parsed.get_content().strip() for one in sink.messages}
    assert bodies == {f"Hello Reader {number}" for number in (1, 2, 3)}
    assert len({one.parsed["Message-ID"] for one in sink.messages}) == 3
    assert numbers(store, bulk.id) == {"sent": 3}
    assert state_of(store, bulk.id) is BulkState.FINISHED


def test_own_headers_win(
    store: Store, dispatcher: Dispatcher, feeder: Feeder, sink: Sink, clock: Clock
) -> None:
    """A header of the recipient replaces that of the send, whatever its case: none comes twice."""
    new = begin(
        store, now=clock.time(), headers=(("List-Unsubscribe", "<mailto:all@x.org>"), ("X-A", "1"))
    )
    own = OwnPart({"name": "Ada"}, headers=(("List-unsubscribe", "<mailto:ada@x.org>"),))
    add(store, new, [NewRecipient("ada@example.com", 1, own.to_json(), 100)])
    store.end_import(new.message.id, IMPORTER, BulkState.RUNNING)
    feeder.advance(clock.time())
    dispatcher.deliver(60)

    [mail] = [one.parsed for one in sink.messages]
    assert mail.get_all("List-Unsubscribe") == ["<mailto:ada@x.org>"]
    assert mail["X-A"] == "1"


def test_a_mail_that_can_not_be_rendered_fails_alone(
    store: Store, dispatcher: Dispatcher, feeder: Feeder, clock: Clock
) -> None:
    """A missing variable fails the mail of its recipient, with the reason; the others go out."""
    text = "Hello {{ name }}{% if name == 'Reader 2' %}{{ missing }}{% endif %}"
    bulk = make(store, 3, now=clock.time(), text=text)
    feeder.advance(clock.time())
    dispatcher.deliver(60)
    feeder.advance(clock.time())

    assert numbers(store, bulk.id) == {"sent": 2, "failed": 1}
    [failed] = store.load_bulk_recipients(bulk.id, status=Status.FAILED, after=0, most=10)
    assert (failed.row, failed.address) == (2, "reader2@example.com")
    assert "'missing' is undefined" in str(failed.reply)


def test_too_many_failures_pause_the_send(
    store: Store, feeder: Feeder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """If more than the allowed share of a hundred mails fails, the send pauses and says why."""
    bulk = make(store, 300, now=clock.time(), max_failed_share=0.1)
    store.release_held(bulk.id, now=clock.time(), most=100)
    taken = store.claim_due(100, token="t", now=clock.time(), lease_until=clock.time() + 60)
    store.mark_if_claimed(
        [one.id for one in taken], token="t", now=clock.time(), lease_until=clock.time() + 60
    )
    record(store, *taken[:11], to=Status.FAILED)
    record(store, *taken[11:], to=Status.SENT)

    feeder.advance(clock.time())

    assert state_of(store, bulk.id) is BulkState.PAUSED
    assert numbers(store, bulk.id) == {"held": 200, "sent": 89, "failed": 11}
    assert str(store.load_bulk(bulk.id).reason).startswith("11 of 100 mails failed")
    assert "Bulk send is paused" in caplog.text


def test_a_killed_worker_charges_only_the_mail_that_it_composed(
    store: Store, dispatcher: Dispatcher
) -> None:
    """Of a batch of one bulk send, only the mail that was being composed is charged with a try."""
    bulk = make(store, 3)
    store.release_held(bulk.id, now=NOW, most=3)
    one, composed, other = claim(store, 3)
    settle(
        dispatcher._services,
        Remains(token=TOKEN, begun={}, taken={}, composing=composed.content_key, calling="relay"),
    )

    attempts = {number: row["attempts"] for number, row in table(store).items()}
    assert attempts == {one.id: 0, composed.id: 1, other.id: 0}


# --- pause, cancel ------------------------------------------------------------------------------


def test_a_pause_holds_what_no_worker_has(store: Store, feeder: Feeder) -> None:
    """A pause holds queued deliveries again; those in hand are finished; a resume releases all."""
    bulk = make(store, 5)
    store.release_held(bulk.id, now=NOW, most=3)
    [taken] = take(store, 1)
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], BulkState.PAUSED, reason="by hand")
    feeder.advance(NOW)

    assert numbers(store, bulk.id) == {"held": 4, "queued": 1}
    assert claim(store) == []
    record(store, taken, to=Status.SENT)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"held": 4, "sent": 1}

    store.change_bulk_if(bulk.id, [BulkState.PAUSED], BulkState.RUNNING)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"queued": 4, "sent": 1}


def test_a_cancelled_send_ends_with_truthful_counts(store: Store, feeder: Feeder) -> None:
    """What is held or queued is cancelled, what is in hand is finished, and then it is over."""
    bulk = make(store, 6)
    store.release_held(bulk.id, now=NOW, most=4)
    sent, doubtful = take(store, 2)
    record(store, sent, to=Status.SENT)
    record(store, doubtful, to=Status.DOUBTFUL)
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], BulkState.CANCELLED, reason="by hand")
    feeder.advance(NOW)

    assert numbers(store, bulk.id) == {"cancelled": 4, "sent": 1, "doubtful": 1}
    assert store.load_bulk(bulk.id).finished_at is None
    record(store, doubtful, to=Status.SENT)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"cancelled": 4, "sent": 2}
    assert store.load_bulk(bulk.id).finished_at == NOW
    assert state_of(store, bulk.id) is BulkState.CANCELLED


def test_a_scheduled_send_can_be_cancelled(store: Store, feeder: Feeder) -> None:
    """A send that waits for its time is cancelled at once."""
    bulk = make(store, 2, due_at=NOW + 3600)
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], BulkState.CANCELLED)
    feeder.advance(NOW)

    assert numbers(store, bulk.id) == {"cancelled": 2}


# --- counts -------------------------------------------------------------------------------------


def test_every_end_is_counted(store: Store, feeder: Feeder) -> None:
    """Each way to a final state is counted, and each way back is counted off."""
    bulk = make(store, 8, expires_at=NOW + 3600)
    store.release_held(bulk.id, now=NOW, most=8)
    taken = take(store, 4)
    record(store, taken[0], to=Status.SENT)
    record(store, taken[1], to=Status.FAILED)
    record(store, taken[2], to=Status.DOUBTFUL)
    record(store, taken[3], to=Status.QUEUED)
    [composed] = claim(store, 1)
    set_aside(store, composed)
    assert numbers(store, bulk.id) == {"sent": 1, "failed": 2, "doubtful": 1, "queued": 4}

    store.settle_if_resting(bulk.id, Status.QUEUED, now=NOW, delivery_id=taken[1].id)
    store.settle_if_resting(bulk.id, Status.SENT, now=NOW, delivery_id=taken[2].id)
    store.settle_if_resting(bulk.id, Status.BOUNCED, now=NOW, delivery_id=taken[0].id)
    found = store.bulk_progress(bulk.id, now=NOW)
    assert (found.sent, found.failed, found.queued, found.doubtful) == (2, 1, 5, 0)
    store.settle_if_resting(bulk.id, Status.CANCELLED, now=NOW, delivery_id=taken[1].id)
    store.expire_overdue(LATER)
    found = store.bulk_progress(bulk.id, now=NOW)
    assert (found.sent, found.failed, found.cancelled, found.expired) == (2, 1, 1, 4)

    before = found
    store.sum_up_counts(bulk.id)
    assert store.bulk_progress(bulk.id, now=NOW) == before


def test_other_mail_is_not_counted(store: Store) -> None:
    """A mail that is no bulk send leaves no rows of counts."""
    queue(store, "ada@example.com", due_at=NOW)
    record(store, *take(store, 1), to=Status.FAILED)
    bulk = make(store, 1)

    assert numbers(store, bulk.id) == {"held": 1}


# --- questions ----------------------------------------------------------------------------------


def test_pages_of_recipients_and_errors(store: Store) -> None:
    """Recipients and refused rows are read page by page, in the order of the rows."""
    new = begin(store)
    errors = [BulkError(number, "x@", "no address") for number in (4, 5)]
    add(store, new, [recipient(number) for number in (1, 2, 3)], errors)
    store.end_import(new.message.id, IMPORTER, BulkState.RUNNING)
    bulk_id = new.message.id

    first = store.load_bulk_recipients(bulk_id, status=None, after=0, most=2)
    rest = store.load_bulk_recipients(bulk_id, status=None, after=first[-1].delivery_id, most=2)
    assert [one.row for one in (*first, *rest)] == [1, 2, 3]
    assert store.load_bulk_recipients(bulk_id, status=Status.SENT, after=0, most=2) == []
    assert store.load_bulk_errors(bulk_id, after=0, most=1) == errors[:1]
    assert store.load_bulk_errors(bulk_id, after=4, most=9) == errors[1:]
    progress = store.bulk_progress(bulk_id, now=NOW)
    assert (progress.imported, progress.accepted, progress.refused) == (5, 3, 2)


def test_a_bulk_send_is_no_mail_of_a_page(store: Store) -> None:
    """Lists and statuses of mails leave bulk sends out, whose deliveries may be millions."""
    mail_id = queue(store, "ada@example.com")
    bulk = make(store, 2)

    assert store.find_ids(Filter(), before=None, most=10) == [mail_id]
    assert set(store.statuses([bulk.id, mail_id])) == {mail_id}
    with pytest.raises(UnknownMail, match=f"is a bulk send: see mailer.bulk\\('{bulk.id}'\\)"):
        store.status(bulk.id)
    with pytest.raises(UnknownMail, match="No bulk send has the id"):
        store.load_bulk(mail_id)


# --- retention ----------------------------------------------------------------------------------


def test_the_purge_spares_a_send_that_goes_on(store: Store, feeder: Feeder) -> None:
    """Finished deliveries are deleted when they are old, the send itself with the last of them."""
    empty = begin(store).message.id
    bulk = make(store, 2)
    store.release_held(bulk.id, now=NOW, most=1)
    record(store, *take(store, 1), to=Status.SENT)
    assert store.purge_finished(LATER, most=10) == 1
    store.purge_orphans(LATER, after="", most=10)
    assert store.bulk_progress(bulk.id, now=NOW).sent == 1
    assert state_of(store, empty) is BulkState.IMPORTING

    store.release_held(bulk.id, now=NOW, most=1)
    record(store, *take(store, 1), to=Status.SENT)
    feeder.advance(NOW)
    assert state_of(store, bulk.id) is BulkState.FINISHED
    assert store.purge_finished(LATER, most=10) == 1
    with pytest.raises(UnknownMail):
        store.load_bulk(bulk.id)


@pytest.mark.parametrize(
    "state", [BulkState.IMPORTING, BulkState.RUNNING, BulkState.PAUSED], ids=str
)
def test_an_abandoned_import_is_cancelled(store: Store, feeder: Feeder, state: BulkState) -> None:
    """An import without a key is cancelled after an hour of silence: nobody can go on with it."""
    new = begin(store, state=state)
    add(store, new, [recipient(1)])
    feeder.advance(NOW + 3600)
    assert state_of(store, new.message.id) is state

    for _sweep in range(2):
        feeder.advance(NOW + 3700)
    assert numbers(store, new.message.id) == {"cancelled": 1}
    assert state_of(store, new.message.id) is BulkState.CANCELLED
