"""Every public call, as an application writes it.

The file is never run: mypy and pyright check each call and the type of its result.
`tests/unit/test_public_types.py` checks that nothing public is missing.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_type

import flask_mail
from blinker import NamedSignal
from celery.canvas import Signature
from celery.result import AsyncResult
from flask import Blueprint, Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import mailer
from mailer import (
    Address,
    Attachment,
    BadRow,
    BrokerUnavailable,
    Bulk,
    BulkError,
    BulkProgress,
    BulkRecipient,
    BulkSample,
    BulkState,
    Calendar,
    CommitLost,
    ConfigurationError,
    DeliveryStatus,
    InUseElsewhere,
    InvalidAddress,
    InvalidArgument,
    InvalidAttachment,
    InvalidHeader,
    InvalidMail,
    KeyInUse,
    KeyReused,
    Lane,
    Mail,
    Mailer,
    MailerError,
    MailStatus,
    Message,
    MissingRecipient,
    MissingSender,
    OnDoubt,
    OverLimit,
    Receipt,
    Rehearsal,
    SchemaMismatch,
    SigningFailed,
    Status,
    StoreError,
    StoreUnavailable,
    TemplateError,
    UnknownMail,
    send_bulk,
    send_email,
)
from mailer.background import BackgroundFunction
from mailer.logging import QueuedMailHandler
from mailer.schema import include_name, include_object
from mailer.signals import (
    BulkEvent,
    Event,
    EventKind,
    bulk_finished,
    mail_cancelled,
    mail_deferred,
    mail_doubtful,
    mail_expired,
    mail_failed,
    mail_queued,
    mail_sent,
)
from mailer.smtpd.inbox import Inbox
from mailer.web.inbox import create_inbox_app, make_inbox_blueprint

app = Flask(__name__)

# --- set up --------------------------------------------------------------------------------------

queue = Mailer()
queue.init_app(app)
assert_type(Mailer(app), Mailer)

# --- queue ---------------------------------------------------------------------------------------

receipt = queue.send_email("ada@example.com", "Welcome", "mail/welcome")
assert_type(receipt, Receipt)
assert_type(receipt.id, str)
assert_type(receipt.message_id, str)
assert_type(receipt.recipients, tuple[str, ...])
assert_type(receipt.is_new, bool)
assert_type(receipt.due_at, datetime | None)
assert_type(str(receipt), str)
assert_type(send_email("ada@example.com", "Welcome", "mail/welcome", user="Ada", count=5), Receipt)
assert_type(
    mailer.send_email("ada@example.com", "Welcome", "mail/welcome", context={"subject": "Welcome"}),
    Receipt,
)

assert_type(queue.send_email("ada@example.com", "Welcome", text="Hello"), Receipt)
queue.send_email("ada@example.com", "Welcome", html="<p>Hello</p>")
queue.send_email("ada@example.com", "Welcome", text="Hello", html=None)


# --- functions of the application -----------------------------------------------------------------


def cube(number: int, /) -> int:
    return number**3


assert_type(queue.background(cube), BackgroundFunction[[int], int])


@queue.background
def resize(path: str, width: int = 200) -> str:
    return f"{path} {width}"


@queue.background(queue="slow", name="shop.report", time_limit=600)
def make_report(year: int) -> None: ...


assert_type(resize("ada.png", width=100), AsyncResult[str])
assert_type(make_report.delay(2026), AsyncResult[None])
assert_type(resize.run("ada.png"), str)
assert_type(
    resize.apply_async(["ada.png"], {"width": 100}, countdown=60, link=make_report.si(2026)),
    AsyncResult[str],
)
assert_type(resize.delay("ada.png"), AsyncResult[str])
assert_type(resize.s(width=100), Signature[str])
assert_type(resize.si("ada.png", width=100), Signature[str])
assert_type(resize.signature(["ada.png"], {"width": 100}, countdown=60), Signature[str])

app.logger.addHandler(QueuedMailHandler("admin@example.com", subject="Shop failed"))
QueuedMailHandler([("Ada", "ada@example.com")], app=app, period=timedelta(hours=1), level="ERROR")


def recipients() -> Iterator[str]:
    yield "ada@example.com"


# One or many, in each form of an address.
queue.send_email("Ada <ada@example.com>", "Welcome", "mail/welcome")
queue.send_email(("Ada", "ada@example.com"), "Welcome", "mail/welcome")
queue.send_email((None, "ada@example.com"), "Welcome", "mail/welcome")
queue.send_email(Address("ada@example.com", "Ada"), "Welcome", "mail/welcome")
queue.send_email(
    ["ada@example.com", ("Bob", "bob@example.com"), Address("eve@example.com")],
    "Welcome",
    "mail/welcome",
)
queue.send_email({"ada@example.com", "bob@example.com"}, "Welcome", "mail/welcome")
queue.send_email(recipients(), "Welcome", "mail/welcome")
queue.send_email(None, "Welcome", "mail/welcome", bcc=["ada@example.com"])

queue.send_email(
    "ada@example.com",
    "Your invoice",
    "mail/invoice",
    cc=["bob@example.com"],
    bcc=("Eve", "eve@example.com"),
    reply_to="billing@example.com",
    sender=("Billing", "billing@example.com"),
    attachments=[
        Attachment("invoice.pdf", b"%PDF"),
        Attachment("logo.png", b"PNG", content_id="logo"),
        Attachment(
            "meeting",
            b"ICS",
            "text/calendar; method=REQUEST",
            disposition="attachment",
            headers=(("X-A", "b"),),
        ),
        flask_mail.Attachment("notes.txt", "text/plain", "Hello"),
    ],
    headers={"X-Campaign": "november", "Precedence": None},
    lane="critical",
    send_at=timedelta(hours=1),
    undo=30,
    tenant="acme",
    expires_at=datetime.now(UTC) + timedelta(days=1),
    on_doubt="hold",
    sensitive=True,
    tags=["invoice"],
    metadata={"invoice": "42"},
    idempotency_key="invoice-42",
    context={"subject": "a name that an argument has"},
    invoice=object(),
)
queue.send_email(
    "ada@example.com", "News", "mail/news", lane=Lane.BULK, on_doubt=OnDoubt.HOLD, tags=("news",)
)

address = Address("ada@example.com", "Ada")
assert_type(address.email, str)
assert_type(address.name, str)
assert_type(address.domain, str)
attachment = Attachment("logo.png", b"PNG", content_id="logo")
assert_type(attachment.filename, str | None)
assert_type(attachment.data, bytes)
assert_type(attachment.content_type, str)
assert_type(attachment.content_id, str | None)
assert_type(attachment.disposition, str)
assert_type(attachment.headers, tuple[tuple[str, str], ...])

# --- in the application's own transaction --------------------------------------------------------

engine = create_engine("sqlite://")
db = SQLAlchemy(app)
with engine.begin() as transaction, Session(engine) as session:
    queue.send_email("ada@example.com", "Welcome", "mail/welcome", connection=transaction)
    queue.send_email(
        "ada@example.com",
        "Welcome",
        "mail/welcome",
        connection=session,
        idempotency_key="welcome-42",
    )
    queue.send_email(
        "ada@example.com",
        "Welcome",
        "mail/welcome",
        connection=scoped_session(sessionmaker(engine)),
    )
    queue.send_email("ada@example.com", "Welcome", "mail/welcome", connection=db.session)
    queue.enqueue(Message("Welcome"), connection=session, idempotency_key="welcome-42")

# --- bulk sends ----------------------------------------------------------------------------------

readers = [("ada@example.com", {"name": "Ada"})]
office = Calendar(days="mon-fri", hours="09:00-18:00", time_zone="Europe/Berlin")
assert_type(office.time_zone, str)
assert_type(office.days, str)
assert_type(office.hours, str)
assert_type(office.is_open(datetime.now(UTC), "America/New_York"), bool)
bulk = send_bulk("News", "mail/news", readers)
assert_type(bulk, Bulk)
assert_type(
    queue.send_bulk(
        "News",
        "mail/news",
        ({"email": address, "name": "Ada"} for address in ("ada@example.com",)),
        shared={"shop": "Ada & Co"},
        locales=["de"],
        sender="news@example.com",
        reply_to=["help@example.com"],
        attachments=[Attachment("news.pdf", b"%PDF")],
        headers={"List-Id": "news.example.com", "Feedback-ID": None},
        lane=Lane.BULK,
        send_at=timedelta(hours=1),
        expires_at=timedelta(days=1),
        on_doubt="hold",
        tags=["news"],
        metadata={"issue": "7"},
        idempotency_key="news-7",
        on_error="abort",
        start="complete",
        progress=lambda progress: print(progress.imported),
        require_confirmation_above=1000,
        max_failed_share=0.1,
        undo=30,
        tenant="acme",
        calendar=office,
    ),
    Bulk,
)
rehearsal = queue.send_bulk("News", "mail/news", readers, dry_run=True)
assert_type(rehearsal, Rehearsal)
assert_type(rehearsal.imported, int)
assert_type(rehearsal.accepted, int)
assert_type(rehearsal.duplicates, int)
assert_type(rehearsal.refused, int)
assert_type(rehearsal.failed, int)
assert_type(rehearsal.errors, tuple[BulkError, ...])
assert_type(rehearsal.samples, tuple[BulkSample, ...])
assert_type(rehearsal.median_size, int)
assert_type(rehearsal.largest_size, int)
assert_type(rehearsal.total_size, int)
assert_type(rehearsal.seconds, float)
assert_type(rehearsal.limit, str)
for sample in rehearsal.samples:
    assert_type(sample.row, int)
    assert_type(sample.address, str)
    assert_type(sample.subject, str)
    assert_type(sample.text, str | None)
    assert_type(sample.html, str | None)
    assert_type(sample.size, int)

assert_type(queue.bulk(bulk.id), Bulk)
assert_type(queue.bulks(before=bulk, limit=10), list[Bulk])
assert_type(bulk.pause("the prices are wrong"), bool)
assert_type(bulk.resume(), bool)
assert_type(bulk.confirm(), bool)
assert_type(bulk.cancel("a mistake"), bool)
assert_type(bulk.reschedule(timedelta(hours=2)), bool)
assert_type(bulk.retry(to="ada@example.com"), int)
assert_type(bulk.resolve("sent", to="ada@example.com"), int)
assert_type(bulk.errors(), Iterator[BulkError])
assert_type(bulk.recipients(state=Status.SENT), Iterator[BulkRecipient])
progress = bulk.progress()
assert_type(progress, BulkProgress)
assert_type(progress.state, BulkState)
assert_type(progress.state.is_over, bool)
assert_type(progress.reason, str | None)
assert_type(progress.resumes_at, datetime | None)
assert_type(progress.imported, int)
assert_type(progress.accepted, int)
assert_type(progress.duplicates, int)
assert_type(progress.refused, int)
assert_type(progress.held, int)
assert_type(progress.queued, int)
assert_type(progress.doubtful, int)
assert_type(progress.sent, int)
assert_type(progress.failed, int)
assert_type(progress.cancelled, int)
assert_type(progress.expired, int)
assert_type(progress.suppressed, int)
assert_type(progress.unfinished, int)
assert_type(progress.rate, float | None)
assert_type(progress.ends_at, datetime | None)
for wrong in bulk.errors():
    assert_type(wrong.row, int)
    assert_type(wrong.address, str)
    assert_type(wrong.reason, str)
for reader in bulk.recipients(state="failed"):
    assert_type(reader.delivery_id, int)
    assert_type(reader.row, int)
    assert_type(reader.address, str)
    assert_type(reader.status, Status)
    assert_type(reader.reply, str | None)

# --- messages of Flask-Mail ----------------------------------------------------------------------

message = Message("Welcome", ["ada@example.com"], "Hello")
assert_type(message, flask_mail.Message)
assert_type(queue.enqueue(message), Receipt)
queue.enqueue(
    message,
    lane="bulk",
    send_at=timedelta(hours=1),
    expires_at=timedelta(days=1),
    undo=timedelta(seconds=30),
    tenant="acme",
    on_doubt=OnDoubt.RESEND,
    sensitive=False,
    tags={"news"},
    metadata={"issue": "7"},
)

mail = Mail(app)
later = Mail()
state: flask_mail._Mail = later.init_app(app)
assert_type(mail.send(message), Receipt)
assert_type(mail.send_message("Welcome", ["ada@example.com"], "Hello"), Receipt)
with mail.connect() as connection:
    assert_type(connection.send(message), Receipt)
    connection.send(message, envelope_from="bounces@example.com")
    connection.send_message("Welcome", ["ada@example.com"], "Hello")
with mail.record_messages() as outbox:
    assert_type(outbox, list[flask_mail.Message])

# --- status --------------------------------------------------------------------------------------

status = queue.status(receipt.id)
assert_type(status, MailStatus)
assert_type(status.id, str)
assert_type(status.message_id, str)
assert_type(status.subject, str)
assert_type(status.created_at, datetime)
assert_type(status.sensitive, bool)
assert_type(status.erased_at, datetime | None)
assert_type(status.tags, tuple[str, ...])
assert_type(status.metadata, tuple[tuple[str, str], ...])
assert_type(status.is_finished, bool)
assert_type(status.deliveries, tuple[DeliveryStatus, ...])
assert_type(queue.statuses([receipt.id]), dict[str, MailStatus])
assert_type(queue.statuses({receipt.id}), dict[str, MailStatus])
assert_type(queue.reschedule(receipt, timedelta(hours=1), to="ada@example.com"), bool)
assert_type(queue.cancel(receipt.id), bool)
assert_type(queue.status(receipt), MailStatus)
assert_type(queue.statuses([receipt]), dict[str, MailStatus])
assert_type(queue.cancel(receipt, to="ada@example.com"), bool)
assert_type(queue.retry(receipt), bool)
assert_type(queue.retry(receipt.id, to="ada@example.com"), bool)
assert_type(queue.resolve(receipt, "sent"), bool)
assert_type(queue.resolve(receipt.id, "failed", to="ada@example.com"), bool)
assert_type(queue.mails(state="failed", since=datetime.now(UTC), before=receipt), list[MailStatus])
assert_type(
    queue.mails(
        state=Status.FAILED,
        to="@example.com",
        tag="news",
        subject="News",
        relay="backup",
        until=datetime.now(UTC),
        before=receipt.id,
        limit=10,
    ),
    list[MailStatus],
)
assert_type(queue.pause("bulk", reason="restored from a backup"), int)
assert_type(queue.pause(Lane.BULK), int)
assert_type(queue.resume("bulk"), bool)
assert_type(queue.resume(relay="backup"), bool)
assert_type(queue.absence(), str | None)

for delivery in status:
    assert_type(delivery, DeliveryStatus)
    assert_type(delivery.id, int)
    assert_type(delivery.recipient, str)
    assert_type(delivery.status, Status)
    assert_type(delivery.status.is_final, bool)
    assert_type(delivery.lane, Lane)
    assert_type(delivery.tenant, str | None)
    assert_type(delivery.attempts, int)
    assert_type(delivery.due_at, datetime | None)
    assert_type(delivery.finished_at, datetime | None)
    assert_type(delivery.reply, str | None)
    assert_type(delivery.relay, str | None)
    assert_type(delivery.is_being_tried, bool)
    for attempt in delivery.history:
        assert_type(attempt.at, datetime)
        assert_type(attempt.reply, str)
        assert_type(attempt.relay, str)
        verdict_and_phase: tuple[str, str] = (attempt.verdict, attempt.phase)

lanes: list[Lane] = [Lane.CRITICAL, Lane.NORMAL, Lane.BULK]
doubts: list[OnDoubt] = [OnDoubt.RESEND, OnDoubt.HOLD]

# --- signals -------------------------------------------------------------------------------------

signals: list[NamedSignal] = [
    *(mail_queued, mail_sent, mail_deferred, mail_failed),
    *(mail_doubtful, mail_expired, mail_cancelled),
    bulk_finished,
]


@mail_failed.connect
def note_failure(sender: Flask, event: Event) -> None:
    assert_type(event.kind, EventKind)
    assert_type(event.at, datetime)
    assert_type(event.mail_id, str)
    assert_type(event.delivery_id, int)
    assert_type(event.message_id, str)
    assert_type(event.recipient, str)
    assert_type(event.status, Status)
    assert_type(event.lane, Lane)
    assert_type(event.tenant, str | None)
    assert_type(event.attempts, int)
    assert_type(event.tags, tuple[str, ...])
    assert_type(event.metadata, tuple[tuple[str, str], ...])
    assert_type(event.reply, str | None)
    assert_type(event.relay, str | None)


@bulk_finished.connect
def note_end(sender: Flask, event: BulkEvent) -> None:
    assert_type(event.kind, EventKind)
    assert_type(event.at, datetime)
    assert_type(event.bulk_id, str)
    assert_type(event.progress, BulkProgress)
    assert_type(event.tags, tuple[str, ...])


# --- migrations of the application, and pages ----------------------------------------------------

Migrate(app, db, include_object=include_object, include_name=include_name)
assert_type(include_object(None, "mailer_message", "table", reflected=True, compare_to=None), bool)
assert_type(include_name("users", "table", {}), bool)

inbox = Inbox(Path("inbox"))
assert_type(make_inbox_blueprint(inbox), Blueprint)
assert_type(make_inbox_blueprint(inbox, layout="layout.html"), Blueprint)
assert_type(create_inbox_app(inbox, smtp_address="127.0.0.1:1025"), Flask)

# --- errors --------------------------------------------------------------------------------------

errors: list[type[MailerError]] = [
    *(ConfigurationError, SigningFailed, UnknownMail, InvalidArgument, BrokerUnavailable),
    *(InvalidMail, InvalidAddress, InvalidHeader, InvalidAttachment),
    *(KeyReused, OverLimit, TemplateError, MissingRecipient, MissingSender, BadRow),
    *(StoreError, StoreUnavailable, CommitLost, KeyInUse, SchemaMismatch, InUseElsewhere),
]
invalid: list[type[InvalidMail]] = [
    *(InvalidAddress, InvalidHeader, InvalidAttachment),
    *(KeyReused, OverLimit, TemplateError, BadRow),
]
store_errors: list[type[StoreError]] = [StoreUnavailable, SchemaMismatch, InUseElsewhere]
unavailable: list[type[StoreUnavailable]] = [CommitLost, KeyInUse]
value_error: type[ValueError] = InvalidMail
lookup_error: type[LookupError] = UnknownMail
assertion_errors: list[type[AssertionError]] = [MissingRecipient, MissingSender]
bad_header_errors: list[type[flask_mail.BadHeaderError]] = [InvalidHeader, InvalidAddress]
try:
    queue.send_email("ada@example.com", "Welcome", "mail/welcome")
except (InvalidAddress, OverLimit) as error:
    assert_type(error, InvalidAddress | OverLimit)
except StoreUnavailable as error:
    assert_type(error, StoreUnavailable)

# --- wrong calls: each needs its ignore, since mypy reports an unused one ------------------------

queue.send_email(5, "Welcome", "mail/welcome")  # type: ignore[arg-type]
queue.send_email("ada@example.com", 5, "mail/welcome")  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", attachments=["invoice.pdf"])  # type: ignore[list-item]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", headers=[("X-Campaign", "november")])  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", send_at=60)  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", connection=engine)  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", idempotency_key=42)  # type: ignore[arg-type]
queue.send_bulk("News", "mail/news", 5)  # type: ignore[call-overload]
queue.send_bulk("News", "mail/news", readers, tenant=5)  # type: ignore[call-overload]
queue.enqueue("ada@example.com")  # type: ignore[arg-type]
Attachment("notes.txt", "text")  # type: ignore[arg-type]
