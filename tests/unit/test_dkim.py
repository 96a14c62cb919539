"""DKIM signatures, verified by dkimpy (and by OpenDKIM in the integration tests)."""

import re
from typing import Any

import pytest
from dkim.canonicalization import Relaxed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailer.message import Address, Message
from mailer.mime import Signer, WireMessage, compose, make_signer
from mailer.mime.dkim import relaxed_body, relaxed_field
from mailer.settings.dkim import DkimKey
from tests.generated_mails import bodies, mails
from tests.signing import ED25519, RSA, dkim_key, ed25519_pem, records, rsa_pem, verified_by_dkimpy

NOW = 1_790_000_000.7
BOTH = records(RSA, ED25519)


def signer(*keys: DkimKey) -> Signer:
    made = make_signer(keys)
    assert made is not None
    return made


def a_mail(sender: str = "ada@example.com", **said: object) -> Message:
    given: dict[str, Any] = {
        "subject": "Hello",
        "text": "Hello\n",
        "html": None,
        "to": (Address("bob@example.com"),),
        **said,
    }
    author = Address(sender, "Ada")
    return Message(id="1", message_id="<1@example.com>", created_at=NOW, sender=author, **given)


def signed(message: Message, *keys: DkimKey) -> bytes:
    return compose(message, signer(*(keys or (RSA, ED25519)))).as_bytes()


# --- signatures that are good -------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mails)
def test_every_mail(message: Message) -> None:
    """The signatures of any mail verify with dkimpy, for each algorithm."""
    keys = [dkim_key(message.sender.domain, key.selector, key.pem) for key in (RSA, ED25519)]

    assert verified_by_dkimpy(signed(message, *keys), records(*keys)) == [True, True]


def test_an_address_beyond_ascii() -> None:
    """A mail with a non-ASCII address gets a valid signature (RFC 8616)."""
    assert verified_by_dkimpy(signed(a_mail("jürgen@example.com")), BOTH) == [True, True]


def test_what_a_signature_says() -> None:
    """A signature's time is that of queueing, so that a retry signs the same bytes."""
    first_line = signed(a_mail()).decode().replace("\r\n ", " ").split("\r\n")[0]

    assert re.sub(r"(bh?)=[^;]+", r"\1=…", first_line) == (
        "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=rsa; t=1790000000; "
        "h=from:from:to:to: cc:reply-to:subject:subject: date:date:message-id:mime-version: "
        "content-type:content-transfer-encoding; bh=…; b=…"
    )
    assert signed(a_mail()) == signed(a_mail())


def test_a_signature_fits_its_lines() -> None:
    """The lines of a signature have at most 78 characters, even with a long key."""
    lines = signed(a_mail(), dkim_key("example.com", "2026a", rsa_pem(4096))).split(b"\r\n")

    assert max(map(len, lines)) <= 78


def test_a_signed_mail_is_never_encoded_again() -> None:
    """A signed mail is ASCII, since encoding it again would break its signature."""
    message = a_mail(text="Schöne Grüße")
    letter = WireMessage(message, "bob@example.com", compose(message, signer(RSA)))

    assert letter.wire(eightbit=True) is letter.wire(eightbit=False)
    assert letter.wire(eightbit=True).isascii()
    assert not letter.is_8bit(eightbit=True)


# --- signatures that are broken -----------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        "From: eve@example.com",
        "Subject: Pay",
        "To: eve@example.com",
        "Cc: eve@example.com",
        "Reply-To: e@x.y",
    ],
)
def test_nobody_can_add_what_would_be_shown_instead(more: str) -> None:
    """A second From, Subject, To, Cc or Reply-To breaks the signature."""
    mail = signed(a_mail())
    above, below = (
        f"{more}\r\n".encode() + mail,
        mail.replace(b"MIME-Version:", f"{more}\r\nMIME-Version:".encode()),
    )

    assert verified_by_dkimpy(mail, BOTH) == [True, True]
    assert verified_by_dkimpy(above, BOTH) == [False, False]
    assert verified_by_dkimpy(below, BOTH) == [False, False]


