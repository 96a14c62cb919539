"""How many mails a relay takes over one connection: what a process has learnt of it, shared by its threads."""

import threading
from math import inf

from mailer.logs import get_logger
from mailer.message import Outcome, Phase, Verdict
from mailer.policy import is_greylisting, is_session_limit

# The limit may have been raised. After closing so many connections because of it, forget it, and
# learn it again.
_TRUSTED_FOR = 100
# A limit is believed at once if the relay's words say so and connections remain of use; else when it was met twice alike.
_BELIEVED_AT_ONCE = 10
# Each wrong suspicion doubles the mails that a connection must have carried before the next one, up
# to this.
_LONGEST_PATIENCE = 64
_LONGEST_PATIENCE_WITH_WORDS = 8
# Before the mail itself is said, it may be begun again.
_BEFORE_THE_MAIL = (Phase.MAIL, Phase.RCPT, Phase.DATA)

log = get_logger(__name__)


class ConnectionLimit:
    """The limit of one relay. It is a hint: a relay may have another one tomorrow, or behind another address."""

    def __init__(self, relay: str) -> None:
        self._relay = relay
        self._lock = threading.Lock()
        self._learnt: int | None = None
        self._trusted = 0
        self._seen_last = 0
        self._false_alarms = 0

    def is_reached(self, carried: int) -> bool:
        """Tell whether the relay is expected to refuse the next mail of a connection that has carried so many."""
        return carried >= (self._learnt or inf)

    def may_be(self, refusal: Outcome, carried: int) -> bool:
        """Tell whether a refusal may be about the connection, and not about the mail that met it.

        A connection that has carried nothing is at no limit. Greylisting, and a relay that says when to come back, mean the
        mail. Where many suspicions were wrong, few are raised.
        """
        if not carried or refusal.phase not in _BEFORE_THE_MAIL:
            return False
        if is_session_limit(refusal.phase, refusal.reply):
            patience = _LONGEST_PATIENCE_WITH_WORDS
        elif refusal.phase is Phase.MAIL and _is_passing(refusal):
            patience = _LONGEST_PATIENCE
        else:
            return False
        return self.is_reached(carried) or carried >= min(patience, 2 ** min(self._false_alarms, 30))

    def confirm(self, refusal: Outcome, carried: int) -> None:
        """Note that a new connection took what was refused after so many mails."""
        with self._lock:
            is_plain = carried >= _BELIEVED_AT_ONCE and is_session_limit(refusal.phase, refusal.reply)
            if is_plain or carried == self._seen_last:
                if carried != self._learnt:
                    log.info("relay %s takes %d mails over a connection: %s", self._relay, carried, refusal.reply)
                self._learnt, self._trusted = carried, _TRUSTED_FOR
            self._seen_last, self._false_alarms = carried, 0

    def refute(self) -> None:
        """Note that a new connection made no difference."""
        with self._lock:
            self._false_alarms += 1

    def note_closed(self) -> None:
        """Note that a connection was closed for what was learnt."""
        with self._lock:
            self._trusted -= 1
            if self._trusted <= 0:
                self._learnt = None


def _is_passing(refusal: Outcome) -> bool:
    return (
        refusal.verdict in (Verdict.DEFERRED, Verdict.UNREACHED)
        and refusal.retry_after is None
        and not refusal.is_silence
        and not is_greylisting(refusal.reply)
    )
