"""The time that a bulk send takes by the rates of relays and domains.

A concurrency limits by the time that a relay takes for a mail, which nobody knows beforehand.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailer.message import Lane
from mailer.settings import RelaySettings, Settings
from mailer.settings.rates import OTHERS, read_rates

if TYPE_CHECKING:
    from limits import RateLimitItem

# More domains than these have few recipients each.
_MOST_DOMAINS = 100_000

Rates = Sequence["RateLimitItem"]


@dataclass(frozen=True, slots=True)
class Duration:
    """A time in seconds, and the limit that makes it so long."""

    seconds: float
    limit: str


class DomainCounts:
    """Counts the recipients of domains, if a limit asks for them."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.domain_limits
        self._counts: Counter[str] = Counter()

    def add(self, domain: str) -> None:
        domain = domain.lower()
        if domain in self._limits or (
            OTHERS in self._limits and (domain in self._counts or len(self._counts) < _MOST_DOMAINS)
        ):
            self._counts[domain] += 1

    def durations(self) -> Iterable[Duration]:
        """Yield the time that the limit of each domain takes."""
        for domain, count in self._counts.items():
            name = domain if domain in self._limits else OTHERS
            rate = self._limits[name].rate
            if rate is not None:
                said = f"MAILER_DOMAIN_LIMITS lets {domain} have {rate}"
                yield Duration(seconds_for(count, [read_rates(rate)]), said)


def relays_duration(settings: Settings, lane: Lane, count: int) -> Duration | None:
    """Return the time that the relays of a lane take, or None if one of them has no rate.

    Relays with rules for domains or senders count only if there is no other.
    """
    able = [relay for relay in settings.relays if relay.accepts(lane)]
    able = [relay for relay in able if not (relay.domains or relay.senders)] or able
    best = min((relay.preference for relay in able), default=0)
    used = [relay for relay in able if relay.preference == best]
    if not used or not all(relay.relay_rate for relay in used):
        return None
    seconds = seconds_for(count, [read_rates(relay.relay_rate) for relay in used])
    return Duration(seconds, f"MAILER_RELAY_RATE: {' and '.join(map(_said, used))}")


def _said(relay: RelaySettings) -> str:
    return f"{relay.name} takes {relay.relay_rate}"


def seconds_for(count: int, limits: Iterable[Rates]) -> float:
    """Return the seconds until so many mails have gone, if each limit is used as far as it goes."""
    limits = [*limits]

    def gone(seconds: float) -> int:
        return sum(
            min(rate.amount * (1 + math.floor(seconds / rate.get_expiry())) for rate in rates)
            for rates in limits
        )

    if gone(0) >= count:
        return 0.0
    low, high = 0.0, 1.0
    while gone(high) < count:
        low, high = high, 2 * high
    while high - low > max(0.5, low / 1000):
        middle = (low + high) / 2
        low, high = (low, middle) if gone(middle) >= count else (middle, high)
    return high
