"""The envelope of a mail for a relay: its commands, or the reason why the relay can't take it."""

import re
from dataclasses import dataclass
from typing import Self

from celery.exceptions import SoftTimeLimitExceeded

from mailer.message import Outcome, Phase, Verdict
from mailer.message.text import printable
from mailer.mime import WireMessage
from mailer.policy import verdict_on
from mailer.smtp.session import Session

# Characters that would end an address or an option, and inject commands.
_BREAKS_OUT = re.compile(r"[\x00-\x20\x7f<>]")
_BREAKS_OPTION = re.compile(r"[\x00-\x20\x7f]")
# Options that only we set.
_OURS = re.compile(r"(SIZE|BODY|SMTPUTF8)(=|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Offers:
    """The extensions that a relay offers in its reply to EHLO."""

    extended: bool  #: EHLO succeeded, so that options are allowed
    pipelining: bool
    eightbit: bool
    smtputf8: bool
    size: bool
    max_octets: int  #: 0: no declared limit

    @classmethod
    def of(cls, session: Session) -> Self:
        limit = session.esmtp_features.get("size", "")
        return cls(
            extended=session.does_esmtp,
            pipelining=session.has_extn("pipelining"),
            eightbit=session.has_extn("8bitmime"),
            smtputf8=session.has_extn("smtputf8"),
            size=session.has_extn("size"),
            max_octets=int(limit) if limit.isascii() and limit.isdigit() else 0,
        )


def envelope_of(mail: WireMessage, offers: Offers) -> bytes | Outcome:
    """Return the lines MAIL, RCPT and DATA, or the refusal of a mail that the relay can't take."""
    try:
        return _envelope_of(mail, offers)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # noqa: BLE001 -- the 7-bit form may be composed here
        return Outcome(
            verdict_on(error),
            f"it can't be written for this relay: {type(error).__name__}",
            Phase.MAIL,
        )


def _envelope_of(mail: WireMessage, offers: Offers) -> bytes | Outcome:
    sender, recipient, utf8 = mail.envelope_from, mail.recipient, mail.needs_smtputf8
    if _BREAKS_OUT.search(sender):
        return _refused(Phase.MAIL, f"501 5.1.7 no sender can be written so: {sender!r}")
    if _BREAKS_OUT.search(recipient):
        return _refused(Phase.RCPT, f"501 5.1.3 no recipient can be written so: {recipient!r}")
    if utf8 and not offers.smtputf8:
        return _refused(
            Phase.MAIL,
            "553 5.6.7 an address has letters beyond ASCII, and the relay does not know SMTPUTF8",
        )
    mail_options = " SMTPUTF8" if utf8 else ""
    if mail.is_8bit(offers.eightbit):
        mail_options += " BODY=8BITMIME"
    size = mail.size(offers.eightbit)
    if offers.size:
        if size > offers.max_octets > 0:
            return _refused(
                Phase.MAIL,
                f"552 5.3.4 the mail has {size} octets, the relay takes {offers.max_octets}",
            )
        mail_options += f" SIZE={size}"
    rcpt_options = ""
    if offers.extended and (mail.mail_options or mail.rcpt_options):
        given = [option for option in mail.mail_options if not _OURS.match(option)]
        if (
            fault := _fault_in(Phase.MAIL, given, utf8)
            or _fault_in(Phase.RCPT, mail.rcpt_options, utf8)
        ) is not None:
            return fault
        mail_options += "".join(f" {option}" for option in given)
        rcpt_options = "".join(f" {option}" for option in mail.rcpt_options)
    envelope = (
        f"MAIL FROM:<{sender}>{mail_options}\r\nRCPT TO:<{recipient}>{rcpt_options}\r\nDATA\r\n"
    )
    return envelope.encode("utf-8" if utf8 else "ascii")


def _fault_in(phase: Phase, options: list[str], utf8: bool) -> Outcome | None:
    for option in options:
        if _BREAKS_OPTION.search(option) or not (utf8 or option.isascii()):
            return _refused(phase, f"501 5.5.4 no option can be written so: {option!r}")
    return None


def _refused(phase: Phase, why: str) -> Outcome:
    return Outcome(Verdict.REFUSED, printable(why), phase)
