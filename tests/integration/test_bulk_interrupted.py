"""Bulk sends that are interrupted: decisions and purges in the middle lose and double nothing."""

import pytest
from sqlalchemy import select

from mailer import schema
from mailer.bulk import Bulk
from mailer.clock import AppClock
from mailer.delivery import Dispatcher
from mailer.delivery.feeding import Feeder
from mailer.errors import UnknownMail
from mailer.message import Delivery, Status
from mailer.message.bulk import BulkError, BulkState
from mailer.store import NewBulk, NewRecipient, Store
from tests.bulk_sends import IMPORTER, add, begin, bring, make, recipient
from tests.integration.test_bulk import numbers, state_of, take
from tests.mails import LATER, NOW, claim, record, table
from tests.services.dispatchers import Clock, MakeDispatcher, chores_of

DAY = 86_400


@pytest.fixture
def dispatcher(make_dispatcher: MakeDispatcher) -> Dispatcher:
    return make_dispatcher()


@pytest.fixture
def feeder(dispatcher: Dispatcher) -> Feeder:
    return Feeder(dispatcher._services)


def stream(store: Store, number: int) -> NewBulk:
    """Begin a streaming send to so many readers, who have got their mail."""
    new = begin(store, state=BulkState.RUNNING)
    add(store, new, [recipient(one) for one in range(1, number + 1)])
    store.release_held(new.message.id, now=NOW, most=number)
    record(store, *take(store, number), to=Status.SENT)
    return new


def test_a_resume_while_recipients_come(store: Store, feeder: Feeder) -> None:
    """A streaming send that was paused streams again, and never waits for the end of its import.

    If it waited, and the import ended in that moment, nobody would end the wait.
    """
    new = begin(store, state=BulkState.RUNNING)
    add(store, new, [recipient(1)])
    bulk = Bulk(store, AppClock(), new.message.id)
    assert (bulk.pause(), bulk.resume()) == (True, True)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"queued": 1}

    store.end_import(bulk.id, IMPORTER, BulkState.RUNNING)
    assert state_of(store, bulk.id) is BulkState.RUNNING


@pytest.mark.parametrize("state", [BulkState.RUNNING, BulkState.PAUSED])
def test_an_abandoned_streaming_send_is_cancelled(
    store: Store, feeder: Feeder, state: BulkState
) -> None:
    """A streaming send without a key, whose importer died, is over after an hour of silence."""
    new = stream(store, 2)
    add(store, new, [recipient(3)], before=2)
    store.change_bulk_if(new.message.id, [BulkState.RUNNING], state)
    feeder.advance(NOW + 3600)
    assert state_of(store, new.message.id) is state

    for _sweep in range(2):
        feeder.advance(NOW + 3700)
    assert numbers(store, new.message.id) == {"sent": 2, "cancelled": 1}
    assert store.load_bulk(new.message.id).finished_at is not None


def test_the_message_of_a_send_that_goes_on_is_not_erased(store: Store) -> None:
    """`MAILER_KEEP_BODIES_DAYS` spares a send whose first mails were sent long before the rest."""
    new = stream(store, 1)
    store.erase_finished(LATER, now=LATER, after="", most=10)
    add(store, new, [recipient(2)], before=1)

    assert set(store.load_messages([new.message.id])) == {new.message.id}


def test_a_purge_during_an_import_forgets_no_address(store: Store) -> None:
    """The first mails of a long import stay until its end, and other old mail is purged."""
    new = stream(store, 2)
    other = bring(store, Status.SENT)
    assert store.purge_finished(LATER, most=1) == 1
    assert store.purge_finished(LATER, most=1) == 0
    assert other.id not in table(store)

    add(store, new, [recipient(2), recipient(3)], before=2)
    progress = store.bulk_progress(new.message.id, now=NOW)
    assert (progress.accepted, progress.duplicates) == (3, 1)

    store.end_import(new.message.id, IMPORTER, BulkState.RUNNING)
    assert store.purge_finished(LATER, most=10) == 2


def test_a_cancelled_import_is_purged(store: Store) -> None:
    """The mails of an import that is cancelled do not stay for ever."""
    new = stream(store, 2)
    store.change_bulk_if(new.message.id, [BulkState.RUNNING], BulkState.CANCELLED)

    assert store.purge_finished(LATER, most=10) == 2


def test_a_send_without_recipients_is_kept_as_long_as_others(store: Store, feeder: Feeder) -> None:
    """A send of which no row could be used keeps the list of its errors for MAILER_KEEP_DAYS."""
    new = begin(store)
    add(store, new, [], [BulkError(1, "x@", "no address")])
    store.end_import(new.message.id, IMPORTER, BulkState.RUNNING)
    feeder.advance(NOW)
    assert state_of(store, new.message.id) is BulkState.FINISHED

    store.purge_orphans(NOW - 1, after="", most=10)
    assert len(store.load_bulk_errors(new.message.id, after=0, most=10)) == 1
    store.purge_orphans(NOW, after="", most=10)
    with pytest.raises(UnknownMail):
        store.load_bulk(new.message.id)


