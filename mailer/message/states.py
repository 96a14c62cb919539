"""The states of a delivery, and the choices of a caller on how a mail travels."""

from enum import IntEnum, StrEnum

from mailer.errors import InvalidMail


class Status(StrEnum):
    """The state of a delivery: of one recipient's copy of a mail.

    A `Status` is a string, so that it can be compared with one, stored and shown. The comment
    beside each state says who moves a delivery on.

    >>> Status.SENT == "sent", Status.SENT.is_final
    (True, True)
    >>> Status("doubtful").is_final
    False
    """

    #: A worker claims it when it is due; the sweep expires it; a person cancels it.
    QUEUED = "queued"
    #: It waits for its bulk send or for a quota: the sweep queues it; a person cancels it.
    HELD = "held"
    #: Its worker marks or releases it; the sweep, when the worker's lease is over.
    CLAIMED = "claimed"
    #: Its worker records the outcome; after the lease the sweep doubts it.
    TRANSMITTING = "transmitting"
    SENT = "sent"  #: final; a bounce or a complaint may still come back
    FAILED = "failed"  #: final; a person may requeue it
    #: The sweep resends it once, if the mail wants that; else a person decides.
    DOUBTFUL = "doubtful"
    CANCELLED = "cancelled"  #: final
    EXPIRED = "expired"  #: final
    SUPPRESSED = "suppressed"  #: final
    BOUNCED = "bounced"  #: final
    COMPLAINED = "complained"  #: final

    @property
    def is_final(self) -> bool:
        """Return whether no worker will move the delivery any further."""
        return self in FINAL


FINAL = frozenset(
    {
        Status.SENT,
        Status.FAILED,
        Status.CANCELLED,
        Status.EXPIRED,
        Status.SUPPRESSED,
        Status.BOUNCED,
        Status.COMPLAINED,
    }
)

#: The states of a delivery that a worker has in its hands.
IN_HAND = frozenset({Status.CLAIMED, Status.TRANSMITTING})

#: The state chart. docs/states.md draws it, the CHECK in the schema knows its states, the tests try
#: every pair.
TRANSITIONS = frozenset(
    {
        (Status.QUEUED, Status.CLAIMED),
        (Status.QUEUED, Status.CANCELLED),
        (Status.QUEUED, Status.EXPIRED),
        (Status.QUEUED, Status.SUPPRESSED),
        (Status.QUEUED, Status.HELD),
        (Status.HELD, Status.QUEUED),
        (Status.HELD, Status.CANCELLED),
        (Status.HELD, Status.EXPIRED),
        (Status.CLAIMED, Status.TRANSMITTING),
        (Status.CLAIMED, Status.QUEUED),
        (Status.CLAIMED, Status.FAILED),
        (Status.TRANSMITTING, Status.SENT),
        (Status.TRANSMITTING, Status.QUEUED),
        (Status.TRANSMITTING, Status.FAILED),
        (Status.TRANSMITTING, Status.DOUBTFUL),
        (Status.DOUBTFUL, Status.SENT),
        (Status.DOUBTFUL, Status.QUEUED),
        (Status.DOUBTFUL, Status.FAILED),
        (Status.FAILED, Status.QUEUED),
        (Status.SENT, Status.BOUNCED),
        (Status.SENT, Status.COMPLAINED),
    }
)


class Lane(IntEnum):
    """The urgency of a mail: workers deliver critical mail first, and bulk mail last.

    Wherever a lane is expected, its name in lower case will do.

    >>> receipt = mailer.send_email(
    ...     "ada@example.com", "Your code", "mail/code", code=4711, lane=Lane.CRITICAL
    ... )
    >>> Lane.parse("critical") is Lane.CRITICAL
    True
    """

    CRITICAL = 0
    NORMAL = 1
    BULK = 2

    @classmethod
    def parse(cls, given: "Lane | str") -> "Lane":
        """Return the lane of a name. Raise `InvalidMail` if there is none of this name."""
        try:
            return given if isinstance(given, cls) else cls[given.upper()]  # type: ignore[union-attr]
        except (KeyError, AttributeError):
            raise InvalidMail(f"lane: {given!r}: use 'critical', 'normal' or 'bulk'.") from None


class OnDoubt(StrEnum):
    """The action on a mail that is in doubt: all of it was sent, and no reply came.

    A resend may deliver the mail twice; a mail on hold may never have arrived.

    >>> receipt = mailer.send_email(
    ...     "ada@example.com", "Your order", "mail/order", number=42, on_doubt=OnDoubt.HOLD
    ... )
    """

    RESEND = "resend"  #: a worker sends it once more, later, with the same Message-ID
    HOLD = "hold"  #: a person decides, with `mailer.resolve()` or `mailer.retry()`
