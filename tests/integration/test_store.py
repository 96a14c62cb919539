"""The store: mails and deliveries are kept unchanged, purged in time, and counted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select, text

from mailer import schema
from mailer.errors import UnknownMail
from mailer.message import Address, Attachment, Lane, Message, OnDoubt, Status
from mailer.store import Store
from tests.mails import LATER, NOW, a_message, bring, claim, emptied, insert, set_aside, table

LOGO = Attachment("logo.png", b"\x89PNG\x00\xff", content_id="logo")
TERMS = Attachment("Geschäftsbedingungen 📜.pdf", b"%PDF", headers=(("X-Kind", "terms"),))

EVERYTHING = Message(
    id="everything",
    message_id="<everything@example.com>",
    created_at=NOW + 0.123456,
    sender=Address("mailer@example.com", 'Ms "Mailer" \\ <Müller>, 日本'),
    subject="Grüße 👋 from 日本",
    text="Привет\r\n\t🎉 'quoted' \"%s\" :name",
    html="<p>Grüße &amp; 🎉</p>",
    to=(Address("ada@example.com", "Ada, Countess"), Address("用户@example.com")),
    cc=(Address("bob@example.com"),),
    reply_to=(Address("replies@example.com", "Réplies"),),
    envelope_from="bounces@example.com",
    headers=(("X-Campaign", "frühling"), ("X-Campaign", "twice")),
    alternatives=(("text/calendar", "BEGIN:VCALENDAR\r\n"),),
    attachments=(LOGO, TERMS, LOGO),
    tags=("welcome", "ünïcode"),
    metadata=(("order", "42"), ("Überschrift", "größer")),
    mail_options=("BODY=8BITMIME",),
    rcpt_options=("NOTIFY=FAILURE",),
)


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


# --- in and out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        EVERYTHING,
        a_message(text=None, html="<p>only html</p>"),
        a_message(text="", subject="", to=(), attachments=(Attachment(None, b""),)),
        a_message(
            text="ä" * 5_000_000, attachments=(Attachment("big.bin", bytes(range(256)) * 40_000),)
        ),
    ],
    ids=["everything", "only html", "empty", "big"],
)
def test_a_message_comes_out_as_it_went_in(store: Store, message: Message) -> None:
    """A stored message is loaded unchanged, to the last byte."""
    insert(store, message=message)

    assert store.load_messages([message.id]) == {message.id: message}


def test_many_messages_at_once(store: Store) -> None:
    """Hundreds of messages load at once, each with its attachments; unknown ids are left out."""
    messages = {
        one.id: one
        for one in (a_message(attachments=(LOGO, TERMS)[: number % 3]) for number in range(300))
    }
    for message in messages.values():
        insert(store, message=message)

    assert store.load_messages([*messages, "unknown"]) == messages
    assert store.load_messages([]) == {}


def test_a_delivery_comes_out_as_it_went_in(store: Store) -> None:
    """A mail has a delivery for each recipient, with the options of the mail."""
    mail_id = insert(
        store, "ada@example.com", "用户@example.com", on_doubt=OnDoubt.HOLD, due_at=NOW - 0.25
    )

    deliveries = claim(store)

    assert [one.recipient for one in deliveries] == ["ada@example.com", "用户@example.com"]
    for one in deliveries:
        assert (one.mail_id, one.on_doubt, one.queued_at, one.attempts, one.doubts) == (
            mail_id,
            OnDoubt.HOLD,
            NOW - 0.25,
            1,
            0,
        )


def test_all_or_nothing(store: Store) -> None:
    """If the deliveries cannot be stored, neither the mail nor its attachments are."""
    with pytest.raises(store.engine.dialect.loaded_dbapi.IntegrityError):
        insert(store, "ada@example.com", message=EVERYTHING, lane=9)

    assert [count(store, name) for name in ("message", "blob", "attachment", "delivery")] == [
        0,
        0,
        0,
        0,
    ]


def test_an_id_is_taken_once(store: Store) -> None:
    """A second mail with the same id is refused, and the first one stays unchanged."""
    message = a_message()
    insert(store, message=message)

    with pytest.raises(store.engine.dialect.loaded_dbapi.IntegrityError):
        insert(store, message=replace(message, subject="another"))

    assert store.load_messages([message.id]) == {message.id: message}
    assert count(store, "delivery") == 1


# --- attachments and the purge ------------------------------------------------------------------


def test_attachments_are_stored_once(store: Store) -> None:
    """Attachments with the same bytes are stored once, under whatever names."""
    insert(store, message=a_message(attachments=(LOGO, TERMS)))
    insert(store, message=a_message(attachments=(replace(LOGO, filename="other.png"),)))

    assert (count(store, "blob"), count(store, "attachment")) == (2, 3)


def purge_all(store: Store, finished_before: float, *, now: float = LATER) -> None:
    """Purge finished mails, then unused attachments, as a dispatcher does."""
    while store.purge_finished(finished_before, most=10):
        pass
    after: str | None = ""
    while after is not None:
        after = store.purge_blobs(now, after=after, most=1)


def finished(store: Store, **options: object) -> str:
    return bring(store, Status.SENT, **options).mail_id


def test_bytes_are_purged_when_nobody_refers_to_them(store: Store) -> None:
    """An attachment's bytes are purged with the last mail that has them."""
    finished(store, message=a_message(attachments=(LOGO,)))
    second = insert(store, message=a_message(attachments=(LOGO,)))

    purge_all(store, LATER)
    assert (count(store, "message"), count(store, "blob")) == (1, 1)
    store.settle_if_resting(second, Status.CANCELLED, now=NOW)
    purge_all(store, LATER)
    assert (count(store, "blob"), count(store, "attachment")) == (0, 0)


