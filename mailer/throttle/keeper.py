"""The thread that keeps the seats of a process while mails are slow."""

import threading
import time
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

# Whoever uses a seat says so between mails, and a mail may be as slow as its time-outs.
_EVERY = 5.0


class Hand(Protocol):
    """What somebody holds."""

    def extend(self) -> None:
        """Keep all seats in it for longer."""


class Keeper:
    """Keeps what is in the hands of a process, as long as there is any.

    A seat is as good as the process that holds it: some time after that has died, it is free.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hands: WeakSet[Hand] = WeakSet()
        self._is_working = False

    def add(self, hand: Hand) -> None:
        """Keep what is in this hand from now on."""
        with self._lock:
            self._hands.add(hand)
            if self._is_working:
                return
            with suppress(RuntimeError):  # no thread can be started: it is kept between mails
                threading.Thread(target=self._work, name="mailer-seats", daemon=True).start()
                self._is_working = True

    def discard(self, hand: Hand) -> None:
        """Forget a hand that is empty."""
        with self._lock:
            self._hands.discard(hand)

    def _work(self) -> None:
        while True:
            time.sleep(_EVERY)
            with self._lock:
                hands = [*self._hands]
                self._is_working = bool(hands)
            if not hands:
                return
            while hands:
                hands.pop().extend()
