"""The thread that renews the slots of a process while mails are slow."""

import threading
from typing import Protocol
from weakref import WeakSet

from mailer.message.ports import Clock
from mailer.threads import start_daemon

# Slots are also renewed between mails, but a mail may be as slow as its time-outs.
_EVERY = 5.0


class Holder(Protocol):
    """A holder of slots."""

    def extend(self) -> None:
        """Renew all slots."""


class Renewer:
    """The thread that renews the slots of a process. The slots of a dead process expire."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._holders: WeakSet[Holder] = WeakSet()
        self._is_working = False

    def add(self, holder: Holder) -> None:
        """Renew the slots of this holder from now on."""
        with self._lock:
            self._holders.add(holder)
            if self._is_working:
                return
            # Without a thread, slots are renewed between mails.
            self._is_working = start_daemon(self._work, "mailer-slots") is not None

    def discard(self, holder: Holder) -> None:
        """Forget an empty holder."""
        with self._lock:
            self._holders.discard(holder)

    def _work(self) -> None:
        while True:
            self._clock.sleep(_EVERY)
            with self._lock:
                holders = [*self._holders]
                self._is_working = bool(holders)
            if not holders:
                return
            while holders:
                holders.pop().extend()
