"""The idempotency key of a sensitive mail works even when the mail's content is erased."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, select, update

from mailer import KeyReused, Mailer, Receipt, Status, send_email
from mailer.schema import message
from tests.mails import LATER
from tests.services.databases import sqlite_only
from tests.shop import OpenShop, rows, store_of

mailer = Mailer()
OLD, NEW, OTHER = "the key of last year", "the key of this year", "another application's key"


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Flask]:
    app = open_shop(SECRET_KEY=NEW)
    with app.app_context():
        yield app


def send(code: str = "1111", to: str = "ada@example.com", **changes: Any) -> Receipt:
    return send_email(
        to,
        "Your code",
        "only_text",
        name=code,
        **{"idempotency_key": "code-7", "sensitive": True, **changes},
    )


def end(app: Flask, receipt: Receipt, to: Status = Status.CANCELLED) -> None:
    """Bring a mail to a final state, which erases its content."""
    store_of(app).settle_if_resting(receipt.id, to, now=LATER)
    assert mailer.status(receipt.id).erased_at is not None


def fingerprint_of(app: Flask, receipt: Receipt) -> tuple[str | None, str | None]:
    with store_of(app).engine.connect() as connection:
        columns = select(message.c.fingerprint, message.c.fingerprint_key).where(
            message.c.id == receipt.id
        )
        digest, key_id = connection.execute(columns).one()
    return digest, key_id


def test_an_erased_mail_is_recognised(shop: Flask) -> None:
    """The same call returns the first receipt, before and after the mail is erased."""
    first = send()
    assert send() == first
    end(shop, first)
    assert send() == first
    assert send().recipients == ("ada@example.com",)
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "eve@example.com"},
        {"code": "2222"},
        {"code": "2222", "to": "eve@example.com"},
        {"bcc": "eve@example.com"},
    ],
)
def test_another_mail_is_refused(shop: Flask, changes: dict[str, str]) -> None:
    """Another mail with the key is refused, before and after the first mail is erased."""
    first = send()
    for _ in range(2):
        with pytest.raises(
            KeyReused, match=rf"'code-7' belongs to mail {first.id}, which says something else"
        ):
            send(**changes)
        if mailer.status(first.id).erased_at is None:
            end(shop, first)
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


def test_what_is_kept_tells_nothing(shop: Flask, open_shop: OpenShop) -> None:
    """The fingerprint depends on the secret key, which its id does not show."""
    with open_shop(SECRET_KEY=OTHER).app_context():
        other = send(idempotency_key="code-8")
    digest, key_id = fingerprint_of(shop, send())
    assert digest != fingerprint_of(shop, other)[0]
    assert key_id is not None
    assert NEW not in key_id


def test_keys_are_rotated(open_shop: OpenShop) -> None:
    """A mail queued with a former secret key is recognised while that key is a fallback."""
    before = open_shop(SECRET_KEY=OLD)
    with before.app_context():
        first = send()
        end(before, first)
    for config in (
        {"SECRET_KEY": NEW, "SECRET_KEY_FALLBACKS": [OLD]},
        {"SECRET_KEY": NEW, "MAILER_SECRET_KEYS": f"{NEW}, {OLD}"},
    ):
        with open_shop(**config).app_context():
            assert send() == first
            with pytest.raises(KeyReused, match="says something else"):
                send(to="eve@example.com")
    with (
        open_shop(SECRET_KEY=NEW).app_context(),
        pytest.raises(KeyReused, match="the former key to the end of MAILER_SECRET_KEYS"),
    ):
        send()


def test_the_first_key_signs(open_shop: OpenShop) -> None:
    """A mail queued during a rotation is recognised when the former secret key is gone."""
    with open_shop(MAILER_SECRET_KEYS=[NEW, OLD]).app_context():
        first = send()
    with open_shop(MAILER_SECRET_KEYS=[NEW]).app_context():
        assert send() == first


def test_two_applications_with_different_keys(shop: Flask, open_shop: OpenShop) -> None:
    """Applications with different secret keys never take each other's mail for their own."""
    first = send()
    with (
        open_shop(SECRET_KEY=OTHER).app_context(),
        pytest.raises(KeyReused, match="MAILER_SECRET_KEYS"),
    ):
        send(to="eve@example.com")
    assert send() == first


