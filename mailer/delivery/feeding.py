"""Feeding: the sweep releases the deliveries of bulk sends in portions, and finishes the sends."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from logging import Logger

from mailer.delivery.hours import Hours, OpenZones
from mailer.delivery.services import Services
from mailer.logs import get_logger
from mailer.message import Lane
from mailer.message.bulk import BulkProgress, BulkSend, BulkState
from mailer.message.calendar import Calendar

# So many deliveries of a tenant are due at most in a lane before its bulk sends release more: twice
# as many as workers send until the next sweep.
_WINDOW = 10_000
# Steps of the same send in one sweep, so that other chores get their turn.
_STEPS = 10
# Fewer results say little about the share that fails.
_FEWEST_RESULTS = 100
# So many rows of counts are summed up at once, since that is a transaction.
_SUMMED_UP = 100
# In seconds: an importer that was silent for so long does not come back.
_ABANDONED = 3600.0

log: Logger = get_logger(__name__)


class Feeder:
    """Advances the bulk sends of one app."""

    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._hours = Hours(services.store)

    def advance(self, now: float) -> None:
        """Take each bulk send one portion further."""
        unfinished = self._store.load_unfinished_bulks()
        zones = {
            one.id: self._hours.look(one.id, calendar, now)
            for one in unfinished
            if (calendar := _hours_of(one, now)) is not None
        }
        shares = self._shares(unfinished, zones, now)
        for bulk in unfinished:
            if not bulk.is_complete:
                self._cancel_if_abandoned(bulk, now)
            progress = self._store.bulk_progress(bulk.id, now=now)
            if bulk.state is BulkState.RUNNING:
                for time_zone in zones[bulk.id].to_close if bulk.id in zones else ():
                    self._hold_in_zone(bulk, time_zone)
                share = shares.get((bulk.lane, bulk.tenant), 0)
                self._release(bulk, progress, zones.get(bulk.id), now, share)
            elif bulk.state in (BulkState.PAUSED, BulkState.CANCELLED):
                self._hold(bulk, progress, now)
            self._store.sum_up_counts(bulk.id, at_least=_SUMMED_UP)
            has_all = bulk.is_complete or bulk.state is BulkState.CANCELLED
            if has_all and self._store.finish_bulk_if_done(bulk.id, now=now):
                log.info("Bulk send is over: bulk=%s", bulk.id)

    def _shares(
        self, bulks: Sequence[BulkSend], zones: Mapping[str, OpenZones], now: float
    ) -> dict[tuple[Lane, str], int]:
        """Return how much each running send may release, by lane and tenant."""
        running = Counter(
            (one.lane, one.tenant)
            for one in bulks
            if one.state is BulkState.RUNNING and one.starts_at <= now
            if one.id not in zones or zones[one.id].to_release
        )
        return {
            (lane, tenant): (_WINDOW - self._store.count_due(lane, tenant, now=now, most=_WINDOW))
            // number
            for (lane, tenant), number in running.items()
        }

    def _release(
        self,
        bulk: BulkSend,
        progress: BulkProgress,
        zones: OpenZones | None,
        now: float,
        share: int,
    ) -> None:
        """Release the next deliveries, unless too much of the mail fails."""
        if self._pause_if_failing(bulk, progress) or not progress.held:
            return
        if bulk.has_expired(now):
            for _step in range(_STEPS):
                if self._store.expire_held(bulk.id, now=now) is None:
                    break
            return
        # All that is queued, also what waits at a limit: a pause has to hold it again.
        share = min(share, _WINDOW - progress.queued)
        if zones is None:
            self._release_up_to(share, partial(self._store.release_held, bulk.id, now=now))
            return
        for time_zone in zones.to_release:
            release = partial(self._store.release_held_in_zone, bulk.id, time_zone, now=now)
            share = self._release_up_to(share, release)

    def _release_up_to(self, share: int, release: Callable[..., set[int] | None]) -> int:
        """Release deliveries step by step. Return the rest of the share."""
        for _step in range(_STEPS):
            released = release(most=share) if share > 0 else None
            if released is None:
                break
            share -= len(released)
        return share

    def _hold_in_zone(self, bulk: BulkSend, time_zone: str) -> None:
        for _step in range(_STEPS):
            if not self._store.hold_again_in_zone(bulk.id, time_zone):
                break

    def _pause_if_failing(self, bulk: BulkSend, progress: BulkProgress) -> bool:
        results = progress.sent + progress.failed
        if results < _FEWEST_RESULTS or progress.failed <= bulk.max_failed_share * results:
            return False
        reason = (
            f"{progress.failed:,} of {results:,} mails failed, more than the share of"
            f" {bulk.max_failed_share:g} that max_failed_share allows"
        )
        if is_paused := self._store.pause_failing(bulk.id, reason):
            log.error("Bulk send is paused: bulk=%s reason=%s", bulk.id, reason)
        return is_paused

    def _hold(self, bulk: BulkSend, progress: BulkProgress, now: float) -> None:
        """Hold what is queued of a send that is paused or cancelled.

        If it is cancelled, cancel what is held. The store looks at the state again in each step.
        """
        # Only if there is any: to find it, the store reads all deliveries of the send.
        for _step in range(_STEPS if progress.queued else 0):
            if not self._store.hold_again(bulk.id):
                break
        for _step in range(_STEPS if bulk.state is BulkState.CANCELLED else 0):
            if self._store.cancel_held(bulk.id, now=now) is None:
                break

    def _cancel_if_abandoned(self, bulk: BulkSend, now: float) -> None:
        if bulk.importer_until is not None and bulk.importer_until < now - _ABANDONED:
            self._store.cancel_if_without_key(bulk.id)


def _hours_of(bulk: BulkSend, now: float) -> Calendar | None:
    """Return the hours that bind a send. Of one that has expired, nothing is released any more."""
    is_bound = bulk.state is BulkState.RUNNING and bulk.starts_at <= now
    return bulk.calendar if is_bound and not bulk.has_expired(now) else None
