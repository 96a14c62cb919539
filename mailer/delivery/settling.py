"""Settling the deliveries of a process that died, by its black box."""

from collections import defaultdict
from collections.abc import Sequence
from logging import Logger

from mailer.blackbox import Remains
from mailer.delivery.results import result_of
from mailer.delivery.services import Services
from mailer.logs import get_logger
from mailer.message import Delivery, Outcome, Phase, Status, Verdict
from mailer.store import Result

_ON_THE_WIRE = Outcome(
    Verdict.DOUBTFUL, "the worker died, or lost the database, before the reply was recorded"
)
_POISON = Outcome(Verdict.DEFERRED, "the worker died while it composed this mail", Phase.CONNECT)

log: Logger = get_logger(__name__)


def settle(services: Services, remains: Remains) -> bool:
    """Record mail that the relay took as sent, and mail on the wire as in doubt. Release the rest.

    Return whether any of it was still held, or in doubt.
    """
    store, now = services.store, services.clock.time()
    held = store.load_in_hand(remains.token)
    begun: dict[str, list[Result]] = defaultdict(list)  # by relay
    unbegun: list[Delivery] = []
    for delivery in held:
        if (relay := remains.begun.get(delivery.id)) is None:
            unbegun.append(delivery)
        else:
            begun[relay].append(_result(services, delivery, remains.taken.get(delivery.id)))
    with store.together():
        store.lock_sensitive({delivery.mail_id for delivery in held})
        for relay, results in begun.items():
            store.record_if_transmitting(results, now=now, relay=relay)
        _release(services, unbegun, remains, now)
    if held:
        doubtful = sum(
            result.move.to is Status.DOUBTFUL for results in begun.values() for result in results
        )
        log.warning(
            "A worker died, or lost the database, and its deliveries are settled: deliveries=%d"
            " in_doubt=%d",
            len(held),
            doubtful,
        )
    return bool(held)


def _result(services: Services, delivery: Delivery, reply: str | None) -> Result:
    if reply is not None:
        return result_of(services, delivery, Outcome(Verdict.SENT, reply))
    return result_of(services, delivery, _ON_THE_WIRE)


def _release(
    services: Services, deliveries: Sequence[Delivery], remains: Remains, now: float
) -> None:
    """Release deliveries, as if they were never claimed.

    But the mail that was being composed is charged with a try: should it kill workers, that must
    end.
    """
    store = services.store
    suspects = [
        result_of(services, delivery, _POISON)
        for delivery in deliveries
        if delivery.content_key == remains.composing
    ]
    charged = set[int]()
    if suspects:
        charged = store.set_aside_if_claimed(suspects, now=now, relay=remains.calling)
    innocent = {delivery.id: None for delivery in deliveries if delivery.id not in charged}
    store.release_if_in_hand(innocent, token=remains.token)
