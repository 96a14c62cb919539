"""The books of one share. They are pure: no database, no relay, no clock."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from mailer.delivery.preparing import PreparedMail
from mailer.message import Delivery, OnDoubt
from mailer.store import Result


class WindowBook:
    """The deliveries of a share: waiting -> ready -> marked -> in flight -> finished.

    A window is marked in one transaction. A delivery that is not sent is postponed, expired,
    or released at the end.
    """

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.token: str = deliveries[0].token
        self.waiting: deque[Delivery] = deque(deliveries)
        self.ready: list[PreparedMail] = []  #: to be marked next
        #: From here on, a death of this process means doubt.
        self.marked: deque[PreparedMail] = deque()
        self.in_flight: deque[PreparedMail] = deque()  #: taken by the connection, the oldest first
        self.results: list[Result] = []  #: of finished deliveries, to be recorded
        self.expired: dict[int, None] = {}  #: to be released: the sweep expires them
        self._postponed: dict[int, float] = {}  # due times of deliveries that can't go now
        self._unmarked: list[Delivery] = []  # perhaps marked: the answer to a commit can be lost
        # The oldest one in flight, if its bytes are being sent.
        self._begun: PreparedMail | None = None

    # --- waiting ---------------------------------------------------------------------------------

    @property
    def next_waiting(self) -> Delivery | None:
        return self.waiting[0] if self.waiting else None

    def put_back(self, picked: Iterable[Delivery]) -> None:
        """Let deliveries wait again, in front of the others, unless they were postponed."""
        back = [delivery for delivery in picked if delivery.id not in self._postponed]
        self.waiting.extendleft(reversed(back))

    def postpone(self, due_at: Mapping[int, float]) -> None:
        """Give deliveries a later due time."""
        self._postponed.update(due_at)
        self.waiting = deque(one for one in self.waiting if one.id not in self._postponed)

    def expire(self, delivery: Delivery) -> None:
        """Note that a delivery is too late to be of use."""
        self.expired[delivery.id] = None

    # --- windows ---------------------------------------------------------------------------------

    @property
    def must_finish_first(self) -> bool:
        """Return whether the mails in flight must end before the next window is marked.

        A mail that must never go out twice is marked and recorded alone.
        """
        if not self.in_flight:
            return False
        ahead = self.ready[0].delivery if self.ready else self.next_waiting
        neighbours = [self.in_flight[0].delivery, *([ahead] if ahead else [])]
        return any(one.on_doubt is OnDoubt.HOLD for one in neighbours)

    def note_recorded(self, ours: Collection[int], lease_until: float) -> list[PreparedMail]:
        """Note that the outcomes are recorded, and which of the window are marked.

        Return the others of the window: another worker has them, or the answer to our commit was
        lost.
        """
        others = [mail for mail in self.ready if mail.delivery.id not in ours]
        for mail in self.ready:
            if mail.delivery.id in ours:
                mail.lease_until = lease_until
                self.marked.append(mail)
        self._unmarked += [mail.delivery for mail in others]
        self.results, self.ready, self.expired = [], [], {}
        return others

    def return_ready(self) -> None:
        """Leave the window unmarked that was ready: it is released at the end."""
        self._unmarked += [mail.delivery for mail in self.ready]
        self.ready = []

    # --- mails -----------------------------------------------------------------------------------

    def take_marked(self) -> PreparedMail:
        """Move the next marked mail into flight."""
        mail = self.marked[0]
        self.in_flight.append(mail)
        self.marked.popleft()
        return mail

    def expire_marked(self) -> PreparedMail:
        """Take the next marked mail out, since it is too late to be of use."""
        mail = self.marked[0]
        self.expire(mail.delivery)
        self.marked.popleft()
        return mail

    def begin(self) -> PreparedMail:
        """Note that the bytes of the oldest mail in flight are about to be sent."""
        self._begun = self.in_flight[0]
        return self._begun

    def finish(self, result: Result) -> PreparedMail:
        """Note the outcome of the oldest mail in flight."""
        self.results.append(result)  # first: an interruption must find it in one place at least
        self._begun = None
        return self.in_flight.popleft()

    def leave_begun(self) -> bool:
        """Leave a mail marked whose bytes were being sent. Return whether there was one."""
        if self._begun is None or not self.in_flight or self.in_flight[0] is not self._begun:
            return False
        self.in_flight.popleft()
        return True

    # --- the end ---------------------------------------------------------------------------------

    def unbegun(self) -> list[Delivery]:
        """Return the deliveries that may be marked though nothing of them was sent."""
        prepared = (*self.in_flight, *self.marked, *self.ready)
        return [*(mail.delivery for mail in prepared), *self._unmarked]

    def to_release(self) -> dict[int, float | None]:
        """Return the unfinished deliveries, with the due time of those that must wait."""
        again: dict[int, float | None] = dict.fromkeys(
            one.id for one in (*self.unbegun(), *self.waiting)
        )
        return {**again, **self._postponed, **self.expired}

    @property
    def claimable_again(self) -> int:
        """Return how many deliveries another worker could claim at once after their release."""
        return len({one.id for one in (*self.unbegun(), *self.waiting)})

    def clear(self) -> None:
        """Forget everything: it is released."""
        prepared = (self.in_flight, self.marked, self._unmarked, self.ready)
        for held in (*prepared, self.waiting, self._postponed, self.expired):
            held.clear()
