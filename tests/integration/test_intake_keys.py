"""An idempotency key makes one mail, however often and from wherever it is used."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import flask_mail
import pytest
from flask import Flask

from mailer import Attachment, InvalidMail, KeyReused, Mailer, Receipt, Status, send_email
from mailer.store import Store, keys
from mailer.store.transactions import Row, Transaction
from tests.mails import LATER, claim, mark, postgresql_only, record
from tests.services.databases import sqlite_only
from tests.services.processes import at_once
from tests.shop import close, create_shop, rows, store_of

mailer = Mailer()


def send(key: str | None, **changes: Any) -> Receipt:
    """Queue a mail that is always the same, except for the changes."""
    mail = {
        "to": "ada@example.com",
        "subject": "Hello",
        "template": "only_text",
        "context": {"name": "Ada"},
    }
    return send_email(**{**mail, **changes}, idempotency_key=key)


def enqueue(key: str, **changes: Any) -> Receipt:
    message = flask_mail.Message("Hello", ["ada@example.com"], "text")
    for name, value in changes.items():
        setattr(message, name, value)
    return mailer.enqueue(message, idempotency_key=key)


def test_the_same_call_again(shop: Flask) -> None:
    """A repeated call of `send_email` or `enqueue` makes no mail and returns the first receipt."""
    for call in (send, enqueue):
        first = call(call.__name__)

        again = [call(call.__name__) for _ in range(3)]
        assert again == [first] * 3
        assert (first.is_new, [one.is_new for one in again]) == (True, [False] * 3)
    assert rows(shop) == {"mailer_message": 2, "mailer_delivery": 2}


def test_without_a_key_each_call_is_a_mail(shop: Flask) -> None:
    """Each call without a key, or with another key, makes a mail."""
    assert len({receipt.id for receipt in (send(None), send(None), send("a"), send("b"))}) == 4


OTHER_MAILS: list[dict[str, Any]] = [
    {"to": "bob@example.com"},
    {"to": ["ada@example.com", "bob@example.com"]},
    {"to": "Ada <ada@example.com>"},
    {"cc": "bob@example.com"},
    {"bcc": "bob@example.com"},
    {"reply_to": "bob@example.com"},
    {"sender": "bob@example.com"},
    {"subject": "hello"},
    {"context": {"name": "Bob"}},
    {"template": "welcome"},
    {"headers": {"X-Campaign": "november"}},
    {"attachments": [Attachment("a.pdf", b"%PDF")]},
    {"tags": ["november"]},
    {"metadata": {"order": "42"}},
]


def test_the_same_key_with_another_mail(shop: Flask) -> None:
    """Another mail with a used key is refused: the error names key, first mail and remedy."""
    first = send("order-42")
    for changes in OTHER_MAILS:
        with pytest.raises(KeyReused) as error:
            send("order-42", **changes)

        assert str(error.value).startswith(
            f"idempotency_key: 'order-42' belongs to mail {first.id}, which says something else:"
            " give"
        )
    with pytest.raises(KeyReused):
        enqueue("order-42")
    assert send("order-42") == first
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


@sqlite_only
def test_every_part_of_a_file_counts(shop: Flask) -> None:
    """A difference in any part of an attachment is another mail."""
    send("a", attachments=[Attachment("a.pdf", b"%PDF")])
    others = [
        Attachment("b.pdf", b"%PDF"),
        Attachment("a.pdf", b"%PDF-1"),
        Attachment("a.pdf", b"%PDF", "text/csv"),
    ]
    for other in [
        *others,
        Attachment("a.pdf", b"%PDF", content_id="a"),
        Attachment("a.pdf", b"%PDF", headers=(("X-A", "b"),)),
    ]:
        with pytest.raises(KeyReused):
            send("a", attachments=[other])


@sqlite_only
def test_every_part_of_a_message_counts(shop: Flask) -> None:
    """A difference in parts that only Flask-Mail's messages have is another mail."""
    enqueue("a")
    for changes in (
        {"alts": {"calendar": "BEGIN:"}},
        {"mail_options": ["SMTPUTF8"]},
        {"rcpt_options": ["NOTIFY=NEVER"]},
    ):
        with pytest.raises(KeyReused):
            enqueue("a", **changes)


@sqlite_only
def test_how_it_travels_does_not_count(shop: Flask) -> None:
    """Another lane, doubt policy, Message-ID or date is not another mail."""
    assert send("a") == send("a", lane="bulk", on_doubt="hold")
    assert enqueue("b", date=1_000_000_000) == enqueue(
        "b", date=1_000_000_001, msgId="<another@example.com>"
    )


