"""How many bytes of mails a process holds: all its threads share one budget, and nobody waits for it."""

import threading
import time
from math import inf

from mailer.forks import survive_forks

# A mail that is larger than the budget goes beside this share of it, which small mails may hold.
_BESIDE_A_LARGE_ONE = 8
# While a mail waits for room, smaller ones get none, unless they are as small as this share.
_SMALL = 64
# Seconds for which that holds. Whoever still wants the mail asks again sooner.
_TURN_SECONDS = 3.0


class ByteBudget:
    """What the threads of a process may hold together, and whose turn it is when there is no room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held = 0
        self._first = ""  # the mail that gets the next room
        self._first_wants = 0
        self._first_until = -inf
        survive_forks(self)

    def take(self, wanted: int, mail_id: str) -> bool:
        """Take room for a mail, if there is any. Without any, smaller ones leave it to this mail for a while.

        One that is as large may go before: room for it is room for the first at the next try.
        """
        with self._lock:
            now = time.monotonic()
            others_turn = now < self._first_until and self._first != mail_id
            goes_before = others_turn and self._most // _SMALL < wanted < self._first_wants
            if goes_before or not self._has_room(wanted):
                if not others_turn:
                    self._first, self._first_wants = mail_id, wanted
                    self._first_until = now + _TURN_SECONDS
                return False
            if self._first == mail_id:
                self._first_until = -inf
            self._held += wanted
            return True

    def give_back(self, held: int) -> None:
        """Leave the room to others."""
        with self._lock:
            self._held -= held

    @property
    def held(self) -> int:
        """How many bytes are held now."""
        return self._held

    def after_fork_in_child(self) -> None:
        """Forget what the threads of the parent hold: a child has none of them."""
        self._lock = threading.Lock()
        self._held, self._first_until = 0, -inf

    def _has_room(self, wanted: int) -> bool:
        if self._held + wanted <= self._most:
            return True
        return self._held <= self._most // _BESIDE_A_LARGE_ONE
