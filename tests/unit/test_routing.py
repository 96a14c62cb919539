"""Routing: the choice of a relay by rules, preference and weight."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.delivery.routing import carries, choose, routes_by_sender
from mailer.message import Delivery, Lane, OnDoubt
from mailer.settings import RelaySettings

ADA = "ada@example.com"


def relay(name: str = "relay", **rules: Any) -> RelaySettings:
    return RelaySettings.model_validate({"name": name, **rules})


def mail_to(domain: str = "example.net", lane: Lane = Lane.NORMAL) -> Delivery:
    of_a_claim: dict[str, Any] = {
        "id": 1,
        "mail_id": "mail",
        "attempts": 1,
        "doubts": 0,
        "queued_at": 0.0,
        "on_doubt": OnDoubt.RESEND,
    }
    return Delivery(recipient=f"bob@{domain}", domain=domain, lane=lane, token="mine", **of_a_claim)


def chosen(
    relays: list[RelaySettings],
    delivery: Delivery | None = None,
    sender: str = ADA,
    dice: float = 0.0,
) -> str | None:
    relay = choose(relays, delivery or mail_to(), sender, dice)
    return relay.name if relay else None


# --- rules --------------------------------------------------------------------------------------


def test_a_relay_without_rules_carries_all_mail() -> None:
    """A relay without rules carries all mail."""
    assert all(
        carries(relay(), mail_to(lane=lane), sender)
        for lane in Lane
        for sender in (ADA, "", "nobody")
    )


@pytest.mark.parametrize(
    ("rule", "domain", "carried"),
    [
        ("gmail.com", "gmail.com", True),
        ("gmail.com", "GMail.com", True),
        ("Gmail.COM", "gmail.com", True),
        ("example.com", "mx.example.com", True),
        ("example.com", "a.b.example.com", True),
        ("example.com", "badexample.com", False),
        ("example.com", "example.com.evil.example", False),
        ("mx.example.com", "example.com", False),
        ("com", "example.com", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("xn--bcher-kva.example", "shop.xn--bcher-kva.example", True),
    ],
)
def test_a_rule_for_recipients(rule: str, domain: str, carried: bool) -> None:
    """A rule for a recipient domain includes its subdomains, and no other domains."""
    assert carries(relay(domains=[rule]), mail_to(domain), ADA) is carried


@pytest.mark.parametrize(
    ("rule", "sender", "carried"),
    [
        ("ada@example.com", "ada@example.com", True),
        ("Ada@Example.com", "ada@example.COM", True),
        ("ada@example.com", "bob@example.com", False),
        ("ada@example.com", "ada@news.example.com", False),
        ("example.com", "ada@example.com", True),
        ("example.com", "ada@news.example.com", True),
        ("example.com", "ada@badexample.com", False),
        ("news.example.com", "ada@example.com", False),
        ("bücher.example", "ada@xn--bcher-kva.example", True),
        ("ada@bücher.example", "ada@xn--bcher-kva.example", True),
    ],
)
def test_a_rule_for_senders(rule: str, sender: str, carried: bool) -> None:
    """A rule for senders is an address, or a domain with its subdomains."""
    assert carries(relay(senders=[rule]), mail_to(), sender) is carried


def test_a_rule_for_lanes() -> None:
    """A rule for lanes limits a relay to these lanes."""
    only_bulk = relay(lanes=["bulk"])

    assert [lane for lane in Lane if carries(only_bulk, mail_to(lane=lane), ADA)] == [Lane.BULK]


def test_one_rule_of_a_kind_is_enough_and_every_kind_has_to_be_met() -> None:
    """A mail has to meet one rule of each kind that a relay has."""
    ruled = relay(
        domains=["example.net", "example.org"],
        senders=["example.com"],
        lanes=["critical", "normal"],
    )

    assert carries(ruled, mail_to("example.org"), ADA)
    assert not carries(ruled, mail_to("example.edu"), ADA)
    assert not carries(ruled, mail_to("example.org"), "ada@example.edu")
    assert not carries(ruled, mail_to("example.org", Lane.BULK), ADA)


def test_senders_are_asked_for_only_where_a_rule_is_about_them() -> None:
    """Senders are loaded only if a relay has a rule for them, since that takes a query."""
    assert not routes_by_sender([relay(), relay(domains=["example.com"], lanes=["bulk"])])
    assert routes_by_sender([relay(), relay(senders=["example.com"])])


# --- who is first -------------------------------------------------------------------------------


def test_a_relay_with_rules_comes_before_one_without() -> None:
    """A relay with rules comes before one without, in whatever order they are listed."""
    plain, ruled = relay("plain"), relay("ruled", domains=["example.net"])

    for relays in ([plain, ruled], [ruled, plain]):
        for dice in (0.0, 0.999):
            assert chosen(relays, mail_to("example.net"), dice=dice) == "ruled"
            assert chosen(relays, mail_to("example.org"), dice=dice) == "plain"


def test_preference_comes_before_rules_and_weights() -> None:
    """The lowest preference comes first, before rules and weights."""
    first, second = (
        relay("first", preference=1),
        relay("second", preference=2, weight=1000, domains=["example.net"]),
    )

    assert chosen([second, first]) == "first"
    assert chosen([second]) == "second"
    assert chosen([second], mail_to("example.org")) is None


def test_no_relay_at_all() -> None:
    """Without a relay, none is chosen."""
    assert chosen([]) is None


def test_a_busy_relay_is_not_down() -> None:
    """Mail of a busy relay goes to its equals, or waits, but not to a backup.

    A backup is for when the relay cannot be used at all.
    """
    first, equal, backup = relays = [relay("first"), relay("equal"), relay("backup", preference=1)]

    assert [choose(relays, mail_to(), ADA, dice, busy={"first"}) for dice in (0.1, 0.9)] == [
        equal,
        equal,
    ]
    assert choose(relays, mail_to(), ADA, 0.5, busy={"first", "equal"}) is None
    assert choose([first, backup], mail_to(), ADA, 0.5, busy={"first"}) is None
    assert choose([backup], mail_to(), ADA, 0.5, busy={"first"}) is backup


@given(weights=st.lists(st.floats(0.01, 1000), min_size=1, max_size=6))
def test_shares_follow_the_weights(weights: list[float]) -> None:
    """Equal relays share the mail in proportion to their weights."""
    relays = [relay(str(number), weight=weight) for number, weight in enumerate(weights)]
    throws = 500
    shares = Counter(chosen(relays, dice=number / throws) for number in range(throws))

    for number, weight in enumerate(weights):
        assert abs(shares[str(number)] - throws * weight / sum(weights)) <= 2


@given(
    dice=st.floats(0, 1, exclude_max=True),
    weights=st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=6),
)
def test_somebody_is_always_chosen(dice: float, weights: list[float]) -> None:
    """A relay is always chosen, whatever the random number and the rounding of the weights."""
    assert (
        chosen(
            [relay(str(number), weight=weight) for number, weight in enumerate(weights)], dice=dice
        )
        is not None
    )


def test_weights_are_for_equals() -> None:
    """Weights matter only among relays of the same preference and with equal rules."""
    relays = [
        relay("heavy", weight=1000),
        relay("ruled", domains=["example.net"]),
        relay("better", preference=-1),
    ]

    assert chosen(relays, dice=0.5) == "better"
    assert chosen(relays[:2], dice=0.5) == "ruled"
