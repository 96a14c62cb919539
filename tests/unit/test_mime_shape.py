"""The shape of a mail, for a relay and for code that expects a Flask-Mail message."""

import socket
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import flask_mail
import pytest

from mailer.message import Address, Attachment, Message, parse_addresses
from mailer.mime import WireMessage, compose

NOW = 1_790_000_000.0


def a_mail(**said: Any) -> Message:
    """Return a mail from Ada to Bob with these changes."""
    bob = Address("bob@example.com", "Bob")
    given = {
        "sender": Address("ada@example.com", "Ada"),
        "subject": "Hello",
        "text": "Hello\n",
        "html": None,
        "to": (bob,),
        **said,
    }
    return Message(id="1", message_id="<1@example.com>", created_at=NOW, **given)


def lines_of(mail: Message) -> list[bytes]:
    return compose(mail).as_bytes().split(b"\r\n")


def parsed(mail: Message) -> EmailMessage:
    return message_from_bytes(compose(mail).as_bytes(), policy=policy.default)


def letter(mail: Message, recipient: str = "bob@example.com") -> WireMessage:
    return WireMessage(mail, recipient, compose(mail))


# --- as it can be read --------------------------------------------------------------------------


def test_a_plain_mail_can_be_read_as_it_is() -> None:
    """A plain mail is written without any encoding."""
    assert compose(a_mail(text="Dear Bob,\n.\nyours, Ada")).as_bytes() == (
        b"Date: Mon, 21 Sep 2026 14:13:20 +0000\r\n"
        b"From: Ada <ada@example.com>\r\n"
        b"To: Bob <bob@example.com>\r\n"
        b"Subject: Hello\r\n"
        b"Message-ID: <1@example.com>\r\n"
        b"MIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"\r\n"
        b"Dear Bob,\r\n.\r\nyours, Ada\r\n"
    )


def test_the_parts_of_a_mail() -> None:
    """Text and HTML are alternatives; inline images belong to the HTML, files to the mail."""
    logo = Attachment("logo.png", b"logo", content_id="logo")
    report = Attachment("report.pdf", b"report")
    mail = a_mail(
        html="<img src='cid:logo'>",
        alternatives=(("calendar", "BEGIN:VCALENDAR"),),
        attachments=(report, logo),
    )

    assert outline(parsed(mail)) == [
        "multipart/mixed",
        [
            "multipart/alternative",
            ["text/plain"],
            ["multipart/related", ["text/html"], ["image/png"]],
            ["text/calendar"],
        ],
        ["application/pdf"],
    ]


def outline(part: EmailMessage) -> list[Any]:
    return [part.get_content_type(), *(outline(one) for one in part.iter_parts())]  # type: ignore[arg-type]  # parts are alike


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("Ihre Rechnung für November", b"Subject: =?utf-8?q?Ihre_Rechnung_f=C3=BCr_November?="),
        ("ご注文の確認", b"Subject: =?utf-8?b?44GU5rOo5paH44Gu56K66KqN?="),
        (
            "=? begins an encoded word in a header",
            b"Subject: =?utf-8?q?=3D=3F_begins_an_encoded_word_in_a_header?=",
        ),
        (" Hello ", b"Subject: =?utf-8?q?_Hello_?="),
        ("'Hello', (she) said; \"no\"", b"Subject: 'Hello', (she) said; \"no\""),
    ],
)
def test_a_subject_is_encoded_where_it_must_be(subject: str, line: bytes) -> None:
    """A subject is encoded only if it must be, in the more readable or shorter encoding."""
    assert lines_of(a_mail(subject=subject))[3] == line


def test_encoded_words_fit_their_lines() -> None:
    """Encoded words have at most 76 characters, and split no character (RFC 2047)."""
    lines = [
        line for line in lines_of(a_mail(subject="Ä" * 200 + "漢" * 200)) if b"=?utf-8?" in line
    ]

    assert max(map(len, lines)) <= 76
    for line in lines:
        [word] = line.removeprefix(b"Subject:").split()
        assert "\ufffd" not in str(
            message_from_bytes(b"Subject: " + word, policy=policy.default)["Subject"]
        )


def test_a_long_link_in_a_header() -> None:
    """A long link in a header is not encoded, since programs read it."""
    link = f"<https://example.com/stop?token={'x' * 800}>"

    assert f"List-Unsubscribe: {link}".encode() in lines_of(
        a_mail(headers=(("List-Unsubscribe", link),))
    )


def test_a_mail_to_hidden_recipients_only() -> None:
    """A mail with hidden recipients only has a To header, so that no relay adds one."""
    assert parsed(a_mail(to=()))["To"] == "undisclosed-recipients:;"