def test_without_a_secret_key(open_shop: OpenShop) -> None:
    """Without a secret key, mail is recognised until erased; then the error names the setting."""
    app = open_shop(SECRET_KEY=None)
    with app.app_context():
        first = send()
        assert send() == first
        with pytest.raises(KeyReused, match="says something else"):
            send("2222")
        end(app, first)
        assert fingerprint_of(app, first) == (None, None)
        for changes in ({}, {"to": "eve@example.com"}):
            with pytest.raises(
                KeyReused, match=rf"{first.id}, whose content is erased.*MAILER_SECRET_KEYS"
            ):
                send(**changes)


def test_a_mail_of_an_older_version(shop: Flask, open_shop: OpenShop) -> None:
    """The unkeyed fingerprint of an older version is compared, and deleted at the erasure."""
    with open_shop(SECRET_KEY=None).app_context():
        first = send()
    assert fingerprint_of(shop, first)[1] is None
    assert send() == first
    with pytest.raises(KeyReused, match="says something else"):
        send(to="eve@example.com")
    end(shop, first)
    assert fingerprint_of(shop, first) == (None, None)
    with pytest.raises(KeyReused, match="MAILER_SECRET_KEYS"):
        send()


def test_the_key_is_free_when_the_mail_is_purged(shop: Flask) -> None:
    """A key is free for another mail when its mail is purged."""
    first = send()
    end(shop, first)
    store_of(shop).purge_finished(LATER * 2, most=100)
    again = send(to="eve@example.com")
    assert again.id != first.id
    assert again.recipients == ("eve@example.com",)


def test_old_mail_that_is_not_sensitive(shop: Flask) -> None:
    """An ordinary mail keeps its fingerprint when its content is erased by age."""
    first = send(sensitive=False)
    store_of(shop).settle_if_resting(first.id, Status.CANCELLED, now=LATER)
    store_of(shop).erase_finished(LATER * 2, now=LATER, after="", most=10)
    assert mailer.status(first.id).erased_at is not None
    assert send(sensitive=False) == first
    with pytest.raises(KeyReused, match="says something else"):
        send("2222", sensitive=False)


def test_at_the_same_time(shop: Flask) -> None:
    """Of two mails with one key at the same time, one is queued and the other is refused."""
    together = Barrier(10)

    def call(number: int) -> str | None:
        with shop.app_context():
            together.wait()
            try:
                return send(to=f"person{number % 2}@example.com").recipients[0]
            except KeyReused:
                return None

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(call, range(10)))
    [recipient] = {answer for answer in answers if answer}
    assert [answer is not None for answer in answers] == [
        recipient == f"person{number % 2}@example.com" for number in range(10)
    ]
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


def test_in_a_transaction_of_the_application(shop: Flask, config: dict[str, str]) -> None:
    """An erased mail is recognised in a transaction of the application, too."""
    first = send()
    end(shop, first)
    engine = create_engine(config["MAILER_DATABASE_URL"])
    with engine.begin() as connection:
        assert send(connection=connection) == first
        with pytest.raises(KeyReused, match="says something else"):
            send(to="eve@example.com", connection=connection)
    engine.dispose()


@sqlite_only
def test_a_keyed_fingerprint_that_an_older_version_erased(shop: Flask) -> None:
    """The id of a secret key without its fingerprint, left by an older version, proves nothing."""
    first = send()
    end(shop, first)
    with store_of(shop).engine.begin() as connection:
        connection.execute(update(message).values(fingerprint=None))
    with pytest.raises(KeyReused, match="whose content is erased"):
        send()
