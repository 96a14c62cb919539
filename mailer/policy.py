"""Pure decisions: retries, the meaning of replies and errors, the fair order, sizes.

Time and jitter are passed in.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mailer.errors import InvalidMail
from mailer.message import Delivery, Lane, OnDoubt, Outcome, Phase, Status, Verdict

MAX_WINDOW = 20
WINDOW_SECONDS = 0.05
MAX_BATCH = 500
_LEAST_HELD, _TIMES_HELD = 4096, 4


# --- the next move ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The bounds of retries; times are in seconds."""

    first: float = 60.0
    factor: float = 3.0
    longest: float = 4 * 3600.0
    jitter: float = 0.2  #: the share of a wait by which it is spread, to either side
    max_attempts: int = 12
    # RFC 5321, 4.5.4.1: four or five days at least. A relay that breaks on a Friday evening may be
    # noticed on Monday.
    max_age: float = 5 * 86400.0
    doubt_resend_after: float = 900.0
    relay_rest: float = 10.0
    relay_rest_longest: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A change of a delivery: its next state and when it is due."""

    to: Status
    due_at: float | None = None
    counts: bool = True  #: whether the try counts as one of the mail's attempts
    reason: str = ""  #: why Mailer gives up, if the reply does not say so


def backoff(attempts: int, retry: RetryPolicy, jitter: float) -> float:
    """Return the seconds between try number `attempts` and the next; `jitter` is in [0, 1)."""
    delay = min(retry.longest, retry.first * retry.factor ** min(attempts - 1, 30))
    return delay * (1 + retry.jitter * (2 * jitter - 1))


def rest(failures: int, retry: RetryPolicy, jitter: float) -> float:
    """Return the seconds to pause an unusable relay after `failures` earlier failures in a row."""
    seconds = retry.relay_rest * 2.0 ** min(failures, 30) * (1 + retry.jitter * jitter)
    return min(retry.relay_rest_longest, seconds)


def next_move(
    delivery: Delivery, outcome: Outcome, retry: RetryPolicy, *, now: float, jitter: float
) -> Move:
    """Return the move of the state chart for an outcome."""
    match outcome.verdict:
        case Verdict.SENT:
            return Move(to=Status.SENT)
        case Verdict.REFUSED:
            return Move(to=Status.FAILED)
        case Verdict.UNREACHED:
            return _again(delivery, retry, now + retry.relay_rest * (1 + jitter), counts=False)
        case Verdict.DOUBTFUL:
            resend = delivery.on_doubt is OnDoubt.RESEND and delivery.doubts == 0
            return Move(
                to=Status.DOUBTFUL, due_at=now + retry.doubt_resend_after if resend else None
            )
        case Verdict.DEFERRED:
            if delivery.attempts >= retry.max_attempts:
                tries = "1 try" if delivery.attempts == 1 else f"{delivery.attempts} tries"
                return Move(
                    to=Status.FAILED, reason=f"given up after {tries}, see MAILER_RETRY_ATTEMPTS"
                )
            # Never before the time that the relay asked for: that would waste a try.
            asked = (outcome.retry_after or 0.0) * (1 + retry.jitter * jitter)
            wait = max(asked, backoff(delivery.attempts, retry, jitter))
            return _again(delivery, retry, now + wait)


def with_reason(outcome: Outcome, move: Move) -> Outcome:
    """Add the reason of the move, if any, to the reply of the outcome."""
    return replace(outcome, reply=f"{outcome.reply} ({move.reason})") if move.reason else outcome


_TOO_OLD = "given up, too old for another try, see MAILER_RETRY_AGE"


def _again(delivery: Delivery, retry: RetryPolicy, due_at: float, *, counts: bool = True) -> Move:
    """Queue another try. Fail the mail if it would be too old by then."""
    if due_at - delivery.queued_at > retry.max_age:
        return Move(to=Status.FAILED, counts=counts, reason=_TOO_OLD)
    return Move(to=Status.QUEUED, due_at=due_at, counts=counts)


# --- the meaning of a reply ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The meaning of a relay's reply for the mail."""

    verdict: Verdict
    retry_after: float | None = None  #: seconds it asked us to wait


LEAST_ASKED, MOST_ASKED = 5.0, 86400.0
# The default of postgrey, SQLgrey and rspamd. Few of them name the time in the reply.
GREYLISTED_FOR = 300.0

