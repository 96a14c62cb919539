"""What a dead process had in its hands, settled by whoever found its black box."""

import random
import time
from collections import defaultdict
from collections.abc import Sequence

from mailer.blackbox import Remains
from mailer.delivery.office import Office
from mailer.logs import get_logger
from mailer.message import Delivery, Outcome, Phase, Status, Verdict
from mailer.policy import Move, next_move
from mailer.store import Result

_ON_THE_WIRE = Outcome(Verdict.DOUBTFUL, "the worker died before it heard the reply")
_POISON = Outcome(Verdict.DEFERRED, "the worker died while it composed this mail", Phase.CONNECT)

log = get_logger(__name__)


def settle(office: Office, remains: Remains) -> None:
    """What the relay took is sent, what was on the wire is in doubt, and everything else was never begun."""
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
        log.warning("A worker died with %d deliveries in its hands, %d of them are in doubt.", len(held), doubtful)


def _result(office: Office, delivery: Delivery, reply: str | None, now: float) -> Result:
    if reply is not None:
        return Result(delivery, Outcome(Verdict.SENT, reply), Move(to=Status.SENT))
    return Result(delivery, _ON_THE_WIRE, _move(office, delivery, _ON_THE_WIRE, now))


def _give_back(office: Office, deliveries: Sequence[Delivery], remains: Remains, now: float) -> None:
    """As if never claimed, but for the mail that was being composed: should it be what kills workers, it must come to an end."""
    suspects = [delivery for delivery in deliveries if delivery.mail_id == remains.composing]
    innocent = {delivery.id: None for delivery in deliveries if delivery not in suspects}
    office.store.release_if_held(innocent, token=remains.token)
    for delivery in suspects:
        move = _move(office, delivery, _POISON, now)
        if move.to is Status.FAILED:
            office.store.fail_if_claimed(delivery, f"{_POISON.reply} ({move.reason})", now=now)
        else:
            office.store.release_if_held({delivery.id: move.due_at}, token=remains.token, counts=move.counts)


def _move(office: Office, delivery: Delivery, outcome: Outcome, now: float) -> Move:
    dice = random.random()  # noqa: S311 -- spreads retries
    return next_move(delivery, outcome, office.settings.retry, now=now, dice=dice)
