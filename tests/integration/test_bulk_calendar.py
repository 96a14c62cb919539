"""Bulk sends with a calendar: zones that open and close, and what was claimed outside the hours."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from mailer import Bulk, Calendar, InvalidMail
from mailer.delivery import Dispatcher
from mailer.delivery.feeding import Feeder
from mailer.message import Lane, Status
from mailer.message.bulk import BulkState
from mailer.store import Store
from mailer.store.transactions import Transaction
from tests.bulk_sends import IMPORTER, add, begin, make, recipient
from tests.mails import NOW, claim, mark, record, table
from tests.plans import plan_of
from tests.services.dispatchers import Clock, MakeDispatcher, deliver_all, queue, received
from tests.services.sink import Sink

# A Friday, 9:00 in Berlin, 3:00 in New York, 17:00 in Tokyo.
assert datetime.fromtimestamp(NOW, UTC) == datetime(2027, 1, 15, 8, tzinfo=UTC)
HOUR, DAY = 3600.0, 86400.0
OFFICE = Calendar(days="mon-fri", hours="09:00-18:00", time_zone="Europe/Berlin")
ABROAD = ("Europe/Berlin", "America/New_York")
CLOSED = NOW + 9 * HOUR
MONDAY = NOW + 3 * DAY
NAMES = "held queued doubtful sent failed cancelled expired".split()


class StandingClock(Clock):
    """A clock that only a test moves."""

    now = NOW

    def time(self) -> float:
        return self.now + self.ahead


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def dispatcher(make_dispatcher: MakeDispatcher) -> Dispatcher:
    return make_dispatcher()


@pytest.fixture
def feeder(dispatcher: Dispatcher) -> Feeder:
    return Feeder(dispatcher._services)


def numbers(store: Store, bulk_id: str) -> dict[str, int]:
    """Return the numbers of recipients by state, without zeros. Assert that they are truthful."""
    progress = store.bulk_progress(bulk_id, now=NOW)
    counted = {name: number for name in NAMES if (number := getattr(progress, name))}
    in_hand = (Status.CLAIMED, Status.TRANSMITTING)
    assert counted == Counter(
        "queued" if row["status"] in in_hand else row["status"] for row in table(store).values()
    )
    return counted


def waits(store: Store, bulk_id: str, now: float) -> tuple[str | None, float | None]:
    progress = store.bulk_progress(bulk_id, now=now)
    resumes_at = progress.resumes_at
    return progress.reason, None if resumes_at is None else resumes_at.timestamp()


def send(store: Store, now: float) -> None:
    """Send all that is due."""
    taken = claim(store, now=now, lease_until=now + 60)
    store.mark_if_claimed(
        [one.id for one in taken], token=taken[0].token, now=now, lease_until=now + 60
    )
    record(store, *taken, to=Status.SENT)


# --- the sweep ----------------------------------------------------------------------------------


def test_each_zone_in_its_own_hours(store: Store, feeder: Feeder) -> None:
    """A send releases the recipients whose zone is open, and the others when theirs opens."""
    bulk = make(store, 5, calendar=OFFICE, zones=(None, "America/New_York"))
    feeder.advance(NOW)

    assert numbers(store, bulk.id) == {"queued": 3, "held": 2}
    assert waits(store, bulk.id, NOW) == (
        "it waits for its hours: mon-fri 09:00-18:00",
        NOW + 6 * HOUR,
    )
    send(store, NOW)
    feeder.advance(NOW + 5.9 * HOUR)
    assert numbers(store, bulk.id) == {"sent": 3, "held": 2}
    feeder.advance(NOW + 6 * HOUR)
    assert numbers(store, bulk.id) == {"sent": 3, "queued": 2}
    assert waits(store, bulk.id, NOW + 6 * HOUR) == (None, None)
    send(store, NOW + 6 * HOUR)
    feeder.advance(NOW + 6 * HOUR)
    assert store.load_bulk(bulk.id).state is BulkState.FINISHED


def test_the_hours_end_in_the_middle(store: Store, feeder: Feeder) -> None:
    """What no worker has is held again when the hours end, and goes on when they begin."""
    bulk = make(store, 6, calendar=OFFICE)
    store.release_held_in_zone(bulk.id, "Europe/Berlin", now=NOW, most=4)
    sent, in_hand = claim(store, 2)
    mark(store, sent, in_hand)
    record(store, sent, to=Status.SENT)
    for _sweep in range(3):
        feeder.advance(CLOSED)

    assert numbers(store, bulk.id) == {"sent": 1, "queued": 1, "held": 4}
    assert claim(store, now=CLOSED) == []
    assert waits(store, bulk.id, CLOSED)[1] == MONDAY
    record(store, in_hand, to=Status.SENT)
    feeder.advance(CLOSED)
    feeder.advance(MONDAY - 1)
    assert numbers(store, bulk.id) == {"sent": 2, "held": 4}
    feeder.advance(MONDAY)
    assert numbers(store, bulk.id) == {"sent": 2, "queued": 4}
    send(store, MONDAY)
    feeder.advance(MONDAY)
    assert numbers(store, bulk.id) == {"sent": 6}
    assert store.load_bulk(bulk.id).state is BulkState.FINISHED


def test_mail_that_a_worker_gives_back_is_held_as_well(store: Store, feeder: Feeder) -> None:
    """Mail that was in the hands of a worker when its hours ended is held when it comes back."""
    bulk = make(store, 3, calendar=OFFICE)
    feeder.advance(NOW)
    first, given_back, deferred = claim(store, 3)
    store.release_if_in_hand({first.id: None}, token=first.token)
    mark(store, deferred)
    feeder.advance(CLOSED)
    assert numbers(store, bulk.id) == {"queued": 2, "held": 1}
    store.release_if_in_hand({given_back.id: MONDAY}, token=given_back.token)
    record(store, deferred, to=Status.QUEUED)
    feeder.advance(CLOSED)

    assert numbers(store, bulk.id) == {"held": 3}


def test_a_zone_that_closes_costs_nothing_afterwards(
    store: Store, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a zone is closed, a sweep only reads until it opens."""
    bulk = make(store, 3, calendar=OFFICE)
    store.release_held_in_zone(bulk.id, "Europe/Berlin", now=NOW, most=2)
    feeder.advance(CLOSED)

    def refuse() -> None:
        raise AssertionError("the sweep began a transaction that writes")

    with monkeypatch.context() as patch:
        patch.setattr(store._transactions, "write", refuse)
        feeder.advance(CLOSED + 1)
    assert numbers(store, bulk.id) == {"held": 3}


