"""A batch of due mail is delivered for real, and its rows tell what happened."""

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.sql.dml import UpdateBase

from mailer import schema
from mailer.delivery import preparing, share
from mailer.message import Address, Attachment, OnDoubt, Phase, Status, Verdict
from mailer.mime import compose
from mailer.smtpd.faults import ACCEPT_AND_DROP, CLOSE_AFTER_250, DELAY, DROP, Fault
from mailer.store import Result, Store
from tests.mails import a_message, table
from tests.services.dispatchers import (
    Clock,
    CountingBell,
    MakeDispatcher,
    chores_of,
    copy_of,
    queue,
    queue_each,
    states,
)
from tests.services.sink import Sink

# --- outcomes of a mail -------------------------------------------------------------------------


def test_a_mail_the_relay_takes(make_dispatcher: MakeDispatcher, store: Store, sink: Sink) -> None:
    """An accepted mail is sent, with the relay's reply and an empty history."""
    mail_id = queue(store, "ada@example.com")

    assert make_dispatcher().deliver_batch().claimed == 1

    sent = copy_of(store, mail_id)
    assert (sent.status, sent.attempts, sent.due_at, sent.history) == (Status.SENT, 1, None, ())
    assert (sent.reply, sent.relay) == ("250 2.0.0 Ok: queued as 1", f"127.0.0.1:{sink.port}")
    assert sent.finished_at is not None
    assert sink.messages[0].message_id == store.status(mail_id).message_id


