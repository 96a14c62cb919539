"""The sweep and the purge."""

from typing import Any

import pytest

from mailer.celery.maintenance import MaintenanceThread
from mailer.errors import UnknownMail
from mailer.message import Attachment, Lane, OnDoubt, Status, new_id
from mailer.store import Store
from tests.mails import a_message, claim, table
from tests.services.dispatchers import (
    Clock,
    CountingBell,
    MakeDispatcher,
    chores_of,
    copy_of,
    outbound_of,
    queue,
)
from tests.services.sink import Sink

LEASE = 30.0
DAY = 86_400.0


def died_on_the_wire(store: Store, clock: Clock, **options: Any) -> str:
    """Queue a mail, and mark it as a worker does that dies before it records the outcome."""
    mail_id = queue(store, "ada@example.com", **options)
    [delivery] = claim(store, now=clock.time(), token="dead", lease_until=clock.time() + LEASE)
    store.mark_if_claimed(
        [delivery.id], token="dead", now=clock.time(), lease_until=clock.time() + LEASE
    )
    return mail_id


# --- a clock that is set ------------------------------------------------------------------------


def test_a_clock_that_is_set_back(
    make_dispatcher: MakeDispatcher,
    store: Store,
    clock: Clock,
    bell: CountingBell,
) -> None:
    """After the clock is set back, due mail is due and scheduled mail stays scheduled."""
    thread = MaintenanceThread(outbound_of(make_dispatcher()), worker=None)
    thread._stopping.set()  # it does not wait for what gets due
    due = [queue(store, "ada@example.com", lane=lane) for lane in Lane]
    scheduled = queue(store, "bob@example.com", due_at=clock.time() + 60)
    clock.ahead = -3600
    thread._tick()

    assert bell.rings == 1
    assert [one.mail_id for one in claim(store, now=clock.time())] == due
    assert copy_of(store, scheduled).status is Status.QUEUED


def test_a_mail_that_is_stored_after_the_clock_was_set_back(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock
) -> None:
    """A call that took its time before and stores its mail afterwards waits for no old time."""
    thread = MaintenanceThread(outbound_of(make_dispatcher()), worker=None)
    thread._stopping.set()
    before = clock.time()
    for hours in (1, 2):
        clock.ahead = -3600 * hours
        thread._tick()
    late = a_message(id=new_id(before), created_at=before)
    soon = a_message(id=new_id(clock.time()), created_at=clock.time())
    queue(store, "ada@example.com", due_at=before, message=late)
    scheduled = queue(store, "bob@example.com", due_at=clock.time() + 60, message=soon)
    thread._tick()

    assert [one.mail_id for one in claim(store, now=clock.time())] == [late.id]
    assert copy_of(store, scheduled).status is Status.QUEUED


