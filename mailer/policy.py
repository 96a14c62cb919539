"""What to do next: pure decisions, with the clock and the dice passed in."""

from dataclasses import dataclass

from mailer.message import Delivery, OnDoubt, Outcome, Phase, Status, Verdict

MOST_IN_A_WINDOW = 20
WINDOW_SECONDS = 0.05
MOST_IN_A_SLICE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The numbers that bound a mail's retries, in seconds."""

    first: float = 60.0
    factor: float = 3.0
    longest: float = 4 * 3600.0
    max_attempts: int = 12
    max_age: float = 2 * 86400.0
    doubt_resend_after: float = 900.0
    relay_rest: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What the store is to write about a delivery: the state it goes to and when it is due there."""

    to: Status
    due_at: float | None = None
    counts: bool = True  #: whether the try counts as one of the mail's attempts


def backoff(attempts: int, retry: RetryPolicy, dice: float) -> float:
    """Seconds until the next try after `attempts` tries; `dice` in [0, 1) spreads it by a fifth to either side."""
    delay = min(retry.longest, retry.first * retry.factor ** min(attempts - 1, 30))
    return delay * (0.8 + 0.4 * dice)


def next_move(delivery: Delivery, outcome: Outcome, retry: RetryPolicy, *, now: float, dice: float) -> Move:
    """The state chart's answer to an outcome."""
    match outcome.verdict:
        case Verdict.SENT:
            return Move(to=Status.SENT)
        case Verdict.REFUSED:
            return Move(to=Status.FAILED)
        case Verdict.UNREACHED:
            return Move(to=Status.QUEUED, due_at=now + retry.relay_rest * (1 + dice), counts=False)
        case Verdict.DOUBTFUL:
            resend = delivery.on_doubt is OnDoubt.RESEND and delivery.doubts == 0
            return Move(to=Status.DOUBTFUL, due_at=now + retry.doubt_resend_after if resend else None)
        case Verdict.DEFERRED:
            due_at = now + backoff(delivery.attempts, retry, dice)
            given_up = delivery.attempts >= retry.max_attempts or due_at - delivery.queued_at > retry.max_age
            return Move(to=Status.FAILED) if given_up else Move(to=Status.QUEUED, due_at=due_at)


# An answer about our login, not about the mail: a wrong password must not fail ten thousand mails.
_ABOUT_US = frozenset({530, 534, 535, 538})


def classify(phase: Phase, code: int) -> Verdict:
    """What a reply means; only a silence after the final dot is doubt, and a silence is no reply."""
    if phase is Phase.DOT and 200 <= code < 300:
        return Verdict.SENT
    if phase is Phase.CONNECT or code in _ABOUT_US or (code == 421 and phase is Phase.MAIL):
        return Verdict.UNREACHED
    # RFC 5321 4.5.3.1.10: an old 552 to RCPT means 452, too many recipients.
    if 500 <= code < 600 and not (code == 552 and phase is Phase.RCPT):
        return Verdict.REFUSED
    return Verdict.DEFERRED


def window_size(seconds_per_mail: float) -> int:
    """How many mails to mark, and to record, at once: about 20, or 50 ms of them."""
    return _fitting(WINDOW_SECONDS, seconds_per_mail, MOST_IN_A_WINDOW)


def slice_size(seconds_per_mail: float, slice_seconds: float) -> int:
    """How many mails to claim at once, so that a slice lasts about as long as it should."""
    return _fitting(slice_seconds, seconds_per_mail, MOST_IN_A_SLICE)


def _fitting(seconds: float, seconds_per_mail: float, most: int) -> int:
    return max(1, min(most, int(seconds / seconds_per_mail)))


def smoothed(seconds_per_mail: float, measured: float) -> float:
    """A moving average, quick to notice that a relay became slow."""
    return max(1e-5, 0.7 * seconds_per_mail + 0.3 * measured)
