"""The parts of a mail: addresses, headers, bodies and attachments are checked on entry."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailer.errors import InvalidAddress, InvalidAttachment, InvalidHeader, InvalidMail
from mailer.message import (
    Address,
    Attachment,
    check_body,
    check_headers,
    check_text,
    new_id,
    new_message_id,
    parse_addresses,
)
from tests.injections import FORBIDDEN, injected

# --- addresses -----------------------------------------------------------------------------------

ADA = Address("ada@example.com")


@pytest.mark.parametrize(
    ("given", "email", "name"),
    [
        ("ada@example.com", "ada@example.com", ""),
        (" ada@example.com ", "ada@example.com", ""),
        ("<ada@example.com>", "ada@example.com", ""),
        ("Ada <ada@example.com>", "ada@example.com", "Ada"),
        ("Ada Lovelace  < ada@example.com > ", "ada@example.com", "Ada Lovelace"),
        ("Lovelace, Ada <ada@example.com>", "ada@example.com", "Lovelace, Ada"),
        ('"Lovelace, Ada" <ada@example.com>', "ada@example.com", "Lovelace, Ada"),
        (r'"Ada \"the first\" L." <ada@example.com>', "ada@example.com", 'Ada "the first" L.'),
        ('Ada "the first" L. <ada@example.com>', "ada@example.com", 'Ada "the first" L.'),
        ('"<ada>" <ada@example.com>', "ada@example.com", "<ada>"),
        ("ada@example.com <ada@example.com>", "ada@example.com", "ada@example.com"),
        ("Zoë 🦊 <zoe@example.com>", "zoe@example.com", "Zoë 🦊"),
        (("Ada", "ada@example.com"), "ada@example.com", "Ada"),
        ((None, "ada@example.com"), "ada@example.com", ""),
        (Address("ada@example.com", "Ada"), "ada@example.com", "Ada"),
        ("Ada@EXAMPLE.com", "Ada@example.com", ""),
        ("ada@bücher.example", "ada@xn--bcher-kva.example", ""),
        ("ада@example.com", "ада@example.com", ""),
        ("root@localhost", "root@localhost", ""),
        ("ada@office.local", "ada@office.local", ""),
        ("ada@shop.test", "ada@shop.test", ""),
    ],
)
def test_ways_to_write_an_address(given: str, email: str, name: str) -> None:
    """An address is a text with or without a name; its domain is converted to ASCII."""
    assert Address.parse(given, field="to") == Address(email, name)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", "must have an @-sign"),
        ("ada", "must have an @-sign"),
        ("@example.com", "before the @-sign"),
        ("ada@", "after the @-sign"),
        ("ada@example", "should have a period"),
        ("ada@example..com", "two periods in a row"),
        ("ada@exam ple.com", "SPACE"),
        ("ada lovelace@example.com", "SPACE"),
        ("ada@[127.0.0.1]", "bracketed IP address"),
        ("a" * 65 + "@example.com", "too long"),
        ("ada@example.invalid", "special-use"),
        ("Ada <ada>", "must have an @-sign"),
        ("Ada <ada@example.com", "not a usable address"),
        ("ada@xn--a.example", "not a usable address"),
    ],
)
def test_an_unusable_address_is_refused(given: str, why: str) -> None:
    """The error for a bad address names its field and the reason."""
    with pytest.raises(InvalidAddress, match=why) as refusal:
        Address.parse(given, field="reply_to")

    assert str(refusal.value).startswith("reply_to: ")


@pytest.mark.parametrize(
    "given",
    [
        "ada@example.com, bob@example.com",
        "ada@example.com;bob@example.com",
        "ada@example.com, Bob <bob@example.com>",
        "Ada <ada@example.com>, Bob <bob@example.com>",
        '"Ada" <ada@example.com>; "Bob" <bob@example.com>',
    ],
)
def test_several_in_one_text_are_refused(given: str) -> None:
    """Several addresses in one text are refused, and the error asks for a list."""
    with pytest.raises(InvalidAddress, match="Give several recipients as a list"):
        parse_addresses(given, field="to")


@pytest.mark.parametrize(
    "given",
    [
        5,
        b"ada@example.com",
        object(),
        ("Ada", 5),
        (5, "ada@example.com"),
        [None],
        [["Ada", "ada@example.com"]],
        [("Ada",)],
    ],
)
def test_what_is_no_address_is_refused(given: object) -> None:
    """A value of another type raises InvalidAddress, which tells what to give."""
    with pytest.raises(
        InvalidAddress,
        match=r"^to: .* is no address: give 'ada@example.com' or 'Ada <ada@example.com>'\.$",
    ):
        parse_addresses(given, field="to")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        injected("Ada", "B <ada@example.com>"),
        [f'"{name}" <ada@example.com>' for name in injected("Ada")],
        [(name, "ada@example.com") for name in injected("Ada")],
        [Address("ada@example.com", name) for name in injected("Ada")],
        injected("ada", "@example.com"),
        [Address(email) for email in injected("ada@example.com", "")],
        [("Ada", email) for email in injected("ada@example.com", "> RCPT TO:<eve@example.com")],
    ],
    ids=[
        "plain name",
        "quoted name",
        "pair",
        "object",
        "address",
        "object's address",
        "pair's address",
    ],
)
def test_no_address_carries_a_second_line(given: list[str | tuple[str, str] | Address]) -> None:
    """A name or an address with a line break, control character or surrogate is refused."""
    for one in given:
        with pytest.raises(
            InvalidAddress, match=r"^to: .*remove line breaks and other control characters"
        ):
            parse_addresses([one], field="to")


def test_one_or_many() -> None:
    """A text or a pair of name and address is one recipient; any other iterable is many."""
    bob = Address("bob@example.com")

    assert parse_addresses(None, field="to") == ()
    assert parse_addresses("ada@example.com", field="to") == (ADA,)
    assert parse_addresses(ADA, field="to") == (ADA,)
    assert parse_addresses(("Ada", "ada@example.com"), field="to") == (
        Address("ada@example.com", "Ada"),
    )
    assert parse_addresses((None, "ada@example.com"), field="to") == (ADA,)
    assert parse_addresses(("ada@example.com", "bob@example.com"), field="to") == (ADA, bob)
    assert parse_addresses((ADA, bob), field="to") == (ADA, bob)
    assert parse_addresses(iter(["ada@example.com", "bob@example.com"]), field="to") == (ADA, bob)
    assert parse_addresses([], field="to") == ()


def test_a_list_of_a_name_and_an_address_is_two_recipients() -> None:
    """A list of a name and an address is two recipients, so the name is refused."""
    with pytest.raises(InvalidAddress, match="'Ada' is not a usable address"):
        parse_addresses(["Ada", "ada@example.com"], field="to")


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example('\\"')
@example('" <')
def test_what_is_written_is_read_back(name: str) -> None:
    """Any name is the same after it was stored and read."""
    assert Address.stored(str(Address("ada@example.com", name))) == Address("ada@example.com", name)


@given(st.text())
@example('Ada <"@>')
@example("a@\u3002local")
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Any text is a valid address or raises InvalidAddress, and nothing else."""
    try:
        address = Address.parse(text, field="to")
    except InvalidAddress:
        return
    assert not any(forbidden in str(address) for forbidden in FORBIDDEN)


