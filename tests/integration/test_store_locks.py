"""Row locks in PostgreSQL: concurrent writes neither deadlock nor block each other."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import Connection, func, select, text

from mailer import schema
from mailer.message import Status
from mailer.store import Store
from tests.mails import LATER, NOW, a_message, bring, claim, emptied, insert, mark, record, table
from tests.services.waiting import wait_until

pytestmark = pytest.mark.parametrize("shared_store", ["postgresql"], indirect=True)

COPIES = [f"reader{number}@example.com" for number in range(60)]


@pytest.fixture
def store(shared_store: Store) -> Store:
    return emptied(shared_store)


def count(store: Store, name: str) -> int:
    """Return how many rows a table has."""
    with store.engine.connect() as connection:
        return (
            connection.scalar(
                select(func.count()).select_from(schema.metadata.tables[f"mailer_{name}"])
            )
            or 0
        )


def at_once(*calls: Callable[[], object]) -> None:
    """Make all of these calls at the same moment."""
    together = threading.Barrier(len(calls), timeout=20)

    def make(call: Callable[[], object]) -> None:
        together.wait()
        call()

    with ThreadPoolExecutor(len(calls)) as threads:
        list(threads.map(make, calls))


@contextmanager
def no_deadlock(store: Store) -> Iterator[None]:
    """Assert that PostgreSQL resolves no deadlock meanwhile, according to its own count."""
    store.check_schema()
    query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
        before = connection.scalar(query)
    yield
    store.engine.dispose()  # a session reports its numbers at its end
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        others = text(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <>"
            " pg_backend_pid()"
        )
        wait_until(lambda: connection.scalar(others) is None)
        assert connection.scalar(query) == before


def end_in_all_ways_at_once(store: Store) -> None:
    mails = [
        insert(store, *COPIES, message=a_message(sensitive=True), expires_at=NOW + 60)
        for _ in range(4)
    ]
    held = claim(store, 80)
    mark(store, *held)
    at_once(
        lambda: store.expire_overdue(LATER),
        lambda: list(store.cancel_if_due_before(LATER, now=NOW)),
        *(
            partial(store.settle_if_resting, mail_id, Status.CANCELLED, now=NOW)
            for mail_id in mails
        ),
        lambda: record(store, *held[:40], to=Status.SENT),
        lambda: record(store, *held[40:], to=Status.SENT),
        lambda: store.erase_finished(LATER, now=LATER, after="", most=100),
        lambda: store.purge_finished(LATER, most=100),
        lambda: store.purge_finished(LATER, most=100),
    )
    while store.purge_finished(LATER, most=1000):
        pass


def test_sensitive_mails_that_end_in_all_ways_at_once(store: Store) -> None:
    """Expiring, cancelling, sending, erasing and purging the same mails causes no deadlock."""
    with no_deadlock(store):
        for _ in range(8):
            end_in_all_ways_at_once(store)

    assert table(store) == {}
    assert count(store, "message") == 0


@pytest.mark.parametrize(
    ("state", "move"),
    [
        pytest.param(
            Status.QUEUED,
            lambda store, ids: store.postpone_if_queued(
                dict.fromkeys(sorted(ids, reverse=True), LATER), now=NOW
            ),
            id="postpone",
        ),
        pytest.param(
            Status.QUEUED,
            lambda store, _ids: next(store.cancel_if_due_before(LATER, now=NOW)),
            id="cancel",
        ),
        pytest.param(
            Status.DOUBTFUL, lambda store, _ids: store.hold_if_due_before(LATER), id="hold"
        ),
    ],
)
def test_rows_are_locked_in_the_order_of_their_ids(
    store: Store, state: Status, move: Callable[[Store, list[int]], set[int]]
) -> None:
    """A move that waits for its first row has locked no other row: so two moves can't deadlock."""
    ids = sorted(bring(store, state).id for _ in range(5))
    others = text("SELECT id FROM mailer_delivery WHERE id <> :id FOR UPDATE SKIP LOCKED")
    with store.engine.connect() as holder, ThreadPoolExecutor(1) as threads:
        holder.execute(
            text("SELECT 1 FROM mailer_delivery WHERE id = :id FOR UPDATE"), {"id": ids[0]}
        )
        moved = threads.submit(move, store, ids)
        with store.engine.connect() as witness:
            wait_until(lambda: somebody_waits(witness))
            free = sorted(witness.scalars(others, {"id": ids[0]}))
        holder.rollback()

        assert free == ids[1:]
        assert sorted(moved.result(20)) == ids


def somebody_waits(connection: Connection) -> bool:
    """Return whether a session of this database waits for a lock."""
    waiting = """
        SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
    """
    found = connection.scalar(text(waiting))
    connection.rollback()  # the numbers are those of the beginning of a transaction
    return found is not None


def test_the_sweep_steps_over_a_sensitive_mail_that_is_held(store: Store) -> None:
    """The sweep skips a mail that another transaction has locked, and expires the others."""
    held, free = (
        insert(store, message=a_message(sensitive=True), expires_at=NOW + 60) for _ in range(2)
    )
    with store.engine.connect() as connection:
        connection.execute(
            text("SELECT 1 FROM mailer_message WHERE id = :id FOR UPDATE"), {"id": held}
        )
        store.expire_overdue(LATER)
        assert {mail_id: store.status(mail_id).is_finished for mail_id in (held, free)} == {
            held: False,
            free: True,
        }
    store.expire_overdue(LATER)

    assert store.status(held).erased_at is not None


def test_two_purges_at_once(store: Store) -> None:
    """Two purges of the same mails at the same time leave no mail behind."""
    other = Store(store.engine.url.render_as_string(hide_password=False))

    def purge(one: Store) -> None:
        while one.purge_finished(LATER, most=90):
            pass

    for _ in range(6):
        for _mail in range(3):
            insert(store, *COPIES, expires_at=NOW + 60)
        store.expire_overdue(LATER)
        at_once(partial(purge, store), partial(purge, other))
    other.engine.dispose()

    assert (count(store, "delivery"), count(store, "message")) == (0, 0)


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_what_is_undone_for_the_sake_of_others(store: Store, state: str) -> None:
    """A write that PostgreSQL rolls back for a deadlock or a conflict is repeated unnoticed."""
    mail_id = insert(store)
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"""
            CREATE SEQUENCE tries;
            CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF mod(nextval('tries'), 2) = 1 THEN
                    RAISE EXCEPTION 'undone' USING ERRCODE = '{state}';
                END IF;
                RETURN COALESCE(NEW, OLD);
            END $$;
            CREATE TRIGGER undo BEFORE UPDATE OR DELETE ON mailer_delivery
                FOR EACH ROW EXECUTE FUNCTION undo();
        """)
    try:
        [delivery] = claim(store)
        assert mark(store, delivery) == {delivery.id}
        assert record(store, delivery, to=Status.FAILED) == {delivery.id}
        assert store.settle_if_resting(mail_id, Status.QUEUED, now=NOW) == {delivery.id}
        assert list(store.cancel_if_due_before(LATER, now=NOW)) == [{delivery.id}]
        assert store.purge_finished(LATER, most=10) == 1
    finally:
        with store.engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION undo CASCADE; DROP SEQUENCE tries")