def test_a_key_is_kept_with_its_mail(shop: Flask) -> None:
    """A key belongs to its mail in any state, and is free when that is purged."""
    first, store = send("a"), store_of(shop)
    mailer.cancel(first.id)

    assert send("a") == first
    store.purge_finished(LATER * 2, most=100)
    again = send("a")
    assert again.id != first.id
    assert [one.status for one in mailer.status(again.id)] == [Status.QUEUED]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "idempotency_key: it has 0 characters: give 1 to 255."),
        ("k" * 256, "idempotency_key: it has 256 characters: give 1 to 255."),
        (42, "idempotency_key: give a str, not int."),
        (b"a", "idempotency_key: give a str, not bytes."),
        (
            "a\nb",
            (
                r"idempotency_key: 'a\nb' contains '\n': remove line breaks and other control"
                " characters."
            ),
        ),
        ("a\x00", r"idempotency_key: 'a\x00' contains '\x00': remove"),
        (
            "order-None",
            "idempotency_key: 'order-None' has the part None, which other mails would share. If",
        ),
        *(
            (key, f"idempotency_key: {key!r} has the part None")
            for key in ("None", "None-1", "a:None:b", "a/None", "a None")
        ),
        *(
            (key, f"idempotency_key: {key!r} has the part None")
            for key in ("user_None_welcome", "v1.None", "a|None", "('a', None)")
        ),
        ("\ud800", r"idempotency_key: '\ud800' contains '\ud800': remove"),
    ],
)
@sqlite_only
def test_what_is_no_key(shop: Flask, key: Any, words: str) -> None:
    """An invalid key is refused at the call, and nothing is stored."""
    for call in (send, enqueue):
        with pytest.raises(InvalidMail) as error:
            call(key)

        assert str(error.value)[: len(words)] == words
    assert rows(shop) == {}


@pytest.mark.parametrize(
    "key",
    ["Nonesuch-1", "order-none", "Nones", "xNone", "None1", "https://example.com//a", "order-"],
)
@sqlite_only
def test_what_only_looks_like_no_key(shop: Flask, key: str) -> None:
    """A key is refused for None as a part, but not within a word; empty parts are allowed."""
    assert send(key).is_new


def test_a_long_key_in_any_script(shop: Flask) -> None:
    """A key of 255 characters with four bytes each fits into the index."""
    key = "🦊" * 255

    assert send(key) == send(key)


# --- at the same time ---------------------------------------------------------------------------

CALLS = 50


def test_fifty_threads(shop: Flask) -> None:
    """Fifty threads with one key make one mail with one receipt, also with files."""
    together = Barrier(CALLS)

    def call(_number: int) -> Receipt:
        with shop.app_context():
            together.wait()
            return send("order-42", attachments=[Attachment("a.pdf", b"%PDF")])

    with ThreadPoolExecutor(CALLS) as threads:
        receipts = set(threads.map(call, range(CALLS)))

    assert len(receipts) == 1
    assert rows(shop) == {
        "mailer_message": 1,
        "mailer_delivery": 1,
        "mailer_attachment": 1,
        "mailer_blob": 1,
    }


def call_often(config: dict[str, str]) -> list[Receipt]:
    shop = create_shop(config)
    with shop.app_context():
        receipts = [send(f"order-{number}") for number in range(CALLS // 5)]
    close(shop)
    return receipts


def test_several_processes(shop: Flask, config: dict[str, str]) -> None:
    """Several processes with the same keys make one mail for each key."""
    receipts = at_once(5, call_often, config)

    assert all(one == receipts[0] for one in receipts)
    assert rows(shop) == {"mailer_message": CALLS // 5, "mailer_delivery": CALLS // 5}


# --- after a conflict ---------------------------------------------------------------------------


def test_a_conflict_does_no_harm(shop: Flask) -> None:
    """After a conflict of keys, the same process can deliver the first mail."""
    first = send("a")
    with pytest.raises(KeyReused):
        send("a", subject="Other")
    store: Store = store_of(shop)
    [delivery] = claim(store, now=LATER, lease_until=LATER + 300)
    mark(store, delivery, now=LATER)
    record(store, delivery, to=Status.SENT)

    assert [one.status for one in mailer.status(first.id)] == [Status.SENT]


@postgresql_only
def test_a_key_that_is_purged_in_between(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail is queued if the one with its key is purged right after the conflict."""
    first = send("a")
    mailer.cancel(first.id)
    execute = Transaction.execute

    def purge_before(
        transaction: Transaction, statement: str, values: Mapping[str, Any]
    ) -> list[Row]:
        if statement == keys.HAS_KEY:
            monkeypatch.undo()
            store_of(shop).purge_finished(LATER * 2, most=100)
        return execute(transaction, statement, values)

    monkeypatch.setattr(Transaction, "execute", purge_before)
    again = send("a")

    assert again.id != first.id
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}
