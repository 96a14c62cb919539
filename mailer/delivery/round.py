"""A courier's round: one relay's part of a slice, over one connection.

The connection asks for the next mail when it can take one. Mails are marked in windows just before they are handed out, and
the outcomes of a window are recorded in the same transaction that marks the next.
"""

import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Self

from mailer.blackbox import BlackBox, Box
from mailer.delivery.routing import destination
from mailer.errors import StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Delivery, Lane, Message, OnDoubt, Outcome, Pause, Status, Verdict
from mailer.mime import Composed, Signer, WireMessage, compose
from mailer.policy import Move, next_move, smoothed, window_size
from mailer.settings import Settings
from mailer.smtp.replies import printable
from mailer.store import Result, Store
from mailer.throttle import Seats, Throttle

# How long what has to be written waits for a database that is away, in seconds between tries: a minute in all.
_RECORD_AGAIN_AFTER = (0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 20.0)

# The header that says who a mail was for that goes to MAILER_REDIRECT_TO.
_MEANT_FOR = "X-Original-Recipient"
_MOST_SILENCES = 2

#: Stands for all domains that have no limit of their own.
NO_LIMIT = ""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Office:
    """What all rounds of an app work with."""

    settings: Settings
    store: Store
    signer: Signer | None
    throttle: Throttle
    black_box: BlackBox


