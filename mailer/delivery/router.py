"""Sharing a batch out to relays."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mailer.delivery.breaker import Breaker
from mailer.delivery.relay_state import RelayState
from mailer.delivery.routing import carries, choose, routes_by_sender
from mailer.delivery.services import Services, ThreadContext
from mailer.message import Delivery, Lane, Pause
from mailer.settings import RelaySettings


@dataclass(frozen=True, slots=True)
class Availability:
    """The relays that may be used at the moment."""

    pauses: Mapping[str, Pause]  #: by relay, also those that are over: such a relay is probed first
    usable: Sequence[RelayState]  #: relays that are not paused, or may be probed
    busy: frozenset[str]  #: usable relays whose connections are all in use

    @property
    def has_free_relay(self) -> bool:
        return len(self.busy) < len(self.usable)

    @property
    def lanes(self) -> list[Lane]:
        """Return the lanes that at least one free relay accepts."""
        free = [state.settings for state in self.usable if state.name not in self.busy]
        return [lane for lane in Lane if any(relay.accepts(lane) for relay in free)]


@dataclass(slots=True)
class Plan:
    """The distribution of a batch over relays."""

    #: Deliveries that no share has taken over yet: after an error, they are released.
    unassigned: set[int]
    #: By relay.
    shares: dict[str, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    waiting: dict[int, float | None] = field(default_factory=dict)  #: for a relay, and until when
    probes: dict[str, Pause] = field(default_factory=dict)  #: ours, by relay

    @property
    def has_sound_relay(self) -> bool:
        """Return whether a relay has a share that is not only probed."""
        return any(name not in self.probes for name in self.shares)


class Router:
    """The relays of an app, with their rules, pauses and limits of connections."""

    def __init__(self, services: Services, states: Sequence[RelayState]) -> None:
        self._store = services.store
        self._clock = services.clock
        self._longest_rest = services.settings.relay_rest_longest
        self.breaker: Breaker = Breaker(services)
        self.states: dict[str, RelayState] = {state.name: state for state in states}
        self._needs_senders = routes_by_sender(state.settings for state in states)

    def look(self, context: ThreadContext) -> Availability:
        """Return which relays may be used, and take a slot of each."""
        pauses, usable = self._usable(context)
        busy = [one.name for one in usable if not context.relay_slots.take_relay(one.name)]
        return Availability(pauses, usable, frozenset(busy))

    def look_again(self, available: Availability, context: ThreadContext) -> Availability:
        """Return which relays may be used now that some may have been paused."""
        return Availability(*self._usable(context), available.busy)

    def _usable(self, context: ThreadContext) -> tuple[dict[str, Pause], list[RelayState]]:
        pauses = self.breaker.pauses(context.avoided)
        return pauses, [one for one in self.states.values() if self._may_try(pauses.get(one.name))]

    def assign(self, plan: Plan, claimed: Sequence[Delivery], available: Availability) -> None:
        """Assign each delivery to a relay, or let it wait.

        A relay that is probed gets one mail: the least urgent one. A mail at which a relay fell
        silent comes last, so that it does not keep a relay paused that takes others.
        """
        senders, now = self.senders(claimed), self._clock.time()
        candidates = [state.settings for state in available.usable]
        suspects = frozenset[int]().union(*(one.silences.suspects for one in self.states.values()))
        least_urgent_first = [*reversed(claimed)]
        least_urgent_first.sort(key=lambda delivery: delivery.id in suspects)
        for delivery in least_urgent_first:
            sender = senders.get(delivery.mail_id, "")
            relay = self._relay_for(delivery, sender, plan, candidates, available)
            if relay is None:
                plan.waiting[delivery.id] = self.free_at(delivery, sender, available.pauses, now)
            else:
                plan.shares[relay].append(delivery)
        places = {delivery.id: place for place, delivery in enumerate(claimed)}
        for deliveries in plan.shares.values():
            deliveries.sort(key=lambda delivery: places[delivery.id])

    def _relay_for(
        self,
        delivery: Delivery,
        sender: str,
        plan: Plan,
        candidates: list[RelaySettings],
        available: Availability,
    ) -> str | None:
        """Return the relay of a delivery. After a probe, it is no candidate any more."""
        chance = self._clock.random()
        while (chosen := choose(candidates, delivery, sender, chance, available.busy)) is not None:
            pause = available.pauses.get(chosen.name)
            if pause is None:
                return chosen.name
            candidates.remove(chosen)
            relay = self.states[chosen.name].relay
            if (probe := self.breaker.take_probe(relay, pause, self._clock.time())) is not None:
                plan.probes[chosen.name] = probe
                return chosen.name
        return None

    # --- deliveries that wait --------------------------------------------------------------------

    def senders(self, deliveries: Iterable[Delivery]) -> dict[str, str]:
        """Return the sender of each mail, if a rule asks for it."""
        if not self._needs_senders:
            return {}
        return self._store.load_senders({delivery.mail_id for delivery in deliveries})

    def free_at(
        self, delivery: Delivery, sender: str, pauses: Mapping[str, Pause], now: float
    ) -> float | None:
        """Return when a relay that would carry a delivery may be tried. None: now."""
        pauses_of_able = [
            pauses.get(state.name)
            for state in self.states.values()
            if carries(state.settings, delivery, sender)
        ]
        if any(self._may_try(pause) for pause in pauses_of_able):
            return None
        latest = now + self._longest_rest
        times = [
            self.breaker.time_to_look_again(pause, now) or latest
            for pause in pauses_of_able
            if pause
        ]
        return min(times, default=latest)

    def waits_for_paused(
        self, deliveries: Sequence[Delivery], pauses: Mapping[str, Pause], now: float
    ) -> dict[int, float]:
        """Return until when deliveries wait whose relays are all paused."""
        if not pauses:
            return {}
        senders = self.senders(deliveries)
        times = {
            one.id: self.free_at(one, senders.get(one.mail_id, ""), pauses, now)
            for one in deliveries
        }
        return {number: until for number, until in times.items() if until is not None}

    def carried_by_busy_only(
        self, deliveries: Sequence[Delivery], available: Availability
    ) -> list[int]:
        """Return the deliveries that no free relay carries."""
        senders = self.senders(deliveries)
        candidates = [state.settings for state in available.usable]
        return [
            one.id
            for one in deliveries
            if choose(candidates, one, senders.get(one.mail_id, ""), 0.0, available.busy) is None
        ]

    def _may_try(self, pause: Pause | None) -> bool:
        return self.breaker.lets_through(pause)
