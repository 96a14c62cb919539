"""The share of one relay in a batch: prepared, marked, sent over one connection, recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from logging import Logger

from celery.exceptions import SoftTimeLimitExceeded

from mailer.delivery.limits import DomainLimits
from mailer.delivery.overtaking import Overtaking
from mailer.delivery.preparing import PreparedMail, Preparer
from mailer.delivery.relay_state import RelayState
from mailer.delivery.results import result_of
from mailer.delivery.services import Services, ThreadContext
from mailer.delivery.window_book import WindowBook
from mailer.errors import StoreError, StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Delivery, OnDoubt, Outcome, Phase, Status, Verdict
from mailer.mime import WireMessage
from mailer.policy import window_size
from mailer.store import Result

# Seconds between tries to write to a database that is away: a minute in all.
_WRITE_AGAIN_AFTER = (0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 20.0)
# A mail that found no room beside those of other threads is due again after so many seconds.
_NO_ROOM_SECONDS = 0.5

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time limits of a share, on the monotonic clock."""

    ends: float  #: no window is marked after that
    late: float  #: no mail is begun after that

    def later(self, seconds: float) -> "Deadline":
        return Deadline(self.ends + seconds, self.late + seconds)


@dataclass(slots=True)
class ShareReport:
    """The outcome of a share."""

    tried: int = 0
    failure: Outcome | None = None  #: why the relay can't be used
    claimable_again: int = 0  #: deliveries that were released, for another worker to claim at once


