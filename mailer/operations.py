"""The operations of a person or a program on mail that is queued.

`Mailer`, which documents them, the command line and the pages do all but queueing through this
module.
"""

from collections.abc import Collection, Sequence
from datetime import datetime

from mailer.attendance import absence
from mailer.bulk import Bulk
from mailer.errors import InvalidMail, UnknownMail
from mailer.intake.arguments import When, check_time
from mailer.message import (
    IN_HAND,
    DeliveryStatus,
    Lane,
    MailStatus,
    Pause,
    Receipt,
    Status,
    could_be_id,
    is_bulk_id,
)
from mailer.message.ports import Clock
from mailer.message.tenants import TenantStatus
from mailer.settings import RelaySettings, Settings
from mailer.store import Filter, Outlook, Store

_PAGE = 50
_MAX_PAGE = 1000
_RESOLUTIONS = (Status.SENT, Status.FAILED)

MailId = str | Receipt


class Operations:
    """The operations on the mail of one app."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock

    # --- find ------------------------------------------------------------------------------------

    def status(self, mail_id: MailId) -> MailStatus:
        """Return the status of a mail. Raise `UnknownMail` if no mail has the id."""
        return self._store.status(_id_of(mail_id))

    def statuses(self, mail_ids: Collection[MailId]) -> dict[str, MailStatus]:
        """Return the statuses of mails, by id. Unknown ids are left out."""
        return self._store.statuses([*map(_id_of, mail_ids)])

    def find(self, given: str) -> str:
        """Return the id of a mail by the beginning of its id, or by the number of a delivery.

        Never call it with a visitor's input: ids begin with the time, and numbers are counted.
        """
        return self._store.find_mail(given)

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
        before: MailId | None = None,
        limit: int = _PAGE,
    ) -> list[MailStatus]:
        """Return the newest mails of which one delivery meets all conditions."""
        if not 1 <= limit <= _MAX_PAGE:
            raise InvalidMail(f"limit: {limit}: give a number from 1 to {_MAX_PAGE}.")
        wanted = Filter(
            state=None if state is None else _state(state),
            recipient=to,
            relay=relay,
            tag=tag,
            subject=subject,
            since=None if since is None else _seconds(since, "since"),
            until=None if until is None else _seconds(until, "until"),
        )
        before_id = None if before is None else _id_of(before)
        ids = self._store.find_ids(wanted, before=before_id, most=limit)
        found = self._store.statuses(ids)
        return [found[mail_id] for mail_id in ids if mail_id in found]

    def counts(self) -> list[tuple[Status, Lane, int, float | None]]:
        """Return (status, lane, number of deliveries, oldest due time)."""
        return self._store.counts()

    def outlook(self, *, most: int) -> Outlook:
        """Return the mail that would go out by itself.

        The outlook has the `most` largest domains, and as many of the first mails.
        """
        return self._store.outlook(now=self._clock.time(), most=most)

    def tenants(self) -> list[TenantStatus]:
        """Return the tenants that have mail waiting, or have sent mail under a quota."""
        return self._store.tenants(self._clock.time())

    def absence(self) -> str | None:
        """Return a sentence if mail is due that no worker delivers, else None."""
        if self._settings.mail_suppress_send:
            return None
        return absence(self._store, self._clock.time())

    def bulk(self, bulk_id: str) -> Bulk:
        """Return the handle of a bulk send. Raise `UnknownMail` if none has the id."""
        return Bulk(self._store, self._clock, self._store.load_bulk(bulk_id).id)

    def bulks(self, *, before: str | None = None, limit: int = _PAGE) -> list[Bulk]:
        """Return the newest bulk sends, or the newest ones before another one."""
        found = self._store.load_bulks(before=before, most=limit)
        return [Bulk(self._store, self._clock, one.id) for one in found]

    # --- decide ----------------------------------------------------------------------------------

    def cancel(self, mail_id: MailId, *, to: str | None = None) -> int:
        """Cancel the queued deliveries of a mail. Return their number."""
        return self._move(mail_id, Status.CANCELLED, to)

    def retry(self, mail_id: MailId, *, to: str | None = None) -> int:
        """Queue again the failed and doubtful deliveries of a mail. Return their number.

        A mail whose content is erased can't be sent again: then the number is 0. A mail whose
        `expires_at` is over expires with the next sweep.
        """
        return self._move(mail_id, Status.QUEUED, to)

    def resolve(self, mail_id: MailId, verdict: Status | str, *, to: str | None = None) -> int:
        """Settle the doubtful deliveries of a mail as sent or failed. Return their number."""
        if verdict not in _RESOLUTIONS:
            raise InvalidMail(f"verdict: {verdict!r}: give 'sent' or 'failed'.")
        return self._move(mail_id, Status(verdict), to)

    def reschedule(self, mail_id: MailId, send_at: When, *, to: str | None = None) -> int:
        """Give the queued deliveries of a mail another time. Return their number."""
        known_id, now = _id_of(mail_id), self._clock.time()
        _refuse_bulk(known_id)
        due_at = check_time(send_at, now, field="send_at")
        due_at = now if due_at is None else max(now, due_at)
        reschedule = self._store.reschedule_if_queued
        if to is not None:
            found = self._deliveries_to(known_id, to)
            return sum(len(reschedule(known_id, due_at, delivery_id=one.id)) for one in found)
        if not (moved := reschedule(known_id, due_at)):
            self._store.status(known_id)  # raises UnknownMail
        return len(moved)

    def cancel_due_before(
        self, before: datetime, lanes: Sequence[Lane] = tuple(Lane)
    ) -> tuple[int, int]:
        """Cancel the deliveries that were due before a time. Return their number.

        Return also the number of doubtful deliveries, which may have been sent: workers do not
        send these again, and a person decides.
        """
        moment = _seconds(before, "before")
        # Held first: a doubtful delivery that is queued again meanwhile is cancelled then.
        held = self._store.hold_if_due_before(moment, lanes=lanes)
        steps = self._store.cancel_if_due_before(moment, now=self._clock.time(), lanes=lanes)
        return sum(len(step) for step in steps), len(held)

    def _move(self, mail_id: MailId, status: Status, to: str | None) -> int:
        known_id, now = _id_of(mail_id), self._clock.time()
        _refuse_bulk(known_id)
        if to is None:
            moved = len(self._store.settle_if_resting(known_id, status, now=now))
            if not moved:
                self._store.status(known_id)  # raises UnknownMail
            return moved
        deliveries = self._deliveries_to(known_id, to)
        settle = self._store.settle_if_resting
        return sum(len(settle(known_id, status, now=now, delivery_id=one.id)) for one in deliveries)

    def _deliveries_to(self, mail_id: str, to: str) -> list[DeliveryStatus]:
        mail = self._store.status(mail_id)
        found = [one for one in mail if one.recipient.lower() == to.lower()]
        if not found:
            raise UnknownMail(
                f"Mail {mail_id} has no recipient {to!r}. Give one of its recipients."
            )
        return found

    # --- pause -----------------------------------------------------------------------------------

    def pause(self, lane: Lane | str | None = None, *, reason: str = "by hand") -> int:
        """Stop the delivery of a lane, or of everything, until `resume()`.

        Return the number of deliveries that workers have claimed already, and may still send.
        """
        paused = None if lane is None else Lane.parse(lane)
        self._store.pause(paused, now=self._clock.time(), reason=reason)
        return sum(
            count
            for status, its, count, _due in self._store.counts()
            if status in IN_HAND and paused in (None, its)
        )

    def resume(self, lane: Lane | str | None = None, *, relay: str | None = None) -> bool:
        """End the pause of a lane, of a relay, or, with neither, of everything.

        Return whether there was one.
        """
        if lane is not None and relay is not None:
            raise InvalidMail("resume: give a lane or a relay, not both.")
        if relay is None:
            return self._store.resume(None if lane is None else Lane.parse(lane))
        if relay not in (known := self.relays()):
            raise InvalidMail(f"No relay is named {relay!r}: there is {', '.join(known)}.")
        return self._store.resume_relay(relay)

    def pauses(self) -> dict[Lane | None, Pause]:
        """Return the pauses of lanes. None stands for everything."""
        return self._store.list_pauses()

    def relay_pauses(self) -> dict[str, Pause]:
        """Return the pauses of relays, by name."""
        return self._store.relay_pauses()

    def relays(self) -> dict[str, RelaySettings]:
        """Return the relays, by name."""
        return {relay.name: relay for relay in self._settings.relays}


def _id_of(mail_id: MailId) -> str:
    return mail_id.id if isinstance(mail_id, Receipt) else mail_id


def _refuse_bulk(mail_id: str) -> None:
    if could_be_id(mail_id) and is_bulk_id(mail_id):
        raise InvalidMail(
            f"{mail_id!r} is a bulk send: call the method of mailer.bulk({mail_id!r})."
        )


def _state(given: Status | str) -> Status:
    try:
        return Status(given)
    except ValueError:
        raise InvalidMail(f"state: {given!r}: give one of {', '.join(Status)}.") from None


def _seconds(given: datetime, field: str) -> float:
    if not isinstance(given, datetime) or given.utcoffset() is None:
        raise InvalidMail(
            f"{field}: {given!r}: give a datetime with a time zone: datetime.now(UTC) - …"
        )
    return given.timestamp()