def test_a_resume_after_too_many_failures(store: Store, feeder: Feeder) -> None:
    """A send that was paused since too much of it fails goes on to its end once it is resumed."""
    bulk = make(store, 300, max_failed_share=0.1)
    store.release_held(bulk.id, now=NOW, most=100)
    taken = take(store, 100)
    record(store, *taken[:11], to=Status.FAILED)
    record(store, *taken[11:], to=Status.SENT)
    feeder.advance(NOW)
    assert state_of(store, bulk.id) is BulkState.PAUSED

    assert Bulk(store, AppClock(), bulk.id).resume()
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"sent": 89, "failed": 11, "queued": 200}


def test_a_cancelled_send_is_not_retried(store: Store, feeder: Feeder) -> None:
    """Nothing more is sent of a cancelled send: its failed mails stay failed, and are counted."""
    bulk = make(store, 2)
    store.release_held(bulk.id, now=NOW, most=1)
    record(store, *take(store, 1), to=Status.FAILED)
    handle = Bulk(store, AppClock(), bulk.id)
    handle.cancel()
    feeder.advance(NOW)

    assert handle.retry() == 0
    assert claim(store, now=LATER) == []
    assert numbers(store, bulk.id) == {"failed": 1, "cancelled": 1}


def test_a_resume_gets_past_what_is_sent(
    store: Store, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed send goes on at the next sweep, though it may release only a few at once."""
    bulk = make(store, 63)
    store.release_held(bulk.id, now=NOW, most=60)
    record(store, *take(store, 60), to=Status.SENT)
    handle = Bulk(store, AppClock(), bulk.id)
    assert (handle.pause(), handle.resume()) == (True, True)
    monkeypatch.setattr("mailer.delivery.feeding._WINDOW", 2)

    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"sent": 60, "queued": 2, "held": 1}
    record(store, *take(store, 2), to=Status.SENT)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"sent": 62, "queued": 1}


def test_a_retry_of_the_recipient_that_was_given(store: Store) -> None:
    """A recipient is found by the address in any case, and in any spelling of its domain."""
    addresses = ["Ada@example.com", "bob@example.com", "ada@xn--bcher-kva.example"]
    new = begin(store)
    add(store, new, [NewRecipient(one, row, "{}", 9) for row, one in enumerate(addresses, 1)])
    store.end_import(new.message.id, IMPORTER, BulkState.RUNNING)
    store.release_held(new.message.id, now=NOW, most=3)
    record(store, *take(store, 3), to=Status.FAILED)
    bulk = Bulk(store, AppClock(), new.message.id)

    for given, found in (("aDa@EXAMPLE.com", addresses[0]), ("ada@bücher.example", addresses[2])):
        assert bulk.retry(to=given) == 1
        assert found not in [one.address for one in bulk.recipients(state="failed")]
    assert [one.address for one in bulk.recipients(state="failed")] == [addresses[1]]


# --- what comes back to a send that is stopped ---------------------------------------------------


def paused(store: Store, status: Status) -> tuple[Bulk, Delivery]:
    """Return a paused send, and its only delivery, in this state."""
    delivery = bring(store, status)
    bulk = Bulk(store, AppClock(), delivery.mail_id)
    assert bulk.pause()
    return bulk, delivery


def test_a_retry_waits_for_the_end_of_a_pause(store: Store, feeder: Feeder) -> None:
    """A worker claims nothing of a paused send, even between a retry and the next sweep."""
    bulk, failed = paused(store, Status.FAILED)

    assert bulk.retry() == 1
    assert claim(store, now=LATER) == []
    assert numbers(store, bulk.id) == {"held": 1}

    assert bulk.resume()
    feeder.advance(LATER)
    assert [one.id for one in claim(store, now=LATER)] == [failed.id]


@pytest.mark.parametrize("of_one", [False, True])
def test_a_resend_waits_for_the_end_of_a_pause(
    store: Store, feeder: Feeder, *, of_one: bool
) -> None:
    """Doubtful mail of a paused send is held when its time has come, and resent after the pause."""
    bulk, doubtful = paused(store, Status.DOUBTFUL)
    other = bring(store, Status.DOUBTFUL)

    mails = [bulk.id, other.mail_id] if of_one else None
    assert store.resend_doubtful(LATER, mails) == {doubtful.id, other.id}
    assert [one.id for one in claim(store, now=LATER)] == [other.id]
    assert numbers(store, bulk.id) == {"held": 1}

    assert bulk.resume()
    feeder.advance(LATER)
    assert [one.id for one in claim(store, now=LATER)] == [doubtful.id]


def test_a_resend_of_a_cancelled_send(store: Store, feeder: Feeder) -> None:
    """Doubtful mail of a cancelled send is cancelled when it would be sent again."""
    doubtful = bring(store, Status.DOUBTFUL)
    Bulk(store, AppClock(), doubtful.mail_id).cancel()

    assert store.resend_doubtful(LATER) == {doubtful.id}
    assert claim(store, now=LATER) == []
    feeder.advance(LATER)
    assert numbers(store, doubtful.mail_id) == {"cancelled": 1}


# --- MAILER_KEEP_BODIES_DAYS --------------------------------------------------------------------


def own_parts(store: Store) -> list[str]:
    with store.engine.connect() as connection:
        query = select(schema.bulk_recipient.c.own).order_by(schema.bulk_recipient.c.row)
        return [*connection.scalars(query)]


def send_one(dispatcher: Dispatcher, bulk: Bulk, clock: Clock) -> None:
    """Release the next mail of a send, and deliver it to a relay."""
    assert dispatcher._services.store.release_held(bulk.id, now=clock.time(), most=1)
    sent = bulk.progress().sent
    dispatcher.deliver_batch()
    assert bulk.progress().sent == sent + 1


def test_own_parts_of_old_mail_are_erased(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock
) -> None:
    """Contexts go some days after their mail, the templates after all mail, numbers stay."""
    dispatcher = make_dispatcher(MAILER_KEEP_DAYS=30, MAILER_KEEP_BODIES_DAYS=2)
    maintenance = chores_of(dispatcher)
    bulk = Bulk(store, AppClock(), make(store, 2, now=clock.time()).id)
    first, second = own_parts(store)
    send_one(dispatcher, bulk, clock)

    clock.ahead += 1 * DAY
    maintenance.purge()
    assert own_parts(store) == [first, second]

    clock.ahead += 2 * DAY
    maintenance.purge()
    assert own_parts(store) == ["", second]
    assert store.load_snapshot(bulk.id)

    send_one(dispatcher, bulk, clock)
    assert store.finish_bulk_if_done(bulk.id, now=clock.time())
    maintenance.purge()
    assert own_parts(store) == ["", second]

    clock.ahead += 3 * DAY
    maintenance.purge()
    assert own_parts(store) == ["", ""]
    assert store.load_snapshot(bulk.id) == ""
    assert [one.address for one in bulk.recipients(state="sent")] == [
        "reader1@example.com",
        "reader2@example.com",
    ]


def test_own_parts_are_erased_in_small_steps(store: Store) -> None:
    """A step looks at a few recipients, and spares mail that has not finished, or not long ago."""
    bulk = make(store, 5)
    store.release_held(bulk.id, now=NOW, most=4)
    record(store, *take(store, 3), to=Status.SENT)

    assert store.load_unerased_bulks(NOW) == []
    assert store.load_unerased_bulks(LATER) == [bulk.id]
    assert store.erase_own_parts(bulk.id, NOW - 1, after=0, most=10) is not None
    assert "" not in own_parts(store)
    after = store.erase_own_parts(bulk.id, LATER, after=0, most=2)
    assert after is not None
    assert [own == "" for own in own_parts(store)] == [True, True, False, False, False]
    after = store.erase_own_parts(bulk.id, LATER, after=after, most=10)
    assert after is not None
    assert [own == "" for own in own_parts(store)] == [True, True, True, False, False]
    assert store.erase_own_parts(bulk.id, LATER, after=after, most=10) is None


def test_the_templates_stay_as_long_as_the_last_context(store: Store) -> None:
    """A step that failed is taken again: the templates are erased after all contexts."""
    bulk = make(store, 1)
    store.release_held(bulk.id, now=NOW, most=1)
    record(store, *take(store, 1), to=Status.SENT)
    assert store.finish_bulk_if_done(bulk.id, now=NOW)

    store.erase_finished(LATER, now=LATER, after="", most=10)
    assert store.load_unerased_bulks(LATER) == [bulk.id]
    store.erase_own_parts(bulk.id, LATER, after=0, most=10)
    store.erase_finished(LATER, now=LATER, after="", most=10)
    assert store.load_unerased_bulks(LATER) == []


def test_erased_mail_is_not_retried(store: Store) -> None:
    """A failed mail without its context stays failed, also if the templates are still there."""
    bulk = make(store, 3)
    store.release_held(bulk.id, now=NOW, most=2)
    erased, kept = take(store, 2)
    record(store, erased, to=Status.FAILED)
    store.erase_own_parts(bulk.id, LATER, after=0, most=10)
    record(store, kept, to=Status.FAILED)

    assert Bulk(store, AppClock(), bulk.id).retry() == 1
    assert numbers(store, bulk.id) == {"failed": 1, "queued": 1, "held": 1}
    assert [one.id for one in claim(store, now=LATER)] == [kept.id]


def test_nothing_is_sent_for_an_erased_context(
    dispatcher: Dispatcher, store: Store, clock: Clock
) -> None:
    """A mail whose context is gone for whatever reason fails, and says why."""
    bulk = make(store, 2, now=clock.time())
    store.release_held(bulk.id, now=clock.time(), most=2)
    with store.engine.begin() as connection:
        first = schema.bulk_recipient.c.row == 1
        connection.execute(schema.bulk_recipient.update().where(first).values(own=""))
    dispatcher.deliver_batch()

    assert numbers(store, bulk.id) == {"failed": 1, "sent": 1}
    [failed] = Bulk(store, AppClock(), bulk.id).recipients(state="failed")
    assert failed.reply == "what it said is erased, or can't be read"