def test_bytes_that_were_just_used_are_spared(store: Store) -> None:
    """Recently used attachment bytes are not purged, since a mail being queued may need them."""
    for age in (0, 1700, 3400):
        finished(store, message=a_message(attachments=(LOGO,), created_at=NOW + age))

    purge_all(store, LATER, now=NOW + 3500 + 3400)
    assert (count(store, "message"), count(store, "blob")) == (0, 1)
    purge_all(store, LATER, now=NOW + 3600 + 3400)
    assert count(store, "blob") == 0


def test_mails_with_the_same_files_do_not_wait_for_each_other(store: Store) -> None:
    """Mails with the same attachments in opposite orders do not deadlock."""
    together = threading.Barrier(2, timeout=20)

    def queue(direction: int) -> None:
        for number in range(20):
            files = [Attachment("a.bin", b"a%d" % number), Attachment("b.bin", b"b%d" % number)]
            together.wait()
            insert(store, message=a_message(attachments=tuple(files[::direction])))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(queue, (1, -1)))

    assert (count(store, "blob"), count(store, "attachment")) == (40, 80)


def test_the_purge_takes_small_bites(store: Store) -> None:
    """A purge takes the oldest mails first, a limited number at a time, until none is left."""
    mails = [finished(store) for _ in range(5)]
    with store.engine.begin() as connection:
        for age, mail_id in enumerate(mails):
            values = {"at": NOW - age, "mail_id": mail_id}
            connection.execute(
                text("UPDATE mailer_delivery SET finished_at = :at WHERE mail_id = :mail_id"),
                values,
            )

    assert store.purge_finished(NOW, most=2) == 2
    assert store.statuses(mails).keys() == set(mails[:3])
    assert [store.purge_finished(NOW, most=2) for _ in range(3)] == [2, 1, 0]


@pytest.mark.parametrize(
    "resting", [Status.QUEUED, Status.CLAIMED, Status.TRANSMITTING, Status.DOUBTFUL]
)
def test_the_purge_leaves_what_is_not_finished(store: Store, resting: Status) -> None:
    """The purge keeps unfinished mail, however old it is."""
    delivery = bring(store, resting)

    assert store.purge_finished(LATER, most=10) == 0
    assert [one.status for one in store.status(delivery.mail_id)] == [resting]


