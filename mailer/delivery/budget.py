"""The byte budget of a process, which its threads share. A thread never waits for room."""

import threading
from math import inf

from mailer.forks import survive_forks
from mailer.message.ports import Clock

# If at most an eighth of the budget is held, any mail gets room, also one that is larger than the
# budget.
_BESIDE_A_LARGE_ONE = 8
# Mails of at most a 64th of the budget may still go, as long as the waiting one will fit beside
# them.
_SMALL = 64
# Seconds for which that holds. Whoever still wants the mail asks again sooner.
_TURN_SECONDS = 3.0


class ByteBudget:
    """The bytes that the threads of a process may hold together."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._small = most // _SMALL  # the size of the largest small mail
        self._clock = clock
        self._lock = threading.Lock()
        self._held = 0
        self._held_by_small = 0
        self._first = ""  # the mail that gets the next room
        self._first_wants = 0
        self._first_until = -inf
        survive_forks(self)

    def take(self, wanted: int, mail_id: str) -> bool:
        """Take room for a mail, if there is any.

        Without any, smaller mails leave the next room to this one for a while. A mail that is at
        least as large may go before it: the room that it gives back is enough for this one.
        """
        with self._lock:
            others_turn = (
                self._first_until > -inf
                and self._first != mail_id
                and self._clock.monotonic() < self._first_until
            )
            if (others_turn and not self._may_go_before(wanted)) or not self._has_room(wanted):
                if not others_turn:
                    self._first, self._first_wants = mail_id, wanted
                    self._first_until = self._clock.monotonic() + _TURN_SECONDS
                return False
            if self._first == mail_id:
                self._first_until = -inf
            self._hold(wanted)
            return True

    def give_back(self, held: int) -> None:
        """Leave the room to others."""
        with self._lock:
            self._hold(-held)

    @property
    def held(self) -> int:
        """Return the number of bytes that are held now."""
        return self._held

    def after_fork_in_child(self) -> None:
        """Forget the bytes of the parent's threads: a child has none of them."""
        self._lock = threading.Lock()
        self._held, self._held_by_small, self._first_until = 0, 0, -inf

    def _may_go_before(self, wanted: int) -> bool:
        """Tell whether the first mail still gets its room once the larger ones are gone."""
        if wanted >= self._first_wants:
            return True
        beside = max(self._most - self._first_wants, self._most // _BESIDE_A_LARGE_ONE)
        return wanted <= self._small and self._held_by_small + wanted <= beside

    def _hold(self, held: int) -> None:
        self._held += held
        if abs(held) <= self._small:
            self._held_by_small += held

    def _has_room(self, wanted: int) -> bool:
        if self._held + wanted <= self._most:
            return True
        return self._held <= self._most // _BESIDE_A_LARGE_ONE