def test_a_mail_the_relay_defers(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """A deferred mail is tried again after a wait, and its history keeps the relay's reply."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("rcpt", "450 4.2.0 not now"))
    dispatcher = make_dispatcher()
    before = clock.time()

    dispatcher.deliver_batch()

    deferred = copy_of(store, mail_id)
    assert (deferred.status, deferred.attempts, deferred.reply) == (
        Status.QUEUED,
        1,
        "450 4.2.0 not now",
    )
    assert deferred.due_at is not None
    # A minute, with a jitter of a fifth.
    assert before + 48 <= deferred.due_at.timestamp() <= clock.time() + 72
    [attempt] = deferred.history
    assert (attempt.verdict, attempt.phase, attempt.reply) == (
        Verdict.DEFERRED,
        Phase.RCPT,
        "450 4.2.0 not now",
    )

    assert not dispatcher.deliver_batch().goes_on
    clock.ahead = 73
    dispatcher.deliver_batch()

    sent = copy_of(store, mail_id)
    assert (sent.status, sent.attempts, sent.history) == (Status.SENT, 2, (attempt,))


def test_each_wait_is_longer_than_the_one_before(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """Each wait is longer than the one before, and the last attempt makes the mail failed."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("dot", "451 4.3.0 disk full", times=None))
    dispatcher = make_dispatcher(MAILER_RETRY_ATTEMPTS=4)
    waits = []
    for _ in range(3):
        dispatcher.deliver_batch()
        due_at = copy_of(store, mail_id).due_at
        assert due_at is not None
        waits.append(due_at.timestamp() - clock.time())
        clock.ahead += waits[-1] + 1
    assert all(longer > 1.5 * wait for wait, longer in pairwise(waits))

    dispatcher.deliver_batch()

    failed = copy_of(store, mail_id)
    given_up = "451 4.3.0 disk full (given up after 4 tries, see MAILER_RETRY_ATTEMPTS)"
    assert (failed.status, failed.attempts, failed.reply) == (Status.FAILED, 4, given_up)
    assert len(failed.history) == 4
    assert failed.finished_at is not None


def test_a_mail_the_relay_refuses(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """A refused mail has failed and is not tried again."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("rcpt", "550 5.1.1 no such user"))
    dispatcher = make_dispatcher()

    dispatcher.deliver_batch()
    clock.ahead = 86_400

    failed = copy_of(store, mail_id)
    assert (failed.status, failed.attempts, failed.reply) == (
        Status.FAILED,
        1,
        "550 5.1.1 no such user",
    )
    assert [attempt.verdict for attempt in failed.history] == [Verdict.REFUSED]
    assert not dispatcher.deliver_batch().goes_on


def test_a_relay_that_can_not_be_reached(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock, bell: CountingBell
) -> None:
    """An unreachable relay costs no mail an attempt, and is left alone for a while."""
    queue_each(store, "ada", "bob", "eve")
    sink.faults.add(Fault("connect", DROP))
    dispatcher = make_dispatcher(MAILER_RELAY_REST=0.5)

    dispatcher.deliver_batch()

    assert states(store) == {"ada": "queued", "bob": "queued", "eve": "queued"}
    assert [row["attempts"] for row in table(store).values()] == [0, 0, 0]
    assert (bell.rings, sink.connections) == (1, 1)
    assert not dispatcher.deliver_batch().goes_on
    assert sink.connections == 1

    clock.ahead = 120
    dispatcher.deliver(at_most=5)
    assert states(store) == {"ada": "sent", "bob": "sent", "eve": "sent"}


def test_one_bad_mail_does_not_stop_the_others(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """The relay's objection to one mail does not stop the rest of its window."""
    queue_each(store, "refused", "deferred", "dropped", "closed", "cut", "fine")
    sink.faults.add(
        Fault("rcpt", "550 5.1.1 no such user", recipient="refused@example.com"),
        Fault("dot", "421 4.3.2 closing", recipient="deferred@example.com"),
        Fault("rcpt", DROP, recipient="dropped@example.com"),
        Fault("data", DROP, recipient="cut@example.com"),
        Fault("dot", CLOSE_AFTER_250, recipient="closed@example.com"),
    )

    assert make_dispatcher().deliver_batch().claimed == 6

    assert states(store) == {
        "refused": "failed",
        "deferred": "queued",
        "dropped": "queued",
        "cut": "queued",
        "closed": "sent",
        "fine": "sent",
    }
    assert [received.recipients for received in sink.messages] == [
        ("closed@example.com",),
        ("fine@example.com",),
    ]


def test_a_mail_that_makes_the_relay_hang_up_does_not_go_on_for_ever(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """A mail on which the relay hangs up uses an attempt each time, and so fails in the end."""
    mail_id = queue(store, "poison@example.com")
    sink.faults.add(Fault("data", DROP, times=None))
    dispatcher = make_dispatcher(MAILER_RETRY_ATTEMPTS=3)

    for _ in range(3):
        dispatcher.deliver_batch()
        clock.ahead += 86_400 / 2

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.FAILED, 3)


def test_a_mail_that_can_not_be_composed_fails_alone(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that can't be composed fails at once for all recipients, with the reason."""
    broken = queue(store, "broken@example.com", "too@example.com")
    queue_each(store, "fine")
    monkeypatch.setattr(
        preparing,
        "compose",
        lambda message, signer: compose(message) if message.id != broken else message.nonsense,
    )

    make_dispatcher().deliver_batch()

    assert states(store) == {"broken": "failed", "too": "failed", "fine": "sent"}
    assert all("nonsense" in str(one.reply) for one in store.status(broken))


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (
            update(schema.blob).values(data=b"%PDF-2"),
            "attachment 'a.pdf': its bytes are missing from the database, or were changed",
        ),
        (
            delete(schema.blob),
            "attachment 'a.pdf': its bytes are missing from the database, or were changed",
        ),
        (
            update(schema.message).where(schema.message.c.subject == "spoilt").values(headers=[5]),
            "or can't be read",
        ),
        (update(schema.attachment).values(headers=[5]), "or can't be read"),
    ],
    ids=["other bytes", "no bytes", "headers", "headers of a file"],
)
def test_a_mail_whose_rows_are_spoilt_fails_alone(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, spoilt: UpdateBase, reason: str
) -> None:
    """A mail with damaged rows fails at once with the reason, and stops no other mail."""
    message = a_message(
        subject="spoilt",
        to=(Address("spoilt@example.com"),),
        attachments=(Attachment("a.pdf", b"%PDF"),),
    )
    queue_each(store, "before")
    mail_id = queue(store, "spoilt@example.com", message=message)
    queue_each(store, "after")
    is_sqlite = store.engine.dialect.name == "sqlite"
    with store.engine.connect() as connection:
        connection.execute(
            text("ROLLBACK" if is_sqlite else "SET LOCAL session_replication_role = replica")
        )
        if is_sqlite:  # else foreign keys would be enforced
            connection.execute(text("PRAGMA foreign_keys = OFF"))
        connection.execute(spoilt)
        if not is_sqlite:
            connection.commit()
        connection.invalidate()

    make_dispatcher().deliver_batch()

    assert states(store) == {"before": "sent", "spoilt": "failed", "after": "sent"}
    assert reason in str(copy_of(store, mail_id).reply)


# --- one mail, many recipients ------------------------------------------------------------------


def test_every_recipient_gets_the_same_bytes(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """Each recipient gets the same bytes in its own SMTP transaction, without a trace of Bcc."""
    message = a_message(
        to=(Address("ada@example.com"), Address("bob@example.com")),
        cc=(Address("eve@example.com"),),
    )
    queue(
        store,
        "ada@example.com",
        "bob@example.com",
        "eve@example.com",
        "hidden@example.com",
        message=message,
    )
    sink.faults.add(Fault("rcpt", "550 5.1.1 no such user", recipient="bob@example.com"))

    make_dispatcher().deliver_batch()

    assert states(store) == {"ada": "sent", "bob": "failed", "eve": "sent", "hidden": "sent"}
    assert {mail.recipients for mail in sink.messages} == {
        ("ada@example.com",),
        ("eve@example.com",),
        ("hidden@example.com",),
    }
    [raw] = {mail.raw for mail in sink.messages}
    assert b"hidden" not in raw
    assert b"bcc" not in raw.lower()


# --- doubt --------------------------------------------------------------------------------------


def test_a_mail_in_doubt(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """A mail in doubt is resent once with its Message-ID; a second doubt is for a person."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("dot", ACCEPT_AND_DROP, times=2))
    dispatcher = make_dispatcher(MAILER_DOUBT_RESEND_AFTER=900)

    dispatcher.deliver_batch()
    chores_of(dispatcher).sweep()
    assert (copy_of(store, mail_id).status, dispatcher.deliver_batch().claimed) == (
        Status.DOUBTFUL,
        0,
    )

    clock.ahead = 901
    chores_of(dispatcher).sweep()
    dispatcher.deliver_batch()
    clock.ahead = 100_000
    chores_of(dispatcher).sweep()

    doubtful = copy_of(store, mail_id)
    assert (doubtful.status, doubtful.due_at, doubtful.attempts) == (Status.DOUBTFUL, None, 2)
    assert [attempt.verdict for attempt in doubtful.history] == [Verdict.DOUBTFUL, Verdict.DOUBTFUL]
    assert [mail.message_id for mail in sink.messages] == [store.status(mail_id).message_id] * 2


def test_a_mail_in_doubt_that_must_not_go_out_twice(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """A mail in doubt with `OnDoubt.HOLD` is never resent without a person's decision."""
    mail_id = queue(store, "ada@example.com", on_doubt=OnDoubt.HOLD)
    sink.faults.add(Fault("dot", ACCEPT_AND_DROP))
    dispatcher = make_dispatcher()

    dispatcher.deliver_batch()
    clock.ahead = 100_000
    chores_of(dispatcher).sweep()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).due_at) == (
        Status.DOUBTFUL,
        None,
    )
    assert len(sink.messages) == 1


def test_doubt_about_one_mail_is_none_about_the_next(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """Mail that was marked but not begun goes back without an attempt, and is sent later."""
    queue_each(store, "ada", "bob", "eve")
    sink.faults.add(Fault("dot", DROP))
    dispatcher = make_dispatcher()

    while dispatcher.deliver_batch().goes_on:
        pass

    assert states(store) == {"ada": "doubtful", "bob": "sent", "eve": "sent"}
    assert [row["attempts"] for row in table(store).values()] == [1, 1, 1]


# --- windows ------------------------------------------------------------------------------------


def test_mails_are_marked_and_recorded_in_windows(
    make_dispatcher: MakeDispatcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that must not go out twice has a window alone, so that no other delays its record."""
    queue_each(store, "a", "b")
    queue_each(store, "c", on_doubt=OnDoubt.HOLD)
    queue_each(store, "d", "e", "f")
    writes: list[tuple[str, int]] = []
    mark, record = store.mark_if_claimed, store.record_if_transmitting

    def marking(ids: Collection[int], **values: Any) -> set[int]:
        writes.append(("mark", len(ids)))
        return mark(ids, **values)

    def recording(results: Collection[Result], **values: Any) -> set[int]:
        writes.append(("record", len(results)))
        return record(results, **values)

    monkeypatch.setattr(share, "window_size", lambda seconds_per_mail: 20)
    monkeypatch.setattr(store, "mark_if_claimed", marking)
    monkeypatch.setattr(store, "record_if_transmitting", recording)
    dispatcher = make_dispatcher()

    while dispatcher.deliver_batch().goes_on:
        pass

    assert writes == [
        ("mark", 2),
        ("record", 2),
        ("mark", 1),
        ("record", 1),
        ("mark", 3),
        ("record", 3),
    ]
    assert set(states(store).values()) == {"sent"}


def test_a_batch_ends_in_time(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, bell: CountingBell
) -> None:
    """A batch that takes too long gives back the rest and rings the bell for it."""
    queue_each(store, *(f"reader{number}" for number in range(30)))
    sink.faults.add(Fault("dot", DELAY, delay=0.3))
    dispatcher = make_dispatcher(MAILER_BATCH_SECONDS=0.2)

    dispatcher.deliver_batch()

    assert sorted(states(store).values()) == ["queued"] * 10 + ["sent"] * 20
    assert sum(row["attempts"] for row in table(store).values()) == 20
    assert bell.rings == 1


def test_a_slow_claim_does_not_eat_up_the_batch(
    make_dispatcher: MakeDispatcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a claim is no part of the batch, else a busy database would stop delivery."""
    queue_each(store, "ada")
    claim_due = store.claim_due

    def slow(*values: Any, **more: Any) -> Any:
        time.sleep(0.2)
        return claim_due(*values, **more)

    monkeypatch.setattr(store, "claim_due", slow)

    assert make_dispatcher(MAILER_BATCH_SECONDS=0.1).deliver_batch().claimed == 1


def test_a_full_batch_calls_somebody_to_join_in(
    make_dispatcher: MakeDispatcher, store: Store, bell: CountingBell
) -> None:
    """A full batch rings the bell, since more mail is probably due; another does not."""
    queue_each(store, "ada", "bob")
    dispatcher = make_dispatcher(windows_of=1, MAILER_BATCH_SECONDS=0.05)  # a batch of one

    dispatcher.deliver_batch()
    assert bell.rings == 1
    make_dispatcher().deliver_batch()
    assert bell.rings == 1


def test_many_threads_deliver_each_mail_once(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """Threads that share a dispatcher and its connections deliver each mail once."""
    names = [f"reader{number}" for number in range(60)]
    queue_each(store, *names)
    dispatcher = make_dispatcher(windows_of=2, MAILER_BATCH_SECONDS=0.1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: dispatcher.deliver(at_most=60), range(4)))

    assert sorted(mail.recipients for mail in sink.messages) == sorted(
        (f"{name}@example.com",) for name in names
    )
    assert set(states(store).values()) == {"sent"}
    assert sink.connections <= 4