# RFC 4954: replies about our login, not about the mail. A wrong password must not fail ten thousand
# mails.
_LOGIN_CODES = frozenset({530, 534, 535, 538})
# The same as enhanced codes (RFC 5248), and Exchange's "client was not authenticated". Without
# 5.7.9: Yahoo uses it for a verdict on the mail.
_LOGIN_STATUSES = frozenset({"5.7.8", "5.7.10", "5.7.11", "5.7.12", "5.7.57"})
# In RFC 3463 these are transient, whatever the first digit: mailbox full, disk full, congestion
# (Gmail's daily limit). "Too many recipients" for a single recipient is a limit over time.
_PASSING_STATUSES = frozenset({"5.2.2", "5.3.1", "5.4.5", "5.5.3"})
# Too big for the mailbox or the system: permanent, although the text says "exceeds the limit".
_TOO_BIG = frozenset({"5.2.3", "5.3.4"})

_GREYLISTED = re.compile(r"gr[ea]y-?list")

# The relay refuses us as a client, not this mail. The configuration must change, so no mail fails
# of it at once.
_ABOUT_US = re.compile(
    r"""
    # no login, or no TLS before it
      \bauthentication\s(is\s)?(required|needed)\b | \brequires\s(smtp\s)?authentication\b
    | \bauthenticate\sfirst\b | \bclient\s(was\s|is\s)?not\sauthenticated\b
    | \bunauthenticated\ssenders\b | \bnot\slogged\sin\b | \bstarttls\b
    # a relay that does not relay for us
    | \brelay(ing)?\s(access\s)?(is\s)?(denied|not\s(permitted|allowed))\b
    | \b(unable|permitted|allowed)\sto\srelay\b
    | \bcredentials\sfor\srelay\b | \ballowed\srcpthosts\b
    # our host: its name, its address, a block list it is on. SPF is about the sender of the mail
    | \bclient\shost\b | ^(?!.*\bspf\b).*\b(your|sending|this|unauthorized)\sip\b
    # the account as a whole: Amazon SES
    | \bsending\s(is\s|has\sbeen\s)?(paused|suspended|disabled)\b | \bnot\sauthorized\sto\sperform\b
    """,
    re.VERBOSE,
)

# Texts of 5xx replies that are not permanent, as the named servers send them.
_PASSING = re.compile(
    r"""
    # asks for a retry: Zoho, SendGrid
      \b(try|retry|resend|come\sback|wait)\b.{0,40}\b(later|tomorrow|some\s?time)\b
    | \btemporarily\b
    # too fast: Exchange, QQ, Gmail, Zoho
    | throttl | \b(rate|frequency).?limit | \bat\sa\srate\sthat\b
    | \bunusual\s(sending\s)?(rate|volume|activity)\b
    # too much at once: Mailtrap, OVH
    | \btoo\s(many|much)\s(\w+\s){0,3}(e-?)?(mails?|messages?|recipients?|connections?)\b
    # too much for a day: Gmail, StartMail, cPanel, Exchange. Not size, and not spam score
    | ^(?!.*\b(size|length|lines?|headers?|attachments?|hops?|score)\b).*
      (\b(limits?|quota|credits?)\b.{0,40}\b(exceeded|reached)\b
      | \b(exceeds?|exceeded|reached)\b.{0,40}\b(limits?|quota|per\s(second|minute|hour|day))\b)
    # a full mailbox: Orange
    | \b(mailbox|inbox|account|storage|disk)\b.{0,40}\bfull\b | \bover-?\s?quota | quota\s?exceeded
    """,
    re.VERBOSE,
)


# A limit of the connection: OpenSMTPD, Exim, Postfix, qmail, Exchange.
_OF_THE_SESSION = re.compile(
    r"""
      \btoo\smany\s(\w+\s){0,3}(e-?)?
      (mails?|messages?|recipients?|transactions?|envelopes?|deliveries|commands|errors)\b
    | \b(per|this|one|single|same|each)\s(smtp\s|tcp\s)?(session|connection)\b
    | \b(session|connection)\s(limit|quota)\b
    | \breconnect\b | \bnew\s(smtp\s)?(session|connection)\b
    """,
    re.VERBOSE,
)


def is_session_limit(phase: Phase, reply: str) -> bool:
    """Return whether the text of a refusal may be about the number of mails on the connection."""
    status, words = _read(int(reply[:3]), reply) if reply[:3].isdigit() else ("", reply)
    # "Too many recipients" for a single recipient is about the connection.
    if phase is not Phase.DOT and status[1:] == ".5.3":
        return True
    return _OF_THE_SESSION.search(words) is not None


