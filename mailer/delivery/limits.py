"""The limits of recipient domains, as one share meets them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from operator import attrgetter

from mailer.delivery.pace import Pace
from mailer.delivery.services import Services, ThreadContext
from mailer.message import Delivery, Lane

#: Stands for all domains without a limit of their own.
NO_LIMIT = ""
# A mail whose domain has no free slot waits at least so many seconds.
_NO_SLOT_SECONDS = 1.0


class DomainLimits:
    """The limits of the domains and of the relay of one share."""

    def __init__(
        self, services: Services, context: ThreadContext, *, relay: str, pace: Pace, token: str
    ) -> None:
        self._services = services
        self._slots = context.domain_slots
        self._relay = relay
        self._pace = pace
        self._token = token
        self._granted: set[int] = set()  # counted already, even if it could not be prepared at once
        self._full: set[str] = set()  # domains at their limit
        self._without_slot: set[str] = set()  # of these, domains that others send to
        # Where others wait, so new mail goes behind them.
        self._behind: set[tuple[str, Lane]] = set()

    def admit(self, picked: Sequence[Delivery]) -> list[Delivery]:
        """Return those of the deliveries that may be sent now."""
        if not self._services.throttle.limits_anything:
            return [*picked]
        new = [delivery for delivery in picked if delivery.id not in self._granted]
        for domain, deliveries in self._by_limit(new).items():
            in_turn = [one for one in deliveries if not self._is_behind(domain, one)]
            in_turn.sort(key=attrgetter("lane", "queued_at"))
            count = self._ask(domain, len(in_turn)) if in_turn else 0
            self._granted.update(delivery.id for delivery in in_turn[:count])
        return [delivery for delivery in picked if delivery.id in self._granted]

    def stops(self, delivery: Delivery) -> bool:
        """Return whether a delivery would be refused, or put behind others."""
        domain = self._limit_of(delivery)
        is_new = not delivery.has_waited
        return domain in self._full or (is_new and (domain, delivery.lane) in self._behind)

    @property
    def stopped_domains(self) -> set[str]:
        """Return the domains whose limits stopped some mail."""
        return (self._full | {domain for domain, _lane in self._behind}) - {NO_LIMIT}

    def book(self, refused: Iterable[Delivery]) -> dict[int, float]:
        """Return when each of these is due again.

        Mail that has waited, and was refused at its turn, comes before new mail.
        """
        now, throttle = self._services.clock.time(), self._services.throttle
        due_at: dict[int, float] = {}
        for domain, deliveries in self._by_limit(refused).items():
            least = _NO_SLOT_SECONDS if domain in self._without_slot else 0.0
            for lane, has_waited in product(Lane, (True, False)):
                row = [
                    one for one in deliveries if (one.lane, one.has_waited) == (lane, has_waited)
                ]
                row.sort(key=attrgetter("queued_at"))
                waits = throttle.book(
                    self._relay,
                    domain,
                    len(row),
                    lane,
                    seconds_per_mail=self._pace.seconds_per_mail,
                    again=has_waited,
                    is_refused=domain in self._full,
                )
                due_at.update(
                    (one.id, now + max(wait, least)) for one, wait in zip(row, waits, strict=True)
                )
        return due_at

    # --- one domain ------------------------------------------------------------------------------

    def _by_limit(self, deliveries: Iterable[Delivery]) -> dict[str, list[Delivery]]:
        """Group by domains with a limit. The others have only the limit of the relay."""
        groups: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            groups[self._limit_of(delivery)].append(delivery)
        return groups

    def _limit_of(self, delivery: Delivery) -> str:
        has_limit = self._services.throttle.of_domain(delivery.domain)
        return delivery.domain if has_limit else NO_LIMIT

    def _ask(self, domain: str, wanted: int) -> int:
        """Return how many mails may be sent to a domain now."""
        if domain in self._full:
            granted = 0
        elif not self._slots.take_domain(domain):
            self._without_slot.add(domain)
            granted = 0
        else:
            granted = self._services.throttle.admit(self._relay, domain, wanted).granted
        if granted < wanted:
            self._full.add(domain)
        return granted

    def _is_behind(self, domain: str, delivery: Delivery) -> bool:
        """Return whether a delivery is new while others wait at its limit."""
        if delivery.has_waited:
            return False
        row = domain, delivery.lane
        if row not in self._behind and self._others_wait(*row):
            self._behind.add(row)
        return row in self._behind

    def _others_wait(self, domain: str, lane: Lane) -> bool:
        """Return whether mail waits at a limit.

        The throttle may not know that a person cancelled it.
        """
        throttle, now = self._services.throttle, self._services.clock.time()
        seconds = throttle.behind(self._relay, domain, lane)
        if seconds <= 0:
            return False
        lanes = [its for its in Lane if its <= lane]
        until = now + seconds
        if self._services.store.is_waiting(lanes, domain, now=now, until=until, token=self._token):
            return True
        throttle.forget_waiting(self._relay, domain, lane)
        return False
