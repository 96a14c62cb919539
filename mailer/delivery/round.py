"""A courier's round: one relay's part of a slice, over one connection.

The connection asks for the next mail when it can take one. Mails are marked in windows just before they are handed out, and
the outcomes of a window are recorded in the same transaction that marks the next.
"""

import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Self

from celery.exceptions import SoftTimeLimitExceeded

from mailer.delivery.composing import Composer, Letter
from mailer.delivery.office import Duty, Office
from mailer.errors import StoreError, StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Delivery, Lane, OnDoubt, Outcome, Phase, Status, Verdict
from mailer.mime import WireMessage, compose
from mailer.policy import Move, explained, next_move, smoothed, window_size
from mailer.store import Result

# How long what has to be written waits for a database that is away, in seconds between tries: a minute in all.
_RECORD_AGAIN_AFTER = (0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 20.0)

_MOST_SILENCES = 2
# After so many seconds a mail is claimed again for which other threads had left no room.
_NO_ROOM_SECONDS = 0.5
# And after so many at least if they had left no place at its domain.
_NO_SEAT_SECONDS = 1.0

#: Stands for all domains that have no limit of their own.
NO_LIMIT = ""

log = get_logger(__name__)


@dataclass(slots=True)
class Pace:
    """How fast a relay takes mail, as this process has seen it."""

    seconds_per_mail: float = 0.02

    def learn(self, seconds: float, mails: int) -> None:
        self.seconds_per_mail = smoothed(self.seconds_per_mail, seconds / mails)


class Silences:
    """The mails at which a relay fell silent in a row, as this process has seen it.

    One may be that mail's own fault. A relay that falls silent at one after the other would spend the attempts of all, or bring
    all into doubt.
    """

    def __init__(self) -> None:
        self._mails: set[int] = set()  # by their deliveries

    def note(self, delivery: Delivery, outcome: Outcome) -> None:
        if outcome.is_silence:
            self._mails.add(delivery.id)
        elif outcome.verdict is not Verdict.UNREACHED:
            self._mails.clear()

    def suspect(self, delivery: Delivery) -> bool:
        return delivery.id in self._mails

    @property
    def are_endless(self) -> bool:
        return len(self._mails) >= _MOST_SILENCES


