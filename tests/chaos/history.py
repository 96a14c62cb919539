"""Compare the mails that were promised, the mails that arrived, and the database."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass

from mailer import MailStatus, Status


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `send_email()`, as the caller saw it."""

    recipient: str
    seconds: float
    mail_id: str = ""  #: empty: it raised
    message_id: str = ""
    error: str = ""

    @classmethod
    def read(cls, line: str) -> "Call":
        """Parse a line that `sender` printed."""
        verdict, first, second, recipient, seconds = line.split()
        if verdict == "accepted":
            return cls(recipient, float(seconds), mail_id=first, message_id=second)
        return cls(recipient, float(seconds), error=first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of the results of all accepted mails. Each mail has one recipient."""

    accepted: int
    refused: int  #: calls that raised, so that the caller knows that no mail is queued
    once: int
    twice: int
    in_doubt: int  #: doubtful in the database; the relay may have accepted them or not
    failed: int  #: in a final state, with a reason that a person can see
    lost: int  #: neither arrived, nor waiting, nor in a state that says why
    waiting: int
    uninvited: int  #: arrived though the call raised

    def __add__(self, other: "Tally") -> "Tally":
        """Return the sums of both."""
        return Tally(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    @property
    def is_clean(self) -> bool:
        """Return whether each mail arrived once and none is left to do."""
        return self.accepted == self.once


_NOT_SENT = frozenset({Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.SUPPRESSED})
_WAITING = frozenset({Status.QUEUED, Status.CLAIMED, Status.TRANSMITTING})


def tally(calls: Iterable[Call], statuses: Mapping[str, MailStatus], taken: Iterable[str]) -> Tally:
    """Count the results. `taken` has a Message-ID for each copy that the relay accepted."""
    calls = list(calls)
    accepted = [call for call in calls if call.mail_id]
    arrived = Counter(taken)
    states = {call.mail_id: _state(statuses.get(call.mail_id)) for call in accepted}
    copies = {call.mail_id: arrived[call.message_id] for call in accepted}
    promised = {call.message_id for call in accepted}
    return Tally(
        accepted=len(states),  # calls with the same idempotency key share a mail
        refused=len(calls) - len(accepted),
        once=_count(copies[mail_id] == 1 for mail_id in states),
        twice=_count(copies[mail_id] > 1 for mail_id in states),
        in_doubt=_count(state is Status.DOUBTFUL for state in states.values()),
        failed=_count(
            state in _NOT_SENT and not copies[mail_id] for mail_id, state in states.items()
        ),
        # A mail that is "sent" in the database but did not arrive is lost as well.
        lost=_count(
            not copies[mail_id] and (state is None or state is Status.SENT)
            for mail_id, state in states.items()
        ),
        waiting=_count(state in _WAITING for state in states.values()),
        uninvited=sum(
            copies for message_id, copies in arrived.items() if message_id not in promised
        ),
    )


def moves_on(mail: MailStatus) -> bool:
    """Return whether Mailer will change its state. A doubt left to a person stays."""
    return any(
        copy.status in _WAITING or (copy.status is Status.DOUBTFUL and copy.due_at) for copy in mail
    )


def broken_refusals(calls: Iterable[Call], recipients: Collection[str]) -> Collection[Call]:
    """Return the calls that raised "nothing was queued" although their mail arrived."""
    arrived = set(recipients)
    return [
        call for call in calls if call.error == "StoreUnavailable" and call.recipient in arrived
    ]


def _state(mail: MailStatus | None) -> Status | None:
    if mail is None:
        return None
    [delivery] = mail.deliveries
    return delivery.status


def _count(found: Iterable[bool]) -> int:
    return sum(found)
