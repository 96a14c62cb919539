"""Claims: the order of deliveries, and that no two workers get the same one."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from mailer.message import Delivery, Lane, OnDoubt, Status
from mailer.policy import LaneShares
from mailer.store import Store
from tests.mails import LATER, NOW, bring, claim, emptied, insert, record, row, table
from tests.plans import plan_of
from tests.services.processes import at_once


@pytest.fixture
def store(shared_store: Store) -> Store:
    return emptied(shared_store)


# --- order --------------------------------------------------------------------------------------


def test_the_most_urgent_lane_first_and_in_it_what_waits_the_longest(store: Store) -> None:
    """The most urgent lane is claimed first, and within a lane the longest waiting delivery."""
    for lane, waits, name in [
        (Lane.BULK, 3600, "newsletter"),
        (Lane.NORMAL, 10, "second"),
        (Lane.CRITICAL, 0, "password"),
        (Lane.NORMAL, 20, "first"),
    ]:
        insert(store, f"{name}@example.com", lane=lane, due_at=NOW - waits)

    order = [one.recipient.partition("@")[0] for one in (*claim(store, 3), *claim(store, 3))]

    assert order == ["password", "first", "second", "newsletter"]


def test_a_slice_is_no_larger_than_asked_for(store: Store) -> None:
    """A claim is no larger than asked for, also when it spans several lanes."""
    insert(store, "ada@example.com", "bob@example.com", lane=Lane.CRITICAL)
    insert(store, "cy@example.com", "di@example.com", lane=Lane.BULK)

    assert [len(claim(store, most)) for most in (0, 3, 3, 3)] == [0, 3, 1, 0]


def test_recipients_of_one_mail_stay_together(store: Store) -> None:
    """The recipients of a mail are claimed in their order, so that its bytes are made once."""
    recipients = [f"reader{number}@example.com" for number in range(50)]
    insert(store, *recipients)

    assert [one.recipient for _ in range(5) for one in claim(store, 10)] == recipients


# --- time ---------------------------------------------------------------------------------------


def test_scheduled_mail_waits_for_its_time(store: Store) -> None:
    """Scheduled mail is not claimed a fraction of a second too early."""
    insert(store, due_at=NOW + 0.5)

    assert claim(store, now=NOW + 0.499) == []
    assert len(claim(store, now=NOW + 0.5)) == 1


def test_no_lane_starves(store: Store) -> None:
    """Beside a lane that fills each claim, less urgent lanes get a part; unused parts go back."""
    store._lane_shares = LaneShares()
    for lane, number in ((Lane.CRITICAL, 60), (Lane.NORMAL, 60), (Lane.BULK, 1)):
        for _ in range(number):
            insert(store, "ada@example.com", lane=lane)

    lanes = [one.lane for one in claim(store, 40)]
    assert lanes == [Lane.CRITICAL] * 37 + [Lane.NORMAL] * 2 + [Lane.BULK]
    lanes = [one.lane for one in claim(store, 40)]
    assert lanes == [Lane.CRITICAL] * 23 + [Lane.NORMAL] * 17


def test_no_lane_starves_if_claims_are_small(store: Store) -> None:
    """Of twenty claims of one mail, each less urgent lane gets one."""
    store._lane_shares = LaneShares()
    for lane in Lane:
        insert(store, *(f"{number}@example.com" for number in range(20)), lane=lane)

    lanes = Counter(claimed.lane for _ in range(20) for claimed in claim(store, 1))

    assert lanes == {Lane.CRITICAL: 18, Lane.NORMAL: 1, Lane.BULK: 1}


def test_a_claim_of_mails_takes_no_others(store: Store) -> None:
    """A claim of certain mails has their due deliveries, most urgent first, and no others."""
    insert(store, "other@example.com", lane=Lane.CRITICAL)
    mails = [
        insert(store, "ada@example.com", "bob@example.com", lane=Lane.BULK),
        insert(store, "cy@example.com", due_at=NOW + 1),
        insert(store, "di@example.com", lane=Lane.CRITICAL),
        insert(store, "eve@example.com", expires_at=NOW),
    ]

    def claim_mails(most: int, *ids: str) -> list[str]:
        found = store.claim_due(most, token="mine", now=NOW, lease_until=LATER, mails=ids)
        return [one.recipient.partition("@")[0] for one in found]

    assert claim_mails(9) == claim_mails(9, "unknown") == []
    assert claim_mails(2, *mails) == ["di", "ada"]
    assert claim_mails(9, *mails) == ["bob"]
    store.pause(Lane.CRITICAL, now=NOW, reason="a test")
    assert claim_mails(9, insert(store, lane=Lane.CRITICAL)) == []


def test_mail_that_came_too_late_is_not_claimed(store: Store) -> None:
    """Expired mail is not claimed, even before the sweep has marked it as expired."""
    insert(store, expires_at=NOW + 10)

    assert claim(store, now=NOW + 10) == []
    assert len(claim(store, now=NOW + 9)) == 1


def test_a_claim_is_written_down(store: Store) -> None:
    """A claim stores its token, the end of its lease and the attempt."""
    delivery = bring(store, Status.QUEUED)

    [claimed] = store.claim_due(1, token="mine", now=NOW, lease_until=NOW + 5)

    assert (claimed.token, claimed.attempts) == ("mine", 1)
    written = row(store, delivery)
    assert [written[name] for name in ("status", "token", "lease_until", "attempts")] == [
        "claimed",
        "mine",
        NOW + 5,
        1,
    ]


# --- many at once -------------------------------------------------------------------------------


def claim_everything(store: Store) -> list[int]:
    """Claim all deliveries in small batches, so that the claimants compete."""
    ids: list[int] = []
    while claimed := claim(store, 7):
        ids += [one.id for one in claimed]
    return ids


def claim_in_a_process(url: str) -> list[int]:
    store = Store(url)
    try:
        return claim_everything(store)
    finally:
        store.engine.dispose()


def test_threads_claim_each_delivery_once(store: Store) -> None:
    """Threads that share a store claim each delivery once."""
    insert(store, *(f"reader{number}@example.com" for number in range(500)))
    together = threading.Barrier(8)

    def work(_number: int) -> list[int]:
        together.wait()
        return claim_everything(store)

    with ThreadPoolExecutor(8) as threads:
        claimed = [number for ids in threads.map(work, range(8)) for number in ids]

    assert sorted(claimed) == sorted(table(store))
    assert len(claimed) == 500


# A database in memory belongs to one process.
@pytest.mark.parametrize("shared_store", ["sqlite", "postgresql"], indirect=True)
def test_processes_claim_each_delivery_once(store: Store) -> None:
    """Processes that share a database claim each delivery once."""
    insert(store, *(f"reader{number}@example.com" for number in range(500)))

    url = store.engine.url.render_as_string(hide_password=False)
    claimed = [number for ids in at_once(4, claim_in_a_process, url) for number in ids]

    assert sorted(claimed) == sorted(table(store))
    assert len(claimed) == 500


# A writer locks the whole file in SQLite.
@pytest.mark.parametrize("shared_store", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("state", "move"),
    [
        pytest.param(Status.QUEUED, lambda store: {one.id for one in claim(store)}, id="claim"),
        pytest.param(
            Status.CLAIMED, lambda store: store.requeue_lapsed_claims(LATER), id="lapsed claims"
        ),
        pytest.param(
            Status.TRANSMITTING,
            lambda store: store.doubt_lapsed_transmissions(LATER, resend_at=LATER),
            id="lapsed transmissions",
        ),
        pytest.param(Status.DOUBTFUL, lambda store: store.resend_doubtful(LATER), id="resends"),
    ],
)
def test_rows_in_a_frozen_transaction_hold_up_nobody(
    store: Store, state: Status, move: Callable[[Store], set[int]]
) -> None:
    """Rows that another transaction has locked are skipped, and moved once it has ended."""
    frozen, free = (bring(store, state).id for _ in range(2))
    with store.engine.connect() as connection:
        connection.execute(
            text("SELECT 1 FROM mailer_delivery WHERE id = :id FOR UPDATE"), {"id": frozen}
        )
        moved = move(store)

    assert moved == {free}
    assert move(store) == {frozen}


# --- indexes ------------------------------------------------------------------------------------


#: Deliveries that a worker believes to hold.
HELD = [
    Delivery(
        id=number,
        mail_id="mail",
        recipient="ada@example.com",
        domain="example.com",
        lane=Lane.NORMAL,
        attempts=1,
        doubts=0,
        queued_at=NOW,
        on_doubt=OnDoubt.RESEND,
        token="mine",
    )
    for number in (1, 2)
]
DUE, LEASED = "mailer_delivery_due", "mailer_delivery_leased"


def claim_of_mails(store: Store) -> list[Delivery]:
    return store.claim_due(9, token="mine", now=NOW, lease_until=LATER, mails=["mail1", "mail2"])


@pytest.mark.parametrize(
    ("ask", "index"),
    [
        pytest.param(claim, DUE, id="claim"),
        pytest.param(claim_of_mails, "ix_mailer_delivery_mail_id", id="claim of mails"),
        pytest.param(lambda store: store.is_due(NOW), DUE, id="is anything due"),
        pytest.param(lambda store: store.due(NOW), DUE, id="due mails"),
        pytest.param(lambda store: store.head(Lane.NORMAL, now=NOW, most=9), DUE, id="head"),
        pytest.param(lambda store: store.requeue_lapsed_claims(NOW), LEASED, id="lapsed claims"),
        pytest.param(
            lambda store: store.doubt_lapsed_transmissions(NOW, resend_at=LATER),
            LEASED,
            id="lapsed transmissions",
        ),
        pytest.param(
            lambda store: store.resend_doubtful(NOW), "mailer_delivery_doubtful", id="resends"
        ),
        pytest.param(
            lambda store: store.expire_overdue(NOW), "mailer_delivery_expiring", id="overdue"
        ),
        pytest.param(
            lambda store: store.purge_finished(NOW, most=10), "mailer_delivery_finished", id="purge"
        ),
        pytest.param(
            lambda store: next(store.cancel_if_due_before(NOW, now=NOW), None), DUE, id="cancel"
        ),
        pytest.param(
            lambda store: store.statuses(["mail"]), "ix_mailer_delivery_mail_id", id="status"
        ),
    ],
)
def test_no_question_reads_the_whole_queue(
    store: Store, ask: Callable[[Store], Any], index: str
) -> None:
    """Queries that run all the time use an index, also with statistics of a small table."""
    store.check_schema()
    insert(store, "ada@example.com", "bob@example.com")
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE mailer_delivery")

    plan = plan_of(store, ask)

    assert index in plan
    assert "'SCAN mailer_delivery'" not in plan  # without an index
    assert "Seq Scan on mailer_delivery" not in plan


# SQLite's plans do not depend on statistics here.
@pytest.mark.parametrize("shared_store", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(claim, id="claim"),
        pytest.param(
            lambda store: store.mark_if_claimed([1, 2], token="mine", now=NOW, lease_until=LATER),
            id="mark",
        ),
        pytest.param(lambda store: record(store, *HELD, to=Status.SENT), id="record"),
        pytest.param(
            lambda store: store.release_if_in_hand({1: None, 2: LATER}, token="mine"), id="release"
        ),
        pytest.param(
            lambda store: store.postpone_if_queued({1: LATER, 2: LATER}, now=NOW), id="postpone"
        ),
        pytest.param(lambda store: store.expire_overdue(NOW), id="overdue"),
        pytest.param(lambda store: store.purge_finished(NOW, most=10), id="purge"),
    ],
)
def test_a_burst_after_a_silence(store: Store, ask: Callable[[Store], Any]) -> None:
    """Rows are moved by their primary key even if PostgreSQL's statistics are out of date."""
    insert(store, *(f"reader{number}@example.com" for number in range(1000)), due_at=LATER)
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("UPDATE mailer_delivery SET status = 'doubtful', due_at = NULL")
        connection.exec_driver_sql("VACUUM ANALYZE mailer_delivery")
        # One overdue and one finished delivery, since these are moved in a second step.
        connection.exec_driver_sql("""
            UPDATE mailer_delivery SET status = 'queued', due_at = 1, expires_at = 1
            WHERE id = (SELECT MIN(id) FROM mailer_delivery)
        """)
        connection.exec_driver_sql("""
            UPDATE mailer_delivery SET status = 'sent', finished_at = 1
            WHERE id = (SELECT MAX(id) FROM mailer_delivery)
        """)

    plan = plan_of(store, ask)

    assert "Join Filter: (mailer_delivery.id" not in plan
    assert "mailer_delivery_pkey" in plan
