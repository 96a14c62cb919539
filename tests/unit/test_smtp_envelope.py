"""The envelope: always three commands, whatever the stored mail contains."""

from typing import Any

import pytest

from mailer.message import Address, Outcome, Verdict
from mailer.mime import WireMessage, compose
from mailer.smtp.envelope import Offers, envelope_of
from tests.mails import a_message

OFFERS = Offers(
    extended=True, pipelining=True, eightbit=True, smtputf8=True, size=False, max_octets=0
)
#: Characters that some server takes for the end of a line or an address.
BREAKS = ["\r\n", "\n", "\r", "\x00", " ", "\t", "\x0b", "\x0c", "\x1b", "\x7f"]
HIDDEN = "RCPT TO:<eve@example.com>"


def commands(*, recipient: str = "bob@example.com", **options: Any) -> bytes | Outcome:
    """Return the envelope of a stored mail, which no check has seen."""
    message = a_message(sender=Address("ada@example.com"))
    letter = WireMessage(message, recipient, compose(message))
    letter.mail_options, letter.rcpt_options = (
        options.get("mail_options", []),
        options.get("rcpt_options", []),
    )
    return envelope_of(letter, OFFERS)


def test_three_lines() -> None:
    """An envelope is MAIL, RCPT and DATA."""
    assert commands(rcpt_options=["NOTIFY=NEVER"]) == (
        b"MAIL FROM:<ada@example.com>\r\nRCPT TO:<bob@example.com> NOTIFY=NEVER\r\nDATA\r\n"
    )


@pytest.mark.parametrize("end", [*BREAKS, "<", ">"])
def test_no_recipient_holds_a_command(end: str) -> None:
    """A recipient that could end its line or its brackets is refused."""
    refused = commands(recipient=f"bob@example.com{end}{HIDDEN}")

    assert isinstance(refused, Outcome)
    assert refused.verdict is Verdict.REFUSED


@pytest.mark.parametrize("end", BREAKS)
@pytest.mark.parametrize("kind", ["mail_options", "rcpt_options"])
def test_no_option_holds_a_command(kind: str, end: str) -> None:
    """An option that could end its line is refused."""
    options: dict[str, Any] = {kind: [f"NOTIFY=NEVER{end}{HIDDEN}"]}
    refused = commands(**options)

    assert isinstance(refused, Outcome)
    assert refused.verdict is Verdict.REFUSED