@pytest.mark.parametrize(
    "text",
    [
        " " * 50_000,
        "<" * 50_000,
        " <" * 50_000,
        '"' * 50_000 + "<a@b>",
        "a" + "\\" * 50_000 + ' <a@b>"',
    ],
)
def test_a_long_text_is_refused_as_well(text: str) -> None:
    """Refusing a long text takes no more than linear time."""
    with pytest.raises(InvalidAddress):
        Address.parse(text, field="to")


# --- text and headers ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", injected())
def test_a_header_is_one_line(text: str) -> None:
    """A header with a line break is refused; the error names the field and the character."""
    with pytest.raises(
        InvalidHeader,
        match=r"^subject: .* contains .*: remove line breaks and other control characters\.$",
    ):
        check_text(text, field="subject")


@pytest.mark.parametrize(
    "say",
    [
        lambda text: check_text(text, field="subject", quoted=False),
        lambda text: check_headers({"X-Code": text}),
    ],
)
def test_no_error_quotes_what_a_mail_says(say: Callable[[str], object]) -> None:
    """An error about a header does not quote its text, which may be secret."""
    with pytest.raises(
        InvalidHeader,
        match=r"^(subject|headers\['X-Code'\]): it contains '\\n': remove line breaks",
    ) as caught:
        say("Your code: 4711\n")

    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "Welcome", "Grüße, Zoë 🦊", 'a: b; c="d"', "\u202eabc", "x" * 5000]
)
def test_any_other_text_may_be_a_header(text: str) -> None:
    """A header may hold any other text, of any script and length."""
    assert check_text(text, field="subject") == text


