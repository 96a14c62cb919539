"""Mail goes out: one slice of what is due, and the chores that keep the promise.

No SQL transaction is open while the network is used, and no single mail stops the others.
"""

import logging
import math
import mmap
import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from mailer.delivery.budget import ByteBudget
from mailer.delivery.office import Duty, Office
from mailer.delivery.round import Pace, Round, Silences
from mailer.delivery.routing import carries, choose, routes_by_sender
from mailer.delivery.settling import settle
from mailer.errors import StoreUnavailable
from mailer.forks import survive_forks
from mailer.intake import Bell
from mailer.logs import get_logger
from mailer.message import Delivery, Lane, Outcome, Pause
from mailer.policy import rest, slice_size
from mailer.smtp import Relay
from mailer.steps import Steps
from mailer.store import MOVED_AT_ONCE

_DAY = 86400.0
_PURGED_AT_ONCE = 500
_LEAST_REST = 0.005  # who waits for SQLite looks every millisecond
# While the broker is away, or all who could hear it wait for a relay, the sweep itself delivers for so long, and looks again.
_ALONE_SECONDS = 1.0
# It leaves alone a relay that has kept somebody waiting for so long, and puts off its mail by so much.
_STALLED_SECONDS, _AVOIDED_SECONDS = 5.0, 10.0
# A round that takes three times as long as it should begins nothing more.
_LATE_PARTS = 2
# What only busy relays carry lets other mail pass for so long.
_BUSY_SECONDS = 1.0
# Where nothing but such mail is seen, it is moved out of the way to see what is behind it, but this seldom.
_LOOKS_FURTHER_EVERY = 5.0
_NONE: Mapping[str, Pause] = {}

__all__ = ["Courier", "Doorstep", "Office"]

log = get_logger(__name__)


