"""The operations: finding, cancelling, retrying and pausing queued mail."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from mailer import InvalidMail, Lane, Mailer, Status, UnknownMail
from mailer.message import id_at, new_id
from tests.integration.test_cli import run_in
from tests.mails import NOW, a_message, bring, claim, insert, mark, record, table
from tests.services.databases import sqlite_only
from tests.shop import store_of

mailer = Mailer()

DAY = 86400.0


def queue(shop: Flask, *recipients: str, at: float = NOW, **fields: Any) -> str:
    """Queue a mail as of the given time, and return its id."""
    message = a_message(id=new_id(at), created_at=at, **fields)
    return insert(store_of(shop), *recipients, message=message)


def found(**conditions: Any) -> list[str]:
    return [mail.id for mail in mailer.mails(**conditions)]


# --- search -------------------------------------------------------------------------------------


@pytest.fixture
def three(shop: Flask) -> list[str]:
    """Queue a mail a day: to Ada, to Bob and Eve, and to Ada again."""
    return [
        queue(shop, "ada@example.com", at=NOW, tags=("invoice",), subject="Your invoice 100%"),
        queue(
            shop,
            "bob@example.com",
            "eve@example.org",
            at=NOW + DAY,
            subject="Welcome_home, Überraschung!",
        ),
        queue(
            shop, "Ada@Example.com", at=NOW + 2 * DAY, tags=("a b", "wörk"), subject="YOUR ORDER"
        ),
    ]


def test_the_newest_come_first(three: list[str]) -> None:
    """A search lists each mail once, the newest first, with all its deliveries."""
    first, second, third = three

    assert found() == [third, second, first]
    assert [len(mail.deliveries) for mail in mailer.mails()] == [1, 2, 1]
    assert mailer.mails()[2].tags == ("invoice",)


@pytest.mark.parametrize(
    ("conditions", "places"),
    [
        ({"to": "ada@example.com"}, [2, 0]),
        ({"to": "EVE@example.org"}, [1]),
        ({"to": "@example.org"}, [1]),
        ({"to": "@example.com"}, [2, 1, 0]),
        ({"to": "example.com"}, []),
        ({"tag": "invoice"}, [0]),
        ({"tag": "invoi"}, []),
        ({"tag": "wörk"}, [2]),
        ({"subject": "your"}, [2, 0]),
        ({"subject": "100%"}, [0]),
        ({"subject": "%"}, [0]),
        ({"subject": "_"}, [1]),
        ({"subject": "\\"}, []),
        ({"since": datetime.fromtimestamp(NOW + DAY, UTC)}, [2, 1]),
        ({"until": datetime.fromtimestamp(NOW + DAY, UTC)}, [0]),
        ({"state": "queued", "to": "ada@example.com", "subject": "order"}, [2]),
        ({"state": Status.SENT}, []),
        ({"relay": "backup"}, []),
        ({"tag": "' OR 1=1 --"}, []),
    ],
)
def test_conditions(three: list[str], conditions: dict[str, Any], places: list[int]) -> None:
    """A mail is found if it meets all conditions; LIKE's wildcards match only themselves."""
    assert found(**conditions) == [three[place] for place in places]


@sqlite_only
def test_a_subject_with_other_letters(three: list[str]) -> None:
    """A search in subjects ignores the case of non-ASCII letters on SQLite too."""
    assert found(subject="überRASCHUNG") == [three[1]]


def test_conditions_of_a_delivery_are_met_by_one(shop: Flask, three: list[str]) -> None:
    """A mail is found only if one of its deliveries meets all conditions."""
    store = store_of(shop)
    [bob] = [one for one in claim(store) if one.recipient == "bob@example.com"]
    mark(store, bob)
    record(store, bob, to=Status.SENT)

    assert found(state="sent", to="bob@example.com") == [three[1]]
    assert found(state="sent", to="eve@example.org") == []


def test_page_after_page(shop: Flask) -> None:
    """Each page begins where the one before it ended, even if new mail arrives in between."""
    ids = [queue(shop, "ada@example.com", at=NOW + number) for number in range(5)]

    first = found(limit=2)
    queue(shop, "ada@example.com", at=NOW + 100)

    assert first == [ids[4], ids[3]]
    assert found(limit=2, before=ids[3]) == [ids[2], ids[1]]
    assert found(limit=2, before=ids[1]) == [ids[0]]
    assert found(before=ids[0]) == []
    assert found(before="no id'") == []


