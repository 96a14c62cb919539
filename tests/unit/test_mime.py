"""Whatever is said arrives as it was said: what `compose()` writes, the parser of the standard library reads."""

import re
import socket
from collections.abc import Callable
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailer.message import Address, Attachment, Message
from mailer.mime import WireMessage, compose

NOW = 1_790_000_000.0

# --- mails that can be said -------------------------------------------------------------------------------------------

SCRIPTS = "äßñœŁ ΑΩ Жя אב نص हिन्दी ไทย 漢字 한국 😀👩‍🚀 e\u0301 \u00a0\u00ad\u200b\u200f\ufeff"
ASCII = "ab YZ 09 ()<>[]{}:;@\\,.\"'=?_%#&+-/*~|^$!` "


def texts(signs: str, **letters: Any) -> st.SearchStrategy[str]:
    """In many scripts, and some of them as long as only a program makes them."""
    plain, any_script = st.sampled_from(ASCII + signs), st.sampled_from(ASCII + SCRIPTS + signs)
    short = st.text(plain) | st.text(any_script) | st.text(st.characters(codec="utf-8", **letters))
    return short | st.builds(lambda text, times: (text * times)[:3000], short, st.integers(2, 1000))


headers = texts("", exclude_categories=["Cc", "Zl", "Zp"])
bodies = texts("\r\n\n\n", exclude_characters="\x00")
emails = st.from_regex(r"[a-z0-9]([a-z0-9+_-]{0,20}[a-z0-9])?@[a-z][a-z0-9]{0,20}\.example", fullmatch=True)
addresses = st.builds(Address, emails, headers)
several = st.lists(addresses, max_size=4).map(tuple)
files = st.builds(
    Attachment,
    filename=st.none() | headers,
    data=st.binary(max_size=200),
    content_type=st.sampled_from(["image/png", "application/pdf", "text/csv"]),
    content_id=st.none() | st.from_regex(r"[A-Za-z0-9._@+-]{1,30}", fullmatch=True),
    headers=st.lists(st.tuples(st.just("X-Origin"), headers), max_size=1).map(tuple),
)
mails = st.builds(
    Message,
    id=st.just("01a0c4506c00c123b665648374ce97c1"),
    message_id=st.just("<01a0c4506c00c123b665648374ce97c1@example.com>"),
    created_at=st.just(NOW),
    sender=addresses,
    subject=headers,
    text=bodies,
    html=st.none() | bodies,
    to=several,
    cc=several,
    reply_to=several,
    headers=st.lists(st.tuples(st.from_regex(r"X-[A-Za-z0-9-]{1,62}", fullmatch=True), headers), max_size=3).map(tuple),
    alternatives=st.lists(st.tuples(st.sampled_from(["calendar", "text/x-amp-html"]), bodies), max_size=2).map(tuple),
    attachments=st.lists(files, max_size=3).map(tuple),
)


def of_every_mail(rule: Callable[[Message], None]) -> Callable[[], None]:
    """Try the rule on many mails, without hurry: another test may want the processor as well."""
    patiently = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    return patiently(given(mails)(rule))


def parse(mail: bytes) -> EmailMessage:
    return message_from_bytes(mail, policy=policy.default)


# --- what must be true of every mail ----------------------------------------------------------------------------------


@of_every_mail
def test_the_wire_format(message: Message) -> None:
    """Lines end in CRLF, have at most 998 octets and are ASCII; nobody in between may need to repair anything."""
    mail = compose(message)

    assert mail.isascii()
    assert mail.endswith(b"\r\n")
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", mail)
    assert max(map(len, mail.split(b"\r\n"))) <= 998
    assert b"\x00" not in mail


@of_every_mail
def test_the_headers(message: Message) -> None:
    """The same names and values, in order, and no other: Bcc least of all."""
    mail = parse(compose(message))

    ours = ["Date", "From"]
    ours += ["To"] if message.to or not message.cc else []
    ours += ["Cc"] if message.cc else []
    ours += ["Reply-To"] if message.reply_to else []
    ours += ["Subject", "Message-ID", *(name for name, _ in message.headers), "MIME-Version", "Content-Type"]
    assert [name for name in mail if name != "Content-Transfer-Encoding"] == ours
    assert mail["Subject"] == message.subject
    assert mail["Message-ID"] == message.message_id
    assert mail["Date"].datetime.timestamp() == NOW
    assert [str(value) for name, value in mail.items() if name.startswith("X-")] == [value for _, value in message.headers]


@of_every_mail
def test_the_addresses(message: Message) -> None:
    """Names in any script, and nothing in a name becomes an address of its own."""
    mail = parse(compose(message))
    # The new parser leaves blanks between the encoded words of a name (https://github.com/python/cpython/issues/128110).
    old_mail = message_from_bytes(compose(message))

    for name, addresses in {"From": (message.sender,), "To": message.to, "Cc": message.cc, "Reply-To": message.reply_to}.items():
        found = mail[name].addresses if mail[name] is not None else ()
        assert [one.addr_spec for one in found] == [one.email for one in addresses]
        names = [str(make_header(decode_header(one))) for one, email in getaddresses(old_mail.get_all(name, [])) if email]
        assert [name.split() for name in names] == [one.name.split() for one in addresses]


