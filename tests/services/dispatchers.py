"""A dispatcher for tests, which play its worker, its bell and its clock."""

import random
import time
from collections.abc import Callable, Collection
from typing import Any

from flask import Flask

from mailer.delivery import DeliveryParts, Dispatcher, Maintenance
from mailer.message import DeliveryStatus, Lane, Pause
from mailer.outbound import Outbound
from mailer.store import Store
from tests.mails import insert, table
from tests.services.mail_servers import MailServer
from tests.services.relay import RawServer
from tests.services.script import ScriptedRelay
from tests.services.sink import Sink

MakeDispatcher = Callable[..., Dispatcher]  # the fixture `make_dispatcher(**config)`
# The fixture `open_dispatcher(*entries, redis_url=, **config)`.
OpenDispatcher = Callable[..., Dispatcher]


class Clock:
    """The clock of the dispatcher. Sleeping is recorded and takes no time."""

    monotonic = staticmethod(time.monotonic)
    random = staticmethod(random.random)

    def __init__(self) -> None:
        self.ahead = 0.0
        self.slept: list[float] = []
        self._stands_at: float | None = None

    def time(self) -> float:
        return (time.time() if self._stands_at is None else self._stands_at) + self.ahead

    def stand_still(self) -> None:
        """Stop the clock, so that only `ahead` moves it."""
        self._stands_at = time.time()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class CountingBell:
    """A bell that counts its rings and wakes nobody. It fails while `works` is false."""

    works = True

    def __init__(self) -> None:
        self.rings = 0
        self.lanes: list[Lane] = []

    def ring(
        self,
        mails: Collection[str] = (),
        *,
        lanes: Collection[Lane] = (Lane.NORMAL,),
        urge: bool = False,
    ) -> bool:
        self.rings += 1
        self.lanes += lanes
        return self.works

    def answer(self, queue: str = "") -> None:
        """Do nothing."""


def chores_of(dispatcher: Dispatcher) -> Maintenance:
    """Return the maintenance of the same worker."""
    return Maintenance(dispatcher._services, dispatcher, dispatcher._bell)


def outbound_of(dispatcher: Dispatcher, maintenance: Maintenance | None = None) -> Outbound:
    """Return the outbound side of an app with this dispatcher.

    A worker runs it beside its tasks.
    """
    services = dispatcher._services
    outbound = Outbound(
        Flask("tests"), services.settings, services.store, dispatcher._bell, services.clock
    )
    vars(outbound)["_built"] = DeliveryParts(dispatcher, maintenance or chores_of(dispatcher))
    return outbound


def entry(
    server: Sink | RawServer | ScriptedRelay | MailServer, name: str = "relay", **rules: Any
) -> dict[str, Any]:
    """Return the entry of a relay in MAILER_RELAYS."""
    return {"name": name, "MAIL_SERVER": server.host, "MAIL_PORT": server.port, **rules}


def two(
    first: Sink | RawServer, second: Sink, **of_the_first: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries of a relay and of its backup."""
    return entry(first, "first", **of_the_first), entry(second, "second", preference=1)


def queue(store: Store, *recipients: str, **options: Any) -> str:
    """Insert a mail that is due now, and return its id."""
    return insert(store, *recipients, **{"due_at": time.time(), **options})


def queue_each(store: Store, *names: str, **options: Any) -> None:
    """Insert a mail for each of these names at example.com, in this order."""
    for name in names:
        queue(store, f"{name}@example.com", **options)


def copy_of(store: Store, mail_id: str) -> DeliveryStatus:
    """Return the status of the delivery to a mail's only recipient."""
    [delivery] = store.status(mail_id)
    return delivery


def states(store: Store) -> dict[str, str]:
    """Return the status of each delivery by the local part of its recipient."""
    return {row["recipient"].partition("@")[0]: row["status"] for row in table(store).values()}


def queue_many(
    store: Store, count: int, *, domain: str = "example.com", **options: Any
) -> list[str]:
    """Insert this many mails with one recipient each, and return their ids."""
    return [queue(store, f"reader{number}@{domain}", **options) for number in range(count)]


def deliver_all(dispatcher: Dispatcher) -> None:
    """Deliver all mail that is due."""
    dispatcher.deliver(at_most=60)


def received(sink: Sink) -> list[str]:
    return [recipient for mail in sink.messages for recipient in mail.recipients]


def pause_of(store: Store, name: str = "first") -> Pause:
    return store.relay_pauses()[name]


def wait_out(clock: Clock, store: Store, name: str = "first") -> None:
    """Move the clock to the moment when the relay may be tried again."""
    until = pause_of(store, name).until
    assert until is not None
    clock.ahead += max(0.0, until - clock.time()) + 0.1
