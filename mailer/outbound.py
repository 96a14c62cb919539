"""The outbound side of a Flask app: built when first needed, since a web process only queues."""

import math
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flask import Flask

from mailer.logs import addresses_shown
from mailer.message import Lane
from mailer.message.ports import Bell, Clock
from mailer.settings import Settings
from mailer.store import Store

if TYPE_CHECKING:
    from mailer.delivery import DeliveryParts, Dispatcher, Maintenance


# A caller waits no longer than this for many recipients or a slow relay, and for the last mail.
_LONGEST_INLINE_SECONDS = 10.0


class Outbound:
    """The objects that deliver the mail of one Flask app, as its Celery tasks and workers use them.

    The dispatcher, with its relays, DKIM keys, limits and shared memory, is built at its first use.
    A worker builds it in its main process, before a prefork pool forks.
    """

    def __init__(
        self, app: Flask, settings: Settings, store: Store, bell: Bell, clock: Clock
    ) -> None:
        self.app = app
        self.settings = settings
        self.store = store
        self.bell = bell
        self.clock = clock

    @property
    def dispatcher(self) -> "Dispatcher":
        return self.build().dispatcher

    @property
    def maintenance(self) -> "Maintenance":
        return self.build().maintenance

    def build(self) -> "DeliveryParts":
        """Build the dispatcher and the maintenance, or return those that are built already."""
        built: DeliveryParts | None = vars(self).get("_built")
        if built is None:
            # The modules that deliver take as much memory as those that queue.
            from mailer.delivery import build_delivery  # noqa: PLC0415

            new = build_delivery(self.app, self.settings, self.store, self.bell, self.clock)
            # No lock, which a fork could leave locked. If two threads build, the first is used.
            built = vars(self).setdefault("_built", new)
        return built

    def replace_parts(self, parts: "DeliveryParts | None") -> "DeliveryParts | None":
        """Deliver with these objects from now on, in a test. Return the earlier ones."""
        before: DeliveryParts | None = vars(self).pop("_built", None)
        if parts is not None:
            vars(self)["_built"] = parts
        return before

    @contextmanager
    def context(self) -> Iterator[None]:
        """Enter the context of the Flask app, and mask addresses in logs as it says."""
        with self.app.app_context(), addresses_shown(self.settings.log_addresses):
            yield


class InlineBell:
    """The bell that calls no worker: a ring delivers the mails that it is about, and no others.

    They are delivered in the calling thread before the call returns: to nobody with
    MAIL_SUPPRESS_SEND, and else to their relays. What a relay does not take at once stays queued
    for the workers.
    """

    outbound: Outbound

    def __init__(self) -> None:
        self._thread = threading.local()

    def ring(
        self,
        mails: Collection[str] = (),
        *,
        lanes: Collection[Lane] = (Lane.NORMAL,),
        urge: bool = False,
    ) -> bool:
        """Deliver these mails, as far as they are due. Return False if there are none."""
        if not mails:
            return False  # nobody hears that there is mail
        is_suppressed = self.outbound.settings.mail_suppress_send
        self.deliver(mails, math.inf if is_suppressed else _LONGEST_INLINE_SECONDS)
        return True

    def deliver(self, mails: Collection[str], at_most: float) -> None:
        """Deliver these mails, for about so many seconds.

        A receiver of a signal may queue mail while this thread delivers: that mail comes next.
        """
        waiting: list[str] | None = getattr(self._thread, "waiting", None)
        if waiting is not None:
            waiting.extend(mails)
            return
        self._thread.waiting = waiting = [*mails]
        clock = self.outbound.clock
        ends = clock.monotonic() + at_most
        try:
            while waiting:
                taken, waiting[:] = [*waiting], []
                self.outbound.dispatcher.deliver(ends - clock.monotonic(), mails=taken)
                if clock.monotonic() > ends:
                    break  # workers deliver the rest
        finally:
            self._thread.waiting = None

    def answer(self, queue: str = "") -> None:
        """Do nothing: nobody was called."""