def is_greylisting(reply: str) -> bool:
    """Return whether a reply is about greylisting."""
    return _GREYLISTED.search(reply.lower()) is not None


def classify(phase: Phase, code: int, text: str) -> Answer:
    """Classify a reply by its enhanced code, or else its class. Known texts override both.

    No reply leads to doubt: only a connection lost after the final dot does.
    """
    if phase is Phase.DOT and 200 <= code < 300:
        return Answer(Verdict.SENT)
    status, words = _read(code, text)
    asked = _seconds_asked(words)
    if phase is Phase.CONNECT:
        return Answer(Verdict.UNREACHED, asked)
    if _GREYLISTED.search(words):
        return Answer(Verdict.DEFERRED, asked or GREYLISTED_FOR)
    about_us = (
        code in _LOGIN_CODES or status in _LOGIN_STATUSES or _ABOUT_US.search(words) is not None
    )
    if phase is Phase.MAIL and (code == 421 or about_us):
        return Answer(Verdict.UNREACHED, asked)
    # From RCPT on, such a text may be about this recipient only: the relay stays open for others.
    if not about_us and asked is None and _is_final(phase, code, status, words):
        return Answer(Verdict.REFUSED)
    return Answer(Verdict.DEFERRED, asked)


def _is_final(phase: Phase, code: int, status: str, words: str) -> bool:
    """Return whether the refusal is permanent."""
    # 421: the relay closes the connection, whatever the text says.
    if code == 421 or not 400 <= code < 600:
        return False
    if status in _TOO_BIG:
        return True
    if status in _PASSING_STATUSES or _PASSING.search(words):
        return False
    if status:
        return status.startswith("5")
    # RFC 5321 4.5.3.1.10: a 552 to RCPT means 452, too many recipients.
    return code >= 500 and not (code == 552 and phase is Phase.RCPT)


# At the beginning of a line, or as qmail writes it. Four numbers are an IP address.
_STATUS = re.compile(
    r"^[ \t#(\[]*([45]\.\d{1,3}\.\d{1,3})(?![.\d])|\(#([45]\.\d{1,3}\.\d{1,3})\)",
    re.MULTILINE,
)
_MOST_READ = 1000


def _read(code: int, text: str) -> tuple[str, str]:
    """Return the enhanced code, or an empty string, and the text in lower case on one line.

    The text contains no codes, which may begin each line, and no addresses, which strangers choose.
    """
    text = re.sub(rf"^(?:{code}[ -])+", "", text[:_MOST_READ], flags=re.MULTILINE)
    found = _STATUS.search(text)
    status = (found[1] or found[2]) if found else ""
    if status:
        text = text.replace(status, " ")
    words = re.sub(r"<[^<>]*>", " ", text.lower()).split()
    return status, " ".join(word for word in words if "@" not in word)


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = (
    r"(?:\d{1,6}(?:\.\d{1,3})?|\b(?:an?|one)\b) ?"
    r"(?:s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?:\(s\))?"
)
_SPANS = re.compile(
    # The request …
    r"\b(?:try|again|later|retry|resend|wait|back|gr[ea]y-?list(?:ed|ing)|deferred|delayed|blocked"
    r"|limited|available)"
    # … then only function words until the time, so that it belongs to the request …
    r"(?:[ :,=(~-]+(?:please|try|again|later|in|after|for|at|least|about|another|the|next|this|your"
    r"|message)\b){0,6}[ :,=(~-]+"
    # … with nothing attached: "5d1443fb-20" is a queue id.
    rf"({_SPAN}(?:(?: |,|, | and |){_SPAN})*)(?![\w-])"
)
_EACH_SPAN = re.compile(r"(\d+(?:\.\d+)?|\b(?:an?|one)\b) ?([smhd])")
_CLOCK = re.compile(r"\bin (\d{1,3}):([0-5]\d):([0-5]\d)\b")


def _seconds_asked(words: str) -> float | None:
    """Return the N of "try again in N" in seconds, between LEAST_ASKED and MOST_ASKED."""
    if clock := _CLOCK.search(words):
        hours, minutes, seconds = map(int, clock.groups())
        asked = 3600.0 * hours + 60.0 * minutes + seconds
    elif spans := _SPANS.search(words):
        asked = sum(
            (float(number) if number[0].isdigit() else 1.0) * _UNITS[unit[0]]
            for number, unit in _EACH_SPAN.findall(spans[1])
        )
    else:
        return None
    return min(max(asked, LEAST_ASKED), MOST_ASKED)


# --- the meaning of an error --------------------------------------------------------------------

