"""Mail is tried again after failures that are not its own: memory, files, keys, time limits."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from mailer.delivery import preparing, share
from mailer.errors import StoreUnavailable
from mailer.message import Message, Status, Verdict
from mailer.mime import Composed, Signer, compose
from mailer.mime.dkim import SigningKey
from mailer.smtp import envelope
from mailer.store import Store, rows
from tests.mails import a_message, table
from tests.services.dispatchers import Clock, MakeDispatcher, copy_of, queue, queue_each, states
from tests.services.sink import Sink

TROUBLE = [
    MemoryError(),
    OSError(24, "Too many open files"),
    RuntimeError("who knows"),
    LookupError("unknown encoding: idna"),
]


def in_trouble(mail_id: str, error: Exception) -> Callable[[Message, Signer | None], Composed]:
    """Return a `compose` that fails for one mail."""

    def write(message: Message, signer: Signer | None) -> Composed:
        if message.id == mail_id:
            raise error
        return compose(message, signer)

    return write


@pytest.mark.parametrize("error", TROUBLE, ids=repr)
def test_trouble_while_a_mail_is_composed(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A failure to compose uses an attempt and is kept in the history; the last fails the mail."""
    mail_id = queue(store, "ada@example.com", "bob@example.com")
    queue_each(store, "fine")
    dispatcher = make_dispatcher(MAILER_RETRY_ATTEMPTS=2)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "compose", in_trouble(mail_id, error))
        dispatcher.deliver_batch()

    assert states(store) == {"ada": "queued", "bob": "queued", "fine": "sent"}
    for copy in store.status(mail_id):
        [attempt] = copy.history
        assert (copy.attempts, attempt.verdict) == (1, Verdict.DEFERRED)
        assert type(error).__name__ in attempt.reply
        assert copy.due_at is not None
        assert copy.due_at.timestamp() > clock.time() + 30

    clock.ahead = 100
    monkeypatch.setattr(preparing, "compose", in_trouble(mail_id, error))
    dispatcher.deliver_batch()

    assert states(store) == {"ada": "failed", "bob": "failed", "fine": "sent"}
    assert "given up after 2 tries" in str(store.status(mail_id).deliveries[0].reply)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(5, "Input/output error"), StoreUnavailable("malformed")],
    ids=repr,
)
def test_trouble_while_mails_are_loaded(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """When mails can't be loaded together, each is loaded alone and only the bad one deferred."""
    queue_each(store, "before")
    mail_id = queue(store, "ada@example.com")
    queue_each(store, "after")
    load = store.load_messages

    def load_with_trouble(mail_ids: Collection[str]) -> dict[str, Message]:
        if mail_id in mail_ids:
            raise error
        return load(mail_ids)

    monkeypatch.setattr(store, "load_messages", load_with_trouble)

    make_dispatcher().deliver_batch()

    assert states(store) == {"before": "sent", "ada": "queued", "after": "sent"}
    copy = copy_of(store, mail_id)
    assert (copy.attempts, [attempt.verdict for attempt in copy.history]) == (1, [Verdict.DEFERRED])


def test_too_little_memory_to_read_a_row(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of memory is not taken for a damaged row."""
    mail_id = queue(store, "ada@example.com")

    def too_little(*_row: Any) -> Message:
        raise MemoryError

    monkeypatch.setattr(rows, "message", too_little)

    make_dispatcher().deliver_batch()

    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.QUEUED, 1)


def test_a_key_that_can_not_sign(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that can't sign defers the mail, whatever the cryptographic library raises."""

    def fail(data: bytes) -> bytes:
        raise ValueError("Digest too large for key size.")

    signer = Signer([SigningKey("example.com", "2026a", "rsa-sha256", fail)])
    mail_id = queue(store, "ada@example.com")
    monkeypatch.setattr(preparing, "compose", lambda message, _signer: compose(message, signer))

    make_dispatcher().deliver_batch()

    copy = copy_of(store, mail_id)
    assert copy.status == Status.QUEUED
    assert "the key 2026a._domainkey.example.com can't sign: ValueError" in str(copy.reply)


def test_a_soft_time_limit_while_a_mail_is_composed(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit ends the batch, and only the mail being composed uses an attempt."""
    queue_each(store, "ada")
    mail_id = queue(store, "slow@example.com")
    queue_each(store, "eve")
    dispatcher = make_dispatcher()
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "compose", in_trouble(mail_id, SoftTimeLimitExceeded()))
        with pytest.raises(SoftTimeLimitExceeded):
            dispatcher.deliver_batch()

    assert states(store) == {"ada": "queued", "slow": "queued", "eve": "queued"}
    assert sorted(row["attempts"] for row in table(store).values()) == [0, 0, 1]
    dispatcher.deliver_batch()
    assert sorted(mail.recipients[0] for mail in sink.messages) == [
        "ada@example.com",
        "eve@example.com",
    ]


def test_a_soft_time_limit_before_a_mail_is_begun(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit before a mail's first byte gives it back, without doubt."""
    queue_each(store, "ada", "bob")
    with monkeypatch.context() as patch:
        patch.setattr(share.Share, "_may_begin", _interrupt)
        with pytest.raises(SoftTimeLimitExceeded):
            make_dispatcher().deliver_batch()

    assert states(store) == {"ada": "queued", "bob": "queued"}
    assert [row["attempts"] for row in table(store).values()] == [0, 0]


def _interrupt(_share: share.Share) -> bool:
    raise SoftTimeLimitExceeded


def test_too_little_memory_to_write_a_mail_for_this_relay(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that can't be rewritten for a relay is deferred, and stops no other."""
    mail_id = queue(store, "ada@example.com", message=a_message(subject="large"))
    queue_each(store, "bob")
    write = envelope._envelope_of

    def too_little(mail: Any, offers: envelope.Offers) -> Any:
        if mail.mail_id == mail_id:
            raise MemoryError
        return write(mail, offers)

    monkeypatch.setattr(envelope, "_envelope_of", too_little)

    make_dispatcher().deliver_batch()

    assert states(store) == {"ada": "queued", "bob": "sent"}
    assert copy_of(store, mail_id).attempts == 1
