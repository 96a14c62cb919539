"""Sensitive mail is erased with its last delivery, other mail when it is old."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, select

from mailer import schema
from mailer.message import Attachment, Delivery, Message, Status, Verdict, id_at
from mailer.store import Store, erasing
from mailer.store.transactions import Transaction
from tests.mails import LATER, NOW, a_message, bring, claim, insert, mark, record, set_aside, table
from tests.services.databases import sqlite_only
from tests.services.dispatchers import MakeDispatcher, copy_of, queue, received
from tests.services.sink import Sink
from tests.services.waiting import wait_until

CANARY = "kanarienvogel"
FILE = Attachment("code.txt", f"file {CANARY}".encode())
CONTENT = {
    "subject": f"Your code is {CANARY}",
    "text": f"text {CANARY}",
    "html": f"<p>{CANARY}</p>",
    "alternatives": (("calendar", CANARY),),
    "headers": (("X-Code", CANARY),),
    "attachments": (FILE,),
}


def secret(**changes: Any) -> Message:
    return a_message(**{**CONTENT, "sensitive": True, **changes})


def said(store: Store, mail_id: str) -> str:
    """Return all that the database has of a mail, except its deliveries."""
    with store.engine.connect() as connection:
        mails = connection.execute(
            select(schema.message).where(schema.message.c.id == mail_id)
        ).all()
        files = connection.execute(
            select(schema.attachment).where(schema.attachment.c.mail_id == mail_id)
        ).all()
        blobs = connection.execute(select(schema.blob)).all()
    return repr((mails, files, blobs))


def was_erased(store: Store, mail_id: str) -> bool:
    """Return whether a mail is erased; assert that no part of its content tells otherwise."""
    erased_at = store.status(mail_id).erased_at
    assert (CANARY in said(store, mail_id)) == (erased_at is None)
    return erased_at is not None


def claimed(store: Store, mail_id: str, *, marked: bool = True) -> Delivery:
    [delivery] = [one for one in claim(store) if one.mail_id == mail_id]
    if marked:
        mark(store, delivery)
    return delivery


def came_late(store: Store, mail_id: str) -> None:
    delivery = claimed(store, mail_id)
    record(store, delivery, to=Status.DOUBTFUL, due_at=LATER)
    assert not was_erased(store, mail_id)
    record(store, delivery, to=Status.SENT)


ENDS: dict[str, Callable[[Store, str], object]] = {
    "sent": lambda store, mail_id: record(store, claimed(store, mail_id), to=Status.SENT),
    "refused": lambda store, mail_id: record(store, claimed(store, mail_id), to=Status.FAILED),
    "can't be composed": lambda store, mail_id: set_aside(
        store, claimed(store, mail_id, marked=False)
    ),
    "sent after all": came_late,
    "expired": lambda store, mail_id: store.expire_overdue(LATER),
    "cancelled": lambda store, mail_id: store.settle_if_resting(mail_id, Status.CANCELLED, now=NOW),
    "cancelled with others": lambda store, mail_id: list(
        store.cancel_if_due_before(LATER, now=NOW)
    ),
    "suppressed": lambda store, mail_id: store.settle_if_resting(
        mail_id, Status.SUPPRESSED, now=NOW
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_sensitive_mail(store: Store, end: str) -> None:
    """Each final state erases the content of a sensitive mail, which can still be listed."""
    mail_id = insert(store, message=secret(), expires_at=NOW + 3600)
    assert not was_erased(store, mail_id)

    ENDS[end](store, mail_id)

    assert was_erased(store, mail_id)
    status = store.status(mail_id)
    assert ([one.recipient for one in status], status.subject, status.sensitive) == (
        ["ada@example.com"],
        "",
        True,
    )
    assert status.is_finished
    assert store.load_messages([mail_id]) == {}


def test_the_last_copy_counts(store: Store) -> None:
    """Content is kept while one delivery may still be sent; one in doubt may."""
    mail_id = insert(
        store, "ada@example.com", "bob@example.com", "cid@example.com", message=secret()
    )
    ada, bob, cid = claim(store)
    mark(store, ada, bob, cid)
    record(store, ada, to=Status.SENT)
    record(store, bob, to=Status.QUEUED)
    record(store, cid, to=Status.DOUBTFUL)
    assert not was_erased(store, mail_id)

    store.settle_if_resting(mail_id, Status.CANCELLED, now=NOW)
    assert not was_erased(store, mail_id)

    store.settle_if_resting(mail_id, Status.FAILED, now=NOW)
    assert was_erased(store, mail_id)


def test_an_ordinary_mail_is_kept(store: Store) -> None:
    """The content of an ordinary mail is kept when the mail is finished."""
    assert not was_erased(store, bring(store, Status.SENT, message=a_message(**CONTENT)).mail_id)


def test_another_mail_with_the_same_file(store: Store) -> None:
    """Another mail with the same file keeps it, whichever of the two came first."""
    before, mail_id, after = (
        insert(store, message=message)
        for message in (a_message(attachments=(FILE,)), secret(), a_message(attachments=(FILE,)))
    )
    store.settle_if_resting(mail_id, Status.CANCELLED, now=NOW)

    kept = store.load_messages([before, mail_id, after])
    assert {one: message.attachments[0].data for one, message in kept.items()} == {
        before: FILE.data,
        after: FILE.data,
    }


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)  # SQLite has one writer
def test_the_last_two_end_at_the_same_moment(store: Store, database_url: str) -> None:
    """Content is erased even if the last two deliveries end in transactions at the same time."""
    mail_id = insert(store, "ada@example.com", "bob@example.com", message=secret())
    ada, bob = claim(store)
    mark(store, ada, bob)
    other = Store(database_url)
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
    with (
        ThreadPoolExecutor(1) as threads,
        store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        with store.together():
            record(store, ada, to=Status.SENT)
            second = threads.submit(record, other, bob, to=Status.SENT)
            wait_until(lambda: second.done() or connection.exec_driver_sql(waiting).first())
        second.result()
    other.engine.dispose()

    assert was_erased(store, mail_id)


def test_what_was_erased_is_not_queued_again(store: Store) -> None:
    """An erased mail is not requeued, since nothing is left to send."""
    delivery = bring(store, Status.FAILED, message=secret())
    kept = bring(store, Status.FAILED, message=a_message())

    assert store.settle_if_resting(delivery.mail_id, Status.QUEUED, now=NOW) == set()
    assert store.settle_if_resting(kept.mail_id, Status.QUEUED, now=NOW) == {kept.id}


@sqlite_only
def test_the_file_forgets(store: Store, database_url: str) -> None:
    """Erased content is not left in free pages of the SQLite file."""
    bring(store, Status.SENT, message=secret(text=CANARY * 2000))
    store.engine.dispose()  # the last connection writes the log beside the file into it
    file = Path(str(make_url(database_url).database))

    assert CANARY.encode() not in b"".join(
        one.read_bytes() for one in file.parent.glob(f"{file.name}*")
    )


def test_nothing_is_said_in_passing() -> None:
    """The repr of a sensitive mail shows no content."""
    assert CANARY not in repr(secret())


# --- erasure by age -----------------------------------------------------------------------------


def old(days: float, **changes: Any) -> Message:
    """Return a mail that was made so many days before `LATER`."""
    created_at = LATER - days * 86400
    return a_message(
        **{
            **CONTENT,
            "id": f"{id_at(created_at)}{time.monotonic_ns():x}",
            "created_at": created_at,
            **changes,
        }
    )


def erase(store: Store, before: float) -> None:
    after: str | None = ""
    while after is not None:
        after = store.erase_finished(before, now=LATER, after=after, most=2)


def test_old_mails_lose_what_they_said(store: Store) -> None:
    """Mail that was finished long ago loses its content in small steps, but not its subject."""
    finished = [bring(store, Status.SENT, message=old(8 + number)).mail_id for number in range(5)]
    waiting = insert(store, message=old(20), due_at=LATER)
    doubtful = bring(store, Status.DOUBTFUL, message=old(20)).mail_id
    with store.engine.begin() as connection:
        connection.execute(
            schema.delivery.update()
            .where(schema.delivery.c.status == "sent")
            .values(finished_at=LATER - 86400)
        )

    erase(store, LATER - 86400 - 1)
    assert len(store.load_messages([*finished, waiting, doubtful])) == 7

    erase(store, LATER - 86400)
    assert store.load_messages([*finished, waiting, doubtful]).keys() == {waiting, doubtful}
    assert store.status(finished[0]).subject == CONTENT["subject"]
    assert store.settle_if_resting(finished[0], Status.QUEUED, now=NOW) == set()
    with store.engine.connect() as connection:
        assert len(connection.execute(select(schema.attachment)).all()) == 2


def test_what_is_young_is_not_looked_at(store: Store) -> None:
    """Young mail is not read, as the index is sorted by id, and ids begin with the time."""
    young = bring(store, Status.SENT, message=old(1)).mail_id
    bring(store, Status.SENT, message=old(3))

    looked_at = store.erase_finished(LATER - 2 * 86400, now=LATER, after="", most=10)
    assert looked_at is not None
    assert looked_at < young
    assert store.erase_finished(LATER - 2 * 86400, now=LATER, after=looked_at, most=10) is None
    assert len(table(store)) == 2


# --- faults -------------------------------------------------------------------------------------


def test_nothing_is_sent_instead_of_what_was_erased(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """A queued delivery of an erased mail fails, and the others of its batch go out."""
    erased, other = queue(store, "ada@example.com"), queue(store, "bob@example.com")
    with store.engine.begin() as connection:
        connection.execute(
            schema.message.update()
            .where(schema.message.c.id == erased)
            .values(erased_at=NOW, text=None)
        )
    make_dispatcher().deliver_batch()

    assert (copy_of(store, erased).status, copy_of(store, erased).reply) == (
        Status.FAILED,
        "what it said is erased, or can't be read",
    )
    assert [attempt.verdict for attempt in copy_of(store, erased).history] == [Verdict.REFUSED]
    assert copy_of(store, other).status is Status.SENT
    assert received(sink) == ["bob@example.com"]


@pytest.mark.parametrize("sensitive", [False, True])
def test_only_sensitive_mail_is_locked_to_record_it(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
    *,
    sensitive: bool,
) -> None:
    """A worker that sends no sensitive mail does not touch the rows of messages to record it."""
    ordinary, code = queue(store, "ada@example.com"), None
    if sensitive:
        code = queue(store, "bob@example.com", message=secret())
    statements: list[str] = []
    execute = Transaction.execute

    def note(transaction: Transaction, statement: str, *values: Any) -> list[Any]:
        statements.append(statement)
        return execute(transaction, statement, *values)

    monkeypatch.setattr(Transaction, "execute", note)
    make_dispatcher().deliver_batch()

    assert copy_of(store, ordinary).status is Status.SENT
    assert (erasing.LOCK_PRIVATE in statements) == sensitive
    assert code is None or was_erased(store, code)


@pytest.mark.parametrize("sensitive", [False, True])
def test_what_cannot_be_composed(
    make_dispatcher: MakeDispatcher,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    sensitive: bool,
) -> None:
    """An error may quote the mail, so for a sensitive one only the type of the error is shown."""

    def quote(*_arguments: object) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr("mailer.delivery.preparing.compose", quote)
    mail_id = queue(store, "ada@example.com", message=a_message(sensitive=sensitive))
    make_dispatcher().deliver_batch()
    seen = caplog.text + str(copy_of(store, mail_id).reply)

    assert "ValueError" in seen
    assert (CANARY in seen) is not sensitive
