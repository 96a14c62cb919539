"""Overtaking: more urgent mail that comes while a batch is delivered goes first, in the middle."""

from collections.abc import Callable, Collection
from contextlib import suppress

from mailer.delivery.breaker import Breaker
from mailer.delivery.router import Plan
from mailer.delivery.services import Services
from mailer.errors import StoreUnavailable
from mailer.message import Delivery, Lane
from mailer.policy import batch_size

# Whoever delivers looks for more urgent mail this often. A look is one short query.
_LOOK_SECONDS = 0.1
# So much urgent mail at once: between two looks, the mail of the batch gets its turn, too.
_URGENT_SECONDS = 0.25


class Overtaking:
    """The looks for more urgent mail during one batch.

    The mail is claimed with the token of the batch, so that the black box of the batch and the
    release at its end cover it.
    """

    def __init__(
        self,
        services: Services,
        assign: Callable[[Plan, list[Delivery]], object],
        breaker: Breaker,
        *,
        lanes: Collection[Lane],
        token: str,
    ) -> None:
        self._store = services.store
        self._clock = services.clock
        self._claim_lease = services.settings.claim_lease
        self._assign = assign
        self._breaker = breaker
        self._lanes = lanes
        self._token = token
        self._next_look = self._clock.monotonic() + _LOOK_SECONDS
        self._unassigned: set[int] = set()

    def claim(self, relay: str, *, before: Lane, seconds_per_mail: float) -> list[Delivery]:
        """Claim mail for a relay in lanes that are more urgent than `before`.

        Do so if it is time to look, and such mail is due.
        """
        if self._clock.monotonic() < self._next_look:
            return []
        lanes, now = [lane for lane in self._lanes if lane < before], self._clock.time()
        claimed: list[Delivery] = []
        # First a query alone: a claim writes, even if it finds nothing.
        if lanes and self._store.is_due(now, lanes):
            claimed = self._store.claim_due(
                batch_size(seconds_per_mail, _URGENT_SECONDS),
                token=self._token,
                now=now,
                lease_until=now + self._claim_lease,
                lanes=lanes,
            )
        self._next_look = self._clock.monotonic() + _LOOK_SECONDS
        return self._take(relay, claimed) if claimed else []

    def end(self) -> None:
        """Release mail that an error kept from being assigned. The lease ends it, too."""
        if self._unassigned:
            with suppress(StoreUnavailable):
                waiting = dict.fromkeys(self._unassigned)
                self._store.release_if_in_hand(waiting, token=self._token)

    def _take(self, relay: str, claimed: list[Delivery]) -> list[Delivery]:
        """Return the mail that goes over this relay now, and leave the rest to the next batch."""
        ids = {delivery.id for delivery in claimed}
        self._unassigned |= ids
        plan = Plan({*ids})
        self._assign(plan, claimed)
        for name, probe in plan.probes.items():
            self._breaker.leave_probe(name, probe)
        ours = [] if relay in plan.probes else plan.shares.pop(relay, [])
        for deliveries in plan.shares.values():
            plan.waiting |= dict.fromkeys(delivery.id for delivery in deliveries)
        self._store.release_if_in_hand(plan.waiting, token=self._token)
        self._unassigned -= ids
        if not ours:
            self._lanes = ()  # else each look would find it again
        return ours
