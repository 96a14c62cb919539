"""Looking up a mail by its id, the beginning of its id, or a delivery's number."""

from typing import Any

import pytest
from flask import Flask

from mailer import Mailer, Receipt, Status, UnknownMail
from mailer.schema import metadata
from mailer.store import Filter
from tests.integration.test_cli import failure, run_in
from tests.mails import a_message, insert, table
from tests.plans import plan_of
from tests.shop import store_of

ONE = "019fb1c3a0000000000000000000aaaa"
NEAR = "019fb1c3a0000000000000000000aab0"
OTHER = "019fb1c4a0000000000000000000aaaa"
GARBAGE: list[Any] = [
    *(
        "",
        "nope",
        "019fb1c",
        "019FB1C3",
        "019fb1c3%",
        "019fb1c3' OR 1=1",
        "\0",
        "\ud800",
        "ä" * 10_000,
        "9" * 30,
        "0" * 8,
    ),
    *("1 ", "-1", "…", "…" * 9, None, 1, 1.5, b"019fb1c3", ["019fb1c3"], {}, object()),
]

mailer = Mailer()


@pytest.fixture
def mails(shop: Flask) -> Flask:
    """Return an application with three mails, two of which have similar ids."""
    for mail_id in (ONE, NEAR, OTHER):
        insert(store_of(shop), "ada@example.com", message=a_message(id=mail_id))
    return shop


def test_the_beginning_of_an_id_will_do(mails: Flask) -> None:
    """Commands take the beginning of an id, with or without trailing dots."""
    for beginning in (OTHER[:8], OTHER[:31], OTHER, f"{OTHER[:8]}…", f"{OTHER[:8]}..."):
        assert run_in(mails, "status", beginning).output.startswith(f"{OTHER}  ")
    assert run_in(mails, "cancel", OTHER[:8]).output == "1 moved to cancelled.\n"
    assert "the deliveries of this mail are cancelled" in failure(run_in(mails, "retry", OTHER[:8]))
    assert "the deliveries of this mail are cancelled" in failure(
        run_in(mails, "resolve", OTHER[:8], "sent")
    )
    assert run_in(mails, "cancel", ONE[:31]).output == "1 moved to cancelled.\n"
    assert [mailer.status(mail_id).deliveries[0].status for mail_id in (ONE, NEAR, OTHER)] == [
        Status.CANCELLED,
        Status.QUEUED,
        Status.CANCELLED,
    ]


def test_a_beginning_that_several_have(mails: Flask) -> None:
    """A beginning that several mails share moves nothing, and the error lists them."""
    for beginning in (ONE[:8], ONE[:30]):
        said = (
            f"'{beginning}' may be any of these mails: {ONE}, {NEAR}."
            " Give the whole id, or more of it."
        )
        for arguments in (
            ["status", beginning],
            ["cancel", beginning],
            ["retry", beginning],
            ["resolve", beginning, "sent"],
        ):
            assert failure(run_in(mails, *arguments)) == f"Error: {said}\n"
    assert {row["status"] for row in table(store_of(mails)).values()} == {"queued"}


def test_not_every_candidate_is_named(mails: Flask) -> None:
    """The error lists at most ten of the mails that share a beginning."""
    for number in range(12):
        insert(store_of(mails), message=a_message(id=f"019fb1c5{number:024x}"))
    said = failure(run_in(mails, "status", "019fb1c5"))
    assert said.count("019fb1c5") == 11
    assert "…" in said


def test_an_application_takes_whole_ids_only(mails: Flask) -> None:
    """Python takes whole ids only, so that a part of one from a URL shows no other mail."""
    for beginning in (OTHER[:8], OTHER[:31], f"{OTHER[:8]}…"):
        for ask in (mailer.status, mailer.cancel):
            with pytest.raises(UnknownMail, match="No mail has the id"):
                ask(beginning)
    assert {row["status"] for row in table(store_of(mails)).values()} == {"queued"}


