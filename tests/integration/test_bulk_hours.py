"""`send_bulk()` with a calendar: zones of rows, calls that can't be used, and keys."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from mailer import Bulk, Calendar, InvalidMail, Mailer
from mailer.errors import KeyReused
from mailer.store import Store
from tests.bulk_calls import import_rows, states
from tests.shop import OpenShop, store_of

mailer = Mailer()

DAY = timedelta(days=1)
NAMES = "mon tue wed thu fri sat sun".split()


def closed_now() -> Calendar:
    """Return a calendar that opens in about three days, at midnight in UTC."""
    return Calendar(days=NAMES[(datetime.now(UTC) + 3 * DAY).weekday()], time_zone="UTC")


def zones(app: Flask, bulk: Bulk) -> list[tuple[str, str | None]]:
    store: Store = store_of(app)
    named = store.load_zones_of([one.delivery_id for one in bulk.recipients()])
    return [(one.address, named[one.delivery_id]) for one in bulk.recipients()]


ROWS: list[dict[str, Any]] = [
    {"email": "ada@example.com", "name": "Ada", "time_zone": "Asia/Tokyo"},
    {"email": "bob@example.com", "name": "Bob", "time_zone": ""},
    {"email": "cy@example.com", "name": "Cy", "time_zone": None},
    {"email": "di@example.com", "name": "Di"},
]


def test_the_zone_of_a_row(shop: Flask) -> None:
    """A row may name a zone; without one, the recipient has that of the calendar."""
    bulk = import_rows(ROWS, calendar=closed_now())

    assert [zone for _address, zone in zones(shop, bulk)] == ["Asia/Tokyo", "UTC", "UTC", "UTC"]
    assert states(shop) == {"held": 4}
    progress = bulk.progress()
    assert str(progress.reason).startswith("it waits for its hours: ")
    assert progress.resumes_at is not None
    assert progress.resumes_at > datetime.now(UTC) + DAY


def test_a_send_without_a_calendar_stores_no_zone(shop: Flask) -> None:
    """Without hours, zones of rows are checked, and not stored."""
    bulk = import_rows([*ROWS, {"email": "eve@example.com", "time_zone": "Mars/X"}])

    assert {zone for _address, zone in zones(shop, bulk)} == {None}
    assert [(error.row, error.reason) for error in bulk.errors()] == [
        (5, "time_zone: 'Mars/X': there is no such time zone: give one such as 'Europe/Berlin'.")
    ]
    assert store_of(shop).load_bulk_zones(bulk.id) == []


@pytest.mark.parametrize("given", [5, ["UTC"], "../UTC", "x" * 300, "\udc80"])
def test_a_zone_that_can_not_be_used(shop: Flask, given: object) -> None:
    """A bad zone is a row in the report, whatever it is, and the others are sent."""
    bulk = import_rows([{"email": "eve@example.com", "time_zone": given}, *ROWS[:1]])

    [error] = bulk.errors()
    assert error.reason.startswith(("time_zone: ", "context: it has half a character"))
    assert bulk.progress().accepted == 1


def test_a_calendar_is_an_object(shop: Flask) -> None:
    """A text or a dict is no calendar."""
    with pytest.raises(InvalidMail, match="calendar: '09:00-18:00': give a Calendar"):
        import_rows(ROWS, calendar="09:00-18:00")


def test_mail_that_would_expire_before_its_hours(shop: Flask) -> None:
    """If the mail expires before the calendar opens, the call and its rehearsal are refused."""
    words = "expires_at: the mail would expire before its hours"
    with pytest.raises(InvalidMail, match=words):
        import_rows(ROWS, calendar=closed_now(), expires_at=DAY)
    with pytest.raises(InvalidMail, match=words):
        mailer.send_bulk(
            "News", "only_text", ROWS, calendar=closed_now(), expires_at=DAY, dry_run=True
        )
    assert states(shop) == {}
    import_rows(ROWS, calendar=closed_now(), expires_at=4 * DAY)


def test_in_tests_hours_have_no_effect(open_shop: OpenShop) -> None:
    """With MAIL_SUPPRESS_SEND, mail is delivered at once, at any time of the day."""
    app = open_shop(MAIL_SUPPRESS_SEND="1")
    with app.app_context():
        bulk = import_rows(ROWS, calendar=closed_now())

        assert (bulk.progress().sent, bulk.progress().reason) == (4, None)


# --- keys ---------------------------------------------------------------------------------------


def interrupted() -> Iterator[dict[str, Any]]:
    yield from ROWS[:2]
    raise RuntimeError


def test_the_calendar_of_the_first_call_counts(
    shop: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated call goes on with the hours of the first one, like with its other options."""
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 1)
    with pytest.raises(RuntimeError):
        import_rows(interrupted(), idempotency_key="news", calendar=closed_now())
    other = Calendar(hours="09:00-10:00", time_zone="Europe/Berlin")
    bulk = import_rows(ROWS, idempotency_key="news", calendar=other)

    assert [zone for _address, zone in zones(shop, bulk)] == ["Asia/Tokyo", "UTC", "UTC", "UTC"]
    assert store_of(shop).load_bulk(bulk.id).calendar == closed_now()


def test_another_zone_is_another_row(shop: Flask) -> None:
    """The rows of a repeated call have to have the same zones."""
    import_rows(ROWS, idempotency_key="news", calendar=closed_now())
    with pytest.raises(KeyReused):
        import_rows(
            [{**ROWS[0], "time_zone": "Asia/Seoul"}, *ROWS[1:]],
            idempotency_key="news",
            calendar=closed_now(),
        )