@pytest.mark.parametrize("value", [None, 5, b"Welcome", ["Welcome"]])
def test_what_is_no_text_is_refused(value: object) -> None:
    """A value that is no text is refused, with the name of its type."""
    with pytest.raises(
        InvalidHeader, match=rf"^subject: give a str, not {type(value).__name__}\.$"
    ):
        check_text(value, field="subject")  # type: ignore[arg-type]
    with pytest.raises(InvalidMail, match=rf"^body: give a str, not {type(value).__name__}\.$"):
        check_body(value, field="body")  # type: ignore[arg-type]


def test_a_body_has_lines() -> None:
    """A body may hold any character but NUL and lone surrogates."""
    assert check_body("a\r\nb\tc\x0c\u2028", field="body")
    for forbidden in ("\x00", "\ud800"):
        with pytest.raises(
            InvalidMail, match=r"^body: the character .* at 1 can't be in a mail: remove it"
        ):
            check_body(f"a{forbidden}", field="body")


def test_headers_of_ones_own() -> None:
    """Custom headers are a dict of texts."""
    assert check_headers({"X-Campaign": "Grüße", "List-Unsubscribe": "<https://example.com>"}) == (
        ("X-Campaign", "Grüße"),
        ("List-Unsubscribe", "<https://example.com>"),
    )
    assert check_headers(None) == ()


@pytest.mark.parametrize(
    "name", [*injected("X", "Y: z"), "", "X Y", "X:", "Größe", "X" * 65, "X_Y", 5, None]
)
def test_a_bad_header_name_is_refused(name: str) -> None:
    """A header name consists of letters, digits and hyphens."""
    with pytest.raises(InvalidHeader, match="is no header name: use letters, digits and hyphens"):
        check_headers({name: "value"})


@pytest.mark.parametrize(
    "name",
    [
        *("From", "TO", "cc", "BCC", "Reply-To", "subject", "date", "Message-ID"),
        *("Content-Type", "resent-to", "Received"),
    ],
)
def test_a_header_that_mailer_writes_is_refused(name: str) -> None:
    """A header that Mailer writes is refused, since mail readers would differ on a second one."""
    with pytest.raises(InvalidHeader, match=f"{name}.* is written by Mailer"):
        check_headers({name: "value"})


def test_the_sender_is_a_mailbox() -> None:
    """The header Sender takes one mailbox, written as in any other header."""
    for text in ("Ada <ada@bücher.example>", '"Ada" <ada@bücher.example>'):
        assert check_headers({"sender": text}) == (("sender", '"Ada" <ada@xn--bcher-kva.example>'),)
    for wrong in ("Ada", "ada@example.com, bob@example.com", "ada@example.com\nBcc: eve@b.de", 5):
        with pytest.raises(InvalidAddress, match=r"^headers\['Sender'\]: "):
            check_headers({"Sender": wrong})  # type: ignore[dict-item]


def test_a_bad_header_value_is_refused() -> None:
    """The error for a bad header value names the header."""
    for value in injected():
        with pytest.raises(InvalidHeader, match=r"^headers\['X-Campaign'\]: .* contains"):
            check_headers({"X-Campaign": value})
    with pytest.raises(InvalidHeader, match=r"^headers\['X-Campaign'\]: give a str, not int"):
        check_headers({"X-Campaign": 5})  # type: ignore[dict-item]
    with pytest.raises(InvalidHeader, match=r"^headers: .*: give a dict"):
        check_headers([("X-Campaign", "value")])  # type: ignore[arg-type]


# --- attachments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("invoice.pdf", "application/pdf"),
        ("LOGO.PNG", "image/png"),
        ("notes", "application/octet-stream"),
        (None, "application/octet-stream"),
        ("backup.tar.gz", "application/octet-stream"),  # the type of the content would be wrong
        ("forwarded.eml", "application/octet-stream"),  # message/rfc822 may not travel in base64
    ],
)
def test_the_type_is_guessed_from_the_name(filename: str | None, content_type: str) -> None:
    """An attachment's type is guessed from its name, unless the guess could be wrong."""
    assert Attachment(filename, b"data").content_type == content_type