def test_a_delivery_finds_its_mail(mails: Flask) -> None:
    """Commands take a delivery's number from the log; Python does not, as it can be guessed."""
    [number] = [number for number, row in table(store_of(mails)).items() if row["mail_id"] == NEAR]
    assert run_in(mails, "status", str(number)).output.startswith(f"{NEAR}  ")
    assert run_in(mails, "cancel", str(number)).output == "1 moved to cancelled.\n"
    assert mailer.status(NEAR).deliveries[0].status is Status.CANCELLED
    with pytest.raises(UnknownMail):
        mailer.status(str(number))
    assert "No mail has the id '100217'" in failure(run_in(mails, "status", "100217"))


def test_digits_that_may_be_either(mails: Flask) -> None:
    """Digits that are the number of one mail's delivery and begin another's id are ambiguous."""
    insert(store_of(mails), message=a_message(id="12345678a0000000000000000000aaaa"))
    assert run_in(mails, "status", "12345678").output.startswith("12345678a")

    with store_of(mails).engine.begin() as connection:
        delivery = metadata.tables["mailer_delivery"]
        connection.execute(delivery.update().where(delivery.c.mail_id == ONE).values(id=12345678))
    assert f"any of these mails: {ONE}, 12345678a" in failure(run_in(mails, "status", "12345678"))


def test_garbage_is_unknown(mails: Flask) -> None:
    """Any other value is an unknown mail, with a short error, and never a database error."""
    for given in GARBAGE:
        for ask in (mailer.status, mailer.cancel, store_of(mails).status):
            with pytest.raises(UnknownMail, match="No mail has the id") as raised:
                ask(given)
            assert len(str(raised.value)) < 200
    assert mailer.statuses(GARBAGE) == {}
    assert {row["status"] for row in table(store_of(mails)).values()} == {"queued"}


def test_a_receipt_is_as_good_as_its_id(shop: Flask) -> None:
    """A receipt is accepted wherever an id is."""
    receipt: Receipt = mailer.send_email("ada@example.com", "Hi", "only_text", name="Ada")
    assert mailer.status(receipt).id == receipt.id
    assert mailer.statuses([receipt, receipt.id]).keys() == {receipt.id}
    assert mailer.cancel(receipt) is True
    assert mailer.cancel(receipt) is False  # it is known, and nothing is queued any more


def test_an_unknown_mail_can_not_be_cancelled(shop: Flask) -> None:
    """Cancelling an unknown mail raises an error instead of returning False."""
    for unknown in ("unknown", "0" * 32, Receipt("0" * 32, "<0@example.com>", ())):
        with pytest.raises(UnknownMail, match="No mail has the id"):
            mailer.cancel(unknown)


def test_a_beginning_is_looked_up_in_the_index(mails: Flask) -> None:
    """A mail is looked up by the beginning of its id in the index."""
    plan = plan_of(
        store_of(mails), lambda store: store.find_mail(OTHER[:8]), table="mailer_message"
    )

    assert (
        "(id>? AND id<?)" in plan
        or f"Index Cond: ((id >= '{OTHER[:8]}'::text) AND (id < '{OTHER[:8]}g'::text))" in plan
    )
    assert "SCAN mailer_message" not in plan
    assert 'COLLATE "C"' not in plan


def test_a_page_of_a_search_is_read_from_the_index(mails: Flask) -> None:
    """A page of a search begins where the page before it ended, and nothing is sorted for it."""
    store = store_of(mails)
    with store.together():
        for _ in range(1000):
            insert(store)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    plan = plan_of(
        store, lambda store: store.find_ids(Filter(), before=OTHER, most=10), table="mailer_message"
    )

    assert (
        "mailer_message USING COVERING INDEX sqlite_autoindex_mailer_message_1 (id<?)" in plan
        or "Backward using mailer_message_pkey on mailer_message" in plan
    )
    assert "SCAN mailer_message" not in plan
    assert "ORDER BY" not in plan
    assert "Sort" not in plan