# --- types and names of parts -------------------------------------------------------------------


def test_an_invitation() -> None:
    """An invitation keeps its `method`, and has the charset in which it is written."""
    kind = "text/calendar; method=REQUEST; charset=us-ascii"

    assert b"Content-Type: text/calendar; method=REQUEST; charset=utf-8" in lines_of(
        a_mail(alternatives=((kind, "BEGIN:"),))
    )


def test_a_type_with_long_parameters() -> None:
    """Long parameters of a type are folded, and quoted ones stay unchanged."""
    kind = "".join(
        ["application/x-report", *(f';p{number}="{"; x=" * 31}"' for number in range(4))]
    )
    lines = lines_of(a_mail(attachments=(Attachment("report", b"", kind),)))
    [part] = parsed(a_mail(attachments=(Attachment("report", b"", kind),))).iter_attachments()

    assert max(map(len, lines)) < 200
    assert dict(part["Content-Type"].params) == {f"p{number}": "; x=" * 31 for number in range(4)}


def test_a_name_of_a_file_that_looks_encoded() -> None:
    """A file name that looks like an encoded word is written in the RFC 2231 form."""
    assert b"Content-Disposition: attachment; filename*=utf-8''%3D%3FQ%3F%3D" in lines_of(
        a_mail(attachments=(Attachment("=?Q?=", b"", "image/png"),))
    )


# --- beyond ASCII -------------------------------------------------------------------------------

GERMAN = "Schöne Grüße\n"
JAPANESE = "ご注文ありがとうございます。\n"


@pytest.mark.parametrize(
    ("text", "with_8bitmime", "without"),
    [
        ("Hello\n", "7bit", "7bit"),
        (GERMAN + "as it is said here, and read everywhere\n", "8bit", "quoted-printable"),
        (JAPANESE, "8bit", "base64"),
        ("x" * 2000, "quoted-printable", "quoted-printable"),
        (GERMAN + "x" * 2000, "quoted-printable", "quoted-printable"),
        (JAPANESE * 100 + "漢" * 2000, "base64", "base64"),
        ("\x1b[1mHello", "base64", "base64"),
    ],
)
def test_a_body_travels_in_the_plainest_way_there_is(
    text: str, with_8bitmime: str, without: str
) -> None:
    """A body's encoding is the simplest that its text and the relay allow."""
    composed = compose(a_mail(text=text))

    for eightbit, expected in ((True, with_8bitmime), (False, without)):
        mail = message_from_bytes(
            composed.form(eightbit=eightbit).as_bytes(), policy=policy.default
        )
        assert mail["Content-Transfer-Encoding"] == expected
        assert mail.get_content().replace("\r\n", "\n").rstrip("\n") == text.rstrip("\n")


@pytest.mark.parametrize("text", ["Hello", GERMAN])
def test_the_bytes_are_made_once_for_all_recipients(text: str) -> None:
    """All recipients of a mail share its bytes, in each of its forms."""
    composed = compose(a_mail(text=text))
    letters = [
        WireMessage(a_mail(text=text), recipient, composed)
        for recipient in ("bob@example.com", "eve@example.com")
    ]

    assert letters[0].wire(eightbit=True) is letters[1].wire(eightbit=True)
    assert letters[0].wire(eightbit=False) is letters[1].wire(eightbit=False)
    assert (letters[0].wire(eightbit=False) is letters[0].wire(eightbit=True)) == text.isascii()


def test_dots_at_the_start_of_lines_are_doubled_once() -> None:
    """Dots at the start of lines are doubled on the wire, and only there."""
    mail = letter(a_mail(text=".\n..\nend\n.end"))

    assert mail.wire(eightbit=True).endswith(b"\r\n\r\n..\r\n...\r\nend\r\n..end\r\n.\r\n")
    assert mail.as_bytes().endswith(b"\r\n\r\n.\r\n..\r\nend\r\n.end\r\n")


def test_an_address_beyond_ascii_stays_as_it_is() -> None:
    """A non-ASCII address stays as it is (RFC 6532), and only it needs SMTPUTF8."""
    mail = a_mail(to=(Address("jürgen@example.com", "Jürgen"),))
    plain = a_mail(to=(Address("juergen@example.com", "Jürgen"),), subject="Grüße", text="Grüße")

    assert "<jürgen@example.com>" in compose(mail).as_bytes().decode()
    assert letter(mail).needs_smtputf8
    assert letter(mail).is_8bit(eightbit=True)
    assert not letter(plain).needs_smtputf8
    assert letter(plain, "jürgen@example.com").needs_smtputf8
    assert letter(a_mail(envelope_from="jürgen@example.com")).needs_smtputf8


