"""Scheduled mail costs nothing until it is due."""

from collections.abc import Callable
from typing import Any

import pytest

from mailer.message import Envelope, Lane
from mailer.store import Store
from tests.mails import LATER, NOW, a_message, claim, insert
from tests.plans import work_of

COUNT = 20_000
#: Of what a question reads with a few mails.
MOST, SPARE = 2.0, 20


def schedule(store: Store, count: int) -> None:
    """Insert mail that is due much later: copies of one delivery, in one statement."""
    store.insert_mail(a_message(), Envelope(recipients=("ada@example.com",), due_at=LATER))
    columns = "mail_id, recipient, domain, status, lane, on_doubt, queued_at, attempts, doubts"
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})"
    )
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO mailer_delivery ({columns}, due_at) {numbers.format(count)}"  # noqa: S608 -- no input
            f" SELECT {columns}, due_at + n FROM mailer_delivery, numbers WHERE due_at >= {LATER}"
        )


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(claim, id="claim"),
        pytest.param(lambda store: store.is_due(NOW), id="is anything due"),
        pytest.param(lambda store: store.next_due(NOW, before=NOW + 60), id="next"),
        pytest.param(lambda store: store.head(Lane.NORMAL, now=NOW, most=100), id="head"),
        pytest.param(lambda store: store.expire_overdue(NOW), id="overdue"),
        pytest.param(
            lambda store: store.count_due(Lane.NORMAL, "", now=NOW, most=100), id="portions"
        ),
        pytest.param(
            lambda store: store.is_waiting(
                [Lane.NORMAL], "example.com", now=NOW, until=NOW + 60, token="mine"
            ),
            id="is anything waiting",
        ),
    ],
)
def test_scheduled_mail_is_not_read(store: Store, ask: Callable[[Store], Any]) -> None:
    """What workers ask all the time reads no more with mail for later than without it."""
    insert(store, "ada@example.com")
    before = work_of(store, ask)
    schedule(store, COUNT)
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE mailer_delivery")

    assert work_of(store, ask) <= MOST * before + SPARE