@of_every_mail
def test_the_bodies(message: Message) -> None:
    """The same text, but for the line ends, which are CRLF, and the last line, which has one too."""
    mail = parse(compose(message))

    bodies = [(part.get_content_type(), part) for part in mail.walk() if not part.is_multipart() and not is_file(part)]
    said = [("text/plain", message.text), ("text/html", message.html)]
    said += [(kind if "/" in kind else f"text/{kind}", text) for kind, text in message.alternatives]
    assert [kind for kind, _ in bodies] == [kind for kind, text in said if text is not None]
    assert [in_lines(part.get_content()) for _, part in bodies] == [in_lines(text) for _, text in said if text is not None]


@of_every_mail
def test_the_attachments(message: Message) -> None:
    """The same bytes under the same names; inline images are found by their id."""
    mail = parse(compose(message))

    sent = [(one.content_type, one.filename, one.data, one.content_id, one.headers) for one in message.attachments]
    assert sorted(map(file_in, filter(is_file, mail.walk())), key=repr) == sorted(sent, key=repr)


def file_in(part: EmailMessage) -> tuple[Any, ...]:
    filename = part["Content-Disposition"].params.get("filename")
    content_id = str(part["Content-ID"]).strip("<>") if part["Content-ID"] else None
    headers = tuple((name, str(value)) for name, value in part.items() if name.startswith("X-"))
    return part.get_content_type(), filename, part.get_payload(decode=True), content_id, headers


def is_file(part: EmailMessage) -> bool:
    return part["Content-Disposition"] is not None


def in_lines(text: str) -> str:
    """With line ends as they are in Python, the last line's too."""
    found = re.sub(r"\r\n|\r", "\n", text)
    return found if found.endswith("\n") else found + "\n"


LONG = ["word " * 500 + "end", "a" + " " * 2000 + "b", "x" * 2000, '"' * 2000, ("y" * 490 + " " * 390) * 3 + "z", "ü" * 2000]


@pytest.mark.parametrize("text", LONG, ids=lambda text: repr(text[:2]))
def test_long_lines(text: str) -> None:
    """What only a program writes, and always finds the way to."""
    people = (Address("eve@example.com", text), Address("joe@example.com", text))
    file = Attachment(text, b"", headers=(("X-" + "h" * 62, text),))
    mail = compose(a_mail(subject=text, text=text, to=people, headers=(("X-" + "h" * 62, text),), attachments=(file,)))

    assert max(map(len, mail.split(b"\r\n"))) <= 998
    assert parse(mail)["Subject"] == text
    assert [one.addr_spec for one in parse(mail)["To"].addresses] == ["eve@example.com", "joe@example.com"]


# --- what a mail looks like -------------------------------------------------------------------------------------------


def a_mail(**said: Any) -> Message:
    """To Bob from Ada, and what else is said."""
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


def test_a_plain_mail_can_be_read_as_it_is() -> None:
    """Nothing is encoded that need not be."""
    assert compose(a_mail(text="Dear Bob,\n.\nyours, Ada")) == (
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
    """Text and html are alternatives, an inline image belongs to the html, a file to the whole."""
    logo = Attachment("logo.png", b"logo", content_id="logo")
    report = Attachment("report.pdf", b"report")
    mail = a_mail(html="<img src='cid:logo'>", alternatives=(("calendar", "BEGIN:VCALENDAR"),), attachments=(report, logo))

    assert outline(parse(compose(mail))) == [
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


def test_a_mail_to_hidden_recipients_only() -> None:
    """It has a To header all the same, or a relay would write one, with the hidden recipient in it."""
    assert parse(compose(a_mail(to=())))["To"] == "undisclosed-recipients:;"


def test_an_address_beyond_ascii_stays_as_it_is() -> None:
    """RFC 6532; the relay is asked for SMTPUTF8 then, and only then."""
    mail = a_mail(to=(Address("jürgen@example.com", "Jürgen"),))
    plain = a_mail(to=(Address("juergen@example.com", "Jürgen"),), subject="Grüße", text="Grüße")

    assert "<jürgen@example.com>" in compose(mail).decode()
    assert WireMessage(mail, "bob@example.com", compose(mail)).needs_smtputf8
    assert not WireMessage(plain, "bob@example.com", compose(plain)).needs_smtputf8
    assert WireMessage(plain, "jürgen@example.com", compose(plain)).needs_smtputf8


def test_the_shape_that_flask_mail_knows() -> None:
    """Who listens to `email_dispatched` finds a message, for the one recipient it went to."""
    report = Attachment("report.pdf", b"report", headers=(("X-Origin", "tests"),))
    mail = a_mail(html="<p>Hello</p>", cc=(Address("eve@example.com"),), headers=(("X-Tag", "1"),), attachments=(report,))
    wire = WireMessage(mail, "eve@example.com", compose(mail))

    assert (wire.subject, wire.body, wire.html, wire.alts) == ("Hello", "Hello\n", "<p>Hello</p>", {"html": "<p>Hello</p>"})
    assert (wire.cc, wire.send_to, wire.msgId, wire.date) == (["eve@example.com"], {"eve@example.com"}, "<1@example.com>", NOW)
    assert wire.extra_headers == {"X-Tag": "1"}
    [attached] = wire.attachments
    assert (attached.filename, attached.data, attached.headers) == ("report.pdf", b"report", {"X-Origin": "tests"})
    assert wire.as_bytes() == compose(mail)
    assert wire.as_string() == compose(mail).decode()


def test_a_delivery_asks_no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flask-Mail looks up this machine's name for every message; where DNS is slow that takes seconds, for each recipient."""

    def refuse(*_arguments: object) -> str:
        raise AssertionError("the DNS was asked")

    monkeypatch.setattr(socket, "getfqdn", refuse)
    letter = WireMessage(a_mail(text="Hello"), "ada@example.com", b"")

    assert letter.msgId == "<1@example.com>"
