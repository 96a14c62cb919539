"""The chores that keep the promise: settle, sweep, purge."""

import math
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from functools import partial
from logging import Logger
from typing import TypeVar

from mailer.delivery.dispatcher import Dispatcher
from mailer.delivery.feeding import Feeder
from mailer.delivery.services import Services
from mailer.delivery.settling import settle
from mailer.logs import get_logger
from mailer.message import Lane, Pause
from mailer.message.ports import Bell
from mailer.steps import Steps

_DAY = 86400.0
_PURGED_AT_ONCE = 500
_SHORTEST_REST = 0.005  # seconds; who waits for SQLite looks every millisecond
# While no worker can hear a ring, the sweep itself delivers for so many seconds, and looks again.
_ALONE_SECONDS = 1.0
# It avoids a relay that has kept somebody waiting for so long, for so many seconds.
_STALLED_SECONDS, _AVOIDED_SECONDS = 5.0, 10.0

Place = TypeVar("Place", str, int)

log: Logger = get_logger(__name__)


class Maintenance:
    """The chores of one app in one worker. No step of a chore keeps another one from its turn."""

    def __init__(self, services: Services, dispatcher: Dispatcher, bell: Bell) -> None:
        self._services = services
        self._store = services.store
        self._settings = services.settings
        self._clock = services.clock
        self._dispatcher = dispatcher
        self._bell = bell
        self._feeder = Feeder(services)
        self._steps = Steps()
        self._rest_of_purge: Iterator[object] | None = None

    def settle(self) -> None:
        """Settle the deliveries of processes of this machine that died."""
        self._services.black_box.settle_remains(partial(settle, self._services))

    def sweep(self) -> None:
        """Rescue mail of dead workers, expire overdue mail, and have due mail delivered."""
        now, take = self._clock.time(), self._steps.take
        take("machine lock", self._store.renew_machine_lock, now)
        take("requeue", self._store.requeue_lapsed_claims, now)
        take("doubt", self._doubt, now)
        take("resend", self._store.resend_doubtful, now)
        take("expire", self._store.expire_overdue, now)
        # Before bulk sends, which would use up the quotas.
        take("quotas", self._store.release_within_quotas, now)
        take("bulk sends", self._feeder.advance, now)
        take("fair order", self._store.rank_due, now)
        take("deliver", self.deliver_due, now)

    def _doubt(self, now: float) -> None:
        resend_at = now + self._settings.doubt_resend_after
        if doubtful := self._store.doubt_lapsed_transmissions(now, resend_at=resend_at):
            log.warning(
                "A worker was gone before it recorded the replies of a relay: in_doubt=%d",
                len(doubtful),
            )

    def deliver_due(self, now: float, lanes: Collection[Lane] = tuple(Lane)) -> None:
        """Ring for due mail of these lanes, and deliver our own if no worker can hear that."""
        due = [lane for lane in lanes if self._store.is_due(now, [lane])]
        if due and not self._bell.ring(lanes=due, urge=True):
            self._dispatcher.deliver(at_most=_ALONE_SECONDS, avoided=self._stalled(now))

    def _stalled(self, now: float) -> dict[str, Pause]:
        """Return the relays that keep other threads of this machine waiting."""
        since = datetime.fromtimestamp(now, UTC)
        pause = Pause(until=now + _AVOIDED_SECONDS, failures=0, reason="", since=since)
        return dict.fromkeys(self._services.black_box.waited_for(_STALLED_SECONDS), pause)

    # --- the purge -------------------------------------------------------------------------------

    def purge(self, at_most: float = math.inf) -> bool:
        """Erase and delete old mail. Return False if that must go on later.

        After each small step, the database is left to others for as long as the step took.
        """
        ends = self._clock.monotonic() + at_most
        steps, self._rest_of_purge = self._rest_of_purge or self._purge_steps(), None
        began = self._clock.monotonic()
        for _step in steps:
            now = self._clock.monotonic()
            if now > ends:
                self._rest_of_purge = steps
                return False
            self._clock.sleep(max(now - began, _SHORTEST_REST))
            began = self._clock.monotonic()
        return True

    def _purge_steps(self) -> Iterator[object]:
        """Purge records, bodies, and the bytes that no mail carries any more, step by step."""
        now, store = self._clock.time(), self._store
        before = now - self._settings.keep_days * _DAY
        delete = partial(store.purge_finished, before, most=_PURGED_AT_ONCE)
        yield from self._each("purge records", iter(delete, 0))
        orphans = partial(store.purge_orphans, before, most=_PURGED_AT_ONCE)
        yield from self._each("purge orphans", _from_where_it_ended(orphans, ""))
        if (days := self._settings.keep_bodies_days) is not None:
            yield from self._each("purge own parts", self._erase_own_parts(now - days * _DAY))
            erase = partial(store.erase_finished, now - days * _DAY, now=now, most=_PURGED_AT_ONCE)
            yield from self._each("purge bodies", _from_where_it_ended(erase, ""))
        quotas = iter(partial(store.purge_quotas, before), 0)
        yield from self._each("purge quotas", quotas)
        blobs = partial(store.purge_blobs, now, most=_PURGED_AT_ONCE)
        yield from self._each("purge blobs", _from_where_it_ended(blobs, ""))

    def _erase_own_parts(self, before: float) -> Iterator[object]:
        for bulk_id in self._store.load_unerased_bulks(before):
            erase = partial(self._store.erase_own_parts, bulk_id, before, most=_PURGED_AT_ONCE)
            yield from _from_where_it_ended(erase, 0)

    def _each(self, name: str, steps: Iterator[object]) -> Iterator[object]:
        """Take each step. After one that fails, the next purge goes on."""
        while (taken := self._steps.take(name, next, steps, None)) is not None:
            yield taken


def _from_where_it_ended(step: Callable[..., Place | None], beginning: Place) -> Iterator[Place]:
    """Take a step again and again, each time from where it ended."""
    after: Place | None = beginning
    while (after := step(after=after)) is not None:
        yield after