class Round:
    """Deliveries in the hands of one connection, until each is recorded or given back."""

    def __init__(
        self,
        office: Office,
        relay: str,
        pace: Pace,
        silences: Silences,
        duty: Duty,
        deliveries: Iterable[Delivery],
        *,
        ends: float,
        late: float,
        is_probe: bool,
    ) -> None:
        self._office = office
        self.relay = relay
        self._pace = pace
        self._silences = silences
        self._is_probe = is_probe
        self._box = duty.box
        self._relay_seats = duty.relay_seats
        self._domain_seats = duty.domain_seats
        self._ends = ends
        self._late = late  # from then on, nothing more is begun
        self._longest_try = office.settings.longest_delivery
        self._longest_transmission = office.settings.longest_transmission
        self._waiting = deque(deliveries)
        self._token = self._waiting[0].token
        self._composer = Composer(office, duty.budget, duty.box, compose, self._set_aside)
        self._composer_knows = False  # the sizes of what waits
        self._window: list[Letter] = []  # about to be marked
        self._marked: deque[Letter] = deque()  # from here on, a death of this process means doubt
        self._flying: deque[Letter] = deque()  # in the hands of the connection
        # Not marked: another worker has them, or the commit that marked them was done though its
        # answer was lost.
        self._unmarked: list[Letter] = []
        self._begun: Letter | None = None  # the first one in flight, if its mail is being said
        self._results: list[Result] = []  # facts, not yet recorded
        self._counted: set[int] = set()  # at their limits; each once, even if it can't be made ready at first
        self._postponed: dict[int, float] = {}  # due times of what waits at a limit, or for room
        self._expired: dict[int, None] = {}  # to be given back: the sweep expires it
        self._turned_at = time.monotonic()
        self.tried = 0
        self.sent_at: float | None = None  #: when the relay last took one
        self.given_back = 0  #: how many can be claimed again at once
        self.full: set[str] = set()  #: the domains that are at their limit
        self._seatless: set[str] = set()  # of these, those that others send to
        self.behind: set[tuple[str, Lane]] = set()  #: where others wait: new mail is put behind them
        self.failure: Outcome | None = None  #: the relay can't be used

    # --- what the connection asks for ---------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WireMessage | None:
        """The next mail; None while what is in flight has to end first."""
        while True:
            if not self._marked and not self._has_turned():
                return None
            if not self._marked:
                raise StopIteration
            self._relay_seats.renew()
            self._domain_seats.renew()
            if time.time() + self._longest_try > self._marked[0].lease_until:
                raise StopIteration  # this worker was frozen: somebody may have found the mail in doubt by now
            if self._is_late and (self.tried or self._flying):
                raise StopIteration
            letter = self._marked.popleft()
            if not letter.delivery.has_expired(time.time()):
                self._flying.append(letter)
                return letter.mail
            self._expired[letter.delivery.id] = None
            self._composer.drop(letter, self._following)

    def _has_turned(self) -> bool:
        """Mark the next window, if there is one; False while what is in flight has to end before."""
        if self._flying and self._must_wait():
            return False
        try:
            self._turn()
        except StoreUnavailable as error:
            if not self._flying:
                raise
            log.warning("What is in flight does not wait for the database: %s", error)
            return False
        has_no_room = bool(self._waiting) and not self._marked and time.monotonic() < self._ends
        return not (has_no_room and self._flying)

    @property
    def _following(self) -> Delivery | None:
        return self._waiting[0] if self._waiting else None

    @property
    def _is_late(self) -> bool:
        """Whether the round takes so long that others should get their turn, as with a relay that became slow."""
        return time.monotonic() > self._late

    def may_begin(self) -> bool:
        """Whether the mail in flight the longest may be said: its lease still covers that, and it has not expired.

        Noted, since from now on a death means doubt.
        """
        letter, now = self._flying[0], time.time()
        if now + self._longest_transmission > letter.lease_until or letter.delivery.has_expired(now):
            return False
        if self._is_late and self.tried:
            return False
        self._box.begun(letter.delivery.id, self.relay)
        self._begun = letter
        return True

    def note(self, outcome: Outcome) -> None:
        """What came of the mail that is in flight the longest."""
        letter = self._flying[0]
        self.tried += 1
        outcome = self._blamed(letter.delivery, outcome)
        result = self._result(letter.delivery, outcome)
        self._results.append(result)
        self._flying.popleft()  # not before: should we be interrupted, it must be known in one place at least
        self._begun = None
        self._composer.drop(letter, self._following)
        if outcome.verdict is Verdict.SENT:
            self._box.taken(letter.delivery.id, result.outcome.reply)
            self.sent_at = time.time()
        elif outcome.verdict is not Verdict.DOUBTFUL:
            self._box.over(letter.delivery.id)
        if outcome.verdict is Verdict.UNREACHED:
            self.failure = outcome

    def _result(self, delivery: Delivery, outcome: Outcome) -> Result:
        move = self._move(delivery, outcome)
        return Result(delivery, explained(outcome, move), move)

    def _blamed(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """A silence with which it is clear that the relay is to blame costs the mail no attempt."""
        self._silences.note(delivery, outcome)
        if not outcome.is_silence or not (self._is_probe or self._silences.are_endless):
            return outcome
        self.failure = outcome
        return replace(outcome, verdict=Verdict.UNREACHED) if outcome.verdict is Verdict.DEFERRED else outcome

    def interrupted(self, error: BaseException) -> None:
        """Leave a mail that had begun marked, and so in doubt: nobody knows how far it came.

        One that had not begun is given back. It may be what raises the error, so the try counts.
        """
        if not self._flying:
            return
        if self._flying[0] is self._begun:
            self._flying.popleft()
        elif isinstance(error, Exception) and not isinstance(error, (StoreError, SoftTimeLimitExceeded)):
            reason = f"it could not be said to the relay: {type(error).__name__}"
            self.note(Outcome(Verdict.DEFERRED, reason, Phase.CONNECT))

    def _move(self, delivery: Delivery, outcome: Outcome) -> Move:
        if outcome.verdict is Verdict.SENT:
            return _SENT
        dice = random.random()  # noqa: S311 -- spreads retries
        move = next_move(delivery, outcome, self._office.settings.retry, now=time.time(), dice=dice)
        said = (outcome.verdict, delivery.mail_id, delivery.id, move.to, outcome.phase, outcome.reply)
        log.warning("Delivery %s: mail_id=%s delivery=%d status=%s phase=%s reply=%s", *said)
        if outcome.verdict is Verdict.UNREACHED and move.to is Status.QUEUED:
            return replace(move, due_at=time.time())  # the relay is paused now, which is all there is to wait for
        return move

    # --- windows ------------------------------------------------------------------------------------------------------

    def _must_wait(self) -> bool:
        """A mail that must never go out twice is marked and recorded alone."""
        ahead = self._window[0].delivery if self._window else self._waiting[0] if self._waiting else None
        return any(one.on_doubt is OnDoubt.HOLD for one in (self._flying[0].delivery, ahead) if one)

    def _turn(self) -> None:
        """Record one window and mark the next, in one transaction."""
        self._learn()
        if not self._window and time.monotonic() < self._ends:
            self._window = self._next_window()
        if self._window:
            self._record(mark=self._window, patiently=not self._flying)

    def _learn(self) -> None:
        now = time.monotonic()
        if self._results and self.failure is None:  # how long it takes to find nobody there tells nothing of mails
            self._pace.learn(now - self._turned_at, len(self._results))
        self._turned_at = now

    def _next_window(self) -> list[Letter]:
        window: list[Letter] = []
        if not self._composer_knows:
            self._composer.measure(self._waiting)
            self._composer_knows = True
        while self._waiting and not window:
            self._composer.drop_unused(following=self._waiting[0])
            picked = self._picked()
            if not picked:
                break
            try:
                picked = self._admitted(picked)
                window = self._composer.letters(picked, has_time=not self._flying)
            except BaseException:
                self._waiting.extendleft(one for one in reversed(picked) if one.id not in self._postponed)
                raise
        return window

    def _picked(self) -> list[Delivery]:
        """As many as go out in a moment, and as there is room for; one that is marked alone is picked alone."""
        picked: list[Delivery] = []
        size, now = window_size(self._pace.seconds_per_mail), time.time()
        while self._waiting and len(picked) < size:
            ahead = self._waiting[0]
            if picked and OnDoubt.HOLD in (picked[-1].on_doubt, ahead.on_doubt):
                break
            if ahead.has_expired(now):
                self._expired[ahead.id] = None
            elif self._composer.make_room(ahead):
                picked.append(ahead)
            elif picked or self._flying:
                break  # for what this round holds itself
            else:
                self._postponed[ahead.id] = now + _NO_ROOM_SECONDS
            self._waiting.popleft()
        return picked

    def _set_aside(self, delivery: Delivery, outcome: Outcome) -> None:
        """Record what could not be made ready: failed if it is the mail's own fault, else tried later."""
        result = self._result(delivery, outcome)
        self._office.store.set_aside_if_claimed([result], now=time.time(), relay=self.relay)

    # --- limits -------------------------------------------------------------------------------------------------------

    def _admitted(self, picked: list[Delivery]) -> list[Delivery]:
        """Return those that no limit stops. The others, and all that wait for the same domain, get a later due time."""
        if not self._office.throttle.limits_anything:
            return picked
        uncounted = [delivery for delivery in picked if delivery.id not in self._counted]
        for domain, deliveries in self._by_limit(uncounted).items():
            in_turn = [delivery for delivery in deliveries if not self._is_behind(domain, delivery)]
            in_turn.sort(key=lambda delivery: (delivery.lane, delivery.queued_at))
            granted = self._granted(domain, len(in_turn)) if in_turn else 0
            self._counted.update(delivery.id for delivery in in_turn[:granted])
        if refused := [delivery for delivery in picked if delivery.id not in self._counted]:
            self._postpone(refused)
        return [delivery for delivery in picked if delivery.id in self._counted]

    def _is_behind(self, domain: str, delivery: Delivery) -> bool:
        """Whether it is new, while others wait at a limit: in its lane, or a more urgent one."""
        if delivery.has_waited:
            return False
        if (domain, delivery.lane) not in self.behind and self._must_stand_behind(domain, delivery.lane):
            self.behind.add((domain, delivery.lane))
        return (domain, delivery.lane) in self.behind

    def _must_stand_behind(self, domain: str, lane: Lane) -> bool:
        """A row may be longer on paper than it is: somebody cancelled what waited in it."""
        throttle, now = self._office.throttle, time.time()
        seconds = throttle.behind(self.relay, domain, lane)
        if seconds <= 0:
            return False
        lanes = [its for its in Lane if its <= lane]
        if self._office.store.is_waiting(lanes, domain, now=now, until=now + seconds, token=self._token):
            return True
        throttle.forget_line(self.relay, domain, lane)
        return False

    @property
    def stopped_domains(self) -> set[str]:
        """The domains whose limits stopped some mail."""
        return (self.full | {domain for domain, _lane in self.behind}) - {NO_LIMIT}

    def stops(self, delivery: Delivery) -> bool:
        """Whether it would be refused, or put behind others."""
        domain = self._limited_domain(delivery)
        return domain in self.full or (not delivery.has_waited and (domain, delivery.lane) in self.behind)

    def _by_limit(self, deliveries: Iterable[Delivery]) -> dict[str, list[Delivery]]:
        """By their domain if it has a limit; the others have the limit of the relay in common."""
        groups: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            groups[self._limited_domain(delivery)].append(delivery)
        return groups

    def _limited_domain(self, delivery: Delivery) -> str:
        return delivery.domain if self._office.throttle.of_domain(delivery.domain) else NO_LIMIT

    def _granted(self, domain: str, wanted: int) -> int:
        if domain in self.full:
            granted = 0
        elif not self._domain_seats.take_domain(domain):
            self._seatless.add(domain)
            granted = 0
        else:
            granted = self._office.throttle.admit(self.relay, domain, wanted).granted
        if granted < wanted:
            self.full.add(domain)
        return granted

    def _postpone(self, refused: list[Delivery]) -> None:
        """Give a later due time to what was refused, and to all that would be refused for the same reason."""
        stays: deque[Delivery] = deque()
        for delivery in self._waiting:
            (refused if self.stops(delivery) else stays).append(delivery)
        self._postponed.update(self.book(refused))  # first: should this fail, they wait as before
        self._waiting = stays

    def book(self, refused: Iterable[Delivery]) -> dict[int, float]:
        """When each of these is due again: first those that have waited, which the limit stopped at their turn."""
        now = time.time()
        due: dict[int, float] = {}
        for domain, deliveries in self._by_limit(refused).items():
            least = _NO_SEAT_SECONDS if domain in self._seatless else 0.0
            for lane, has_waited in product(Lane, (True, False)):
                row = [one for one in deliveries if one.lane is lane and one.has_waited is has_waited]
                row.sort(key=attrgetter("queued_at"))
                waits = self._office.throttle.book(
                    self.relay,
                    domain,
                    len(row),
                    lane,
                    seconds_per_mail=self._pace.seconds_per_mail,
                    again=has_waited,
                    is_refused=domain in self.full,
                )
                due.update((delivery.id, now + max(wait, least)) for delivery, wait in zip(row, waits, strict=True))
        return due

    # --- the books ----------------------------------------------------------------------------------------------------

    def _record(self, *, mark: list[Letter], patiently: bool) -> None:
        """Write the outcomes, which are facts by now, and mark a window; a database that is away is waited for."""
        write = partial(self._record_now, mark)
        if patiently:
            _patiently(write, f"{len(self._results)} outcomes")
        else:
            write()

    def _record_now(self, window: list[Letter]) -> None:
        store, now = self._office.store, time.time()
        until = now + self._office.settings.transmit_lease
        moved: set[int] = set()
        ours: set[int] = set()
        with store.together():
            if self._results:
                moved = store.record_if_transmitting(self._results, now=now, relay=self.relay)
            if window:
                ids = [letter.delivery.id for letter in window]
                ours = store.mark_if_claimed(ids, token=self._token, now=now, lease_until=until)
            if self._expired:
                store.release_if_held(self._expired, token=self._token)
        for result in self._results:
            if result.delivery.id not in moved:
                late = (result.delivery.mail_id, result.delivery.id, result.outcome.verdict)
                why = "it is recorded already, though the answer was lost, or the claim was lost"
                log.warning("Outcome not written, %s: mail_id=%s delivery=%d verdict=%s", why, *late)
        for letter in window:
            if letter.delivery.id in ours:
                self._marked.append(replace(letter, lease_until=until))
            else:
                self._unmarked.append(letter)
        self._results, self._window, self._expired = [], [], {}

    def close(self) -> None:
        """Record what is known and give back what was not begun; nothing is left to do when it is called again."""
        self._learn()
        try:
            if self._results:
                self._record(mark=[], patiently=True)
        finally:
            self._composer.close()
            self._give_back()

    def _give_back(self) -> None:
        unbegun = [letter.delivery for letter in (*self._flying, *self._marked, *self._unmarked, *self._window)]
        waits: dict[int, float | None] = {delivery.id: None for delivery in (*unbegun, *self._waiting)}
        self.given_back += len(waits)
        waits = {**waits, **self._postponed, **self._expired}
        release = partial(self._office.store.release_if_held, waits, token=self._token)
        if unbegun:  # left marked, they would be in doubt for nothing
            _patiently(release, f"{len(unbegun)} mails to be given back")
        else:
            release()
        for held in (self._flying, self._marked, self._unmarked, self._window, self._waiting, self._postponed, self._expired):
            held.clear()


def _patiently(write: Callable[[], object], what: str) -> None:
    """Again and again, while the database is away."""
    for pause in _RECORD_AGAIN_AFTER:
        try:
            write()
        except StoreUnavailable as error:
            log.warning("%s wait for the database: %s", what, error)
            time.sleep(pause)
        else:
            return
    write()


_SENT = Move(to=Status.SENT)
