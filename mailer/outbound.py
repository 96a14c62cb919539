"""The outbound side of a Flask app: built when first needed, since a web process only queues."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flask import Flask

from mailer.logs import addresses_shown
from mailer.message.ports import Bell, Clock
from mailer.settings import Settings
from mailer.store import Store

if TYPE_CHECKING:
    from mailer.delivery import DeliveryParts, Dispatcher, Maintenance


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

    @contextmanager
    def context(self) -> Iterator[None]:
        """Enter the context of the Flask app, and mask addresses in logs as it says."""
        with self.app.app_context(), addresses_shown(self.settings.log_addresses):
            yield


class InlineBell:
    """The bell with MAIL_SUPPRESS_SEND: a ring delivers, to nobody, in the calling thread."""

    outbound: Outbound

    def __init__(self) -> None:
        self._thread = threading.local()

    def ring(self, *, urge: bool = False) -> bool:
        """Deliver due mail. A ring out of that delivery itself adds nothing."""
        if getattr(self._thread, "delivers", False):
            return True
        self._thread.delivers = True
        try:
            self.outbound.dispatcher.deliver(at_most=math.inf)
        finally:
            self._thread.delivers = False
        return True

    def answer(self) -> None:
        """Do nothing: nobody was called."""
