"""The result of an outcome, as it is recorded."""

from mailer.delivery.services import Services
from mailer.message import Delivery, Outcome, Status, Verdict
from mailer.policy import Move, next_move, with_reason
from mailer.store import Result

_SENT = Move(to=Status.SENT)


def result_of(
    services: Services, delivery: Delivery, outcome: Outcome, *, may_be_sensitive: bool = True
) -> Result:
    """Return the state that an outcome leads to, with the reason if the mail is given up."""
    if outcome.verdict is Verdict.SENT:
        return Result(delivery, outcome, _SENT, may_be_sensitive)
    clock, retry = services.clock, services.settings.retry
    move = next_move(delivery, outcome, retry, now=clock.time(), jitter=clock.random())
    return Result(delivery, with_reason(outcome, move), move, may_be_sensitive)