def test_a_clock_that_is_set_back_while_mail_gets_due(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maintenance waits for the next due mail on a clock that nobody sets back."""
    thread = MaintenanceThread(outbound_of(make_dispatcher()), worker=None)
    waits: list[float | None] = []

    def wait(seconds: float | None = None) -> bool:
        waits.append(seconds)
        clock.ahead -= 3600
        return len(waits) > 3

    monkeypatch.setattr(thread._stopping, "wait", wait)
    for seconds in (0.2, 0.3, 0.4):
        queue(store, "ada@example.com", due_at=clock.time() + seconds)

    thread._ring_in_time()

    assert waits
    assert max(seconds for seconds in waits if seconds is not None) < 1


def test_a_relay_that_is_paused_while_the_clock_is_set_back(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock
) -> None:
    """A pause of seconds does not become one of an hour: the relay is probed at once."""
    thread = MaintenanceThread(outbound_of(make_dispatcher()), worker=None)
    thread._stopping.set()
    now = clock.time()
    store.pause_relay("relay.example.com", failures=0, now=now, until=now + 10, reason="down")
    store.pause(Lane.BULK, now=now, reason="by hand")
    clock.ahead = -3600
    thread._tick()

    [pause] = store.relay_pauses().values()
    assert pause.until is not None
    assert pause.until <= clock.time()
    assert [*store.list_pauses()] == [Lane.BULK]


# --- rescue -------------------------------------------------------------------------------------


def test_a_worker_died_before_it_began(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, bell: CountingBell
) -> None:
    """Mail that a dead worker claimed but did not begin is requeued after its lease."""
    mail_id = queue(store, "ada@example.com")
    claim(store, now=clock.time(), lease_until=clock.time() + LEASE)
    dispatcher = make_dispatcher()

    chores_of(dispatcher).sweep()
    assert (copy_of(store, mail_id).status, bell.rings) == (Status.CLAIMED, 0)

    clock.ahead += LEASE + 1
    chores_of(dispatcher).sweep()
    assert (copy_of(store, mail_id).status, bell.rings) == (Status.QUEUED, 1)

    dispatcher.deliver_batch()
    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.SENT, 1)


def test_a_worker_died_on_the_wire(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """Mail that a dead worker had begun is sent again after MAILER_DOUBT_RESEND_AFTER."""
    mail_id = died_on_the_wire(store, clock)
    dispatcher = make_dispatcher(MAILER_DOUBT_RESEND_AFTER=900)

    chores_of(dispatcher).sweep()
    assert copy_of(store, mail_id).status is Status.TRANSMITTING

    clock.ahead += LEASE + 1
    chores_of(dispatcher).sweep()
    doubtful = copy_of(store, mail_id)
    assert (doubtful.status, doubtful.reply) == (
        Status.DOUBTFUL,
        "the worker died or lost its connection before the reply was recorded",
    )

    clock.ahead += 800
    chores_of(dispatcher).sweep()
    assert copy_of(store, mail_id).status is Status.DOUBTFUL

    clock.ahead += 101
    chores_of(dispatcher).sweep()
    dispatcher.deliver_batch()
    assert copy_of(store, mail_id).status is Status.SENT
    assert [mail.message_id for mail in sink.messages] == [store.status(mail_id).message_id]


def test_a_second_worker_died_on_the_wire(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock
) -> None:
    """Mail that two workers died with waits for a person."""
    mail_id = died_on_the_wire(store, clock)
    dispatcher = make_dispatcher(MAILER_DOUBT_RESEND_AFTER=1)
    for _ in range(2):
        clock.ahead += LEASE + 1
        chores_of(dispatcher).sweep()
    [delivery] = claim(store, now=clock.time(), token="dead too", lease_until=clock.time() + LEASE)
    store.mark_if_claimed(
        [delivery.id], token="dead too", now=clock.time(), lease_until=clock.time() + LEASE
    )

    for _ in range(3):
        clock.ahead += DAY
        chores_of(dispatcher).sweep()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).due_at) == (
        Status.DOUBTFUL,
        None,
    )


def test_a_worker_died_with_a_mail_that_must_not_go_out_twice(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock
) -> None:
    """Mail with `on_doubt="hold"` that a worker died with waits for a person."""
    mail_id = died_on_the_wire(store, clock, on_doubt=OnDoubt.HOLD)
    dispatcher = make_dispatcher(MAILER_DOUBT_RESEND_AFTER=1)

    for _ in range(3):
        clock.ahead += DAY
        chores_of(dispatcher).sweep()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).due_at) == (
        Status.DOUBTFUL,
        None,
    )


# --- due, and overdue ---------------------------------------------------------------------------


def test_somebody_is_called_for_what_is_due_and_only_then(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, bell: CountingBell
) -> None:
    """The sweep rings when mail is due, and only then."""
    dispatcher = make_dispatcher()
    chores_of(dispatcher).sweep()
    queue(store, "ada@example.com", due_at=clock.time() + 3600)
    chores_of(dispatcher).sweep()
    assert bell.rings == 0

    clock.ahead += 3601
    chores_of(dispatcher).sweep()
    assert bell.rings == 1


def test_when_nobody_can_be_called_the_sweep_delivers(
    make_dispatcher: MakeDispatcher, store: Store, bell: CountingBell
) -> None:
    """While the broker is down, the sweep delivers by itself."""
    bell.works = False
    mail_id = queue(store, "ada@example.com")

    chores_of(make_dispatcher()).sweep()

    assert copy_of(store, mail_id).status is Status.SENT


def test_what_comes_too_late_is_not_sent(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """Expired mail is not sent."""
    mail_id = queue(store, "ada@example.com", expires_at=clock.time() + 600)
    dispatcher = make_dispatcher()
    clock.ahead += 601

    assert not dispatcher.deliver_batch().goes_on
    chores_of(dispatcher).sweep()

    expired = copy_of(store, mail_id)
    assert (expired.status, expired.attempts, sink.messages) == (Status.EXPIRED, 0, [])
    assert expired.finished_at is not None


# --- what fails ---------------------------------------------------------------------------------


def failing(*_arguments: object, **_options: object) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "step",
    ["renew_machine_lock", "requeue_lapsed_claims", "doubt_lapsed_transmissions", "expire_overdue"],
)
def test_a_step_of_the_sweep_that_fails(
    make_dispatcher: MakeDispatcher,
    store: Store,
    clock: Clock,
    bell: CountingBell,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """A step of the sweep that fails does not prevent the others."""
    bell.works = False
    claimed, doubtful, overdue = (
        "requeue_lapsed_claims",
        "doubt_lapsed_transmissions",
        "expire_overdue",
    )
    mails = {doubtful: died_on_the_wire(store, clock, on_doubt=OnDoubt.HOLD)}
    mails[claimed] = queue(store, "ada@example.com")
    claim(store, now=clock.time(), lease_until=clock.time() + LEASE)
    mails[overdue] = queue(store, "ada@example.com", expires_at=clock.time() + 1)
    due = queue(store, "ada@example.com")
    clock.ahead += LEASE + 1
    monkeypatch.setattr(store, step, failing)

    chores_of(make_dispatcher()).sweep()

    assert copy_of(store, due).status is Status.SENT
    moved = {
        name
        for name in mails
        if copy_of(store, mails[name]).status in (Status.SENT, Status.DOUBTFUL, Status.EXPIRED)
    }
    assert moved == mails.keys() - {step}


def test_a_step_that_fails_is_logged_once(
    make_dispatcher: MakeDispatcher,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A step that keeps failing is logged once, and once when it works again."""
    maintenance = chores_of(make_dispatcher())
    with monkeypatch.context() as patch:
        patch.setattr(store, "resend_doubtful", failing)
        for _ in range(3):
            maintenance.sweep()
    for _ in range(3):
        maintenance.sweep()

    assert caplog.text.count("Maintenance step failed: step=resend") == 1
    assert caplog.text.count("Maintenance step recovered: step=resend") == 1


@pytest.mark.parametrize("step", ["settle", "sweep", "purge"])
def test_a_chore_that_fails(
    make_dispatcher: MakeDispatcher,
    store: Store,
    bell: CountingBell,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """A chore that fails does not prevent the others."""
    done: list[str] = []
    dispatcher = make_dispatcher()
    maintenance = chores_of(dispatcher)
    for name in ("settle", "sweep", "purge"):
        monkeypatch.setattr(maintenance, name, lambda name=name, **_options: done.append(name))
    monkeypatch.setattr(maintenance, step, failing)
    thread = MaintenanceThread(outbound_of(dispatcher, maintenance), worker=None)
    thread._stopping.set()

    thread._tick()

    assert done == [name for name in ("settle", "sweep", "purge") if name != step]


def test_a_step_of_the_purge_that_fails(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies are erased even if deleting fails, and the next purge tries again."""
    # Ids begin with their time, so "0" is the oldest.
    mail_id = queue(store, "ada@example.com", message=a_message(id="0"))
    dispatcher = make_dispatcher(MAILER_KEEP_DAYS=1, MAILER_KEEP_BODIES_DAYS=0.5)
    dispatcher.deliver_batch()
    clock.ahead += 2 * DAY
    with monkeypatch.context() as patch:
        patch.setattr(store, "purge_finished", failing)
        assert chores_of(dispatcher).purge()
    assert store.load_messages([mail_id]) == {}

    assert chores_of(dispatcher).purge()
    assert table(store) == {}


# --- the purge ----------------------------------------------------------------------------------


def test_what_is_finished_is_kept_for_a_while(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock
) -> None:
    """Finished mail is deleted after MAILER_KEEP_DAYS, and unfinished mail never."""
    attachment = Attachment("report.pdf", b"report")
    sent = queue(
        store,
        "ada@example.com",
        message=a_message(created_at=clock.time(), attachments=(attachment,)),
    )
    dispatcher = make_dispatcher(MAILER_KEEP_DAYS=30)
    dispatcher.deliver_batch()
    waiting = queue(store, "bob@example.com", due_at=clock.time() + 365 * DAY)

    clock.ahead += 29 * DAY
    chores_of(dispatcher).purge()
    assert store.status(sent).is_finished

    clock.ahead += 2 * DAY
    chores_of(dispatcher).purge()
    with pytest.raises(UnknownMail):
        store.status(sent)
    assert [row["mail_id"] for row in table(store).values()] == [waiting]


def test_a_long_purge_goes_in_small_bites(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large purge deletes in small batches with breaks in between."""
    monkeypatch.setattr("mailer.delivery.maintenance._PURGED_AT_ONCE", 2)
    for number in range(5):
        queue(store, f"reader{number}@example.com")
    dispatcher = make_dispatcher(MAILER_KEEP_DAYS=1)
    dispatcher.deliver_batch()
    clock.ahead += 2 * DAY

    assert chores_of(dispatcher).purge()
    assert table(store) == {}
    assert len(clock.slept) == 3
    assert min(clock.slept) > 0


def test_a_purge_is_interrupted(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge stops after its time limit, and the next one goes on from there."""
    monkeypatch.setattr("mailer.delivery.maintenance._PURGED_AT_ONCE", 2)
    for number in range(3):
        queue(store, f"reader{number}@example.com")
    dispatcher = make_dispatcher(MAILER_KEEP_DAYS=1)
    dispatcher.deliver_batch()
    clock.ahead += 2 * DAY

    maintenance = chores_of(dispatcher)
    assert [(maintenance.purge(at_most=0), len(table(store))) for _ in range(3)] == [
        (False, 1),
        (False, 0),
        (True, 0),
    ]
