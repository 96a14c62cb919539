"""The idempotency key of a bulk send: one key, one send, also if it is cancelled or interrupted."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from mailer import Attachment, KeyReused, Mailer
from tests.bulk_calls import (
    COUNT,
    EXPECTED,
    Boom,
    check_complete,
    do_before,
    import_rows,
    recipients,
    row,
    some_rows,
    states,
)
from tests.shop import rows, store_of

mailer = Mailer()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 10)


def test_the_same_call_again(shop: Flask) -> None:
    """A repeated call returns the first send, whatever became of it, and stores nothing."""
    first = import_rows(some_rows(COUNT), idempotency_key="news")
    before = rows(shop)
    assert import_rows(some_rows(COUNT), idempotency_key="news").id == first.id
    first.cancel()
    assert import_rows(some_rows(COUNT), idempotency_key="news").id == first.id

    assert rows(shop) == before


def test_cancelled_in_the_middle(shop: Flask) -> None:
    """A send that is cancelled during its import stores no more; its calls return it."""

    def cancel() -> None:
        [bulk] = mailer.bulks()
        assert bulk.cancel("wrong list")

    bulk = import_rows(do_before(15, cancel), idempotency_key="news")
    again = import_rows(some_rows(COUNT), idempotency_key="news")

    assert again.id == bulk.id
    assert (bulk.progress().state, bulk.progress().reason) == ("cancelled", "wrong list")
    assert recipients(shop) == EXPECTED[:10]


def pause_it() -> None:
    [bulk] = mailer.bulks()
    assert bulk.pause()


@pytest.mark.parametrize("start", ["complete", "streaming"])
def test_paused_in_the_middle(shop: Flask, start: str) -> None:
    """A send that is paused during its import is stored to the end, and waits for resume()."""
    bulk = import_rows(do_before(15, pause_it), start=start)

    assert recipients(shop) == EXPECTED
    assert states(shop) == {"held": COUNT}
    assert (bulk.progress().state, bulk.progress().reason) == ("paused", "by hand")

    assert bulk.resume()
    assert store_of(shop).release_held(bulk.id, now=time.time(), most=COUNT) is not None
    check_complete(shop, bulk)


def test_paused_before_the_importer_dies(shop: Flask) -> None:
    """A send that was paused in an import that broke off is paused after the next one, too."""

    def pause_and_die() -> None:
        pause_it()
        raise Boom

    with pytest.raises(Boom):
        import_rows(do_before(15, pause_and_die), idempotency_key="news")
    assert mailer.bulks()[0].progress().state == "paused"

    bulk = import_rows(some_rows(COUNT), idempotency_key="news")
    assert recipients(shop) == EXPECTED
    assert states(shop) == {"held": COUNT}
    assert bulk.progress().state == "paused"


def test_paused_before_it_waits_for_a_person(shop: Flask) -> None:
    """A send that needs a confirmation waits for that, also if its import was paused."""
    bulk = import_rows(do_before(15, pause_it), require_confirmation_above=1)

    assert bulk.progress().state == "ready"
    assert not bulk.resume()
    assert states(shop) == {"held": COUNT}
    assert bulk.confirm()


def test_cancelled_while_it_is_paused_in_the_middle(shop: Flask) -> None:
    """A paused import can be cancelled."""

    def pause_and_cancel() -> None:
        pause_it()
        [bulk] = mailer.bulks()
        assert bulk.cancel("wrong list")

    bulk = import_rows(do_before(15, pause_and_cancel))

    assert (bulk.progress().state, bulk.progress().reason) == ("cancelled", "wrong list")


@pytest.mark.parametrize(("start", "state"), [("complete", "importing"), ("streaming", "running")])
def test_paused_and_resumed_in_the_middle(shop: Flask, start: str, state: str) -> None:
    """A send that is resumed during its import goes on as if it had not been paused."""
    seen: list[str] = []

    def pause_and_resume() -> None:
        pause_it()
        [bulk] = mailer.bulks()
        assert not bulk.pause()
        seen.append(bulk.progress().state)
        assert bulk.resume()
        assert not bulk.resume()
        seen.append(bulk.progress().state)

    bulk = import_rows(do_before(15, pause_and_resume), start=start)

    assert seen == ["paused", state]
    assert bulk.progress().state == "running"


OTHER_ROWS: list[Callable[[], Any]] = [
    lambda: some_rows(COUNT - 1),
    lambda: some_rows(COUNT + 1),
    lambda: some_rows(0),
    lambda: [*some_rows(COUNT)][::-1],
    lambda: [("ada@example.com", {}), *some_rows(COUNT)],
    lambda: [*some_rows(COUNT - 1), (row(COUNT)[0], {"name": "other"})],
    lambda: [*some_rows(COUNT - 1), ("other@example.com", row(COUNT)[1])],
    lambda: [*some_rows(COUNT - 1), "rubbish"],
]
OTHER_SENDS: list[dict[str, Any]] = [
    {"subject": "Other news"},
    {"template": "welcome"},
    {"shared": {"year": 2027}},
    {"headers": {"X-A": "1"}},
    {"reply_to": "bob@example.com"},
    {"sender": "bob@example.com"},
    {"attachments": [Attachment("a.pdf", b"%PDF")]},
    {"tags": ["news"]},
]


def test_other_rows_with_the_key(shop: Flask) -> None:
    """Other recipients with a used key are refused, and the first send stays as it is."""
    bulk = import_rows(some_rows(COUNT), idempotency_key="news")
    for others in OTHER_ROWS:
        with pytest.raises(KeyReused, match=r"'news' belongs to the bulk send .* other recipients"):
            import_rows(others(), idempotency_key="news")
    check_complete(shop, bulk)


def test_other_rows_in_an_interrupted_import(shop: Flask) -> None:
    """Other recipients than those that are stored are refused; the right ones then go on."""

    def fail() -> None:
        raise Boom

    with pytest.raises(Boom):
        import_rows(do_before(22, fail), idempotency_key="news")
    for others in ([*some_rows(19)], [*some_rows(19), "rubbish"], [row(2), row(1), *some_rows(30)]):
        with pytest.raises(KeyReused):
            import_rows(others, idempotency_key="news")
    check_complete(shop, import_rows(some_rows(COUNT), idempotency_key="news"))


def test_refused_rows_of_an_interrupted_import(shop: Flask) -> None:
    """Refused rows are the same rows, even if their text differs, as that of an object does."""

    def given(*, fails: bool) -> Iterator[object]:
        yield object(), {}
        yield from some_rows(20)
        if fails:
            raise Boom

    with pytest.raises(Boom):
        import_rows(given(fails=True), idempotency_key="news")
    progress = import_rows(given(fails=False), idempotency_key="news").progress()

    assert (progress.imported, progress.accepted, progress.refused) == (21, 20, 1)


def test_other_content_with_the_key(shop: Flask) -> None:
    """Another content with a used key is refused."""
    bulk = import_rows(some_rows(COUNT), idempotency_key="news")
    for changes in OTHER_SENDS:
        with pytest.raises(KeyReused):
            import_rows(some_rows(COUNT), idempotency_key="news", **changes)
    check_complete(shop, bulk)


def send_one(key: str) -> None:
    mailer.send_email("ada@example.com", "News", "only_text", name="Ada", idempotency_key=key)


def test_the_key_of_a_single_mail(shop: Flask) -> None:
    """A mail and a bulk send can't share a key."""
    send_one("mail")
    with pytest.raises(KeyReused):
        import_rows(some_rows(1), idempotency_key="mail")
    import_rows(some_rows(1), idempotency_key="news")
    with pytest.raises(KeyReused):
        send_one("news")
    assert rows(shop)["mailer_message"] == 2
