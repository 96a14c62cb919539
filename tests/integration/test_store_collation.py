"""Ids are in the order of their times, whatever order a database has for letters and digits."""

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, make_url, text

from mailer.message import Status
from mailer.store import Filter, Store
from tests.bulk_sends import begin
from tests.mails import NOW, a_message, insert

#: In the order of their times.
IDS = [f"{time:0<32}" for time in ("0191a", "019aa", "019ab", "019dd", "019de")]


@pytest.fixture(params=["da", "cy", "en-u-kn"], ids=["Danish", "Welsh", "numeric"])
def store(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Store]:
    """Mails in a database that sorts "aa" after "z", or "dd" after "de", or digits as numbers."""
    name = f"{make_url(postgres_url).database}_sorted"
    server = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(
            f"CREATE DATABASE {name} TEMPLATE template0"
            f" LOCALE_PROVIDER icu ICU_LOCALE '{request.param}' LOCALE 'C'"
        )
        store = Store(
            make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        )
        store.migrate()
        for mail_id in IDS:
            insert(store, message=a_message(id=mail_id))
        yield store
        store.engine.dispose()
        connection.exec_driver_sql(f"DROP DATABASE {name}")
    server.dispose()


def test_the_order_is_another_one(store: Store) -> None:
    """The database of these tests sorts ids in another order than that of their bytes."""
    with store.engine.connect() as connection:
        found = connection.scalars(text("SELECT id FROM mailer_message ORDER BY id")).all()

    assert found != IDS
    assert sorted(found) == IDS


def test_a_mail_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    """A mail is found also if the beginning ends between two letters that the collation joins."""
    mail_id = "019aa019dd0000000000000000000000"
    insert(store, message=a_message(id=mail_id))

    found = [store.find_mail(mail_id[:length]) for length in range(8, 33)]

    assert found == [mail_id] * 25


def test_a_search_has_the_newest_first(store: Store) -> None:
    """A search has the newest mails first, page after page and between two times."""
    newest = IDS[::-1]

    assert store.find_ids(Filter(), before=None, most=10) == newest
    assert store.find_ids(Filter(), before=newest[1], most=2) == newest[2:4]
    assert store.find_ids(Filter(since=time_of(IDS[2])), before=None, most=10) == newest[:3]
    assert store.find_ids(Filter(until=time_of(IDS[4])), before=None, most=10) == newest[1:]


def test_bulk_sends_are_listed_with_the_newest_first(store: Store) -> None:
    """All bulk sends are listed, the newest first, page after page."""
    newest = [begin(store, now=time_of(mail_id)).message.id for mail_id in IDS][::-1]

    assert [bulk.id for bulk in store.load_bulks(most=10)] == newest
    assert [bulk.id for bulk in store.load_bulks(before=newest[1], most=2)] == newest[2:4]


def test_content_is_erased_in_time(store: Store) -> None:
    """Mails that finished before a time are erased, and none of the others."""
    for mail_id in IDS:
        store.settle_if_resting(mail_id, Status.CANCELLED, now=1)

    assert store.erase_finished(time_of(IDS[4]), now=NOW, after="", most=10) is not None

    erased = [mail_id for mail_id in IDS if store.status(mail_id).erased_at is not None]
    assert erased == IDS[:4]


def test_late_mail_is_recalled(store: Store) -> None:
    """After the clock was set back, only mail that was made after a time is recalled."""
    recalled = [
        store.recall_queued(NOW - 10, was=NOW + 10, made_after=time_of(mail_id))
        for mail_id in reversed(IDS)
    ]

    assert recalled == [1] * len(IDS)


def time_of(mail_id: str) -> float:
    return int(mail_id[:12], 16) / 1000