class Share:
    """The deliveries of one share, until each is recorded or released.

    Mails are marked in windows, just before the connection takes them. The transaction that marks
    a window records the outcomes of the one before. So a mail costs one round trip, and far less
    than one transaction.
    """

    def __init__(
        self,
        services: Services,
        context: ThreadContext,
        state: RelayState,
        deliveries: Sequence[Delivery],
        *,
        deadline: Deadline,
        overtaking: Overtaking | None,
    ) -> None:
        self._services = services
        self._context = context
        self._state = state
        self._deadline = deadline
        self._overtaking = overtaking
        self._is_probe = overtaking is None
        self._book = WindowBook(deliveries)
        self._preparer = Preparer(services, context, self._set_aside)
        token = self._book.token
        self.limits: DomainLimits = DomainLimits(
            services, context, relay=state.name, pace=state.pace, token=token
        )
        self.report: ShareReport = ShareReport()
        self._window_began_at = services.clock.monotonic()
        # Settings derive these from all relays, which would take long for each mail.
        self._longest_delivery = services.settings.longest_delivery
        self._longest_transmission = services.settings.longest_transmission

    def deliver(self) -> ShareReport:
        """Send the mails. Record and release everything, also after an exception."""
        try:
            with self._state.relay.connection() as connection:
                for outcome in connection.exchange(self._next_mail, self._may_begin):
                    self._note(outcome)
                    if self.report.failure:
                        break
        except BaseException as error:
            self._interrupt(error)
            raise
        finally:
            self.record_and_release()
        return self.report

    # --- from the claim to the wire --------------------------------------------------------------

    def _next_mail(self) -> WireMessage | None:
        """Return the next mail, marked. Return None if none may be sent now.

        While a mail is in flight, None means: ask again after its outcome.
        """
        book = self._book
        while True:
            if not book.marked:
                self._mark_next_window()
            now = self._services.clock.time()
            if not book.marked or not self._may_take(book.marked[0], now):
                return None
            if not book.marked[0].delivery.has_expired(now):
                return book.take_marked().wire
            self._preparer.drop(book.expire_marked(), book.next_waiting)

    def _may_take(self, mail: PreparedMail, now: float) -> bool:
        """Return whether there is time to send a mail before others may take it for lost."""
        self._context.relay_slots.renew()
        self._context.domain_slots.renew()
        if now + self._longest_delivery > mail.lease_until:
            return False  # this process was frozen
        return not ((self.report.tried or self._book.in_flight) and self._is_late)

    def _may_begin(self) -> bool:
        """Return whether the bytes of the oldest mail in flight may be sent now.

        If so, note it in the black box.
        """
        mail, now = self._book.in_flight[0], self._services.clock.time()
        if now + self._longest_transmission > mail.lease_until:
            return False
        if mail.delivery.has_expired(now) or (self.report.tried and self._is_late):
            return False
        self._context.box.begun(mail.delivery.id, self._state.name)
        if self._context.box.is_stale:
            return False  # its notes would say that this mail was not begun
        self._book.begin()
        return True

    @property
    def _is_late(self) -> bool:
        """Return whether the share takes so long that other mail should get its turn."""
        return self._services.clock.monotonic() > self._deadline.late

    def _mark_next_window(self) -> None:
        """Record the last window and mark the next one.

        Nothing is marked if the mails in flight must end first. They do not pay for an error
        either: if it happens again after them, it is raised.
        """
        book = self._book
        if book.must_finish_first:
            return
        try:
            if not book.ready and self._has_time:
                self._let_overtake()
            if not book.ready and self._has_time:
                book.ready = self._next_window()
            if book.ready:
                self._record_and_mark(patient=not book.in_flight)
        except StoreUnavailable as error:
            if not book.in_flight:
                raise
            log.warning("Mail in flight does not wait for the database: error=%s", error)
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            if not book.in_flight:
                raise
            log.exception("The next window could not be made ready")

    @property
    def _has_time(self) -> bool:
        return self._services.clock.monotonic() < self._deadline.ends

    def _let_overtake(self) -> None:
        """Put more urgent mail in front that has come meanwhile. It takes no time from the rest."""
        waiting, pace = self._book.next_waiting, self._state.pace.seconds_per_mail
        if self._overtaking is None or waiting is None:
            return
        urgent = self._overtaking.claim(
            self._state.name, before=waiting.lane, seconds_per_mail=pace
        )
        if urgent:
            self._book.put_back(urgent)
            self._deadline = self._deadline.later(len(urgent) * pace)

    def _next_window(self) -> list[PreparedMail]:
        """Prepare the next mails that limits and memory let through."""
        book, window = self._book, list[PreparedMail]()
        self._preparer.measure(book.waiting)
        while book.waiting and not window:
            self._preparer.drop_unused(following=book.waiting[0])
            picked = self._pick()
            if not picked:
                break
            try:
                picked = self._admit(picked)
                window = self._preparer.prepare(picked, patient=not book.in_flight)
            except BaseException:
                book.put_back(picked)
                raise
        return window

    def _pick(self) -> list[Delivery]:
        """Take the next deliveries for which there is room, as many as are sent in a moment.

        A mail that must never go out twice is picked alone.
        """
        book, picked = self._book, list[Delivery]()
        size, now = window_size(self._state.pace.seconds_per_mail), self._services.clock.time()
        while book.waiting and len(picked) < size:
            ahead = book.waiting[0]
            if picked and OnDoubt.HOLD in (picked[-1].on_doubt, ahead.on_doubt):
                break
            if ahead.has_expired(now):
                book.expire(ahead)
            elif self._preparer.make_room(ahead):
                picked.append(ahead)
            elif picked or book.in_flight:
                break  # room comes back when these are sent
            else:
                book.postpone({ahead.id: now + _NO_ROOM_SECONDS})
                continue
            book.waiting.popleft()
        return picked

    def _admit(self, picked: list[Delivery]) -> list[Delivery]:
        """Return those that no limit stops.

        Postpone the others, and all that wait for the same limit.
        """
        admitted = self.limits.admit(picked)
        if len(admitted) < len(picked):
            ids = {delivery.id for delivery in admitted}
            refused = [delivery for delivery in picked if delivery.id not in ids]
            refused += [delivery for delivery in self._book.waiting if self.limits.stops(delivery)]
            self._book.postpone(self.limits.book(refused))
        return admitted

    # --- from the wire to the record -------------------------------------------------------------

    def _note(self, outcome: Outcome) -> None:
        """Note the outcome of the oldest mail in flight."""
        mail, box = self._book.in_flight[0], self._context.box
        delivery = mail.delivery
        if outcome.verdict is Verdict.SENT:
            box.taken(delivery.id, outcome.reply)  # first: until then a death means doubt
        self.report.tried += 1
        blamed = self._blame(delivery, outcome)
        result = self._result(delivery, blamed, may_be_sensitive=mail.wire.is_sensitive)
        self._preparer.drop(self._book.finish(result), self._book.next_waiting)
        if result.outcome.verdict not in (Verdict.SENT, Verdict.DOUBTFUL):
            box.over(delivery.id)
        if result.outcome.verdict is Verdict.UNREACHED:
            self.report.failure = result.outcome

    def _blame(self, delivery: Delivery, outcome: Outcome) -> Outcome:
        """Return the outcome, without blame for the mail if the relay keeps falling silent."""
        silences = self._state.silences
        silences.note(delivery, outcome)
        if not outcome.is_silence or not (self._is_probe or silences.are_the_relays_fault):
            return outcome
        self.report.failure = outcome
        is_harmless = outcome.verdict is Verdict.DEFERRED
        return replace(outcome, verdict=Verdict.UNREACHED) if is_harmless else outcome

    def _result(
        self, delivery: Delivery, outcome: Outcome, *, may_be_sensitive: bool = True
    ) -> Result:
        result = result_of(self._services, delivery, outcome, may_be_sensitive=may_be_sensitive)
        if outcome.verdict is Verdict.SENT:
            return result
        log.warning(
            "Delivery %s: mail_id=%s delivery=%d status=%s phase=%s reply=%s",
            outcome.verdict,
            delivery.mail_id,
            delivery.id,
            result.move.to,
            outcome.phase,
            outcome.reply,
        )
        if outcome.verdict is Verdict.UNREACHED and result.move.to is Status.QUEUED:
            # Nothing to wait for but the relay, which is paused now.
            return replace(result, move=replace(result.move, due_at=self._services.clock.time()))
        return result

    def _set_aside(self, delivery: Delivery, outcome: Outcome) -> None:
        """Record a mail that could not be prepared: failed if at fault, else tried later."""
        result, now = self._result(delivery, outcome), self._services.clock.time()
        self._services.store.set_aside_if_claimed([result], now=now, relay=self._state.name)

    def _interrupt(self, error: BaseException) -> None:
        """Leave a mail in doubt whose bytes were being sent.

        A mail in flight that was not begun may be the cause of the error, so its try counts.
        """
        if self._book.leave_begun() or not self._book.in_flight:
            return
        if isinstance(error, Exception) and not isinstance(
            error, (StoreError, SoftTimeLimitExceeded)
        ):
            reason = f"it could not be said to the relay: {type(error).__name__}"
            outcome = Outcome(Verdict.DEFERRED, reason, Phase.CONNECT)
            self._book.finish(self._result(self._book.in_flight[0].delivery, outcome))

    def _learn_pace(self) -> None:
        """Learn the pace from the outcomes that are about to be recorded."""
        now, results = self._services.clock.monotonic(), self._book.results
        # A connection that failed says nothing of mails.
        if results and self.report.failure is None:
            self._state.pace.learn(now - self._window_began_at, len(results))
        self._window_began_at = now

    # --- the books -------------------------------------------------------------------------------

    def _record_and_mark(self, *, patient: bool) -> None:
        """Record the outcomes, and mark the window that is ready."""
        self._learn_pace()
        if patient:
            self._write_patiently(self._record_and_mark_now, f"{len(self._book.results)} outcomes")
        else:
            self._record_and_mark_now()

    def _record_and_mark_now(self) -> None:
        """Do so in one transaction, which releases expired deliveries as well."""
        book, store, now = self._book, self._services.store, self._services.clock.time()
        until = now + self._services.settings.transmit_lease
        recorded, marked = set[int](), set[int]()
        with store.together():
            if book.results:
                recorded = store.record_if_transmitting(
                    book.results, now=now, relay=self._state.name
                )
            if book.ready:
                ids = [mail.delivery.id for mail in book.ready]
                marked = store.mark_if_claimed(ids, token=book.token, now=now, lease_until=until)
            if book.expired:
                store.release_if_in_hand(book.expired, token=book.token)
        for result in book.results:
            if result.delivery.id not in recorded:
                _warn_of_unwritten(result)
        if any(result.outcome.verdict is Verdict.SENT for result in book.results):
            self._context.flags.note_delivery(now)
        for mail in book.note_recorded(marked, until):
            self._preparer.drop(mail, book.next_waiting)

    def record_and_release(self) -> None:
        """Record the outcomes, and release the mails that were not begun."""
        try:
            if self._book.results:
                self._book.return_ready()
                self._record_and_mark(patient=True)
        finally:
            self._preparer.close()
            self._release()

    def _release(self) -> None:
        book, store = self._book, self._services.store
        self.report.claimable_again += book.claimable_again
        unbegun, due_at = len(book.unbegun()), book.to_release()

        def release() -> None:
            store.release_if_in_hand(due_at, token=book.token)

        if unbegun:  # left marked, they would come into doubt for nothing
            self._write_patiently(release, f"{unbegun} mails to be given back")
        else:
            release()
        book.clear()

    def _write_patiently(self, write: Callable[[], None], subject: str) -> None:
        """Write, again and again while the database is away."""
        for pause in _WRITE_AGAIN_AFTER:
            try:
                write()
            except StoreUnavailable as error:
                log.warning("%s wait for the database: %s", subject, error)
                self._services.clock.sleep(pause)
            else:
                return
        write()


def _warn_of_unwritten(result: Result) -> None:
    log.warning(
        "Outcome not written, it is recorded already, though the answer was lost, or the claim was"
        " lost: mail_id=%s delivery=%d verdict=%s",
        result.delivery.mail_id,
        result.delivery.id,
        result.outcome.verdict,
    )
