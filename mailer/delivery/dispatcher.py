"""The way out: claim a batch, assign it to relays, and deliver each relay's share.

`share.py` goes on from there, with one relay and one connection.
"""

import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from logging import Logger

from mailer.delivery.budget import ByteBudget
from mailer.delivery.clearing import HeadOfQueue
from mailer.delivery.flags import WorkerFlags
from mailer.delivery.hours import Hours
from mailer.delivery.overtaking import Overtaking
from mailer.delivery.pace import Pace
from mailer.delivery.relay_state import RelayState
from mailer.delivery.router import Availability, Plan, Router
from mailer.delivery.services import Services, ThreadContext
from mailer.delivery.share import Deadline, Share
from mailer.errors import StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Delivery, Lane, Pause
from mailer.message.ports import Bell
from mailer.policy import batch_size
from mailer.smtp import Relay

# After three times its time, a share begins no more mail.
_LATE_PARTS = 2
_NONE: Mapping[str, Pause] = {}

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """The outcome of a batch."""

    claimed: int
    goes_on: bool  #: whether to claim the next batch at once
    lanes: Collection[Lane] = ()  #: of the mail


_NOTHING = Progress(0, goes_on=False)


class Dispatcher:
    """The delivery of one app in one process. Threads share it."""

    def __init__(self, services: Services, relays: Sequence[Relay], bell: Bell) -> None:
        self._services = services
        self._settings = services.settings
        self._clock = services.clock
        self._bell = bell
        self._states = [RelayState(relay) for relay in relays]
        self._router = Router(services, self._states)
        self._head = HeadOfQueue(services, self._router)
        self._hours = Hours(services.store)
        self._budget = ByteBudget(services.settings.max_bytes_in_flight, services.clock)
        self._pace = Pace()
        self.flags: WorkerFlags = WorkerFlags()

    def deliver(
        self,
        at_most: float,
        avoided: Mapping[str, Pause] = _NONE,
        mails: Collection[str] | None = None,
    ) -> None:
        """Deliver batch after batch, for about so many seconds: all mail, or only `mails`, by id.

        That is long enough that starting costs nothing, and short enough that others get their
        turn.
        """
        ends = self._clock.monotonic() + at_most
        with self._thread_context(avoided, mails) as context:
            while (done := self._deliver_batch(context)).goes_on and not self.flags.is_stopped:
                if self._clock.monotonic() > ends:
                    self._bell.ring(lanes=done.lanes)
                    break

    def deliver_batch(self) -> Progress:
        """Deliver one batch."""
        with self._thread_context() as context:
            return self._deliver_batch(context)

    def hang_up(self) -> None:
        """Close the connections that nobody uses."""
        for state in self._states:
            state.relay.hang_up()

    @contextmanager
    def _thread_context(
        self, avoided: Mapping[str, Pause] = _NONE, mails: Collection[str] | None = None
    ) -> Iterator[ThreadContext]:
        throttle, black_box = self._services.throttle, self._services.black_box
        with throttle.slots() as relays, throttle.slots() as domains, black_box.box() as box:
            try:
                yield ThreadContext(relays, domains, box, self._budget, self.flags, avoided, mails)
            finally:
                for state in self._states:
                    if state.settings.relay_concurrency:
                        state.relay.hang_up()

    # --- a batch ---------------------------------------------------------------------------------

    def _deliver_batch(self, context: ThreadContext) -> Progress:
        """Claim the most urgent mail, hand it to the relays, and record the outcomes."""
        available = self._router.look(context)
        if not available.has_free_relay:
            return _NOTHING
        limit = batch_size(self._pace.seconds_per_mail, self._settings.batch_seconds)
        claimed = self._claim(limit, available, context)
        if not claimed:
            return _NOTHING
        is_full, lanes = len(claimed) == limit, Counter(one.lane for one in claimed)
        started = self._clock.monotonic()  # after the claim, however long that took
        plan = Plan({delivery.id for delivery in claimed})
        overtaking = self._overtaking(available, context, token=claimed[0].token)
        try:
            closed = self._assign(plan, claimed, available)
            self._services.store.release_if_in_hand(plan.waiting, token=claimed[0].token)
            if is_full and plan.has_sound_relay:
                # There is probably more in the lane that fills it, for another thread.
                self._bell.ring(lanes=[max(lanes, key=lanes.__getitem__)])
            shares = self._deliver_shares(plan, context, started, overtaking)
        except BaseException:
            with suppress(StoreUnavailable):  # then the black box is settled, or the lease ends
                self._abandon(plan, token=claimed[0].token)
            raise
        finally:
            overtaking.end()
        ends = started + self._settings.batch_seconds
        is_cleared = is_full and self._clear_head(shares, plan, available, context, ends)
        goes_on = bool(plan.shares or closed) or is_cleared
        return Progress(len(claimed), goes_on=goes_on, lanes=[*lanes])

    def _claim(self, limit: int, available: Availability, context: ThreadContext) -> list[Delivery]:
        """Claim due deliveries in the lanes that we serve, and a free relay accepts.

        Certain mails are delivered for their caller, whatever lanes the workers serve.
        """
        lanes = available.lanes if context.mails is not None else self._served(available)
        now, token = self._clock.time(), secrets.token_hex(8)
        if self._settings.tenant_rules.quotas:
            self._services.store.release_within_quotas(now)
        context.box.claiming(token)
        until = now + self._settings.claim_lease
        return self._services.store.claim_due(
            limit,
            token=token,
            now=now,
            lease_until=until,
            lanes=lanes,
            mails=context.mails,
        )

    def _assign(
        self, plan: Plan, claimed: Sequence[Delivery], available: Availability
    ) -> Mapping[int, float]:
        """Assign mail to relays, but for bulk mail outside its hours. Return until when that waits.

        With MAIL_SUPPRESS_SEND, hours do not apply.
        """
        closed: Mapping[int, float] = {}
        if not self._settings.mail_suppress_send:
            closed = self._hours.closed(claimed, self._clock.time())
        plan.waiting.update(closed)
        self._router.assign(plan, [one for one in claimed if one.id not in closed], available)
        return closed

    def _overtaking(
        self, available: Availability, context: ThreadContext, *, token: str
    ) -> Overtaking:
        """Return the looks for more urgent mail: none if only certain mails are delivered."""
        lanes = self._served(available) if context.mails is None else []
        return Overtaking(
            self._services,
            partial(self._assign, available=available),
            self._router.breaker,
            lanes=lanes,
            token=token,
        )

    def _served(self, available: Availability) -> list[Lane]:
        return [lane for lane in available.lanes if lane in self._settings.served_lanes]

    def _abandon(self, plan: Plan, *, token: str) -> None:
        """Release deliveries that are in no share yet, and leave our probes to others."""
        self._services.store.release_if_in_hand(dict.fromkeys(plan.unassigned), token=token)
        for name, probe in plan.probes.items():
            self._router.breaker.leave_probe(name, probe)

    def _clear_head(
        self,
        shares: Sequence[Share],
        plan: Plan,
        available: Availability,
        context: ThreadContext,
        ends: float,
    ) -> bool:
        """Move mail out of the way that can't go now, if this batch met any."""
        limits = [share.limits for share in shares if share.limits.stopped_domains]
        if context.mails is not None or (not limits and not plan.waiting):
            return False
        return self._head.clear(limits, self._router.look_again(available, context), ends=ends)

    # --- shares ----------------------------------------------------------------------------------

    def _deliver_shares(
        self, plan: Plan, context: ThreadContext, started: float, overtaking: Overtaking
    ) -> list[Share]:
        """Deliver share after share, urgent mail first.

        Relays that are probed come last, since a probe may take as long as a time-out.
        """
        names = sorted(
            plan.shares, key=lambda name: (name in plan.probes, plan.shares[name][0].lane)
        )
        lanes = {one.lane for deliveries in plan.shares.values() for one in deliveries}
        seconds = self._settings.batch_seconds / max(1, len(names))
        shares = []
        for place, name in enumerate(names, start=1):
            self._leave_other_relays(name, context)
            # A slow relay takes no time from the next one.
            ends = max(started + place * seconds, self._clock.monotonic() + seconds)
            deadline = Deadline(ends, late=ends + _LATE_PARTS * seconds)
            with context.domain_slots:
                shares.append(self._deliver_share(name, plan, context, deadline, overtaking))
        self._account(shares, started, lanes)
        return shares

    def _deliver_share(
        self,
        name: str,
        plan: Plan,
        context: ThreadContext,
        deadline: Deadline,
        overtaking: Overtaking,
    ) -> Share:
        """Deliver one relay's share. If the relay can't be used, pause it."""
        state, breaker = self._router.states[name], self._router.breaker
        probe = plan.probes.get(name)
        has_slot = context.relay_slots.take_relay(name)  # it may have been lost at another relay
        is_probe, deliveries = probe is not None, plan.shares[name]
        share = Share(
            self._services,
            context,
            state,
            deliveries,
            deadline=deadline,
            overtaking=None if is_probe else overtaking,
        )
        context.box.calling(name)
        if probe is not None and (probe := breaker.renew_probe(state.relay, probe)) is not None:
            plan.probes[name] = probe
        else:
            plan.probes.pop(name, None)
        plan.unassigned.difference_update(delivery.id for delivery in deliveries)
        if not has_slot or (is_probe and probe is None):
            share.record_and_release()
            if probe is not None:
                breaker.leave_probe(name, probe)
            return share
        report = share.deliver()
        if report.failure:
            breaker.pause(state.relay, probe, report.failure)
        elif probe is not None:
            breaker.end_probe(state.relay, probe, was_tried=bool(report.tried))
        return share

    def _leave_other_relays(self, name: str, context: ThreadContext) -> None:
        """Leave other relays to other threads: this relay may keep us waiting."""
        for state in self._states:
            if state.name != name and context.relay_slots.has_relay(state.name):
                state.relay.hang_up()  # relays count idle connections, too
                context.relay_slots.release_relay(state.name)

    def _account(self, shares: Sequence[Share], started: float, lanes: Collection[Lane]) -> None:
        """Learn how fast mail goes, and call another thread for released mail."""
        reports = [share.report for share in shares]
        if any(report.claimable_again for report in reports):
            self._bell.ring(lanes=lanes)
        tried, seconds = sum(report.tried for report in reports), self._clock.monotonic() - started
        # A relay that failed says nothing of mails.
        if tried and not any(report.failure for report in reports):
            self._pace.learn(seconds, tried)
        log.info("%d tried in %.0f ms", tried, 1000 * seconds)