def test_a_domain_beyond_ascii_needs_no_smtputf8() -> None:
    """A non-ASCII domain is written in ASCII, and needs no SMTPUTF8."""
    [sender, bob] = parse_addresses(["Ada <ada@bücher.example>", "bob@例え.example"], field="to")
    mail = letter(a_mail(sender=sender, to=(bob,)), bob.email)

    assert not mail.needs_smtputf8
    assert (mail.envelope_from, mail.recipient) == (
        "ada@xn--bcher-kva.example",
        "bob@xn--r8jz45g.example",
    )
    assert (
        b"From: Ada <ada@xn--bcher-kva.example>\r\nTo: bob@xn--r8jz45g.example\r\n"
        in mail.as_bytes()
    )


def test_sender_is_written_like_from() -> None:
    """The header Sender is written as a mailbox: its name is encoded, and its address is not."""
    mail = a_mail(headers=(("Sender", str(Address("robot@example.com", "Zoë, a robot"))),))

    assert b"Sender: =?utf-8?b?Wm/DqywgYSByb2JvdA==?=\r\n <robot@example.com>" in (
        compose(mail).as_bytes()
    )
    [sender] = parsed(mail)["Sender"].addresses
    assert (sender.display_name, sender.addr_spec) == ("Zoë, a robot", "robot@example.com")


# --- as Flask-Mail sees it ----------------------------------------------------------------------


def test_the_shape_that_flask_mail_knows() -> None:
    """Receivers of `email_dispatched` get a Flask-Mail message with all its attributes."""
    report = Attachment("report.pdf", b"report", headers=(("X-Origin", "tests"),))
    logo = Attachment("logo.png", b"logo", content_id="logo")
    mail = a_mail(
        html="<p>Hello</p>",
        cc=(Address("eve@example.com"),),
        reply_to=(Address("joe@example.com", "Joe, the first"),),
        headers=(("X-Tag", "1"),),
        attachments=(report, logo),
        alternatives=(("calendar", "BEGIN:"),),
        mail_options=("RET=HDRS",),
    )
    wire = letter(mail, "eve@example.com")

    assert isinstance(wire, flask_mail.Message)
    assert (wire.subject, wire.body, wire.html) == ("Hello", "Hello\n", "<p>Hello</p>")
    assert wire.alts == {"calendar": "BEGIN:", "html": "<p>Hello</p>"}
    assert (wire.sender, wire.recipients, wire.cc, wire.bcc) == (
        "Ada <ada@example.com>",
        ["Bob <bob@example.com>"],
        ["eve@example.com"],
        [],
    )
    assert wire.reply_to == '"Joe, the first" <joe@example.com>'
    assert (wire.send_to, wire.msgId, wire.date, wire.charset) == (
        {"eve@example.com"},
        "<1@example.com>",
        NOW,
        None,
    )
    assert (wire.extra_headers, wire.mail_options, wire.rcpt_options) == (
        {"X-Tag": "1"},
        ["RET=HDRS"],
        [],
    )
    assert [(one.filename, one.data, one.headers) for one in wire.attachments] == [
        ("report.pdf", b"report", {"X-Origin": "tests"}),
        ("logo.png", b"logo", {"Content-ID": "<logo>"}),
    ]
    assert wire.as_bytes() == compose(mail).as_bytes()
    assert wire.as_string() == compose(mail).as_bytes().decode()


def test_flask_mail_would_set_nothing_else() -> None:
    """A message on the wire has each attribute of a Flask-Mail message."""
    attributes = vars(flask_mail.Message("Hello", sender="ada@example.com"))

    assert [name for name in attributes if not hasattr(letter(a_mail()), name)] == []


def test_a_message_is_as_changeable_as_that_of_flask_mail() -> None:
    """A receiver may change attributes of the message."""
    wire = letter(a_mail())
    wire.recipients.append("eve@example.com")
    wire.subject = "Noted"

    assert (wire.recipients, wire.subject) == (
        ["Bob <bob@example.com>", "eve@example.com"],
        "Noted",
    )


def test_an_attribute_that_is_not_there() -> None:
    """An unknown attribute raises AttributeError."""
    with pytest.raises(AttributeError, match="nonsense"):
        letter(a_mail()).nonsense  # noqa: B018
    assert not hasattr(letter(a_mail()), "nonsense")


def test_a_delivery_asks_no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a message looks up no host name, which Flask-Mail does for each message."""

    def refuse(*_arguments: object) -> str:
        raise AssertionError("the DNS was asked")

    monkeypatch.setattr(socket, "getfqdn", refuse)

    assert letter(a_mail(text="Hello")).msgId == "<1@example.com>"
