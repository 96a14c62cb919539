"""Any mail of an application is refused, or exactly this mail is sent."""

import re
from collections.abc import Collection, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast

import flask_mail

from mailer.clock import SystemClock
from mailer.content import Renderer
from mailer.errors import InvalidMail
from mailer.intake import Intake, Options
from mailer.message import Envelope, Lane, Message
from mailer.mime import WireMessage, compose
from mailer.settings import Settings
from mailer.smtp.envelope import Offers, envelope_of
from mailer.store import Store
from tests.fuzz.bytes import Bytes

_SETTINGS = Settings.load({}, {}, default_database_url="sqlite://")
_OFFERS = Offers(
    extended=True, pipelining=True, eightbit=True, smtputf8=True, size=True, max_octets=0
)
#: Bytes that a lenient server might take for the end of a mail or of a line.
_SMUGGLED = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_ENVELOPE = re.compile(
    rb"MAIL FROM:<[^\r\n<>]*>[^\r\n]*\r\nRCPT TO:<[^\r\n<>]*>[^\r\n]*\r\nDATA\r\n"
)
_TYPES = ["application/pdf", "text/plain", "text/calendar; method=REQUEST", "image/png", ""]


class Shelf:
    """A stand-in for the store that keeps the last mail. A database would take all the time."""

    message: Message
    envelope: Envelope

    def insert_mail(self, message: Message, envelope: Envelope, host: object) -> None:
        self.message, self.envelope = message, envelope


class Silence:
    def ring(
        self,
        mails: Collection[str] = (),
        *,
        lanes: Collection[Lane] = (Lane.NORMAL,),
        urge: bool = False,
    ) -> bool:
        return not urge

    def answer(self, queue: str = "") -> None:
        pass


def serialise(data: bytes) -> None:
    """Queue a mail and check its bytes."""
    source = Bytes(data)
    mail, options, bounce = (
        _mail(source),
        Options(tags=[source.text()]),
        source.pick([None, "bounces@example.com", source.text()]),
    )
    shelf = Shelf()
    intake = Intake(_SETTINGS, cast(Store, shelf), cast(Renderer, None), Silence(), SystemClock())
    try:
        intake.enqueue(mail, options, envelope_from=bounce)
    except InvalidMail:
        return
    composed = compose(shelf.message)
    for recipient in shelf.envelope.recipients:
        letter = WireMessage(shelf.message, recipient, composed)
        for eightbit in (False, True):
            _check_wire(letter, eightbit)
            _check_content(shelf.message, composed.form(eightbit=eightbit).as_bytes())
        commands = envelope_of(letter, _OFFERS)
        assert isinstance(commands, bytes), commands
        assert _ENVELOPE.fullmatch(commands), commands


def _mail(source: Bytes) -> flask_mail.Message:
    mail = flask_mail.Message(
        subject=source.text(),
        sender=source.pick(["ada@example.com", source.text() or "<>"]),
        recipients=[*_addresses(source)],
        cc=[*_addresses(source)],
        bcc=[*_addresses(source)],
        reply_to=source.pick([None, "ada@example.com", source.text()]),
        body=source.text() * source.pick([1, 1, 1, 9]),
        html=source.pick([None, source.text()]),
        extra_headers={source.pick(["X-Tag", "List-Id", source.text()]): source.text()}
        if source.number(2)
        else None,
        mail_options=source.pick([[], [source.text()]]),
        rcpt_options=source.pick([[], [source.text()]]),
    )
    if source.number(2):
        mail.alts = {source.pick(["calendar", source.text()]): source.text()}
    if source.number(4) == 0:
        mail.msgId = source.text()
    if source.number(2):
        mail.attachments = [_attachment(source)]
    return mail


def _addresses(source: Bytes) -> Iterator[Any]:
    for _ in range(source.number(3)):
        email = source.pick(["bob@example.com", source.text()])
        yield source.pick([email, (source.text(), email), f"{source.text()} <{email}>"])


def _attachment(source: Bytes) -> flask_mail.Attachment:
    kind = source.pick([*_TYPES, source.text()])
    headers = (
        {source.pick(["Content-ID", "X-Part", source.text()]): source.text()}
        if source.number(2)
        else None
    )
    return flask_mail.Attachment(
        source.text(),
        kind,
        source.piece(),
        source.pick(["attachment", "inline", source.text()]),
        headers,
    )


def _check_wire(letter: WireMessage, eightbit: bool) -> None:
    """Check that only line ends and doubled dots differ from the mail itself."""
    wire = letter.wire(eightbit)
    assert not _SMUGGLED.search(wire)
    assert wire.index(b"\r\n.\r\n") == len(wire) - 5
    lines = wire[:-3].split(b"\r\n")
    assert max(map(len, lines)) <= 999  # 998 and a doubled dot
    mail = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)
    assert letter.size(eightbit) == len(mail)
    assert eightbit or mail.isascii()


def _check_content(message: Message, mail: bytes) -> None:
    """Check that the headers and files are those of the message, and no others."""
    parsed = message_from_bytes(mail, policy=policy.default)
    assert [name for name in parsed if name != "Content-Transfer-Encoding"] == [*_headers(message)]
    assert parsed["Subject"] == message.subject
    for name, said in {
        "From": (message.sender,),
        "To": message.to,
        "Cc": message.cc,
        "Reply-To": message.reply_to,
    }.items():
        found = parsed[name].addresses if parsed[name] is not None else ()
        assert [one.addr_spec for one in found] == [one.email for one in said], name
    files = [part for part in parsed.walk() if part["Content-Disposition"] is not None]
    assert [_payload(file) for file in files] == [one.data for one in message.attachments]


def _payload(part: EmailMessage) -> object:
    return part.get_payload(decode=True)


def _headers(message: Message) -> Iterator[str]:
    yield from ("Date", "From")
    if message.to or not message.cc:
        yield "To"
    if message.cc:
        yield "Cc"
    if message.reply_to:
        yield "Reply-To"
    yield from (
        "Subject",
        "Message-ID",
        *(name for name, _ in message.headers),
        "MIME-Version",
        "Content-Type",
    )