@dataclass(frozen=True, slots=True)
class Duty:
    """What a thread has while it delivers, from slice to slice."""

    seats: Seats  #: at relays, kept as warm connections are, since relays count those, too; in a round, at domains
    box: Box
    avoiding: Mapping[str, Pause]  #: relays that would keep it waiting, as if paused


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


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery and what goes over the wire for it."""

    delivery: Delivery
    mail: WireMessage


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
        is_probe: bool,
    ) -> None:
        self._office = office
        self.relay = relay
        self._pace = pace
        self._silences = silences
        self._is_probe = is_probe
        self._box = duty.box
        self._seats = duty.seats
        self._ends = ends
        self._longest_try = office.settings.longest_delivery
        self._longest_transmission = office.settings.longest_transmission
        self._lease_until = 0.0  # of what is marked
        self._waiting = deque(deliveries)
        self._token = self._waiting[0].token
        self._composed: dict[str, tuple[Message, Composed]] = {}  # by the mail's id: many recipients of a mail follow each other
        self._window: list[Letter] = []  # about to be marked
        self._marked: deque[Letter] = deque()  # from here on, a death of this process means doubt
        self._flying: deque[Letter] = deque()  # in the hands of the connection
        self._unmarked: list[Letter] = []  # somebody else's by now; or ours all the same, if the database went away in a commit
        self._results: list[Result] = []  # facts, not yet recorded
        self._postponed: dict[int, float] = {}  # due times of what waits at a limit
        self._turned_at = time.monotonic()
        self.tried = 0
        self.given_back = 0  #: how many can be claimed again at once
        self.full: set[str] = set()  #: the domains that are at their limit
        self.behind: set[tuple[str, Lane]] = set()  #: where others wait: new mail is put behind them
        self.failure: Outcome | None = None  #: the relay can't be used

    # --- what the connection asks for ---------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WireMessage | None:
        """The next mail; None while what is in flight has to end first."""
        if not self._marked:
            if self._flying and self._must_wait():
                return None
            try:
                self._turn()
            except StoreUnavailable as error:
                if not self._flying:
                    raise
                log.warning("What is in flight does not wait for the database: %s", error)
                return None
        if not self._marked:
            raise StopIteration
        self._seats.renew()
        if time.time() + self._longest_try > self._lease_until:
            raise StopIteration  # this worker was frozen: somebody may have found the mail in doubt by now
        letter = self._marked.popleft()
        self._flying.append(letter)
        return letter.mail

    def may_begin(self) -> bool:
        """Whether the lease still covers the mail in flight the longest. Noted, since from now on a death means doubt."""
        if time.time() + self._longest_transmission > self._lease_until:
            return False
        self._box.begun(self._flying[0].delivery.id, self.relay)
        return True

    def note(self, outcome: Outcome) -> None:
        """What came of the mail that is in flight the longest."""
        letter = self._flying.popleft()
        self.tried += 1
        outcome = self._blamed(letter.delivery, outcome)
        move = self._move(letter.delivery, outcome)
        kept = replace(outcome, reply=f"{outcome.reply} ({move.reason})") if move.reason else outcome
        self._results.append(Result(letter.delivery, kept, move))
        if outcome.verdict is Verdict.SENT:
            self._box.taken(letter.delivery.id, kept.reply)
        elif outcome.verdict is not Verdict.DOUBTFUL:
            self._box.over(letter.delivery.id)
        if outcome.verdict is Verdict.UNREACHED:
            self.failure = outcome

    def _blamed(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """A silence with which it is clear that the relay is to blame costs the mail no attempt."""
        self._silences.note(delivery, outcome)
        if not outcome.is_silence or not (self._is_probe or self._silences.are_endless):
            return outcome
        self.failure = outcome
        return replace(outcome, verdict=Verdict.UNREACHED) if outcome.verdict is Verdict.DEFERRED else outcome

    def leave_on_the_wire(self) -> None:
        """Interrupted: nobody knows how far the mail came that is in flight the longest. It stays marked, and so in doubt."""
        if self._flying:
            self._flying.popleft()

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
        return OnDoubt.HOLD in (self._flying[0].delivery.on_doubt, ahead and ahead.on_doubt)

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
        while self._waiting and not window:
            picked = self._admitted(self._picked())
            try:
                window = self._letters(picked)
            except StoreUnavailable:
                self._waiting.extendleft(reversed(picked))
                raise
        return window

    def _picked(self) -> list[Delivery]:
        """As many as go out in a moment; one that is marked alone is picked alone."""
        picked = [self._waiting.popleft()]
        size = window_size(self._pace.seconds_per_mail)
        while self._waiting and len(picked) < size:
            if OnDoubt.HOLD in (picked[-1].on_doubt, self._waiting[0].on_doubt):
                break
            picked.append(self._waiting.popleft())
        return picked

    def _letters(self, deliveries: list[Delivery]) -> list[Letter]:
        """The bytes of each message, made once however many recipients follow each other."""
        wanted = {delivery.mail_id for delivery in deliveries}
        self._composed = {mail_id: self._composed[mail_id] for mail_id in wanted & self._composed.keys()}
        unknown = wanted - self._composed.keys()
        messages = self._office.store.load_messages(unknown)
        for mail_id in unknown - messages.keys():
            self._fail(deliveries, mail_id, "what it said is erased, or can't be read")
        for mail_id, message in messages.items():
            self._box.composing(mail_id)
            try:
                self._composed[mail_id] = message, compose(message, self._office.signer)
            except Exception as error:  # whatever it is, it is this mail's own
                # What went wrong may quote what the mail says.
                log.exception("Mail %s can't be composed: %s", mail_id, type(error).__name__, exc_info=not message.sensitive)
                words = "" if message.sensitive else f": {error}"
                self._fail(deliveries, mail_id, printable(f"it can't be composed: {type(error).__name__}{words}"))
        if messages:
            self._box.composed()
        written = [(delivery, *self._composed[delivery.mail_id]) for delivery in deliveries if delivery.mail_id in self._composed]
        letters = [self._letter(*one) for one in written]
        return [letter for letter in letters if letter is not None]

    def _letter(self, delivery: Delivery, message: Message, composed: Composed) -> Letter | None:
        to = destination(self._office.settings, delivery.recipient)
        if to is None:
            why = "Delivery failed, its recipient is not among MAILER_ALLOWED_RECIPIENTS: mail_id=%s delivery=%d"
            log.warning(why, delivery.mail_id, delivery.id)
            self._fail([delivery], delivery.mail_id, "its recipient is not among MAILER_ALLOWED_RECIPIENTS: nothing was sent")
            return None
        if to != delivery.recipient:
            message = replace(message, headers=(*message.headers, (_MEANT_FOR, delivery.recipient)))
            composed = compose(message, self._office.signer)
        return Letter(delivery, WireMessage(message, to, composed))

    def _fail(self, deliveries: list[Delivery], mail_id: str, reason: str) -> None:
        for delivery in deliveries:
            if delivery.mail_id == mail_id:
                self._office.store.fail_if_claimed(delivery, reason, now=time.time())

    # --- limits -------------------------------------------------------------------------------------------------------

    def _admitted(self, picked: list[Delivery]) -> list[Delivery]:
        """Those that no limit stops. The others, and all that wait for the same domain, get a later due time."""
        if not self._office.throttle.limits_anything:
            return picked
        admitted: set[int] = set()
        for domain, deliveries in self._by_limit(picked).items():
            in_turn = [delivery for delivery in deliveries if not self._is_behind(domain, delivery)]
            in_turn.sort(key=lambda delivery: (delivery.lane, delivery.queued_at))
            granted = self._granted(domain, len(in_turn)) if in_turn else 0
            admitted.update(delivery.id for delivery in in_turn[:granted])
        if len(admitted) < len(picked):
            self._postpone([delivery for delivery in picked if delivery.id not in admitted])
        return [delivery for delivery in picked if delivery.id in admitted]

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
        if domain in self.full or not self._seats.take_domain(domain):
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
        self._waiting = stays
        self._postponed.update(self.book(refused))

    def book(self, refused: Iterable[Delivery]) -> dict[int, float]:
        """When each of these is due again: first those that have waited, which the limit stopped at their turn."""
        now = time.time()
        due: dict[int, float] = {}
        for domain, deliveries in self._by_limit(refused).items():
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
                due.update((delivery.id, now + wait) for delivery, wait in zip(row, waits, strict=True))
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
        for result in self._results:
            if result.delivery.id not in moved:
                late = (result.delivery.mail_id, result.delivery.id, result.outcome.verdict)
                log.warning("Outcome not recorded, the claim was lost: mail_id=%s delivery=%d verdict=%s", *late)
        for letter in window:
            (self._marked if letter.delivery.id in ours else self._unmarked).append(letter)
        self._lease_until = until
        self._results, self._window = [], []

    def close(self) -> None:
        """Record what is known and give back what was not begun; nothing is left to do when it is called again."""
        self._learn()
        if self._results:
            self._record(mark=[], patiently=True)
        unbegun = [letter.delivery for letter in (*self._flying, *self._marked, *self._unmarked, *self._window)]
        waits: dict[int, float | None] = {delivery.id: None for delivery in (*unbegun, *self._waiting)}
        self.given_back += len(waits)
        release = partial(self._office.store.release_if_held, waits | self._postponed, token=self._token)
        if unbegun:  # left marked, they would be in doubt for nothing
            _patiently(release, f"{len(unbegun)} mails to be given back")
        else:
            release()
        for held in (self._flying, self._marked, self._unmarked, self._window, self._waiting, self._postponed):
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