@pytest.mark.parametrize(
    "name",
    [
        "List-Unsubscribe",
        "List-Unsubscribe-Post",
        "List-Id",
        "In-Reply-To",
        "References",
        "Feedback-ID",
    ],
)
def test_what_programs_act_upon_is_signed(name: str) -> None:
    """Headers that programs act on, such as List-Unsubscribe, are signed (RFC 8058)."""
    mail = signed(a_mail(headers=((name, "genuine"),)))

    assert verified_by_dkimpy(mail, BOTH) == [True, True]
    assert verified_by_dkimpy(mail.replace(b"genuine", b"changed"), BOTH) == [False, False]


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        (b"Subject: Hello", b"Subject: Hallo"),
        (b"\r\nHello", b"\r\nHallo"),
        (b"bob@", b"rob@"),
        (b"14:13:20", b"14:13:21"),
        (b"<1@", b"<2@"),
        (b"text/plain", b"text/html"),
        (b"t=1790000000", b"t=1790000001"),
    ],
)
def test_a_mail_that_was_changed(found: bytes, changed: bytes) -> None:
    """Any change of a signed mail breaks the signature."""
    mail = signed(a_mail())
    assert found in mail

    assert verified_by_dkimpy(mail.replace(found, changed), BOTH) == [False, False]


def test_headers_of_the_same_name() -> None:
    """Several headers of the same name are signed in the order that verifiers expect."""
    mail = signed(a_mail(headers=(("List-Id", "one"), ("list-id", "two"))))

    assert verified_by_dkimpy(mail, BOTH) == [True, True]


# --- whose keys sign ----------------------------------------------------------------------------


def selectors(sender: str, *keys: DkimKey) -> list[str]:
    return re.findall(r"s=(\w+);", compose(a_mail(sender), make_signer(keys)).as_bytes().decode())


def test_every_key_of_the_domain_signs() -> None:
    """Each key of the sender's domain signs."""
    keys = [RSA, ED25519, dkim_key("example.com", "next", rsa_pem())]

    assert selectors("ada@example.com", *keys) == ["rsa", "ed", "next"]
    assert verified_by_dkimpy(signed(a_mail(), *keys), records(*keys)) == [True, True, True]


def test_a_subdomain_is_signed_for_by_the_domain_above() -> None:
    """A subdomain's mail is signed with its own key, else with that of the domain above."""
    above, below = (
        dkim_key("example.com", "above", ed25519_pem()),
        dkim_key("news.example.com", "below", ed25519_pem()),
    )

    assert selectors("ada@shop.example.com", above, below) == ["above"]
    assert selectors("ada@news.example.com", above, below) == ["below"]
    assert selectors("ada@eu.news.example.com", above, below) == ["below"]
    assert selectors("ada@NEWS.example.com", above, below) == ["below"]


@pytest.mark.parametrize(
    "sender", ["ada@example.org", "ada@example.com.example.org", "ada@notexample.com", "ada@com"]
)
def test_nobody_else_is_signed_for(sender: str) -> None:
    """Mail of other domains is not signed."""
    mail = a_mail(sender)

    assert compose(mail, signer(RSA)).as_bytes() == compose(mail).as_bytes()


def test_no_keys() -> None:
    """Without keys there is no signer, and no package is needed."""
    assert make_signer(()) is None


# --- the canonical form -------------------------------------------------------------------------


@given(bodies | st.text(" \t\r\na."))
def test_the_canonical_body(text: str) -> None:
    """The canonical form of any body is the same as dkimpy's."""
    content = re.sub(r"\r\n|\r|\n", "\r\n", text + "\n").encode()

    assert relaxed_body(content) == Relaxed.canonicalize_body(content)


@given(
    st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True),
    st.lists(st.text(" \tab:ü", min_size=1)).map("\r\n ".join),
)
def test_the_canonical_header(name: str, value: str) -> None:
    """The canonical form of any header is the same as dkimpy's."""
    line = f"{name}: {value}".encode()
    [(their_name, their_value)] = Relaxed.canonicalize_headers(
        [(name.encode(), f" {value}\r\n".encode())]
    )

    assert relaxed_field(line) + b"\r\n" == their_name + b":" + their_value


def test_the_example_of_the_standard() -> None:
    """The canonical form of the example in RFC 6376 (section 3.4.5) is as given there."""
    assert relaxed_field(b"A: X") == b"a:X"
    assert relaxed_field(b"B : Y\t\r\n\tZ  ") == b"b:Y Z"
    assert relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n") == b" C\r\nD E\r\n"


def test_dkimpy_is_really_asked() -> None:
    """No signature verifies with dkimpy if the DNS has another key."""
    others = records(
        dkim_key("example.com", "rsa", rsa_pem()), dkim_key("example.com", "ed", ed25519_pem())
    )

    assert verified_by_dkimpy(signed(a_mail()), others) == [False, False]
