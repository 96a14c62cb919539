"""The learnt limit of mails that a relay accepts on a connection. Threads share it."""

import threading
from logging import Logger
from math import inf

from mailer.logs import get_logger
from mailer.message import Outcome, Phase, Verdict
from mailer.policy import is_greylisting, is_session_limit

# The number of connections closed because of the limit after which it is learnt anew: the relay may
# have raised it.
_TRUSTED_FOR = 100
# The least limit to believe at once, if the reply says so. Others must be met twice.
_BELIEVED_AT_ONCE = 10
# Each false alarm doubles the mails that a connection must have carried for the next suspicion, up
# to this.
_MAX_CARRIED = 64
_MAX_CARRIED_WITH_TEXT = 8
# The phases before the mail itself, after which it may begin again.
_BEFORE_THE_MAIL = (Phase.MAIL, Phase.RCPT, Phase.DATA)

log: Logger = get_logger(__name__)


class ConnectionLimit:
    """The limit of a relay: a hint, since it may differ tomorrow or at another address."""

    def __init__(self, relay: str) -> None:
        self._relay = relay
        self._lock = threading.Lock()
        self._learnt: int | None = None
        self._trusted = 0
        self._seen_last = 0
        self._false_alarms = 0

    def is_reached(self, carried: int) -> bool:
        """Return whether the relay will probably refuse another mail on a connection."""
        return carried >= (self._learnt or inf)

    def may_be(self, refusal: Outcome, carried: int) -> bool:
        """Return whether a refusal may be about the connection instead of the mail.

        A new connection is at no limit. Greylisting, and a reply with a time, are about the mail.
        After false alarms, only connections with more mails are suspected.
        """
        if not carried or refusal.phase not in _BEFORE_THE_MAIL:
            return False
        if is_session_limit(refusal.phase, refusal.reply):
            carried_at_least = _MAX_CARRIED_WITH_TEXT
        elif refusal.phase is Phase.MAIL and _is_passing(refusal):
            carried_at_least = _MAX_CARRIED
        else:
            return False
        return self.is_reached(carried) or carried >= min(
            carried_at_least, 2 ** min(self._false_alarms, 30)
        )

    def confirm(self, refusal: Outcome, carried: int) -> None:
        """Note that a new connection accepted a mail that was refused after `carried` others."""
        with self._lock:
            is_plain = carried >= _BELIEVED_AT_ONCE and is_session_limit(
                refusal.phase, refusal.reply
            )
            if is_plain or carried == self._seen_last:
                if carried != self._learnt:
                    log.info(
                        "Connection limit learnt: relay=%s mails=%d reply=%s",
                        self._relay,
                        carried,
                        refusal.reply,
                    )
                self._learnt, self._trusted = carried, _TRUSTED_FOR
            self._seen_last, self._false_alarms = carried, 0

    def refute(self) -> None:
        """Note that a new connection gave the same refusal."""
        with self._lock:
            self._false_alarms += 1

    def note_closed(self) -> None:
        """Note that a connection was closed because of the limit."""
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
