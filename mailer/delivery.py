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
from collections.abc import Iterable
from dataclasses import dataclass

from mailer.errors import StoreUnavailable
from mailer.intake import Bell
from mailer.message import Delivery, Message, OnDoubt, Outcome, Verdict
from mailer.mime import WireMessage, compose
from mailer.policy import next_move, slice_size, smoothed, window_size
from mailer.settings import Settings
from mailer.smtp import Relay, RelayConnection
from mailer.store import Result, Store

_PURGED_AT_ONCE = 500
# While the broker is away, the sweep itself delivers for so long, before it looks again.
_ALONE_SECONDS = 1.0
# How long an outcome waits for a database that is away, in seconds between tries: a minute in all.
_RECORD_AGAIN_AFTER = (0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 20.0)

Composed = dict[str, tuple[Message, bytes]]  # by the mail's id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery and what goes over the wire for it."""

    delivery: Delivery
    message: WireMessage


class Courier:
    """What it takes to deliver, for one app in one process. It learns how fast its relay is."""

    def __init__(self, settings: Settings, store: Store, relay: Relay, bell: Bell) -> None:
        self._settings = settings
        self._store = store
        self._relay = relay
        self._bell = bell
        self._seconds_per_mail = 0.02
        self._stopped = mmap.mmap(-1, 1)  # one byte that the children of a prefork pool share with the worker that stops them

    def deliver(self, at_most: float) -> None:
        """Slice after slice while more is due, so long that starting costs nothing, so short that others get their turn."""
        ends = time.monotonic() + at_most
        while self.deliver_slice() and not self._stopped[0]:
            if time.monotonic() > ends:
                self._bell.ring()
                break

    def stop(self) -> None:
        """No slice after this one, in whatever process of this worker."""
        self._stopped[0] = 1

    # --- a slice ------------------------------------------------------------------------------------------------------

    def deliver_slice(self) -> int:
        """Claim what is most urgent, hand it over, record what came of it; returns how many were tried."""
        if self._relay.is_resting:
            return 0
        waiting = self._claim()
        if not waiting:
            return 0
        started = time.monotonic()  # after the claim: however long that took, a slice gets something done
        tried = 0
        known: Composed = {}
        try:
            with self._relay.connection() as connection:
                while waiting and not self._relay.is_resting and time.monotonic() - started < self._settings.slice_seconds:
                    window, waiting = self._split(waiting)
                    known = self._compose(window, known)
                    tried += self._deliver_window(connection, _letters(window, known))
        finally:
            self._give_back(waiting)
        log.info("%d tried in %.0f ms", tried, 1000 * (time.monotonic() - started))
        return tried

    def _claim(self) -> list[Delivery]:
        """A slice. When it comes back full there is probably more: a free slot is called to join in, before we start."""
        now = time.time()
        most = slice_size(self._seconds_per_mail, self._settings.slice_seconds)
        claimed = self._store.claim_due(most, token=secrets.token_hex(8), now=now, lease_until=now + self._settings.claim_lease)
        if len(claimed) == most:
            self._bell.ring()
        return claimed

    def _split(self, waiting: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """The next window, and the rest. A mail that must never go out twice is marked and recorded alone."""
        size = window_size(self._seconds_per_mail)
        held = next((at for at, delivery in enumerate(waiting[:size]) if delivery.on_doubt is OnDoubt.HOLD), size)
        size = max(1, held)
        return waiting[:size], waiting[size:]

    def _compose(self, window: list[Delivery], known: Composed) -> Composed:
        """The bytes of each message, made once however many recipients follow each other."""
        ids = {delivery.mail_id for delivery in window}
        composed = {mail_id: known[mail_id] for mail_id in ids & known.keys()}
        for mail_id, message in self._store.load_messages(ids - known.keys()).items():
            try:
                composed[mail_id] = message, compose(message)
            except Exception as error:  # whatever it is, it is this mail's own
                log.exception("Mail %s can't be composed", mail_id)
                for delivery in (one for one in window if one.mail_id == mail_id):
                    self._store.fail_if_claimed(
                        delivery, f"it can't be composed: {type(error).__name__}: {error}", now=time.time()
                    )
        return composed

    def _deliver_window(self, connection: RelayConnection, letters: list[Letter]) -> int:
        """Mark, send, record. What was marked and not begun when the connection broke goes back as it was."""
        started = time.monotonic()
        letters = self._mark(letters)
        begun = 0
        results: list[Result] = []
        try:
            for letter in letters:
                if not self._has_time(letter.delivery):
                    break
                begun += 1
                outcome = self._relay.send(connection, letter.message)
                results.append(self._result(letter.delivery, outcome))
                if outcome.verdict in (Verdict.UNREACHED, Verdict.DOUBTFUL):
                    break
        finally:
            self._record(results)
            self._give_back(letter.delivery for letter in letters[begun:])
        if results:
            self._seconds_per_mail = smoothed(self._seconds_per_mail, (time.monotonic() - started) / len(results))
        return len(results)

    def _mark(self, letters: list[Letter]) -> list[Letter]:
        """Those that are still ours. From here on, a death of this process means doubt."""
        if not letters:
            return []
        now = time.time()
        until = now + self._settings.transmit_lease
        ids = [letter.delivery.id for letter in letters]
        ours = self._store.mark_if_claimed(ids, token=letters[0].delivery.token, now=now, lease_until=until)
        return [Letter(letter.delivery.with_lease(until), letter.message) for letter in letters if letter.delivery.id in ours]

    def _has_time(self, delivery: Delivery) -> bool:
        """Whether the lease outlasts the slowest possible try: a worker that was frozen notices here, before DATA."""
        return time.time() + self._settings.longest_try < delivery.lease_until

    def _result(self, delivery: Delivery, outcome: Outcome) -> Result:
        move = next_move(delivery, outcome, self._settings.retry, now=time.time(), dice=random.random())  # noqa: S311 -- spreads retries
        if outcome.verdict is not Verdict.SENT:
            log.warning("delivery %d: %s, %s at %s: %s", delivery.id, move.to, outcome.verdict, outcome.phase, outcome.reply)
        return Result(delivery, outcome, move)

    def _record(self, results: list[Result]) -> None:
        """Write the outcomes. They are facts by now: a database that is away is waited for."""
        if not results:
            return
        for pause in _RECORD_AGAIN_AFTER:
            try:
                self._record_now(results)
            except StoreUnavailable as error:
                log.warning("%d outcomes wait for the database: %s", len(results), error)
                time.sleep(pause)
            else:
                return
        self._record_now(results)

    def _record_now(self, results: list[Result]) -> None:
        moved = self._store.record_if_transmitting(results, now=time.time(), relay=self._relay.name)
        for result in results:
            if result.delivery.id not in moved:
                log.warning("delivery %d: %s, but the claim was lost", result.delivery.id, result.outcome.verdict)

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Never tried, so safe to be claimed by anybody, at once."""
        given = list(deliveries)
        if given:
            self._store.release_if_held([delivery.id for delivery in given], token=given[0].token)
            self._bell.ring()

    # --- chores -------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Rescue what was left behind, expire what came too late, ring for what is due; with nobody to hear it, deliver."""
        now = time.time()
        self._store.requeue_lapsed_claims(now)
        if doubtful := self._store.doubt_lapsed_transmissions(now, resend_at=now + self._settings.doubt_resend_after):
            log.warning("%d deliveries are in doubt: their worker was gone before it recorded the reply", len(doubtful))
        self._store.resend_doubtful(now)
        self._store.expire_overdue(now)
        if self._store.is_due(now) and not self._bell.ring(urge=True):
            self.deliver(at_most=_ALONE_SECONDS)

    def purge(self) -> int:
        """Delete what is finished and older than it is to be kept, in small bites that hold up nobody."""
        before = time.time() - self._settings.keep_days * 86400
        purged = 0
        while bite := self._store.purge_finished(before, most=_PURGED_AT_ONCE):
            purged += bite
        return purged

    def rest(self) -> None:
        """Hang up on connections that nobody used for a while."""
        self._relay.close_idle(self._settings.idle_timeout)

    def hang_up(self) -> None:
        """Say goodbye to the relay."""
        self._relay.close_idle()


def _letters(window: list[Delivery], known: Composed) -> list[Letter]:
    return [
        Letter(delivery, WireMessage(known[delivery.mail_id][0], delivery.recipient, known[delivery.mail_id][1]))
        for delivery in window
        if delivery.mail_id in known
    ]


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