def test_a_mail_goes_with_its_last_recipient(store: Store) -> None:
    """A mail is kept until its last delivery is purged."""
    message = a_message(attachments=(LOGO,))
    insert(store, "ada@example.com", "bob@example.com", message=message)
    ada, bob = claim(store)
    set_aside(store, ada)

    assert store.purge_finished(NOW, most=10) == 1
    assert store.load_messages([message.id]) == {message.id: message}
    set_aside(store, bob)
    assert store.purge_finished(NOW, most=10) == 1
    assert store.load_messages([message.id]) == {}


def test_the_purge_leaves_what_is_too_young(store: Store) -> None:
    """The age of a mail counts from when its last delivery was finished."""
    finished(store)

    assert store.purge_finished(NOW - 1, most=10) == 0
    assert store.purge_finished(NOW, most=10) == 1


def test_a_purged_mail_leaves_nothing(store: Store) -> None:
    """The purge deletes the history and the attachments of a mail as well."""
    bring(store, Status.FAILED, message=a_message(attachments=(LOGO,)))

    purge_all(store, LATER)

    assert {
        name: count(store, name)
        for name in ("message", "delivery", "attempt", "attachment", "blob")
    } == dict.fromkeys(("message", "delivery", "attempt", "attachment", "blob"), 0)


@pytest.mark.parametrize("shared_store", ["postgresql"], indirect=True)  # SQLite has one writer
def test_a_mail_that_is_being_requeued_is_not_purged(store: Store) -> None:
    """The purge skips a failed mail that an open transaction is putting back into the queue."""
    delivery = bring(store, Status.FAILED)
    with store.engine.begin() as connection:
        connection.execute(
            text("UPDATE mailer_delivery SET status = 'queued', due_at = 1, finished_at = NULL")
        )
        assert store.purge_finished(NOW, most=10) == 0

    assert [one.mail_id for one in claim(store)] == [delivery.mail_id]


def test_a_mail_without_any_delivery_is_purged(store: Store) -> None:
    """A mail without deliveries, which an older version may have left, is purged."""
    orphans, kept = [insert(store) for _ in range(3)], [insert(store) for _ in range(3)]
    with store.engine.begin() as connection:
        connection.execute(schema.delivery.delete().where(schema.delivery.c.mail_id.in_(orphans)))
    after: str | None = ""
    while after is not None:
        after = store.purge_orphans(NOW, after=after, most=2)

    assert store.statuses([*orphans, *kept]).keys() == set(kept)


# --- questions ----------------------------------------------------------------------------------


def test_the_status_of_a_mail(store: Store) -> None:
    """The status of a mail lists its recipients in order, each with its own state."""
    message = a_message(subject="Grüße 👋")
    insert(store, "ada@example.com", "bob@example.com", message=message, lane=Lane.BULK)
    ada, _bob = claim(store)
    set_aside(store, ada)

    status = store.status(message.id)

    assert (status.id, status.message_id, status.subject) == (
        message.id,
        message.message_id,
        "Grüße 👋",
    )
    assert status.created_at.timestamp() == NOW
    assert [(one.recipient, one.status, one.lane, one.attempts, one.reply) for one in status] == [
        ("ada@example.com", Status.FAILED, Lane.BULK, 1, "it can't be composed"),
        ("bob@example.com", Status.CLAIMED, Lane.BULK, 1, None),
    ]
    assert not status.is_finished


def test_the_status_of_many_mails(store: Store) -> None:
    """The statuses of many mails are read at once; unknown ids are left out."""
    failed = [bring(store, Status.FAILED).mail_id for _ in range(3)]
    mails = [*failed, *(insert(store) for _ in range(500))]

    statuses = store.statuses([*mails, "unknown"])

    assert statuses.keys() == set(mails)
    assert all(len(status.deliveries) == 1 for status in statuses.values())
    assert {mail_id for mail_id, status in statuses.items() if status.deliveries[0].history} == set(
        failed
    )
    assert all(statuses[mail_id].is_finished for mail_id in failed)
    assert store.statuses([]) == {}