#: Errors caused by the content of a mail while it is read or composed: a retry would not help.
#: Without LookupError: an unknown codec may be one that can't be loaded with too many open files.
FAULTS_OF_A_MAIL = (
    InvalidMail,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    ArithmeticError,
)


def verdict_on(error: Exception) -> Verdict:
    """Return the verdict on a mail that could not be read or composed.

    Only errors certainly caused by the mail are permanent. Memory, files, databases, keys, time
    limits and unexpected errors are not.
    """
    return Verdict.REFUSED if isinstance(error, FAULTS_OF_A_MAIL) else Verdict.DEFERRED


# --- lanes ---------------------------------------------------------------------------------------

#: The part of all claimed mail that is kept for each less urgent lane with due mail.
_KEPT_FOR_A_LANE = 0.05


class LaneShares:
    """The mail of claims that is kept for less urgent lanes, so that none starves.

    A part of a mail is owed until the next claim. Lanes begin with different debts, so that they
    take turns in claims of one mail.
    """

    def __init__(self) -> None:
        self._owed = {lane: lane / len(Lane) for lane in Lane}

    def take(self, limit: int, lanes: Iterable[Lane]) -> dict[Lane, int]:
        """Return how much of a claim is kept for each of these lanes, but the most urgent."""
        kept = {}
        for lane in sorted(lanes)[1:]:
            owed = self._owed[lane] + limit * _KEPT_FOR_A_LANE
            kept[lane] = int(owed)
            self._owed[lane] = owed - kept[lane]
        return kept


# --- the fair order -----------------------------------------------------------------------------

#: The tenant of mail without one, and the entry of each tenant that is not named.
NO_TENANT, OTHER_TENANTS = "", "*"
# In seconds: so far apart are the ranks of a tenant's mails, unless the tenant has a weight. More
# than workers need to deliver one mail of each tenant that has mail waiting.
_SPACING = 60.0


@dataclass(frozen=True, slots=True)
class Quota:
    """The number of mails that a tenant may send in each period of so many seconds."""

    amount: int
    seconds: int


@dataclass(frozen=True, slots=True)
class TenantRules:
    """The weights and the quotas of tenants."""

    weights: Mapping[str, float] = field(default_factory=dict)
    quotas: Mapping[str, tuple[Quota, ...]] = field(default_factory=dict)

    def spacing(self, tenant: str) -> float:
        """Return the seconds between the ranks of two mails of a tenant."""
        weight = self.weights.get(tenant, self.weights.get(OTHER_TENANTS, 1.0))
        return _SPACING / weight

    def quotas_of(self, tenant: str) -> tuple[Quota, ...]:
        """Return the quotas of a tenant, or nothing if it has none."""
        if tenant == NO_TENANT:
            return ()
        return self.quotas.get(tenant, self.quotas.get(OTHER_TENANTS, ()))


def ranks(
    tenants: Iterable[str],
    rules: TenantRules,
    *,
    now: float,
    head: float | None,
    tails: Mapping[str, float],
) -> list[float]:
    """Return the rank of a mail of each of these tenants, in this order.

    A mail ranks behind the last one of its tenant. If none is waiting, it ranks where the queue has
    got to: at `head`, the least rank of all, but not before now.
    """
    start = now if head is None else max(now, head)
    last = dict(tails)
    found = []
    for tenant in tenants:
        before = last.get(tenant)
        last[tenant] = start if before is None else max(start, before + rules.spacing(tenant))
        found.append(last[tenant])
    return found


# --- sizes --------------------------------------------------------------------------------------


def window_size(seconds_per_mail: float) -> int:
    """Return the number of mails to mark and record at once: at most 20, or about 50 ms."""
    return min(MAX_WINDOW, math.ceil(WINDOW_SECONDS / seconds_per_mail))


def batch_size(seconds_per_mail: float, batch_seconds: float) -> int:
    """Return the number of mails to claim at once: about `batch_seconds` of work."""
    return max(1, min(MAX_BATCH, int(batch_seconds / seconds_per_mail)))


def bytes_held(size: int) -> int:
    """Return the maximum of memory that a mail of this size takes while it is composed and sent.

    That is the mail, the row of the database, and the base64 form twice: in pieces and whole.
    """
    return _LEAST_HELD + _TIMES_HELD * size


def smoothed(seconds_per_mail: float, measured: float) -> float:
    """Return a moving average that follows a slower relay quickly."""
    return max(1e-5, 0.7 * seconds_per_mail + 0.3 * measured)
