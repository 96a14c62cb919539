"""MIME: the standard library's parser reads exactly what `compose()` was given."""

import re
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
from tests.generated_mails import NOW, mails


def written(message: Message, *, eightbit: bool) -> bytes:
    return compose(message).form(eightbit=eightbit).as_bytes()


def parse(mail: bytes) -> EmailMessage:
    return message_from_bytes(mail, policy=policy.default)


# --- what must be true of every mail ------------------------------------------------------------


def the_wire_format(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that lines end in CRLF and have at most 998 octets."""
    assert mail.endswith(b"\r\n")
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", mail)
    assert max(map(len, mail.split(b"\r\n"))) <= 998
    assert b"\x00" not in mail
    assert mail.partition(b"\r\n\r\n")[0].isascii()


def a_part_says_how_it_is_encoded(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that a part declares 8bit exactly if it has non-ASCII content (RFC 2045, 6.4)."""
    for part in parsed.walk():
        declared = str(part["Content-Transfer-Encoding"] or "7bit")
        leaves = [one for one in part.walk() if not one.is_multipart()]
        holds_more = not all(str(leaf.get_payload()).isascii() for leaf in leaves)
        assert (declared == "8bit") == holds_more


def the_headers(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that all headers arrive unchanged and in order, and no others (such as Bcc)."""
    ours = ["Date", "From"]
    ours += ["To"] if message.to or not message.cc else []
    ours += ["Cc"] if message.cc else []
    ours += ["Reply-To"] if message.reply_to else []
    ours += [
        "Subject",
        "Message-ID",
        *(name for name, _ in message.headers),
        "MIME-Version",
        "Content-Type",
    ]
    assert [name for name in parsed if name != "Content-Transfer-Encoding"] == ours
    assert parsed["Subject"] == message.subject
    assert parsed["Message-ID"] == message.message_id
    assert parsed["Date"].datetime.timestamp() == NOW
    assert [str(value) for name, value in parsed.items() if name.startswith("X-")] == [
        value for _, value in message.headers
    ]


def the_addresses(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that addresses and their names arrive unchanged."""
    # The new parser leaves blanks between the encoded words of a name
    # (https://github.com/python/cpython/issues/128110).
    parsed_as_of_old = message_from_bytes(mail)

    for header, said in {
        "From": (message.sender,),
        "To": message.to,
        "Cc": message.cc,
        "Reply-To": message.reply_to,
    }.items():
        found = parsed[header].addresses if parsed[header] is not None else ()
        assert [one.addr_spec for one in found] == [one.email for one in said]
        pairs = getaddresses(parsed_as_of_old.get_all(header, []))
        names = [str(make_header(decode_header(name))) for name, email in pairs if email]
        assert [name.split() for name in names] == [one.name.split() for one in said]


def the_bodies(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that the bodies arrive unchanged but for their line ends."""
    bodies = [
        (part.get_content_type(), part)
        for part in parsed.walk()
        if not part.is_multipart() and not is_file(part)
    ]
    said = [("text/plain", message.text), ("text/html", message.html)]
    said += [
        (f"text/{kind}" if "/" not in kind else kind.partition(";")[0], text)
        for kind, text in message.alternatives
    ]
    assert [kind for kind, _ in bodies] == [kind for kind, text in said if text is not None]
    assert [in_lines(part.get_content()) for _, part in bodies] == [
        in_lines(text) for _, text in said if text is not None
    ]


def the_attachments(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that attachments arrive with the same bytes, names and ids."""
    sent = [
        (one.content_type.partition(";")[0], one.filename, one.data, one.content_id, one.headers)
        for one in message.attachments
    ]
    assert sorted(map(file_in, filter(is_file, parsed.walk())), key=repr) == sorted(sent, key=repr)


def file_in(part: EmailMessage) -> tuple[Any, ...]:
    filename = part["Content-Disposition"].params.get("filename")
    content_id = str(part["Content-ID"]).strip("<>") if part["Content-ID"] else None
    headers = tuple((name, str(value)) for name, value in part.items() if name.startswith("X-"))
    return part.get_content_type(), filename, part.get_payload(decode=True), content_id, headers


def is_file(part: EmailMessage) -> bool:
    return part["Content-Disposition"] is not None


def in_lines(text: str) -> str:
    """Return the text with Python's line ends, and one at its end."""
    found = re.sub(r"\r\n|\r", "\n", text)
    return found if found.endswith("\n") else found + "\n"


def the_same_mail_is_written_in_the_same_way(
    message: Message, mail: bytes, parsed: EmailMessage
) -> None:
    """Assert that composing the mail again gives the same bytes."""
    assert any(mail == written(message, eightbit=eightbit) for eightbit in (False, True))


def what_each_relay_is_told_and_given(message: Message, mail: bytes, parsed: EmailMessage) -> None:
    """Assert that each relay gets a form it can take, its exact size, and escaped dots."""
    letter = WireMessage(message, "bob@example.com", compose(message))

    assert letter.wire(eightbit=False).isascii()
    assert not letter.is_8bit(eightbit=False)
    assert letter.is_8bit(eightbit=True) == (not letter.wire(eightbit=True).isascii())
    for eightbit in (False, True):
        mail, wire = written(message, eightbit=eightbit), letter.wire(eightbit)
        assert letter.size(eightbit) == len(mail)
        assert wire.index(b"\r\n.\r\n") == len(wire) - 5
        assert (
            b"".join(
                line[1:] if line.startswith(b".") else line
                for line in wire[:-3].splitlines(keepends=True)
            )
            == mail
        )
    assert letter.as_bytes() == written(message, eightbit=False)


RULES = [
    the_wire_format,
    a_part_says_how_it_is_encoded,
    the_headers,
    the_addresses,
    the_bodies,
    the_attachments,
    the_same_mail_is_written_in_the_same_way,
    what_each_relay_is_told_and_given,
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mails, st.booleans())
def test_every_mail(message: Message, eightbit: bool) -> None:
    """Each rule holds for any mail, in its 8-bit and its 7-bit form.

    The rules share one test because generating a mail takes longer than checking it.
    """
    mail = written(message, eightbit=eightbit)
    parsed = parse(mail)
    for rule in RULES:
        rule(message, mail, parsed)


# --- what only a program writes -----------------------------------------------------------------

LONG = [
    "word " * 500 + "end",
    "a" + " " * 2000 + "b",
    "x" * 2000,
    '"' * 2000,
    ("y" * 490 + " " * 390) * 3 + "z",
    "ü" * 2000,
]


@pytest.mark.parametrize("eightbit", [False, True])
@pytest.mark.parametrize("text", LONG, ids=lambda text: repr(text[:2]))
def test_long_lines(text: str, eightbit: bool) -> None:
    """Very long lines in headers, names and bodies are folded and arrive unchanged."""
    people = (Address("eve@example.com", text), Address("joe@example.com", text))
    file = Attachment(text, b"", headers=(("X-" + "h" * 62, text),))
    message = Message(
        id="1",
        message_id="<1@example.com>",
        created_at=NOW,
        sender=people[0],
        subject=text,
        text=text,
        html=None,
        to=people,
        headers=(("X-" + "h" * 62, text),),
        attachments=(file,),
    )
    mail = written(message, eightbit=eightbit)

    assert max(map(len, mail.split(b"\r\n"))) <= 998
    assert parse(mail)["Subject"] == text
    assert parse(mail)["X-" + "h" * 62] == text
    assert [one.addr_spec for one in parse(mail)["To"].addresses] == [
        "eve@example.com",
        "joe@example.com",
    ]


@pytest.mark.parametrize("size", range(985, 1000))
def test_a_line_of_text_just_as_long_as_it_may_be(size: int) -> None:
    """Lines just below and above the limit of 998 octets arrive unchanged."""
    text = "a" * size + "\nshort\n" + "b" * size
    message = Message(
        id="1",
        message_id="<1@example.com>",
        created_at=NOW,
        sender=Address("ada@example.com"),
        subject="",
        text=text,
        html=None,
        to=(),
    )
    mail = written(message, eightbit=True)

    assert max(map(len, mail.split(b"\r\n"))) <= 998
    assert in_lines(parse(mail).get_content()) == in_lines(text)
