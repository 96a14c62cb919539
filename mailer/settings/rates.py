"""How much mail a relay or a domain is given at most, as it is written in the settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, parse_many

from mailer.errors import InvalidAddress
from mailer.message import Address

#: Stands for each domain that is not named.
OTHERS = "*"
_RATE = "a rate such as '14/second' or '100/5 minutes', or several that all count: '14/second; 50000/day'"
_LIMIT = '{"rate": "20/second", "concurrency": 5}'
_DOMAINS = f'{{"gmail.com": {_LIMIT}, "*": {{"rate": "100/minute"}}}}'
# Redis remembers each mail of the time that a rate is for, with 20 bytes.
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class DomainLimit:
    """What a domain is given at most, by all workers together."""

    rate: str | None = None
    concurrency: int | None = None


def read_rates(text: str | None) -> tuple[RateLimitItem, ...]:
    """The rates in a text; a ValueError says what is wrong with it."""
    if text is None:
        return ()
    try:
        rates = parse_many(text)
    except ValueError:
        raise ValueError(f"allowed: {_RATE}") from None
    for rate in rates:
        if not 0 < rate.amount <= _MOST:
            raise ValueError(f"{rate.amount} mails: allowed: from 1 to {_MOST}, in a second or a longer time")
    return tuple(rates)


def read_domain_limits(given: object) -> dict[str, DomainLimit]:
    """Take an object by domain, or the JSON of one; a ValueError says what is wrong with which."""
    entries = _parsed(given) if isinstance(given, str) else given
    if not isinstance(entries, Mapping):
        raise _wrong(f"allowed: an object by domain such as {_DOMAINS}")
    limits: dict[str, DomainLimit] = {}
    for name, entry in entries.items():
        domain = _domain(name)
        if domain in limits:
            raise _wrong("it is there twice: remove one of them", domain)
        limits[domain] = _limit(entry, domain)
    return limits


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _wrong(f"this is no JSON ({error}): allowed: an object by domain such as {_DOMAINS}") from None


def _domain(name: object) -> str:
    if name == OTHERS:
        return OTHERS
    try:
        return Address.parse(f"postmaster@{name}", field="domain").domain.lower()
    except InvalidAddress:
        raise _wrong(f"{name!r} is no domain: give one such as 'gmail.com', or '*' for each that is not named") from None


def _limit(entry: object, domain: str) -> DomainLimit:
    if not isinstance(entry, Mapping):
        raise _wrong(f"allowed: an object such as {_LIMIT}", domain)
    if unknown := sorted(map(str, entry.keys() - {"rate", "concurrency"})):
        raise _wrong(f"{unknown[0]!r} is not known: allowed: rate, concurrency", domain)
    rate, concurrency = entry.get("rate"), entry.get("concurrency")
    if not isinstance(rate, str | None):
        raise _wrong(f"rate: allowed: {_RATE}", domain)
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise _wrong("concurrency: allowed: a whole number, 1 or more", domain)
    try:
        read_rates(rate)
    except ValueError as error:
        raise _wrong(f"rate: {error}", domain) from None
    return DomainLimit(rate, concurrency)


def _wrong(words: str, domain: str = "") -> ValueError:
    return ValueError(f"{domain}: {words}" if domain else words)
