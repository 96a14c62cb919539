"""What was left in the hands of a process, settled by whoever finds its black box."""

import random
import time
from collections import defaultdict
from collections.abc import Sequence

from mailer.blackbox import Remains
from mailer.delivery.office import Office
from mailer.logs import get_logger
from mailer.message import Delivery, Outcome, Phase, Status, Verdict
from mailer.policy import Move, explained, next_move
from mailer.store import Result

_ON_THE_WIRE = Outcome(Verdict.DOUBTFUL, "the worker died, or lost the database, before the reply was recorded")
_POISON = Outcome(Verdict.DEFERRED, "the worker died while it composed this mail", Phase.CONNECT)

log = get_logger(__name__)


def settle(office: Office, remains: Remains) -> bool:
    """What the relay took is sent, what was on the wire is in doubt, and the rest was never begun.

    Returns whether any of it was still held, or in doubt.
    """
    store, now = office.store, time.time()
    held = store.load_held(remains.token)
    begun: dict[str, list[Result]] = defaultdict(list)  # by relay
    unbegun: list[Delivery] = []
    for delivery in held:
        if (relay := remains.begun.get(delivery.id)) is None:
            unbegun.append(delivery)
        else:
            begun[relay].append(_result(office, delivery, remains.taken.get(delivery.id), now))
    with store.together():
        store.lock_sensitive({delivery.mail_id for delivery in held})
        for relay, results in begun.items():
            store.record_if_transmitting(results, now=now, relay=relay)
        _give_back(office, unbegun, remains, now)
    if held:
        doubtful = sum(result.move.to is Status.DOUBTFUL for results in begun.values() for result in results)
        log.warning(
            "%d deliveries were left in the hands of a worker that died, or lost the database; %d of them are in doubt.",
            len(held),
            doubtful,
        )
    return bool(held)


def _result(office: Office, delivery: Delivery, reply: str | None, now: float) -> Result:
    if reply is not None:
        return Result(delivery, Outcome(Verdict.SENT, reply), Move(to=Status.SENT))
    return Result(delivery, _ON_THE_WIRE, _move(office, delivery, _ON_THE_WIRE, now))


def _give_back(office: Office, deliveries: Sequence[Delivery], remains: Remains, now: float) -> None:
    """As if never claimed, but for the mail that was being composed: should it be what kills workers, it must come to an end."""
    store = office.store
    suspects = [_charged(office, one, now) for one in deliveries if one.mail_id == remains.composing]
    charged = store.set_aside_if_claimed(suspects, now=now, relay=remains.calling) if suspects else set()
    innocent = {delivery.id: None for delivery in deliveries if delivery.id not in charged}
    store.release_if_held(innocent, token=remains.token)


def _charged(office: Office, delivery: Delivery, now: float) -> Result:
    move = _move(office, delivery, _POISON, now)
    return Result(delivery, explained(_POISON, move), move)


def _move(office: Office, delivery: Delivery, outcome: Outcome, now: float) -> Move:
    dice = random.random()  # noqa: S311 -- spreads retries
    return next_move(delivery, outcome, office.settings.retry, now=now, dice=dice)