def test_a_mail_that_nobody_knows(store: Store) -> None:
    """The error for an unknown mail gives its id and why it may be missing."""
    with pytest.raises(UnknownMail, match=r"'never'.*never queued here.*purged"):
        store.status("never")


def test_counts(store: Store) -> None:
    """Mails are counted by lane and state, with the oldest due time of each."""
    insert(store, "ada@example.com", "bob@example.com", lane=Lane.BULK, due_at=NOW + 60)
    insert(store, lane=Lane.BULK, due_at=NOW + 50)
    bring(store, Status.SENT, lane=Lane.CRITICAL)

    counted = [(status, lane, number) for status, lane, number, _due in store.counts()]

    assert counted == [(Status.SENT, Lane.CRITICAL, 1), (Status.QUEUED, Lane.BULK, 3)]
    assert store.counts()[1][3] == NOW + 50


def test_is_due(store: Store) -> None:
    """`is_due()` tells whether a claim would find a delivery in any lane."""
    assert not store.is_due(NOW)
    insert(store, lane=Lane.BULK, expires_at=NOW + 10)

    assert store.is_due(NOW)
    assert not store.is_due(NOW - 1)
    assert not store.is_due(NOW + 10)
    claim(store)
    assert not store.is_due(NOW)


def test_the_sweep_expires_any_number(store: Store) -> None:
    """One call expires any number of deliveries."""
    insert(store, *(f"reader{number}@example.com" for number in range(6000)), expires_at=NOW)
    expiring = claim(store, 6000, now=NOW - 1)
    assert expiring == []
    insert(store, expires_at=NOW + 1)

    assert len(store.expire_overdue(NOW)) == 6000
    assert [one["status"] for one in table(store).values() if one["expires_at"] > NOW] == [
        Status.QUEUED
    ]


# --- chores -------------------------------------------------------------------------------------


def test_a_chore_goes_to_one_of_many(store: Store) -> None:
    """If many ask for a chore at the same moment, one gets it."""
    together = threading.Barrier(8)

    def take(number: int) -> list[bool]:
        taken = []
        for round_ in range(5):
            together.wait()
            taken.append(store.take_chore("sweep", now=NOW + round_, every=1))
        return taken

    with ThreadPoolExecutor(8) as threads:
        rounds = zip(*threads.map(take, range(8)), strict=True)

    assert [sum(taken) for taken in rounds] == [1] * 5


def test_a_chore_has_its_time(store: Store) -> None:
    """A chore is given out once in its period, independently of other chores."""
    assert store.take_chore("sweep", now=NOW, every=10)
    assert store.take_chore("purge", now=NOW, every=10)

    assert not store.take_chore("sweep", now=NOW + 9.5, every=10)
    assert store.take_chore("sweep", now=NOW + 10, every=10)


@pytest.mark.parametrize(("every", "skew"), [(1, 2), (1, 9), (3600, 2), (3600, 300)])
def test_clocks_that_differ(store: Store, every: float, skew: float) -> None:
    """A chore is done once in its period, even if the clocks of two machines differ."""
    taken = [
        (step, clock)
        for step in range(12)  # four in each period
        for clock in (0, -skew)
        if store.take_chore("chore", now=NOW + step * every / 4 + clock, every=every)
    ]

    assert taken == [(0, 0), (4, 0), (8, 0)]


def test_a_clock_that_ran_ahead_stops_no_chore(store: Store) -> None:
    """A machine whose clock was a year ahead does not block a chore for that year."""
    store.take_chore("sweep", now=NOW + 31_536_000, every=10)

    assert store.take_chore("sweep", now=NOW, every=10)
    assert not store.take_chore("sweep", now=NOW + 1, every=10)
