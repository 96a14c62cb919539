"""The machine headers of a mail, by its lane, its kind and its sender."""

import re
from typing import Any

import pytest

from mailer.intake.machine_headers import MachineHeaders
from mailer.message import MACHINE_HEADERS, Address, Envelope, Lane
from tests.bulk_sends import a_bulk_message
from tests.mails import NOW, a_message

QUIET = {
    "Auto-Submitted": "auto-generated",
    "X-Auto-Response-Suppress": "OOF, AutoReply",
}
BULK = {"Precedence": "bulk"}
REPLIES = (Address("visitor@example.org"),)


def added(*, lane: Lane = Lane.NORMAL, is_bulk: bool = False, **changes: Any) -> dict[str, str]:
    """Return the headers that a mail gets, without that of Google."""
    message = a_bulk_message(**changes) if is_bulk else a_message(**changes)
    headers = dict(MachineHeaders(MACHINE_HEADERS).add_to(message, an_envelope(lane), None).headers)
    del headers["Feedback-ID"]
    return headers


def an_envelope(lane: Lane, tenant: str = "") -> Envelope:
    return Envelope(recipients=(), due_at=NOW, lane=lane, tenant=tenant)


def feedback_id(domain: str = "example.com", lane: Lane = Lane.NORMAL, tenant: str = "") -> str:
    message = a_message(sender=Address(f"shop@{domain}"))
    stamped = MachineHeaders(MACHINE_HEADERS).add_to(message, an_envelope(lane, tenant), None)
    return dict(stamped.headers)["Feedback-ID"]


def test_a_feedback_id_names_the_tenant() -> None:
    """The third place is the tenant, or a hash of a name that would not fit there."""
    assert feedback_id(tenant="acme_7") == ":normal:acme_7:example.com"
    hashed = [feedback_id(tenant=name).split(":")[2] for name in ("a:b", "Bäcker", "x" * 41)]
    assert all(re.fullmatch("[0-9a-f]{15}", one) for one in hashed)
    assert len({*hashed}) == 3


@pytest.mark.parametrize("lane", [Lane.CRITICAL, Lane.NORMAL])
def test_a_mail_of_a_program(lane: Lane) -> None:
    """No automatic reply goes to a program; bounces do, and it is no bulk mail."""
    assert added(lane=lane) == QUIET


def test_precedence_is_for_the_lane_bulk() -> None:
    """Mail in the lane bulk says so, and no other, even of a bulk send."""
    assert added(lane=Lane.BULK) == QUIET | BULK
    assert added(lane=Lane.BULK, is_bulk=True) == QUIET | BULK
    assert added(lane=Lane.NORMAL, is_bulk=True) == QUIET


def test_mail_that_a_person_may_have_written() -> None:
    """Who gets the replies to a single mail gets the automatic ones as well."""
    assert added(reply_to=REPLIES) == {}


def test_replies_to_many_mails_at_once() -> None:
    """Nobody gets the automatic replies to a newsletter, whoever gets the others."""
    assert added(reply_to=REPLIES, lane=Lane.BULK) == QUIET | BULK
    assert added(reply_to=REPLIES, is_bulk=True) == QUIET


def test_a_feedback_id_names_the_send_the_lane_and_the_sender() -> None:
    """A Feedback-ID has four places, in which nothing is about the recipient."""
    bulk = a_bulk_message()
    stamped = MachineHeaders(["Feedback-ID"]).add_to(bulk, an_envelope(Lane.BULK), None)

    assert stamped.headers == (("Feedback-ID", f"{bulk.id}:bulk::example.com"),)
    assert feedback_id() == ":normal::example.com"
    assert feedback_id(lane=Lane.CRITICAL) == ":critical::example.com"


@pytest.mark.parametrize(
    "domain",
    ["a.io", "t.co", "newsletter.example.com", "bücher.example", "ä.de", "a" * 15, "a" * 16],
)
def test_a_sender_id_is_what_google_accepts(domain: str) -> None:
    """The last place has 5 to 15 characters, always the same for a domain."""
    sender_id = feedback_id(domain).rpartition(":")[2]

    assert 5 <= len(sender_id) <= 15
    assert sender_id.isascii()
    assert feedback_id(domain.upper()).rpartition(":")[2] == sender_id


def test_two_long_domains_have_different_sender_ids() -> None:
    """The id of a long domain has a hash of all of it."""
    assert feedback_id("newsletter.example.com") != feedback_id("newsletter.example.org")
    assert feedback_id("newsletter.example.com").startswith(":normal::newslett")
