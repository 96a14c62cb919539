"""Every public call of the test kit, as the tests of an application write it.

The file is never run: mypy checks each call and the type of its result.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from flask import Flask

from mailer import Attachment, DeliveryStatus, Lane, Mail, MailStatus, Message, Receipt
from mailer.smtpd.inbox import Received
from mailer.testing import Criteria, FakeRelay, Outbox, RecordedMail, Snapshots

app = Flask(__name__)

# --- the outbox ----------------------------------------------------------------------------------

with Outbox(app) as outbox:
    assert_type(outbox, Outbox)
assert_type(Outbox(app, snapshots=Snapshots(Path("snapshots"), update=True)), Outbox)
assert_type(len(outbox), int)
assert_type(outbox[0], RecordedMail)
assert_type(outbox[:2], list[RecordedMail])
assert_type(list(outbox), list[RecordedMail])
assert_type(outbox.queued, list[RecordedMail])

criteria: Criteria = {"to": ["ada@example.com"], "subject": re.compile("Welcome")}
assert_type(outbox.assert_sent(**criteria), RecordedMail)
assert_type(
    outbox.assert_sent(
        times=1,
        to="Ada <ada@example.com>",
        cc=("Ada", "ada@example.com"),
        bcc=[],
        reply_to="shop@example.com",
        sender="shop@example.com",
        subject="Welcome",
        text="Hello",
        html=re.compile("<p>"),
        template="mail/welcome",
        context={"name": "Ada"},
        headers={"X-Campaign": "november"},
        attachments=["terms.pdf"],
        lane="bulk",
        tags="eu",
        metadata={"order": "42"},
    ),
    RecordedMail,
)
outbox.assert_not_sent(lane=Lane.BULK, tags=["eu"], attachments="terms.pdf")
outbox.assert_nothing_sent()
outbox.assert_sent(subjet="Welcome")  # type: ignore[call-arg]
outbox.assert_sent(subject=42)  # type: ignore[arg-type]

assert_type(outbox.drain(), list[DeliveryStatus])
assert_type(outbox.drain(after=timedelta(hours=1)), list[DeliveryStatus])
outbox.drain(after=3600)  # type: ignore[arg-type]

# --- a mail --------------------------------------------------------------------------------------

mail = outbox[0]
assert_type(mail.id, str)
assert_type(mail.to, list[str])
assert_type(mail.recipients, list[str])
assert_type(mail.html, str | None)
assert_type(mail.headers, dict[str, str])
assert_type(mail.attachments, tuple[Attachment, ...])
assert_type(mail.template, str | None)
assert_type(mail.context, Mapping[str, Any])
assert_type(mail.lane, Lane)
assert_type(mail.send_at, datetime)
assert_type(mail.expires_at, datetime | None)
assert_type(mail.status, MailStatus)
assert_type(mail.is_sent, bool)
assert_type(mail.snapshot(), str)
mail.assert_matches_snapshot("welcome", replace={"token=[a-z]+": "token=<token>"})

# --- the relay -----------------------------------------------------------------------------------

with FakeRelay() as relay:
    assert_type(relay, FakeRelay)
assert_type(FakeRelay(app, timeout=0.5), FakeRelay)
relay.refuse("ada@example.com", 550, "no such user", times=1)
relay.defer("ada@example.com", 451, "greylisted", times=None)
relay.drop(at="connect", times=None)
relay.hang("ada@example.com", at="dot")
relay.hang(at="later")  # type: ignore[arg-type]
relay.lose_reply()
relay.behave()
assert_type((relay.host, relay.port, relay.connections), tuple[str, int, int])
assert_type(relay.mails, list[Received])

# --- delivery in the calling thread --------------------------------------------------------------

assert_type(Mail(app, when="now"), Mail)
assert_type(Mail(when="now").send(Message("Hello", ["ada@example.com"])), Receipt)
Mail(app, when="soon")  # type: ignore[arg-type]