def test_a_sensitive_mail_is_not_found_by_its_subject(shop: Flask) -> None:
    """The subject of a sensitive mail cannot be guessed by searching for it."""
    mail_id = queue(shop, "ada@example.com", subject="Your code is 1111", sensitive=True)

    assert found(subject="1111") == []
    assert found(to="ada@example.com") == [mail_id]


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"state": "lost"}, "state: 'lost': give one of queued, held, claimed,"),
        ({"limit": 0}, "limit: 0: give a number from 1 to 1000"),
        ({"limit": 1001}, "limit: 1001"),
        ({"since": datetime(2026, 11, 27)}, "since: .*: give a datetime with a time zone"),  # noqa: DTZ001 -- the mistake
        ({"until": "yesterday"}, "until: 'yesterday': give a datetime"),
    ],
)
def test_wrong_conditions(shop: Flask, conditions: dict[str, Any], said: str) -> None:
    """A wrong condition raises an error that names it and the values that are allowed."""
    with pytest.raises(InvalidMail, match=said):
        mailer.mails(**conditions)


def test_the_command(shop: Flask, three: list[str]) -> None:
    """`flask mail list` prints a line for each mail, and tells how to see the next page."""
    output = run_in(shop, "list", "--to", "@example.com", "--limit", "2").output

    lines = output.splitlines()
    assert [line[:32] for line in lines[:2]] == [three[2], three[1]]
    assert "queued  bob@example.com, eve@example.org  Welcome_home, Überraschung!" in lines[1]
    assert lines[2] == f"More: --before {three[1]}"
    for limit in ("2", "1"):  # the last page, not full or just full
        page = run_in(shop, "list", "--subject", "order", "--limit", limit).output
        assert [line[:32] for line in page.splitlines()] == [three[2]]
    for state in ("queued", "QUEUED"):
        assert len(run_in(shop, "list", "--state", state).output.splitlines()) == 3
    assert run_in(shop, "list", "--tag", "nothing").output == "No such mail.\n"
    assert run_in(shop, "list", "--before", three[1][:12]).output.startswith(three[0])


# --- decisions ----------------------------------------------------------------------------------


def test_one_recipient(shop: Flask, three: list[str]) -> None:
    """A recipient's delivery can be cancelled while the other deliveries stay as they are."""
    assert mailer.cancel(three[1], to="EVE@example.org")

    states = {one.recipient: one.status for one in mailer.status(three[1])}
    assert states == {"bob@example.com": Status.QUEUED, "eve@example.org": Status.CANCELLED}
    assert not mailer.cancel(three[1], to="eve@example.org")
    assert mailer.cancel(three[1])
    with pytest.raises(UnknownMail, match=r"has no recipient 'ada@example.com'"):
        mailer.cancel(three[1], to="ada@example.com")


@pytest.mark.parametrize(
    ("state", "call", "expected"),
    [
        (Status.FAILED, mailer.retry, Status.QUEUED),
        (Status.DOUBTFUL, mailer.retry, Status.QUEUED),
        (Status.DOUBTFUL, lambda mail_id: mailer.resolve(mail_id, "sent"), Status.SENT),
        (Status.DOUBTFUL, lambda mail_id: mailer.resolve(mail_id, "failed"), Status.FAILED),
        (Status.QUEUED, mailer.cancel, Status.CANCELLED),
    ],
)
def test_decisions(shop: Flask, state: Status, call: Any, expected: Status) -> None:
    """Python offers the same decisions about a mail as the command line."""
    delivery = bring(store_of(shop), state)

    assert call(delivery.mail_id) is True
    assert table(store_of(shop))[delivery.id]["status"] == expected
    assert mailer.mails(state=expected)[0].id == delivery.mail_id


def test_decisions_about_nothing(shop: Flask) -> None:
    """A decision returns False in the wrong state; an unknown mail or verdict raises an error."""
    mail_id = queue(shop, "ada@example.com")

    assert (mailer.retry(mail_id), mailer.resolve(mail_id, "sent")) == (False, False)
    for call in (mailer.retry, mailer.cancel, lambda unknown: mailer.resolve(unknown, "sent")):
        with pytest.raises(UnknownMail):
            call("nope")
    with pytest.raises(InvalidMail, match="verdict: 'queued': give 'sent' or 'failed'"):
        mailer.resolve(mail_id, "queued")