@dataclass(slots=True)
class Shares:
    """A slice that is shared out to the relays."""

    left: set[int]  #: what is in no round yet

    carried: dict[Relay, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    waits: dict[int, float | None] = field(default_factory=dict)  #: what no relay takes now, and until when
    probes: dict[str, Pause] = field(default_factory=dict)  #: the relays that are only being tried, as long as we try them

    @property
    def has_sound_relay(self) -> bool:
        """Tell whether a relay carries some of it that is not only being tried."""
        return any(relay.name not in self.probes for relay in self.carried)


class Courier:
    """What it takes to deliver, for one app in one process. It learns how fast its relays are."""

    def __init__(self, office: Office, relays: Sequence[Relay], bell: Bell) -> None:
        self._office = office
        self._settings = office.settings
        self._store = office.store
        self._relays = relays
        self._bell = bell
        self._pace = Pace()
        self._paces = {relay.name: Pace() for relay in relays}
        self._by_sender = routes_by_sender(relay.settings for relay in relays)
        self._silences = {relay.name: Silences() for relay in relays}
        self._budget = ByteBudget(office.settings.max_bytes_in_flight)
        self._makes_way = threading.Lock()
        self._looked_further_at = -math.inf
        self._steps = Steps()
        self._bites: Iterator[object] | None = None  # of a purge that goes on
        # These bytes are shared by the worker and the children of its prefork pool, which are forked later.
        self._stopped = mmap.mmap(-1, 1)
        self._delivered_at = memoryview(mmap.mmap(-1, 8)).cast("d")  # 8 aligned bytes are written at once
        survive_forks(self)

    def deliver(self, at_most: float, avoiding: Mapping[str, Pause] = _NONE) -> None:
        """Slice after slice while more is due, so long that starting costs nothing, so short that others get their turn."""
        ends = time.monotonic() + at_most
        with self._on_duty(avoiding) as duty:
            while self._deliver_slice(duty) and not self._stopped[0]:
                if time.monotonic() > ends:
                    self._bell.ring()
                    break

    def start(self) -> None:
        """Deliver again after a stop: a process may start a worker more than once."""
        self._stopped[0] = 0
        self._delivered_at[0] = 0.0

    def stop(self) -> None:
        """No slice after this one, in whatever process of this worker."""
        self._stopped[0] = 1

    @property
    def delivered_at(self) -> float | None:
        """Return when a relay last took a mail from this worker, in whatever process of it; None if none did."""
        return self._delivered_at[0] or None

    def after_fork_in_child(self) -> None:
        """Take a new lock: another thread of the parent may have held it."""
        self._makes_way = threading.Lock()

    # --- a slice ------------------------------------------------------------------------------------------------------

    def deliver_slice(self) -> int:
        """Claim what is most urgent, hand it to the relays, record what came of it.

        Returns how many were claimed; none, too, if there was no way for any of them: then nobody has to look again at once.
        """
        with self._on_duty() as duty:
            return self._deliver_slice(duty)

    @contextmanager
    def _on_duty(self, avoiding: Mapping[str, Pause] = _NONE) -> Iterator[Duty]:
        throttle = self._office.throttle
        with throttle.seats() as of_relays, throttle.seats() as of_domains, self._office.black_box.box() as box:
            try:
                yield Duty(of_relays, of_domains, box, self._budget, avoiding)
            finally:
                for relay in self._relays:
                    if relay.settings.relay_concurrency:
                        relay.hang_up()

    def _deliver_slice(self, duty: Duty) -> int:
        pauses = {**self._store.relay_pauses(), **duty.avoiding}
        relays = [relay for relay in self._relays if _may_try(pauses.get(relay.name))]
        busy = {relay.name for relay in relays if not duty.relay_seats.take_relay(relay.name)}
        if len(busy) == len(relays):
            return 0
        most = slice_size(self._pace.seconds_per_mail, self._settings.slice_seconds)
        claimed = self._claim(most, [relay for relay in relays if relay.name not in busy], duty)
        if not claimed:
            return 0
        is_full = len(claimed) == most
        started = time.monotonic()  # after the claim: however long that took, a slice gets something done
        shares = Shares({delivery.id for delivery in claimed})
        try:
            self._share_out(shares, claimed, relays, pauses, busy)
            self._store.release_if_held(shares.waits, token=claimed[0].token)
            if is_full and shares.has_sound_relay:
                self._bell.ring()  # there is probably more: a free slot is called to join in, before we start
            rounds = self._hand_over(shares, duty, started)
        except BaseException:
            with suppress(StoreUnavailable):  # then its box is settled, or its lease ends
                self._give_back(shares, token=claimed[0].token)
            raise
        full = [one for one in rounds if one.stopped_domains]
        ends = started + self._settings.slice_seconds
        made_way = is_full and (full or shares.waits) and self._make_way(full, busy, duty, ends)
        return len(claimed) if shares.carried or made_way else 0

    def _give_back(self, shares: Shares, *, token: str) -> None:
        """Leave to others what is in no round yet, and the relays that we were to try."""
        self._store.release_if_held(dict.fromkeys(shares.left), token=token)
        for name, probe in shares.probes.items():
            self._leave_probe(name, probe)

    def _claim(self, most: int, relays: Sequence[Relay], duty: Duty) -> list[Delivery]:
        """Of the lanes that one of these relays carries."""
        now, token = time.time(), secrets.token_hex(8)
        duty.box.claiming(token)
        lanes = [lane for lane in Lane if any(not relay.settings.lanes or lane in relay.settings.lanes for relay in relays)]
        lease_until = now + self._settings.claim_lease
        return self._store.claim_due(most, token=token, now=now, lease_until=lease_until, lanes=lanes)

    def _share_out(
        self,
        shares: Shares,
        claimed: Sequence[Delivery],
        relays: Sequence[Relay],
        pauses: Mapping[str, Pause],
        busy: Collection[str],
    ) -> None:
        """A relay that is only being tried gets one mail: the least urgent of those that are for it.

        One at which a relay fell silent comes last, so that it does not keep a relay paused that takes others.
        """
        senders, now = self._senders(claimed), time.time()
        able = {relay.name: relay for relay in relays}
        settings = [relay.settings for relay in relays]
        places = {delivery.id: place for place, delivery in enumerate(claimed)}
        for delivery in sorted(claimed, key=lambda one: (self._is_suspect(one), -places[one.id])):
            sender = senders.get(delivery.mail_id, "")
            dice = random.random()  # noqa: S311 -- spreads mail over relays
            while (chosen := choose(settings, delivery, sender, dice, busy)) is not None:
                relay = able[chosen.name]
                if chosen.name not in pauses:
                    shares.carried[relay].append(delivery)
                    break
                settings.remove(chosen)
                if (probe := self._take_probe(relay, pauses[relay.name], now)) is not None:
                    shares.probes[relay.name] = probe
                    shares.carried[relay].append(delivery)
                    break
            else:
                shares.waits[delivery.id] = self._free_at(delivery, sender, pauses, now)
        for deliveries in shares.carried.values():
            deliveries.sort(key=lambda delivery: places[delivery.id])

    def _is_suspect(self, delivery: Delivery) -> bool:
        return any(silences.suspect(delivery) for silences in self._silences.values())

    def _senders(self, deliveries: Iterable[Delivery]) -> dict[str, str]:
        """By the mail's id, if that makes a difference."""
        return self._store.load_senders({one.mail_id for one in deliveries}) if self._by_sender else {}

    def _free_at(self, delivery: Delivery, sender: str, pauses: Mapping[str, Pause], now: float) -> float | None:
        """When one of the relays that would carry it may be tried again; None if one is only busy, or may be tried now."""
        able = [pauses.get(relay.name) for relay in self._relays if carries(relay.settings, delivery, sender)]
        if any(_may_try(pause) for pause in able):
            return None
        longest = now + self._settings.relay_rest_longest
        return min((self._look_again_at(pause, now) or longest for pause in able if pause), default=longest)

    def _look_again_at(self, pause: Pause, now: float) -> float | None:
        """When to look again at a relay that is paused: at the end of the pause.

        While the relay is being tried, the pause ends with the longest time that may take, and may be over long before: so no
        later than it would be tried again had it failed as often.
        """
        return pause.until and min(pause.until, now + rest(max(0, pause.failures - 1), self._settings.retry, 1.0))

    # --- relays -------------------------------------------------------------------------------------------------------

    def _hand_over(self, shares: Shares, duty: Duty, started: float) -> list[Round]:
        """A round for each relay, urgent mail first; those that are only tried come last: that may take as long as a time-out."""
        relays = sorted(shares.carried, key=lambda relay: (relay.name in shares.probes, shares.carried[relay][0].lane))
        part = self._settings.slice_seconds / max(1, len(relays))
        rounds = []
        for place, relay in enumerate(relays, start=1):
            self._leave_others(relay, duty)
            ends = max(started + place * part, time.monotonic() + part)  # a slow relay takes no time from the next one
            with duty.domain_seats:
                rounds.append(self._go_round(relay, shares, duty, ends, part))
        if any(one.given_back for one in rounds):
            self._bell.ring()
        tried, seconds = sum(one.tried for one in rounds), time.monotonic() - started
        if tried and not any(one.failure for one in rounds):  # how long it takes to find nobody there tells nothing of mails
            self._pace.learn(seconds, tried)
        log.info("%d tried in %.0f ms", tried, 1000 * seconds)
        return rounds

    def _leave_others(self, used: Relay, duty: Duty) -> None:
        """Leave the connections of the other relays to who needs them: this one may keep us waiting."""
        for relay in self._relays:
            if relay is not used and duty.relay_seats.has_relay(relay.name):
                relay.hang_up()  # relays count idle connections, too
                duty.relay_seats.leave_relay(relay.name)

    def _go_round(self, relay: Relay, shares: Shares, duty: Duty, ends: float, part: float) -> Round:
        """Hand over what this relay is to carry. If it can't be reached, everybody leaves it alone for a while."""
        deliveries, is_probe = shares.carried[relay], relay.name in shares.probes
        pace, silences = self._paces[relay.name], self._silences[relay.name]
        late = ends + _LATE_PARTS * part
        is_seated = duty.relay_seats.take_relay(relay.name)  # else somebody else took it while we were at another relay
        round_ = Round(self._office, relay.name, pace, silences, duty, deliveries, ends=ends, late=late, is_probe=is_probe)
        duty.box.calling(relay.name)
        if is_probe:
            self._renew_probe(relay, shares)
        shares.left.difference_update(delivery.id for delivery in deliveries)  # from here on, the round gives them back
        probe = shares.probes.get(relay.name)
        if not is_seated or (is_probe and probe is None):
            round_.close()
            if probe:
                self._leave_probe(relay.name, probe)
            return round_
        try:
            with relay.connection() as connection:
                for outcome in connection.transmit(round_, round_.may_begin):
                    round_.note(outcome)
                    if round_.failure:
                        break
        except BaseException as error:
            round_.interrupted(error)
            raise
        finally:
            if round_.sent_at is not None:
                self._delivered_at[0] = round_.sent_at
            round_.close()
        if round_.failure:
            self._pause(relay, probe, round_.failure)
        elif probe:
            self._end_probe(relay, probe, was_tried=bool(round_.tried))
        return round_

    def _pause(self, relay: Relay, probe: Pause | None, failure: Outcome) -> None:
        """The breaker of a relay opens, or stays open. What is wrong is shouted once, with the cure if there is one."""
        failures = probe.failures if probe else 0
        now = time.time()
        pause_for = rest(failures, self._settings.retry, random.random())  # noqa: S311 -- spreads tries
        until = now + max(pause_for, min(failure.retry_after or 0.0, self._settings.relay_rest_longest))
        reason = " ".join(filter(None, [failure.reply, failure.advice]))
        if not self._store.pause_relay(relay.name, failures=failures, now=now, until=until, reason=reason):
            return  # another worker did
        news = probe is None or (failure.advice and not probe.reason.endswith(failure.advice))
        log.log(
            logging.ERROR if news else logging.INFO,
            "The relay %s can't be used, its mail waits or takes another one; it is tried again in %.0f s. %s",
            relay.name,
            until - now,
            reason,
        )

    def _take_probe(self, relay: Relay, pause: Pause, now: float) -> Pause | None:
        """The pause as it is while we are the one who tries, unless another worker is."""
        until = self._longest_probe(relay, now)
        return replace(pause, until=until) if self._store.take_probe(relay.name, now=now, until=until) else None

    def _renew_probe(self, relay: Relay, shares: Shares) -> None:
        """Count the time of a try from when it begins, which other relays may have put off.

        If that was for so long that another worker tries, it is a probe of ours no longer.
        """
        probe, until = shares.probes[relay.name], self._longest_probe(relay, time.time())
        if self._move_probe(relay.name, probe, until):
            shares.probes[relay.name] = replace(probe, until=until)
        else:
            del shares.probes[relay.name]

    def _leave_probe(self, name: str, probe: Pause) -> None:
        """Let others try a relay from now on; this changes nothing if the try has ended."""
        self._move_probe(name, probe, time.time())

    def _move_probe(self, name: str, probe: Pause, until: float) -> bool:
        assert probe.until is not None
        return self._store.move_probe(name, taken_until=probe.until, until=until)

    def _longest_probe(self, relay: Relay, now: float) -> float:
        """However slow the relay is at letting us in, nobody else tries it meanwhile."""
        return now + self._settings.relay_rest + relay.settings.longest_opening

    def _end_probe(self, relay: Relay, probe: Pause, *, was_tried: bool) -> None:
        """It answers again; or its mail came to nothing, and the next one may try."""
        if not was_tried:
            self._leave_probe(relay.name, probe)
        elif self._store.resume_relay(relay.name):
            log.warning("The relay %s answers again.", relay.name)

    # --- what is in the way -------------------------------------------------------------------------------------------

    def _make_way(self, full: Sequence[Round], busy: Collection[str], duty: Duty, ends: float) -> bool:
        """Much mail at the head of the queue that can't go now is moved out of the way of the rest; whether there was any.

        Two threads would book the same places at a limit twice, so one does it.
        """
        if not self._makes_way.acquire(blocking=False):
            return False
        try:
            pauses = {**self._store.relay_pauses(), **duty.avoiding}
            further = time.monotonic() >= self._looked_further_at + _LOOKS_FURTHER_EVERY
            moved = [self._clear(lane, full, pauses, busy, ends, further=further) for lane in Lane]
        finally:
            self._makes_way.release()
        return any(moved)

    def _clear(
        self,
        lane: Lane,
        full: Sequence[Round],
        pauses: Mapping[str, Pause],
        busy: Collection[str],
        ends: float,
        *,
        further: bool,
    ) -> bool:
        """The head of a lane, until there is something else, or the time is over."""
        rounds = {domain: one for one in full for domain in one.stopped_domains}
        now, has_moved = time.time(), False
        while True:
            heads = self._store.head(lane, now=now, most=MOVED_AT_ONCE)
            waits = {**self._waits_for_relays(heads, pauses, now), **_waits_at_limits(heads, rounds)}
            if busy:
                others = [one for one in heads if one.id not in waits]
                waits |= self._waits_for_busy(others, pauses, busy, now, further=further and len(heads) == MOVED_AT_ONCE)
            moved = self._store.postpone_if_queued(waits, now=now) if waits else set()
            has_moved = has_moved or bool(moved)
            if len(moved) < MOVED_AT_ONCE or time.monotonic() > ends:
                return has_moved

    def _waits_for_relays(self, heads: Sequence[Delivery], pauses: Mapping[str, Pause], now: float) -> dict[int, float]:
        if not pauses:
            return {}
        senders = self._senders(heads)
        free_at = {one.id: self._free_at(one, senders.get(one.mail_id, ""), pauses, now) for one in heads}
        return {number: until for number, until in free_at.items() if until is not None}

    def _waits_for_busy(
        self, heads: Sequence[Delivery], pauses: Mapping[str, Pause], busy: Collection[str], now: float, *, further: bool
    ) -> dict[int, float]:
        """Of mail that only busy relays carry, if some other is there to be let pass; else who has them finds it where it is."""
        senders = self._senders(heads)
        relays = [relay.settings for relay in self._relays if _may_try(pauses.get(relay.name))]
        stuck = [one.id for one in heads if choose(relays, one, senders.get(one.mail_id, ""), 0.0, busy) is None]
        if len(stuck) == len(heads):
            if not further:
                return {}
            self._looked_further_at = time.monotonic()
        return dict.fromkeys(stuck, now + _BUSY_SECONDS)

    # --- chores -------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Settle what processes of this host had in their hands when they died."""
        self._office.black_box.settle_remains(partial(settle, self._office))

    def sweep(self) -> None:
        """Rescue what was left behind, expire what came too late, and have delivered what is due."""
        now, store, take = time.time(), self._store, self._steps.take
        take("home", store.renew_home, now)
        take("requeue", store.requeue_lapsed_claims, now)
        take("doubt", self._doubt, now)
        take("resend", store.resend_doubtful, now)
        take("expire", store.expire_overdue, now)
        take("deliver", self._see_to_what_is_due, now)

    def _doubt(self, now: float) -> None:
        resend_at = now + self._settings.doubt_resend_after
        if doubtful := self._store.doubt_lapsed_transmissions(now, resend_at=resend_at):
            log.warning("%d deliveries are in doubt: their worker was gone before it recorded the reply", len(doubtful))

    def _see_to_what_is_due(self, now: float) -> None:
        """Ring for it, and deliver it if nobody can hear that."""
        if self._store.is_due(now) and not self._bell.ring(urge=True):
            self.deliver(at_most=_ALONE_SECONDS, avoiding=self._stalled(now))

    def _stalled(self, now: float) -> dict[str, Pause]:
        """Relays that keep others on this host waiting: one who delivers alone must not wait there as well."""
        pause = Pause(until=now + _AVOIDED_SECONDS, failures=0, reason="", since=datetime.fromtimestamp(now, UTC))
        return dict.fromkeys(self._office.black_box.waited_for(_STALLED_SECONDS), pause)

    def purge(self, at_most: float = math.inf) -> bool:
        """Erase and delete what is older than it is to be kept; whether it came to the end, or is to be called again.

        In small bites, and after each the database is left to the others for as long as the bite took.
        """
        ends = time.monotonic() + at_most
        bites, self._bites = self._bites or self._purged(), None
        began = time.monotonic()
        for _bite in bites:
            bitten = time.monotonic()
            if bitten > ends:
                self._bites = bites
                return False
            time.sleep(max(bitten - began, _LEAST_REST))
            began = time.monotonic()
        return True

    def _purged(self) -> Iterator[object]:
        """Records, bodies, and the bytes that nobody carries any more, bite by bite."""
        now, store = time.time(), self._store
        delete = partial(store.purge_finished, now - self._settings.keep_days * _DAY, most=_PURGED_AT_ONCE)
        yield from self._bitten("purge records", iter(delete, 0))
        yield from self._bitten("purge orphans", _through(partial(store.purge_orphans, most=_PURGED_AT_ONCE)))
        if (days := self._settings.keep_bodies_days) is not None:
            erase = partial(store.erase_finished, now - days * _DAY, now=now, most=_PURGED_AT_ONCE)
            yield from self._bitten("purge bodies", _through(erase))
        yield from self._bitten("purge blobs", _through(partial(store.purge_blobs, now, most=_PURGED_AT_ONCE)))

    def _bitten(self, step: str, bites: Iterator[object]) -> Iterator[object]:
        """Bite after bite. If one fails the step is over, and the next purge takes it up again."""
        while (bite := self._steps.take(step, next, bites, None)) is not None:
            yield bite

    def hang_up(self) -> None:
        """Say goodbye to the relays."""
        for relay in self._relays:
            relay.hang_up()


def _through(bite: Callable[..., str | None]) -> Iterator[str]:
    """Bite after bite, each from where the one before it ended."""
    after: str | None = ""
    while (after := bite(after=after)) is not None:
        yield after


def _may_try(pause: Pause | None) -> bool:
    return pause is None or (pause.until is not None and pause.until <= time.time())


def _waits_at_limits(heads: Iterable[Delivery], rounds: Mapping[str, Round]) -> dict[int, float]:
    """Of mail to domains at their limit."""
    by_domain: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in heads:
        if delivery.domain in rounds and rounds[delivery.domain].stops(delivery):
            by_domain[delivery.domain].append(delivery)
    waits: dict[int, float] = {}
    for domain, deliveries in by_domain.items():
        waits |= rounds[domain].book(deliveries)
    return waits


class Doorstep:
    """The bell of who delivers to nobody (MAIL_SUPPRESS_SEND): everything happens at once, in the calling thread."""

    courier: Courier

    def __init__(self) -> None:
        self._here = threading.local()

    def ring(self, *, urge: bool = False) -> bool:
        """Deliver what is due; a ring out of that delivery itself adds nothing."""
        if getattr(self._here, "delivers", False):
            return True
        self._here.delivers = True
        try:
            self.courier.deliver(at_most=math.inf)
        finally:
            self._here.delivers = False
        return True

    def answer(self) -> None:
        """Nobody was called."""
