"""Injection: hostile input is refused at the call, or reaches the relay as harmless text."""

import re
from collections.abc import Callable, Iterator, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import flask_mail
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailer import InvalidMail, Mailer, Receipt, Status, send_email
from mailer.delivery import Dispatcher
from mailer.message import Message
from tests.injections import FORBIDDEN, PAYLOADS, WAYS_IN, Way
from tests.services.databases import sqlite_only
from tests.services.dispatchers import deliver_all
from tests.services.recorder import END_OF_MAIL, Recorder
from tests.shop import OpenShop, stored

mailer = Mailer()

pytestmark = sqlite_only

OFFERS = {"all": ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 0"), "nothing": ()}


@pytest.fixture(params=OFFERS)
def recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    """Yield a relay that offers all extensions, or none, and records all that it receives."""
    with Recorder(*OFFERS[request.param]) as server:
        yield server


@pytest.fixture
def shop(open_shop: OpenShop, recorder: Recorder) -> Iterator[Flask]:
    """Yield an app whose mail goes to the recorder when the test delivers it."""
    app = open_shop(MAIL_SERVER=recorder.host, MAIL_PORT=str(recorder.port))
    app.jinja_loader.mapping["body.txt"] = app.jinja_loader.mapping["body.html"] = "{{ body|safe }}"  # type: ignore[union-attr]
    app.extensions["mailer"].intake.bell.ring = lambda mails=(), *, lanes=(): True
    with app.app_context():
        yield app
        dispatcher_of(app).hang_up()


def dispatcher_of(app: Flask) -> Dispatcher:
    dispatcher: Dispatcher = app.extensions["mailer"].outbound.dispatcher
    return dispatcher


# --- calls --------------------------------------------------------------------------------------


def send(**changes: Any) -> Receipt:
    mail = {
        "to": "ada@example.com",
        "subject": "Hello",
        "template": "body",
        "context": {"body": "Hello"},
    }
    return send_email(**{**mail, **changes})


def enqueue(**changes: Any) -> Receipt:
    message = flask_mail.Message("Hello", ["ada@example.com"], "Hello", "<p>Hello")
    for name, value in changes.items():
        setattr(message, name, value)
    return mailer.enqueue(message)


CALLS: Mapping[str, Callable[..., Receipt]] = {"send_email": send, "enqueue": enqueue}

#: The fields that take several lines.
BODIES = [
    Way("context", "send_email", lambda text: {"context": {"body": text}}, "template 'body."),
    Way("body", "enqueue", lambda text: {"body": text}, "body: "),
    Way("html", "enqueue", lambda text: {"html": text}, "html: "),
    Way("alternative", "enqueue", lambda text: {"alts": {"calendar": text}}, "alts['calendar']: "),
]


def attempt(ways: list[tuple[Way, str]]) -> Receipt | None:
    """Call with these texts in these fields; return None if the error names one of them."""
    changes: dict[str, Any] = {}
    try:
        for way, text in ways:
            changes |= way.changes(text)
        return CALLS[ways[0][0].door](**changes)
    except InvalidMail as error:
        said = str(error).replace("The mail has no recipient", "to: ")  # for an empty text
        assert any(said.startswith(way.refusal) for way, _text in ways), said[:500]
        return None


# --- what was heard -----------------------------------------------------------------------------

_ENVELOPE = re.compile(
    rb"MAIL FROM:<[^\x00-\x20<>]*>"
    rb"(?: SMTPUTF8| BODY=8BITMIME| SIZE=\d+)*(?P<mail_options>[^\r\n]*)\r\n"
    rb"RCPT TO:<(?P<recipient>[^\x00-\x20<>]*)>(?P<rcpt_options>[^\r\n]*)\r\n"
    rb"DATA\r\n"
)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_WRITTEN = {"Date", "From", "To", "Cc", "Reply-To", "Subject", "Message-ID", "MIME-Version"}
_OF_A_PART = {"Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID"}


def assert_harmless(heard: bytes, mails: list[tuple[str, Message]]) -> None:
    """Assert that the recorded bytes are one envelope and one mail for each recipient."""
    assert not _BARE.search(heard)
    for recipient, message in mails:
        envelope = _ENVELOPE.match(heard)
        assert envelope, heard[:500]
        assert envelope["recipient"].decode() == recipient
        assert envelope["mail_options"].decode() == "".join(
            f" {one}" for one in message.mail_options if not one.startswith("SIZE")
        )
        assert envelope["rcpt_options"].decode() == "".join(
            f" {one}" for one in message.rcpt_options
        )
        mail, end, heard = heard[envelope.end() :].partition(END_OF_MAIL)
        assert end
        assert_one_mail(re.sub(rb"(?m)^\.", b"", mail + b"\r\n"), message)
    assert heard == b""


def assert_one_mail(mail: bytes, message: Message) -> None:
    """Assert that a mail has each expected header once, and the expected number of parts."""
    head, _, _ = mail.partition(b"\r\n\r\n")
    names = [
        line.split(b":")[0].decode()
        for line in head.split(b"\r\n")
        if line[:1] not in (b" ", b"\t")
    ]
    own = {name for name, _value in message.headers}
    assert sorted(names) == sorted({*names})
    assert {*names} - _OF_A_PART == own | expected(message)
    assert max(map(len, mail.split(b"\r\n"))) <= 998

    parsed = message_from_bytes(mail, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert parsed.keys() == names
    leaves = [part for part in parsed.walk() if not part.is_multipart()]
    assert len(leaves) == 1 + (message.html is not None) + len(message.alternatives) + len(
        message.attachments
    )
    of_files = {name for one in message.attachments for name, _value in one.headers}
    for part in parsed.walk():
        assert part is parsed or set(part.keys()) <= _OF_A_PART | of_files
        assert part.defects == []


def expected(message: Message) -> set[str]:
    absent = {
        "Cc": not message.cc,
        "Reply-To": not message.reply_to,
        "To": not message.to and bool(message.cc),
    }
    return {name for name in _WRITTEN if not absent.get(name)}


def deliver(shop: Flask, recorder: Recorder, receipts: list[Receipt]) -> int:
    """Deliver all mail, check the recorded bytes, and return the number of mails in them."""
    before = len(recorder.heard)
    deliver_all(dispatcher_of(shop))
    heard = re.sub(rb"(?i)^ehlo [^\r\n]+\r\n", b"", recorder.heard[before:])
    arrived: list[tuple[str, Message]] = []
    for receipt in receipts:
        for copy in mailer.status(receipt.id):
            if copy.status is Status.SENT:
                arrived.append((copy.recipient, stored(shop, receipt)))
            else:  # by us: this relay cannot take such an address
                assert re.match(r"5\d\d 5\.", copy.reply or ""), copy
    assert_harmless(heard, arrived)
    return len(arrived)


# --- the corpus ---------------------------------------------------------------------------------


def test_every_payload_in_every_field(shop: Flask, recorder: Recorder) -> None:
    """Each hostile text in each field is refused, or arrives as plain text."""
    for way in WAYS_IN:
        receipts = [
            receipt for payload in PAYLOADS if (receipt := attempt([(way, payload)])) is not None
        ]
        arrived = deliver(shop, recorder, receipts)
        assert arrived == len(receipts) or not recorder.offers, way.name


def test_every_payload_in_every_body(shop: Flask, recorder: Recorder) -> None:
    """A body can hold any text but NUL and lone surrogates, and never ends its mail early."""
    allowed = [text for text in PAYLOADS if "\x00" not in text and "\ud800" not in text]
    for way in BODIES:
        receipts = [
            receipt for payload in PAYLOADS if (receipt := attempt([(way, payload)])) is not None
        ]

        assert deliver(shop, recorder, receipts) == len(allowed)


# --- the fuzzer ---------------------------------------------------------------------------------

fragments = st.sampled_from(
    [
        *PAYLOADS,
        *FORBIDDEN,
        "\r\n.\r\n",
        ".",
        "<",
        ">",
        "@",
        '"',
        "=?",
        "?=",
        ";",
        "ada@example.com",
        "ä",
        "🦊",
    ]
)
texts = st.lists(fragments | st.text(max_size=20), max_size=6).map("".join)


def several(ways: list[Way]) -> st.SearchStrategy[list[tuple[Way, str]]]:
    """Draw up to three texts, each for a field of the same call."""
    doors = {way.door: [one for one in ways if one.door == way.door] for way in ways}
    return st.sampled_from(sorted(doors)).flatmap(
        lambda door: st.lists(
            st.tuples(st.sampled_from(doors[door]), texts), min_size=1, max_size=3
        )
    )


@given(ways=several([*(way for way in WAYS_IN if way.name != "key"), *BODIES]))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_nothing_gets_through(shop: Flask, recorder: Recorder, ways: list[tuple[Way, str]]) -> None:
    """Random texts in several fields at once are refused or harmless."""
    receipt = attempt(ways)

    deliver(shop, recorder, [receipt] if receipt else [])
