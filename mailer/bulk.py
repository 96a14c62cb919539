"""`Bulk`: the handle of a bulk send."""

from collections.abc import Collection, Iterator

from mailer.errors import InvalidMail, UnknownMail
from mailer.intake.arguments import When, check_time
from mailer.intake.bulk import check_hours
from mailer.message import Address, Status
from mailer.message.bulk import BulkError, BulkProgress, BulkRecipient, BulkState
from mailer.message.ports import Clock
from mailer.store import Store

_PAGE = 1000
_UNFINISHED = (BulkState.IMPORTING, BulkState.READY, BulkState.RUNNING, BulkState.PAUSED)


class Bulk:
    """A bulk send: its progress, its errors, and the decisions about it.

    `mailer.send_bulk()` and `mailer.bulk(id)` return it. `str(bulk)` is the id.

    >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
    >>> bulk.progress().sent
    1
    """

    def __init__(self, store: Store, clock: Clock, bulk_id: str) -> None:
        self._store = store
        self._clock = clock
        self.id: str = bulk_id

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def progress(self) -> BulkProgress:
        """Return the numbers of recipients by state, the rate, and the estimated end.

        >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
        >>> progress = bulk.progress()
        >>> progress.sent, progress.failed, progress.unfinished
        (1, 0, 0)
        """
        return self._store.bulk_progress(self.id, now=self._clock.time())

    def pause(self, reason: str = "by hand") -> bool:
        """Stop the delivery until `resume()`. Return whether it was running or being imported.

        Mails that workers have claimed already are still sent. An import goes on, and at its end
        the send waits.

        >>> from datetime import timedelta
        >>> readers = [("ada@example.com", {"name": "Ada"})]
        >>> bulk = mailer.send_bulk("News", "mail/news", readers, send_at=timedelta(hours=1))
        >>> bulk.pause("the prices are wrong"), bulk.progress().reason
        (True, 'the prices are wrong')
        """
        # In this order: the import may end in between, and then the send is running.
        return self._store.pause_import(self.id, reason) or self._change(
            [BulkState.RUNNING], BulkState.PAUSED, reason
        )

    def resume(self) -> bool:
        """Go on after a pause. Return whether it was paused.

        >>> from datetime import timedelta
        >>> readers = [("ada@example.com", {"name": "Ada"})]
        >>> bulk = mailer.send_bulk("News", "mail/news", readers, send_at=timedelta(hours=1))
        >>> bulk.pause(), bulk.resume()
        (True, True)
        """
        return self._store.resume_import(self.id) or self._change(
            [BulkState.PAUSED], BulkState.RUNNING
        )

    def confirm(self) -> bool:
        """Confirm a send that `require_confirmation_above` holds. Return whether it waited.

        >>> bulk = mailer.send_bulk(
        ...     "News",
        ...     "mail/news",
        ...     [("ada@example.com", {"name": "Ada"})],
        ...     require_confirmation_above=0,
        ... )
        >>> bulk.progress().state.value, bulk.confirm()
        ('ready', True)
        """
        return self._change([BulkState.READY], BulkState.RUNNING)

    def cancel(self, reason: str = "by hand") -> bool:
        """Send nothing more. Return whether anything was still to be done.

        Mails that workers have claimed already are still sent: `progress()` tells the numbers, and
        they are final once `progress().unfinished` is 0.

        >>> from datetime import timedelta
        >>> readers = [("ada@example.com", {"name": "Ada"})]
        >>> bulk = mailer.send_bulk("News", "mail/news", readers, send_at=timedelta(hours=1))
        >>> bulk.cancel(), bulk.progress().state.value
        (True, 'cancelled')
        """
        return self._change(_UNFINISHED, BulkState.CANCELLED, reason)

    def reschedule(self, send_at: When) -> bool:
        """Begin a send that has not begun at another time. Return whether it had not begun.

        >>> from datetime import timedelta
        >>> readers = [("ada@example.com", {"name": "Ada"})]
        >>> bulk = mailer.send_bulk("News", "mail/news", readers, send_at=timedelta(hours=1))
        >>> bulk.reschedule(timedelta(hours=2))
        True

        Args:
            send_at: A `timedelta` from now, or a `datetime` with a time zone. None: now.

        Raises:
            InvalidMail: The time can't be used, or the send would expire before.
        """
        now, bulk = self._clock.time(), self._store.load_bulk(self.id)
        given = check_time(send_at, now, field="send_at")
        starts_at = now if given is None else max(now, given)
        if bulk.expires_at is not None and bulk.expires_at <= starts_at:
            raise InvalidMail(
                "send_at: the send would expire before it begins: give a sooner time."
            )
        check_hours(bulk.calendar, starts_at, bulk.expires_at)
        return self._store.reschedule_if_not_started(self.id, starts_at)

    def retry(self, *, to: str | None = None) -> int:
        """Queue the failed and doubtful mails again. Return their number.

        It is 0 if the send is cancelled: nothing more is sent then. Mails whose content is erased
        (`MAILER_KEEP_BODIES_DAYS`) can't be sent again, and do not count.

        >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {})])
        >>> bulk.progress().failed, bulk.retry()
        (1, 1)

        Args:
            to: The only recipient whose mail to queue again.

        Raises:
            UnknownMail: The send has no such recipient.
        """
        return self._settle([Status.FAILED, Status.DOUBTFUL], Status.QUEUED, to)

    def resolve(self, verdict: Status | str, *, to: str | None = None) -> int:
        """Settle the doubtful mails as sent or failed. Return their number.

        >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
        >>> bulk.resolve("sent")
        0

        Args:
            verdict: `"sent"` or `"failed"`.
            to: The only recipient whose mail to settle.

        Raises:
            InvalidMail: The verdict is neither of the two.
            UnknownMail: The send has no such recipient.
        """
        if verdict not in (Status.SENT, Status.FAILED):
            raise InvalidMail(f"verdict: {verdict!r}: give 'sent' or 'failed'.")
        return self._settle([Status.DOUBTFUL], Status(verdict), to)

    def errors(self) -> Iterator[BulkError]:
        """Yield the rows that were refused, then those whose mail failed.

        >>> rows = [("ada@example.com", {"name": "Ada"}), ("bob@example", {"name": "Bob"})]
        >>> bulk = mailer.send_bulk("News", "mail/news", rows)
        >>> [(error.row, error.address) for error in bulk.errors()]
        [(2, 'bob@example')]
        """
        after = 0
        while page := self._store.load_bulk_errors(self.id, after=after, most=_PAGE):
            yield from page
            after = page[-1].row
        for one in self.recipients(state=Status.FAILED):
            yield BulkError(one.row, one.address, one.reply or "")

    def recipients(self, *, state: Status | str | None = None) -> Iterator[BulkRecipient]:
        """Yield the recipients, in the order of their rows. They are read page by page.

        >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
        >>> [(one.address, one.status.value) for one in bulk.recipients(state="sent")]
        [('ada@example.com', 'sent')]

        Args:
            state: Yield only recipients whose delivery is in this state.
        """
        try:
            status = None if state is None else Status(state)
        except ValueError:
            raise InvalidMail(f"state: {state!r}: give one of {', '.join(Status)}.") from None
        after, load = 0, self._store.load_bulk_recipients
        while page := load(self.id, status=status, after=after, most=_PAGE):
            yield from page
            after = page[-1].delivery_id

    def _settle(self, leaving: Collection[Status], to: Status, address: str | None) -> int:
        """Move deliveries out of these states, each in a transaction of its own."""
        if address is None:
            ids = [one.delivery_id for state in leaving for one in self.recipients(state=state)]
        elif (found := self._find(address)) is not None:
            ids = [found]
        else:
            self._store.load_bulk(self.id)  # raises UnknownMail
            raise UnknownMail(
                f"Bulk send {self.id} has no recipient {address!r}. Give one of its recipients."
            )
        settle, now = self._store.settle_if_resting, self._clock.time()
        return sum(len(settle(self.id, to, now=now, delivery_id=one)) for one in ids)

    def _find(self, address: str) -> int | None:
        return self._store.find_bulk_recipient(self.id, Address.parse(address, field="to").email)

    def _change(
        self, leaving: Collection[BulkState], to: BulkState, reason: str | None = None
    ) -> bool:
        moved = self._store.change_bulk_if(self.id, leaving, to, reason=reason)
        if not moved:
            self._store.load_bulk(self.id)  # raises UnknownMail
        return moved