@pytest.mark.parametrize(
    "content_type",
    [
        "application/pdf",
        "text/csv; charset=utf-8",
        'text/calendar; method=REQUEST; name="the meeting.ics"',
    ],
)
def test_the_type_may_have_parameters(content_type: str) -> None:
    """An attachment's type may have parameters."""
    assert Attachment("file", b"data", content_type).content_type == content_type


def test_an_inline_image() -> None:
    """An attachment with a content_id is inline, and any other is attached."""
    assert Attachment("logo.png", b"data", content_id="logo").disposition == "inline"
    assert Attachment("logo.png", b"data").disposition == "attachment"


BAD_ATTACHMENTS: dict[str, dict[str, Any]] = {
    "its data is str: give bytes": {"data": "text"},
    "its data is NoneType: give bytes": {"data": None},
    "filename: give a str, not int": {"filename": 5},
    "'nonsense' is no type for a file": {"content_type": "nonsense"},
    "'multipart/mixed' is no type for a file": {"content_type": "multipart/mixed"},
    "'Message/RFC822' is no type for a file": {"content_type": "Message/RFC822"},
    "5 is no type for a file": {"content_type": 5},
    "content_id 'a b': use letters": {"content_id": "a b"},
    "content_id 5: use letters": {"content_id": 5},
    "disposition 'hidden': use": {"disposition": "hidden"},
    "headers .*: give pairs": {"headers": {"X-A": "b"}},
    "headers .*: give pairs, such": {"headers": (("X-A", "b", "c"),)},
    "'Content-Type' is written by Mailer": {"headers": (("Content-Type", "b"),)},
    "header 5 is written by Mailer or no header name": {"headers": ((5, "b"),)},
    "X-A: give a str, not int": {"headers": (("X-A", 5),)},
}


@pytest.mark.parametrize("why", BAD_ATTACHMENTS)
def test_a_bad_attachment_is_refused(why: str) -> None:
    """The error for a bad attachment names it and what to give."""
    with pytest.raises(InvalidAttachment, match=f"^attachment .*: .*{why}"):
        Attachment(**{"filename": "a.pdf", "data": b"data", **BAD_ATTACHMENTS[why]})


@pytest.mark.parametrize("field", ["filename", "content_type", "content_id", "disposition"])
def test_no_attachment_carries_a_second_line(field: str) -> None:
    """A line break in any field of an attachment is refused."""
    for value in [*injected("a.pdf"), *injected("text/plain", "x=y")]:
        with pytest.raises(InvalidAttachment):
            Attachment(**{"filename": "a.pdf", "data": b"data", field: value})  # type: ignore[arg-type]


def test_no_header_of_an_attachment_carries_a_second_line() -> None:
    """A line break in a header of an attachment is refused."""
    for text in injected("X-A"):
        with pytest.raises(InvalidAttachment):
            Attachment("a.pdf", b"data", headers=((text, "value"),))
        with pytest.raises(InvalidAttachment):
            Attachment("a.pdf", b"data", headers=(("X-A", text),))


@pytest.mark.parametrize(
    ("filename", "plain"),
    [
        ("Größe  1.pdf", "Groe 1.pdf"),
        ("Ünïcödé.pdf", "Unicode.pdf"),
        ("日本.pdf", ".pdf"),
        (None, None),
    ],
)
def test_an_ascii_name(filename: str | None, plain: str | None) -> None:
    """MAIL_ASCII_ATTACHMENTS reduces file names to ASCII as Flask-Mail does."""
    assert Attachment(filename, b"data").with_ascii_filename().filename == plain


# --- ids ----------------------------------------------------------------------------------------


def test_ids_sort_by_time() -> None:
    """Ids sort by the time of their creation, and are unique."""
    earlier, later = new_id(1_800_000_000.0), new_id(1_800_000_000.001)

    assert earlier < later
    assert len(earlier) == 32
    assert new_id(1.0) != new_id(1.0)


def test_the_message_id_is_of_the_senders_domain() -> None:
    """The Message-ID has the sender's domain, in ASCII."""
    assert (
        new_message_id("1a2b", Address.parse("ada@bücher.example", field="sender"))
        == "<1a2b@xn--bcher-kva.example>"
    )
