"""Clearing the head of the queue: mail that can't go now is moved out of the way of the rest."""

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mailer.delivery.limits import DomainLimits
from mailer.delivery.router import Availability, Router
from mailer.delivery.services import Services
from mailer.forks import survive_forks
from mailer.message import Delivery, Lane
from mailer.store import MOVED_AT_ONCE

# Mail that only busy relays carry is moved by so many seconds.
_BUSY_SECONDS = 1.0
# If there is no other mail at the head, look behind it this seldom.
_LOOKS_FURTHER_EVERY = 5.0


class HeadOfQueue:
    """The mail that has been due the longest, as far as it waits for a relay or at a limit."""

    def __init__(self, services: Services, router: Router) -> None:
        self._store = services.store
        self._clock = services.clock
        self._router = router
        self._lock = threading.Lock()
        self._looked_further_at = -math.inf
        survive_forks(self)

    def after_fork_in_child(self) -> None:
        """Take a new lock: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def clear(
        self, limits: Sequence[DomainLimits], available: Availability, *, ends: float
    ) -> bool:
        """Postpone mail that can't go now, in each lane. Return whether this thread did.

        Two threads would book the same places at a limit twice, so one does it.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            seconds_ago = self._clock.monotonic() - self._looked_further_at
            looks_further = seconds_ago >= _LOOKS_FURTHER_EVERY
            by_domain = {domain: one for one in limits for domain in one.stopped_domains}
            cleared = [
                self._clear_lane(lane, by_domain, available, ends, looks_further=looks_further)
                for lane in Lane
            ]
        finally:
            self._lock.release()
        return any(cleared)

    def _clear_lane(
        self,
        lane: Lane,
        limits: Mapping[str, DomainLimits],
        available: Availability,
        ends: float,
        *,
        looks_further: bool,
    ) -> bool:
        """Clear the head of a lane, until other mail comes to it or the time is over."""
        now, has_moved = self._clock.time(), False
        while True:
            head = self._store.head(lane, now=now, most=MOVED_AT_ONCE)
            is_all = looks_further and len(head) == MOVED_AT_ONCE
            due_at = {
                **self._router.waits_for_paused(head, available.pauses, now),
                **_waits_at_limits(head, limits),
            }
            others = [delivery for delivery in head if delivery.id not in due_at]
            due_at |= self._waits_for_busy(others, available, now, even_if_all=is_all)
            moved = self._store.postpone_if_queued(due_at, now=now) if due_at else set()
            has_moved = has_moved or bool(moved)
            if len(moved) < MOVED_AT_ONCE or self._clock.monotonic() > ends:
                return has_moved

    def _waits_for_busy(
        self,
        deliveries: Sequence[Delivery],
        available: Availability,
        now: float,
        *,
        even_if_all: bool,
    ) -> dict[int, float]:
        """Return until when deliveries wait that only busy relays carry.

        If that is all of them, they stay, and the worker that has the relay finds them in their
        place.
        """
        if not available.busy:
            return {}
        stuck = self._router.carried_by_busy_only(deliveries, available)
        if len(stuck) == len(deliveries):
            if not even_if_all:
                return {}
            self._looked_further_at = self._clock.monotonic()
        return dict.fromkeys(stuck, now + _BUSY_SECONDS)


def _waits_at_limits(
    deliveries: Iterable[Delivery], limits: Mapping[str, DomainLimits]
) -> dict[int, float]:
    """Return until when deliveries wait whose domains are at their limit."""
    stopped: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.domain in limits and limits[delivery.domain].stops(delivery):
            stopped[delivery.domain].append(delivery)
    due_at: dict[int, float] = {}
    for domain, waiting in stopped.items():
        due_at |= limits[domain].book(waiting)
    return due_at