def test_a_zone_without_recipients_left_costs_nothing(
    store: Store, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep writes nothing for open zones of which everybody is released."""
    bulk = make(store, 4, calendar=OFFICE, zones=ABROAD)
    feeder.advance(NOW)
    feeder.advance(NOW)

    def refuse() -> None:
        raise AssertionError("the sweep began a transaction that writes")

    with monkeypatch.context() as patch:
        patch.setattr(store._transactions, "write", refuse)
        feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"queued": 2, "held": 2}


def test_the_zone_that_closes_first_goes_first(
    store: Store, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If not all can be released, those go whose hours end soonest."""
    monkeypatch.setattr("mailer.delivery.feeding._WINDOW", 3)
    make(store, 6, calendar=OFFICE, zones=("Europe/London", "Asia/Tokyo", "Europe/Berlin"))
    feeder.advance(NOW + 0.5 * HOUR)

    queued = [row["recipient"] for row in table(store).values() if row["status"] == "queued"]
    assert sorted(queued) == [f"reader{number}@example.com" for number in (2, 3, 5)]


def test_sends_that_are_closed_leave_their_share_to_others(
    store: Store, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of a lane is shared by the sends that may release something."""
    monkeypatch.setattr("mailer.delivery.feeding._WINDOW", 10)
    make(store, 20, calendar=OFFICE)
    other = make(store, 20)
    feeder.advance(CLOSED)

    assert store.bulk_progress(other.id, now=CLOSED).queued == 10


def test_pause_and_cancel_in_the_middle(store: Store, feeder: Feeder) -> None:
    """A pause holds the mail of all zones, a resume releases the open ones, a cancel ends all."""
    bulk = make(store, 6, calendar=OFFICE, zones=ABROAD)
    feeder.advance(NOW)
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], BulkState.PAUSED, reason="by hand")
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"held": 6}
    assert waits(store, bulk.id, NOW) == ("by hand", None)

    store.change_bulk_if(bulk.id, [BulkState.PAUSED], BulkState.RUNNING)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"queued": 3, "held": 3}
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], BulkState.CANCELLED)
    feeder.advance(CLOSED)
    assert numbers(store, bulk.id) == {"cancelled": 6}


def test_a_send_that_expires_while_it_is_closed(store: Store, feeder: Feeder) -> None:
    """Mail whose hours begin only after `expires_at` expires at that time, and the send ends."""
    bulk = make(store, 3, calendar=OFFICE, zones=("America/New_York",), expires_at=NOW + HOUR)
    feeder.advance(NOW + HOUR - 1)
    assert numbers(store, bulk.id) == {"held": 3}
    feeder.advance(NOW + HOUR)
    store.expire_overdue(NOW + HOUR)
    feeder.advance(NOW + HOUR)

    assert numbers(store, bulk.id) == {"expired": 3}
    assert store.load_bulk(bulk.id).state is BulkState.FINISHED


def test_recipients_that_come_while_it_runs(store: Store, feeder: Feeder) -> None:
    """A send that streams releases recipients who are stored after all others have gone."""
    new = begin(store, state=BulkState.RUNNING, calendar=OFFICE)
    add(store, new, [recipient(1)])
    for _sweep in range(2):
        feeder.advance(NOW)
    send(store, NOW)
    add(store, new, [recipient(2), recipient(3, "America/New_York")], before=1)
    store.end_import(new.message.id, IMPORTER, BulkState.RUNNING)
    feeder.advance(NOW)

    assert numbers(store, new.message.id) == {"sent": 1, "queued": 1, "held": 1}


def test_a_zone_that_a_worker_does_not_know(
    store: Store,
    feeder: Feeder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A machine without time zones sends nothing of the send, says so once, and sends the rest."""
    bulk, other = make(store, 2, calendar=OFFICE), make(store, 2)
    with monkeypatch.context() as patch:
        patch.setattr("mailer.message.calendar._find_zone", lambda _name: None)
        for _sweep in range(2):
            feeder.advance(NOW)
        assert "install the package tzdata" in str(waits(store, bulk.id, NOW)[0])
    assert store.bulk_progress(bulk.id, now=NOW).held == 2
    assert store.bulk_progress(other.id, now=NOW).queued == 2
    assert caplog.text.count("Bulk mail is not sent") == 1

    feeder.advance(NOW)
    assert store.bulk_progress(bulk.id, now=NOW).queued == 2


# --- a worker -----------------------------------------------------------------------------------


def test_a_worker_looks_at_the_hours(
    store: Store, dispatcher: Dispatcher, feeder: Feeder, sink: Sink, clock: StandingClock
) -> None:
    """Mail that a worker claims outside its hours is given back until they begin."""
    bulk = make(store, 4, calendar=OFFICE, zones=ABROAD)
    feeder.advance(NOW + 7 * HOUR)
    assert numbers(store, bulk.id) == {"queued": 4}
    clock.ahead = 9 * HOUR  # 18:00 in Berlin, 12:00 in New York
    queue(store, "ada@example.com", due_at=NOW)
    deliver_all(dispatcher)

    assert sorted(received(sink)) == [
        "ada@example.com",
        "reader2@example.com",
        "reader4@example.com",
    ]
    waiting = [row for row in table(store).values() if row["status"] == "queued"]
    assert [(row["due_at"], row["attempts"]) for row in waiting] == [(MONDAY, 0)] * 2
    clock.ahead = 3 * DAY
    feeder.advance(clock.time())
    deliver_all(dispatcher)
    assert Counter(received(sink)) == Counter(
        ["ada@example.com", *(f"reader{number}@example.com" for number in range(1, 5))]
    )


def test_a_full_batch_outside_its_hours_hides_no_other_mail(
    store: Store,
    dispatcher: Dispatcher,
    feeder: Feeder,
    sink: Sink,
    clock: StandingClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that gave a whole batch back goes on with the mail behind it."""
    monkeypatch.setattr("mailer.delivery.dispatcher.batch_size", lambda *_arguments: 2)
    make(store, 6, calendar=OFFICE)
    feeder.advance(NOW)
    clock.ahead = 9 * HOUR
    queue(store, "ada@example.com", due_at=NOW + 1, lane=Lane.BULK)
    deliver_all(dispatcher)

    assert received(sink) == ["ada@example.com"]


def test_a_retry_outside_the_hours(
    store: Store, dispatcher: Dispatcher, feeder: Feeder, sink: Sink, clock: StandingClock
) -> None:
    """Mail that a person retries goes in the next hours, like all other mail of the send."""
    bulk = make(store, 1, calendar=OFFICE)
    feeder.advance(NOW)
    [taken] = claim(store, 1)
    mark(store, taken)
    record(store, taken, to=Status.FAILED)
    clock.ahead = 9 * HOUR
    assert Bulk(store, clock, bulk.id).retry() == 1
    feeder.advance(clock.time())
    deliver_all(dispatcher)
    assert received(sink) == []

    clock.ahead = 3 * DAY
    feeder.advance(clock.time())
    deliver_all(dispatcher)
    assert received(sink) == ["reader1@example.com"]


# --- its time -----------------------------------------------------------------------------------


def test_a_send_that_has_not_begun_is_rescheduled(
    store: Store, feeder: Feeder, clock: StandingClock
) -> None:
    """`reschedule()` moves the begin of a send until its first mail is released."""
    bulk = make(store, 2, due_at=NOW + HOUR)
    handle = Bulk(store, clock, bulk.id)
    assert waits(store, bulk.id, NOW) == ("it waits for its time", NOW + HOUR)
    assert handle.reschedule(datetime.fromtimestamp(NOW + 2 * HOUR, UTC))
    feeder.advance(NOW + HOUR)
    assert numbers(store, bulk.id) == {"held": 2}

    assert handle.reschedule(None)
    feeder.advance(NOW)
    assert numbers(store, bulk.id) == {"queued": 2}
    assert not handle.reschedule(datetime.fromtimestamp(NOW + 2 * HOUR, UTC))


@pytest.mark.parametrize("state", [BulkState.READY, BulkState.PAUSED, BulkState.CANCELLED], ids=str)
def test_which_sends_can_be_rescheduled(
    store: Store, clock: StandingClock, state: BulkState
) -> None:
    """A send that waits for a person has not begun; one that is over does not begin again."""
    bulk = make(store, 1, due_at=NOW + HOUR)
    store.change_bulk_if(bulk.id, [BulkState.RUNNING], state)

    assert Bulk(store, clock, bulk.id).reschedule(None) is not state.is_over


def test_times_that_are_too_late(store: Store, clock: StandingClock) -> None:
    """A send is not moved to a time, or to hours, after it has expired."""
    bulk = make(store, 1, due_at=NOW + HOUR, expires_at=NOW + 12 * HOUR, calendar=OFFICE)
    handle = Bulk(store, clock, bulk.id)
    with pytest.raises(InvalidMail, match="send_at: the send would expire before it begins"):
        handle.reschedule(datetime.fromtimestamp(NOW + 12 * HOUR, UTC))
    with pytest.raises(
        InvalidMail, match="expires_at: the mail would expire before its hours begin"
    ):
        handle.reschedule(datetime.fromtimestamp(CLOSED, UTC))


# --- costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "index"),
    [
        pytest.param(
            lambda store, bulk_id: store.release_held_in_zone(
                bulk_id, "America/New_York", now=NOW, most=10
            ),
            "mailer_bulk_recipient_in_zone",
            id="release",
        ),
        pytest.param(
            lambda store, bulk_id: store.hold_again_in_zone(bulk_id, "America/New_York"),
            "mailer_bulk_recipient_in_zone",
            id="hold",
        ),
    ],
)
def test_a_portion_of_a_zone_is_found_by_its_index(
    store: Store, ask: Callable[[Store, str], object], index: str
) -> None:
    """Of a large send, only recipients of the zone are read, from its place on."""
    bulk = make(store, 6, calendar=OFFICE, zones=ABROAD)
    store.release_held_in_zone(bulk.id, "America/New_York", now=NOW, most=2)

    plan = plan_of(store, lambda store: ask(store, bulk.id), "mailer_bulk_recipient")

    assert index in plan
    assert "SCAN mailer_" not in plan
    assert "Seq Scan" not in plan


def test_a_send_without_a_calendar_asks_for_no_zone(
    store: Store, feeder: Feeder, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sweeps and workers read nothing more for a send without hours but, once, that it has none."""
    bulk = make(store, 2, now=NOW)
    asked, execute = list[str](), Transaction.execute

    def noting(self: Transaction, statement: str, values: dict[str, object]) -> object:
        asked.append(statement)
        return execute(self, statement, values)

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "execute", noting)
        feeder.advance(NOW)
        deliver_all(dispatcher)
        feeder.advance(NOW)

    assert numbers(store, bulk.id) == {"sent": 2}
    assert not [statement for statement in asked if "mailer_bulk_zone" in statement]
    assert len([statement for statement in asked if "SELECT calendar" in statement]) == 1
