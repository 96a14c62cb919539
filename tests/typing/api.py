"""Every public call, as an application writes it.

The file is never run: mypy checks each call and the type of its result.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import flask_mail
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import mailer
from mailer import (
    Address,
    Attachment,
    DeliveryStatus,
    InvalidAddress,
    InvalidMail,
    KeyReused,
    Lane,
    Mail,
    Mailer,
    MailerError,
    MailStatus,
    Message,
    OnDoubt,
    OverLimit,
    Receipt,
    Status,
    StoreUnavailable,
    UnknownMail,
    send_email,
)

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
assert_type(send_email("ada@example.com", "Welcome", "mail/welcome", user="Ada", count=5), Receipt)
assert_type(
    mailer.send_email("ada@example.com", "Welcome", "mail/welcome", context={"subject": "Welcome"}),
    Receipt,
)

assert_type(queue.send_email("ada@example.com", "Welcome", text="Hello"), Receipt)
queue.send_email("ada@example.com", "Welcome", html="<p>Hello</p>")
queue.send_email("ada@example.com", "Welcome", text="Hello", html=None)


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
    headers={"X-Campaign": "november"},
    lane="critical",
    send_at=timedelta(hours=1),
    expires_at=datetime.now(UTC) + timedelta(days=1),
    on_doubt="hold",
    sensitive=True,
    tags=["invoice"],
    idempotency_key="invoice-42",
    context={"subject": "a name that an argument has"},
    invoice=object(),
)
queue.send_email(
    "ada@example.com", "News", "mail/news", lane=Lane.BULK, on_doubt=OnDoubt.HOLD, tags=("news",)
)

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

# --- messages of Flask-Mail ----------------------------------------------------------------------

message = Message("Welcome", ["ada@example.com"], "Hello")
assert_type(message, flask_mail.Message)
assert_type(queue.enqueue(message), Receipt)
queue.enqueue(
    message,
    lane="bulk",
    send_at=timedelta(hours=1),
    expires_at=timedelta(days=1),
    on_doubt=OnDoubt.RESEND,
    sensitive=False,
)

mail = Mail(app)
later = Mail()
later.init_app(app)
assert_type(mail.send(message), Receipt)
assert_type(mail.send_message("Welcome", ["ada@example.com"], "Hello"), Receipt)
with mail.connect() as connection:
    assert_type(connection.send(message), Receipt)
    connection.send(message, envelope_from="bounces@example.com")
outbox: AbstractContextManager[Any] = mail.record_messages()

# --- status --------------------------------------------------------------------------------------

status = queue.status(receipt.id)
assert_type(status, MailStatus)
assert_type(status.id, str)
assert_type(status.message_id, str)
assert_type(status.subject, str)
assert_type(status.created_at, datetime)
assert_type(status.is_finished, bool)
assert_type(status.deliveries, tuple[DeliveryStatus, ...])
assert_type(queue.statuses([receipt.id]), dict[str, MailStatus])
assert_type(queue.statuses({receipt.id}), dict[str, MailStatus])
assert_type(queue.cancel(receipt.id), bool)
assert_type(queue.status(receipt), MailStatus)
assert_type(queue.statuses([receipt]), dict[str, MailStatus])
assert_type(queue.cancel(receipt, to="ada@example.com"), bool)
assert_type(queue.retry(receipt), bool)
assert_type(queue.resolve(receipt, "sent"), bool)
assert_type(queue.mails(state="failed", since=datetime.now(UTC), before=receipt), list[MailStatus])
assert_type(queue.pause("bulk", reason="restored from a backup"), int)
assert_type(queue.resume(relay="backup"), bool)

for delivery in status:
    assert_type(delivery, DeliveryStatus)
    assert_type(delivery.id, int)
    assert_type(delivery.recipient, str)
    assert_type(delivery.status, Status)
    assert_type(delivery.status.is_final, bool)
    assert_type(delivery.lane, Lane)
    assert_type(delivery.attempts, int)
    assert_type(delivery.due_at, datetime | None)
    assert_type(delivery.finished_at, datetime | None)
    assert_type(delivery.reply, str | None)
    assert_type(delivery.relay, str | None)
    for attempt in delivery.history:
        assert_type(attempt.at, datetime)
        assert_type(attempt.reply, str)

# --- errors --------------------------------------------------------------------------------------

try:
    queue.send_email("ada@example.com", "Welcome", "mail/welcome")
except InvalidAddress as invalid_address:
    assert_type(invalid_address, InvalidAddress)
except KeyReused as reused:
    assert_type(reused, KeyReused)
except OverLimit as over:
    assert_type(over, OverLimit)
except InvalidMail as invalid:
    value_error: ValueError = invalid
except StoreUnavailable as unavailable:
    mailer_error: MailerError = unavailable
try:
    queue.status("unknown")
except UnknownMail as unknown:
    lookup_error: LookupError = unknown

# --- wrong calls: each needs its ignore, since mypy reports an unused one ------------------------

queue.send_email(5, "Welcome", "mail/welcome")  # type: ignore[arg-type]
queue.send_email("ada@example.com", 5, "mail/welcome")  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", attachments=["invoice.pdf"])  # type: ignore[list-item]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", headers=[("X-Campaign", "november")])  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", send_at=60)  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", connection=engine)  # type: ignore[arg-type]
queue.send_email("ada@example.com", "Welcome", "mail/welcome", idempotency_key=42)  # type: ignore[arg-type]
queue.enqueue("ada@example.com")  # type: ignore[arg-type]
Attachment("notes.txt", "text")  # type: ignore[arg-type]
