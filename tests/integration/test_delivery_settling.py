"""The mail of a dead worker is settled from its black box."""

import errno
import os
import signal
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask_mail import email_dispatched

from mailer.blackbox import BlackBox, Box
from mailer.clock import SystemClock
from mailer.delivery import Dispatcher, preparing, share
from mailer.delivery.settling import settle
from mailer.disk import SystemDisk
from mailer.errors import StoreUnavailable
from mailer.message import Message, OnDoubt, Status
from mailer.mime import Composed, Signer, compose
from mailer.store import Result, Store
from tests.mails import a_message, table
from tests.services.dispatchers import (
    Clock,
    MakeDispatcher,
    chores_of,
    copy_of,
    queue,
    queue_many,
    received,
)
from tests.services.sink import Sink


def deliver_and_die(
    dispatcher: Dispatcher, in_the_child: Callable[[], object] = lambda: None
) -> None:
    """Deliver in a child process, and assert that a signal has killed it."""
    if not (child := os.fork()):
        try:
            in_the_child()
            dispatcher.deliver(at_most=60)
        finally:
            os._exit(1)  # so that pytest goes on in the parent only
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"


def killing(*_arguments: object, **_options: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def states(store: Store) -> list[str]:
    return [row["status"] for row in table(store).values()]


# --- a worker that died -------------------------------------------------------------------------


def test_what_the_relay_took_before_its_worker_died(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """Mail that was accepted before its worker died is sent, with the reply in the black box."""
    queue_many(store, 3)
    dispatcher = make_dispatcher()

    deliver_and_die(dispatcher, lambda: setattr(store, "record_if_transmitting", killing))
    assert states(store) == ["transmitting"] * 3
    chores_of(make_dispatcher()).settle()

    assert states(store) == ["sent"] * 3
    assert all(row["reply"].startswith("250") for row in table(store).values())
    assert len(sink.messages) == 3


@pytest.mark.parametrize("on_doubt", OnDoubt)
def test_what_was_on_the_wire(
    make_dispatcher: MakeDispatcher,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    on_doubt: OnDoubt,
) -> None:
    """Only the mail on the wire is in doubt, at once; the rest goes back without an attempt."""
    first, *others = queue_many(store, 3, on_doubt=on_doubt)
    monkeypatch.setattr(share.Share, "_note", killing)

    deliver_and_die(make_dispatcher())
    chores_of(make_dispatcher()).settle()

    assert copy_of(store, first).status is Status.DOUBTFUL
    assert (copy_of(store, first).due_at is not None) == (on_doubt is OnDoubt.RESEND)
    assert [(copy_of(store, other).status, copy_of(store, other).attempts) for other in others] == [
        (Status.QUEUED, 0)
    ] * 2


def test_what_was_claimed_and_not_begun(
    make_dispatcher: MakeDispatcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail that was claimed and not begun goes back at once without an attempt."""
    mail_id = queue(store, "ada@example.com")
    monkeypatch.setattr(share.Share, "__init__", killing)

    deliver_and_die(make_dispatcher())
    assert states(store) == ["claimed"]
    chores_of(make_dispatcher()).settle()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.QUEUED, 0)


@pytest.mark.parametrize("on_doubt", OnDoubt)
def test_a_box_that_comes_too_late(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, sink: Sink, on_doubt: OnDoubt
) -> None:
    """A black box found after the lease ended turns the doubtful mail into a sent one."""
    queue(store, "ada@example.com", on_doubt=on_doubt)
    deliver_and_die(make_dispatcher(), lambda: setattr(store, "record_if_transmitting", killing))
    clock.ahead = 7200
    dispatcher = make_dispatcher()
    chores_of(dispatcher).sweep()
    assert states(store) == ["doubtful"]

    chores_of(dispatcher).settle()
    chores_of(dispatcher).sweep()

    assert states(store) == ["sent"]
    assert len(sink.messages) == 1


def test_a_worker_that_dies_while_a_receiver_works(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """Acceptance is noted before a receiver of `email_dispatched` is called."""
    queue_many(store, 2)
    with email_dispatched.connected_to(killing):
        deliver_and_die(make_dispatcher())

    chores_of(make_dispatcher()).settle()

    assert sorted(states(store)) == ["queued", "sent"]
    assert len(sink.messages) == 1
    assert "its deliveries are settled: deliveries=2 in_doubt=0" in caplog.text


def test_a_box_that_another_installation_finds_first(
    make_dispatcher: MakeDispatcher, store: Store, black_box: BlackBox, tmp_path: Path
) -> None:
    """Another installation that finds a black box leaves it to the owner of the mail."""
    queue(store, "ada@example.com")
    dispatcher = make_dispatcher()
    deliver_and_die(dispatcher, lambda: setattr(store, "record_if_transmitting", killing))
    other = Store(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    other.migrate()
    theirs = replace(dispatcher._services, store=other)

    assert black_box._folder is not None
    BlackBox(black_box._folder, SystemDisk(), SystemClock()).settle_remains(partial(settle, theirs))
    other.engine.dispose()
    chores_of(dispatcher).settle()

    assert states(store) == ["sent"]


# --- a database that is away --------------------------------------------------------------------


def test_a_database_that_is_away_at_the_moment_of_the_250(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mail sent while the database is away is recorded later, from the worker's black box."""
    queue_many(store, 2)

    def away(_results: Collection[Result], **_values: Any) -> set[int]:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as outage:
        outage.setattr(store, "record_if_transmitting", away)
        dispatcher = make_dispatcher()
        with pytest.raises(StoreUnavailable):
            dispatcher.deliver_batch()
        with pytest.raises(StoreUnavailable):
            chores_of(dispatcher).settle()
    assert states(store) == ["transmitting"] * 2

    chores_of(dispatcher).settle()

    assert states(store) == ["sent"] * 2
    assert len(received(sink)) == 2


# --- poison -------------------------------------------------------------------------------------


def test_a_mail_that_kills_its_workers(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that kills its worker uses an attempt each time and then fails, with the reason."""
    poison = queue(store, message=a_message(subject="poison"))
    healthy = queue(store, "bob@example.com")
    monkeypatch.setattr(preparing, "compose", _deadly)
    dispatcher = make_dispatcher(MAILER_RETRY_ATTEMPTS=3)

    for deaths in (1, 2, 3):
        deliver_and_die(dispatcher)
        chores_of(dispatcher).settle()
        assert copy_of(store, poison).attempts == deaths
        assert len(copy_of(store, poison).history) == deaths
        assert copy_of(store, healthy).attempts <= 1
        clock.ahead += 3600

    assert copy_of(store, poison).status is Status.FAILED
    assert copy_of(store, poison).reply == (
        "the worker died while it composed this mail (given up after 3 tries, see"
        " MAILER_RETRY_ATTEMPTS)"
    )
    dispatcher.deliver(at_most=60)
    assert copy_of(store, healthy).status is Status.SENT


def _deadly(message: Message, signer: Signer | None) -> Composed:
    return killing() if message.subject == "poison" else compose(message, signer)


def test_a_database_that_goes_away_while_a_mail_is_composed(
    make_dispatcher: MakeDispatcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that goes away costs the mail in hand no attempt."""
    mail_id = queue(store, "ada@example.com")
    dispatcher = make_dispatcher(MAILER_RETRY_ATTEMPTS=1)

    def away(*_arguments: object, **_options: object) -> Any:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as outage:

        def goes_away(*_arguments: object) -> Any:
            for call in ("load_messages", "set_aside_if_claimed", "release_if_in_hand"):
                outage.setattr(store, call, away)
            away()

        outage.setattr(store, "load_messages", goes_away)
        with pytest.raises(StoreUnavailable):
            dispatcher.deliver_batch()

    chores_of(dispatcher).settle()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.QUEUED, 0)


# --- a worker that was frozen -------------------------------------------------------------------


def test_a_worker_that_wakes_up_between_the_envelope_and_the_mail(
    store: Store,
    make_dispatcher: MakeDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker whose lease ended after the envelope sends no byte of the mail."""
    mail_id = queue(store, "ada@example.com")
    dispatcher = make_dispatcher()
    may_begin = share.Share._may_begin

    def slept(self: share.Share) -> bool:
        clock.ahead = 7200
        return may_begin(self)

    monkeypatch.setattr(share.Share, "_may_begin", slept)
    dispatcher.deliver_batch()

    assert sink.messages == []
    assert copy_of(store, mail_id).status is Status.QUEUED


# --- a disk that becomes read-only --------------------------------------------------------------


class ReadOnlyDisk(SystemDisk):
    """A disk on which nothing can be changed from a moment on."""

    is_read_only = False

    def _check(self) -> None:
        if self.is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def write(self, file: int, data: bytes) -> int:
        self._check()
        return os.write(file, data)

    def truncate(self, file: int) -> None:
        self._check()
        super().truncate(file)

    def remove(self, path: Path) -> None:
        self._check()
        super().remove(path)


def test_notes_that_can_be_neither_continued_nor_removed(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the notes of a claim would say that a mail was not begun, it is not begun.

    The next claim goes on without a black box, whose old notes say nothing of it.
    """
    disk = ReadOnlyDisk()
    dispatcher = make_dispatcher()
    dispatcher._services = replace(
        dispatcher._services, black_box=BlackBox(tmp_path / "box", disk, SystemClock())
    )
    begun = Box.begun

    def fail(box: Box, delivery_id: int, relay: str) -> None:
        disk.is_read_only = True
        begun(box, delivery_id, relay)

    monkeypatch.setattr(Box, "begun", fail)
    mail_id = queue(store, "ada@example.com", on_doubt=OnDoubt.HOLD)

    dispatcher.deliver_batch()
    assert (states(store), received(sink)) == (["queued"], [])
    dispatcher.deliver_batch()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.SENT, 1)
    assert received(sink) == ["ada@example.com"]
