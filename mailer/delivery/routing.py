"""Routing: pure decisions about the relay and the recipient of a mail, with chance passed in."""

from collections.abc import Collection, Iterable, Sequence

from mailer.message import Delivery
from mailer.settings import EVERYBODY, RelaySettings, Settings


def routes_by_sender(relays: Iterable[RelaySettings]) -> bool:
    """Return whether a rule of these relays asks for the sender."""
    return any(relay.senders for relay in relays)


def carries(relay: RelaySettings, delivery: Delivery, sender: str) -> bool:
    """Return whether the rules of a relay let it carry a delivery.

    A relay without rules carries all mail.
    """
    return (
        relay.accepts(delivery.lane)
        and (
            not relay.domains
            or any(_is_within(delivery.domain, domain) for domain in relay.domains)
        )
        and (not relay.senders or any(_meets(sender, rule) for rule in relay.senders))
    )


def choose(
    relays: Iterable[RelaySettings],
    delivery: Delivery,
    sender: str,
    dice: float,
    busy: Collection[str] = (),
) -> RelaySettings | None:
    """Return the relay for a delivery, by preference, then rules, then weight.

    Return None if there is none, or if the best are busy: the next best is for when they are down.
    """
    able = [relay for relay in relays if carries(relay, delivery, sender)]
    if len(able) < 2 and not busy:
        return able[0] if able else None
    best = min(map(_rank, able), default=None)
    return _weighted(
        [relay for relay in able if _rank(relay) == best and relay.name not in busy], dice
    )


def _rank(relay: RelaySettings) -> tuple[int, bool]:
    return relay.preference, not relay.has_rules


def _weighted(relays: Sequence[RelaySettings], dice: float) -> RelaySettings | None:
    left = dice * sum(relay.weight for relay in relays)
    for relay in relays:
        left -= relay.weight
        if left < 0:
            return relay
    return relays[-1] if relays else None


def destination(settings: Settings, recipient: str) -> str | None:
    """Return the address to send to, as the settings redirect it. None: to nobody."""
    allowed = settings.allowed_recipients
    if not allowed and settings.redirect_to is None:
        return recipient
    is_allowed = any(rule == EVERYBODY or _meets(recipient, rule) for rule in allowed)
    return recipient if is_allowed else settings.redirect_to


def _is_within(domain: str, rule: str) -> bool:
    """Return whether a domain is that of a rule, or a subdomain of it."""
    domain = domain.lower()
    return domain == rule or domain.endswith(f".{rule}")


def _meets(address: str, rule: str) -> bool:
    address = address.lower()
    return address == rule if "@" in rule else _is_within(address.rpartition("@")[2], rule)