# --- pauses -------------------------------------------------------------------------------------


def test_a_pause(shop: Flask) -> None:
    """A pause stops a lane or all mail, and returns how many deliveries may still go out."""
    store = store_of(shop)
    queue(shop, "ada@example.com", "bob@example.com")
    claim(store, most=1)

    assert mailer.pause("bulk") == 0
    assert mailer.pause(reason="restored") == 1
    assert claim(store) == []
    assert shop.extensions["mailer"].operations.pauses().keys() == {Lane.BULK, None}
    assert (mailer.resume(), mailer.resume("bulk"), mailer.resume(Lane.BULK)) == (True, True, False)
    assert len(claim(store)) == 1


def test_a_pause_of_a_relay(shop: Flask) -> None:
    """The pause of a failed relay can be ended early, once the relay has been mended."""
    [name] = shop.extensions["mailer"].operations.relays()
    store_of(shop).pause_relay(name, failures=0, now=NOW, until=NOW + 60, reason="down")

    assert (mailer.resume(relay=name), mailer.resume(relay=name)) == (True, False)
    with pytest.raises(InvalidMail, match=f"No relay is named 'backup': there is {name}"):
        mailer.resume(relay="backup")
    with pytest.raises(InvalidMail, match="lane: 'urgent'"):
        mailer.pause("urgent")


def test_ids_sort_by_time() -> None:
    """Mail ids sort by the time of queueing, since pages and time bounds compare ids."""
    assert id_at(NOW) <= new_id(NOW) < id_at(NOW + timedelta(seconds=1).total_seconds())


# --- reschedule ---------------------------------------------------------------------------------


def test_a_queued_mail_is_rescheduled(shop: Flask) -> None:
    """A mail gets another time, earlier or later, for one recipient or all, while it is queued."""
    mail_id = queue(shop, "ada@example.com", "bob@example.com")
    later = datetime.now(UTC) + timedelta(hours=2)

    assert mailer.reschedule(mail_id, later)
    assert [one.due_at for one in mailer.status(mail_id)] == [later, later]
    assert mailer.reschedule(mail_id, None, to="BOB@example.com")
    due = {one.recipient: one.due_at for one in mailer.status(mail_id)}
    assert due["ada@example.com"] == later
    assert due["bob@example.com"] is not None
    assert due["bob@example.com"] <= datetime.now(UTC)


def test_what_can_not_be_rescheduled(shop: Flask) -> None:
    """Mail that is finished, in a worker's hands, or that would expire before, stays as it is."""
    expiring = insert(store_of(shop), "ada@example.com", expires_at=NOW + DAY)
    before = table(store_of(shop))
    assert not mailer.reschedule(expiring, datetime.fromtimestamp(NOW + DAY, UTC))
    assert table(store_of(shop)) == before

    [delivery] = claim(store_of(shop))
    assert not mailer.reschedule(expiring, timedelta(hours=1))
    mark(store_of(shop), delivery)
    record(store_of(shop), delivery, to=Status.SENT)
    assert not mailer.reschedule(expiring, timedelta(hours=1))
    with pytest.raises(UnknownMail):
        mailer.reschedule(new_id(NOW), timedelta(hours=1))
    with pytest.raises(InvalidMail, match="send_at: 'soon'"):
        mailer.reschedule(expiring, "soon")  # type: ignore[arg-type]  # the mistake


def test_the_command_reschedules(shop: Flask) -> None:
    """`flask mail reschedule` takes a time in UTC, and says what it did."""
    mail_id = queue(shop, "ada@example.com")

    said = run_in(shop, "reschedule", mail_id, "2100-01-01 10:00")
    assert "1 rescheduled to 2100-01-01 10:00" in said.output
    [delivery] = mailer.status(mail_id)
    assert delivery.due_at == datetime(2100, 1, 1, 10, tzinfo=UTC)
    mailer.cancel(mail_id)
    said = run_in(shop, "reschedule", mail_id, "2100-01-01 10:00")
    assert (said.exit_code, "are cancelled, or expire before" in said.output) == (1, True)
