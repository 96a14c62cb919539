"""The operations of an application on its queued mail, as methods of `Mailer`."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from datetime import datetime

from mailer.bulk import Bulk
from mailer.intake.arguments import When
from mailer.message import Lane, MailStatus, Receipt, Status
from mailer.wiring import State


class MailOperations(ABC):
    """The methods of `Mailer` that find, cancel, retry and pause mail."""

    def status(self, mail_id: str | Receipt) -> MailStatus:
        """Return the status of a mail, with that of each recipient.

        >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
        >>> for delivery in mailer.status(receipt.id):
        ...     print(delivery.recipient, delivery.status)
        ada@example.com sent

        Args:
            mail_id: The whole id of the mail, or its receipt.

        Raises:
            UnknownMail: No mail has this id.
        """
        return self._state().operations.status(mail_id)

    def statuses(self, mail_ids: Collection[str | Receipt]) -> dict[str, MailStatus]:
        """Return the statuses of mails, by id. Unknown ids are left out.

        >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
        >>> found = mailer.statuses([receipt.id, "unknown"])
        >>> [mail.subject for mail in found.values()]
        ['Welcome']
        """
        return self._state().operations.statuses(mail_ids)

    def mails(
        self,
        *,
        state: Status | str | None = None,
        to: str | None = None,
        tag: str | None = None,
        subject: str | None = None,
        relay: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: str | Receipt | None = None,
        limit: int = 50,
    ) -> list[MailStatus]:
        """Return the mails of which one delivery meets all conditions, the newest first.

        >>> page = mailer.mails(state="failed", to="@example.com", tag="invoice")
        >>> [mail.subject for mail in page]
        ['Your invoice']
        >>> mailer.mails(state="failed", to="@example.com", tag="invoice", before=page[-1].id)
        []

        Args:
            state: The state of the delivery.
            to: The address of its recipient, or a domain such as `@example.com`.
            tag: A tag of the mail.
            subject: A part of the subject.
            relay: The name of the relay of its last try.
            since: The earliest time at which the mail was queued, with a time zone.
            until: The end of that time.
            before: The last mail of the page before, or its id.
            limit: The length of a page, 1000 at most.

        Raises:
            InvalidMail: A condition can't be used.
        """
        return self._state().operations.mails(
            state=state,
            to=to,
            tag=tag,
            subject=subject,
            relay=relay,
            since=since,
            until=until,
            before=before,
            limit=limit,
        )

    def bulk(self, bulk_id: str) -> Bulk:
        """Return the handle of a bulk send.

        >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
        >>> mailer.bulk(bulk.id).progress().sent
        1

        Raises:
            UnknownMail: No bulk send has this id.
        """
        return self._state().operations.bulk(bulk_id)

    def bulks(self, *, before: str | Bulk | None = None, limit: int = 50) -> list[Bulk]:
        """Return the newest bulk sends.

        >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
        >>> mailer.bulks()[0].id == bulk.id
        True

        Args:
            before: The last bulk send of the page before, or its id.
            limit: The length of a page.
        """
        return self._state().operations.bulks(
            before=None if before is None else str(before), limit=limit
        )

    def cancel(self, mail_id: str | Receipt, *, to: str | None = None) -> bool:
        """Cancel the queued deliveries of a mail. Return whether there was any.

        >>> from datetime import timedelta
        >>> receipt = mailer.send_email(
        ...     "ada@example.com", "Hi", "mail/welcome", name="Ada", send_at=timedelta(hours=1)
        ... )
        >>> mailer.cancel(receipt.id)
        True

        Args:
            mail_id: The whole id of the mail, or its receipt.
            to: The only recipient whose delivery to cancel.

        Raises:
            UnknownMail: No mail has this id, or the mail has no such recipient.
        """
        return self._state().operations.cancel(mail_id, to=to) > 0

    def retry(self, mail_id: str | Receipt, *, to: str | None = None) -> bool:
        """Queue the failed and doubtful deliveries of a mail again. Return whether there was any.

        A mail whose content is erased can't be sent again: then the result is False. A mail whose
        `expires_at` is over expires.

        >>> for mail in mailer.mails(state="failed", tag="invoice"):
        ...     mailer.retry(mail.id)
        True

        Args:
            mail_id: The whole id of the mail, or its receipt.
            to: The only recipient whose delivery to queue again.

        Raises:
            UnknownMail: No mail has this id, or the mail has no such recipient.
        """
        return self._state().operations.retry(mail_id, to=to) > 0

    def reschedule(self, mail_id: str | Receipt, send_at: When, *, to: str | None = None) -> bool:
        """Send a queued mail at another time. Return whether any of it was still queued.

        A delivery that would expire before that time stays as it is.

        >>> from datetime import timedelta
        >>> receipt = mailer.send_email(
        ...     "ada@example.com", "Hi", "mail/welcome", name="Ada", send_at=timedelta(hours=1)
        ... )
        >>> mailer.reschedule(receipt, timedelta(hours=2))
        True

        Args:
            mail_id: The whole id of the mail, or its receipt.
            send_at: A `timedelta` from now, or a `datetime` with a time zone. None: now.
            to: The only recipient whose delivery to reschedule.

        Raises:
            InvalidMail: The time can't be used.
            UnknownMail: No mail has this id, or the mail has no such recipient.
        """
        return self._state().operations.reschedule(mail_id, send_at, to=to) > 0

    def resolve(self, mail_id: str | Receipt, verdict: str, *, to: str | None = None) -> bool:
        """Settle the doubtful deliveries of a mail. Return whether there was any.

        >>> for mail in mailer.mails(state="doubtful"):
        ...     mailer.resolve(mail.id, "sent")
        True

        Args:
            mail_id: The whole id of the mail, or its receipt.
            verdict: `"sent"` or `"failed"`.
            to: The only recipient whose delivery to settle.

        Raises:
            InvalidMail: The verdict is neither of the two.
            UnknownMail: No mail has this id, or the mail has no such recipient.
        """
        return self._state().operations.resolve(mail_id, verdict, to=to) > 0

    def pause(self, lane: Lane | str | None = None, *, reason: str = "by hand") -> int:
        """Stop the delivery of a lane, or of everything, until `resume()`. Mail is still queued.

        >>> mailer.pause("bulk", reason="restored from a backup")
        0

        Args:
            lane: The lane to pause. None: everything.
            reason: The reason, which `flask mail queue` shows.

        Returns:
            The number of deliveries that workers have claimed already, and may still send.
        """
        return self._state().operations.pause(lane, reason=reason)

    def resume(self, lane: Lane | str | None = None, *, relay: str | None = None) -> bool:
        """End the pause of a lane, of a relay, or, with neither, of everything.

        >>> in_hand = mailer.pause("bulk")
        >>> mailer.resume("bulk")
        True

        Args:
            lane: The lane that was paused.
            relay: The name of a relay, which is then tried again at once.

        Returns:
            Whether there was such a pause.
        """
        return self._state().operations.resume(lane, relay=relay)

    def absence(self) -> str | None:
        """Return a warning if mail is due that no worker delivers, for a health check; else None.

        It reads "12 mails are due and no worker has been seen for 4 minutes.", for example.

        >>> @app.get("/healthz")
        ... def healthz():
        ...     return mailer.absence() or "ok"
        >>> app.test_client().get("/healthz").text
        'ok'
        """
        return self._state().operations.absence()

    @abstractmethod
    def _state(self) -> State:
        """Return the objects of the app whose mail is meant."""
