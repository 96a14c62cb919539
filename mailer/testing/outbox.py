"""The outbox of an application under test: its sent mail, and a way to deliver waiting mail."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self, Unpack, overload

from flask import Flask

from mailer.errors import ConfigurationError
from mailer.intake.recording import Accepted, Recorder
from mailer.message import DeliveryStatus, MailStatus, Status
from mailer.outbound import InlineBell
from mailer.testing.bells import SilentBell, ring_instead
from mailer.testing.mails import RecordedMail, is_sent
from mailer.testing.matching import Criteria, checked, describe, differences, in_words
from mailer.testing.snapshots import Snapshots
from mailer.wiring import State, state_of

#: The seconds that receivers of signals may take after a `drain()`.
_RECEIVERS_SECONDS = 10.0


class Outbox(Sequence[RecordedMail]):
    """The mails that an app sends in the `with` block, in the order in which they were queued.

    A mail is in the list once a relay has taken it. With `TESTING`, that is at once, and no relay
    is asked. Mail that waits, because it is scheduled or for a `FakeRelay`, is in `queued` until
    `drain()` delivers it. No worker is called meanwhile, and no broker is needed.

    >>> from mailer.testing import Outbox
    >>> with Outbox(app) as outbox:
    ...     receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
    >>> len(outbox), outbox[0].to, outbox[0].subject
    (1, ['ada@example.com'], 'Welcome')

    Args:
        app: The app, after its `Mailer` or `Mail` was set up.
        snapshots: The folder for `assert_matches_snapshot()`.

    Raises:
        ConfigurationError: The app has no Mailer, or `TESTING` was set after it.
    """

    def __init__(self, app: Flask, *, snapshots: Snapshots | None = None) -> None:
        self._state = state_of(app)
        _check_testing(app, self._state)
        self._snapshots = snapshots
        self._recorded: list[RecordedMail] = []
        self._outer: Recorder | None = None  # of another outbox, around this one
        self._stack = ExitStack()
        self._is_open = False

    def __enter__(self) -> Self:
        if self._is_open:
            raise RuntimeError("This outbox is in use already: make another one for this block.")
        with ExitStack() as stack:
            intake = self._state.intake
            self._outer, intake.recorder = intake.recorder, self._record
            stack.callback(setattr, intake, "recorder", self._outer)
            if not isinstance(intake.bell, InlineBell):
                stack.enter_context(ring_instead(SilentBell(), intake))
            clock = self._state.clock
            stack.callback(setattr, clock, "ahead", clock.ahead)
            self._stack = stack.pop_all()
        self._is_open = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_open = False
        self._stack.close()

    def _record(self, accepted: Accepted) -> None:
        self._recorded.append(RecordedMail(accepted, self._state.store, self._snapshots))
        if self._outer is not None:
            self._outer(accepted)

    # --- the list --------------------------------------------------------------------------------

    @property
    def queued(self) -> list[RecordedMail]:
        """Return the mails that wait, for their time or for a relay.

        >>> from datetime import timedelta
        >>> with Outbox(app) as outbox:
        ...     receipt = mailer.send_email(
        ...         "ada@example.com", "Hi", "mail/order", number=7, send_at=timedelta(hours=1)
        ...     )
        >>> len(outbox), [mail.subject for mail in outbox.queued]
        (0, ['Hi'])
        """
        return [mail for mail, status in self._looked_up() if not status.is_finished]

    @property
    def _sent(self) -> list[RecordedMail]:
        return [mail for mail, status in self._looked_up() if is_sent(status)]

    def _looked_up(self) -> list[tuple[RecordedMail, MailStatus]]:
        """Return the recorded mails with their status, those that are still there."""
        statuses = self._state.store.statuses([mail.id for mail in self._recorded])
        return [(mail, statuses[mail.id]) for mail in self._recorded if mail.id in statuses]

    def __len__(self) -> int:
        return len(self._sent)

    @overload
    def __getitem__(self, index: int) -> RecordedMail: ...

    @overload
    def __getitem__(self, index: slice) -> list[RecordedMail]: ...

    def __getitem__(self, index: int | slice) -> RecordedMail | list[RecordedMail]:
        __tracebackhide__ = True
        sent = self._sent
        try:
            return sent[index]
        except IndexError:
            raise IndexError(f"outbox[{index}]: {self._report()}") from None

    def __iter__(self) -> Iterator[RecordedMail]:
        return iter(self._sent)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # the list changes

    def __repr__(self) -> str:
        return repr(self._sent)

    # --- assertions ------------------------------------------------------------------------------

    def assert_sent(
        self, *, times: int | None = None, **criteria: Unpack[Criteria]
    ) -> RecordedMail:
        """Assert that a mail was sent that meets all criteria, and return the first of them.

        Text is compared exactly, but `text` and `html` are searched for a part. Addresses, tags,
        attachments, headers, metadata and variables have to be among those of the mail. A failure
        shows what was sent, and how the nearest mail differs.

        >>> with Outbox(app) as outbox:
        ...     receipt = mailer.send_email("ada@example.com", "Hi", "mail/welcome", name="Ada")
        >>> mail = outbox.assert_sent(to="ada@example.com", template="mail/welcome", times=1)
        >>> mail.text
        'Welcome, Ada!'

        Args:
            times: The number of mails that have to meet the criteria. None: at least one.
            **criteria: See `Criteria`: to, cc, bcc, reply_to, sender, subject, text, html,
                template, context, headers, attachments, lane, tenant, tags and metadata.

        Raises:
            AssertionError: There is no such mail, or another number of them.
            TypeError: A criterion is unknown.
        """
        __tracebackhide__ = True
        if times is not None and times < 1:
            raise ValueError(f"times={times}: use assert_not_sent() instead.")
        criteria = checked(criteria)
        found = self._find(criteria)
        if found and times in (None, len(found)):
            return found[0]
        wanted = in_words(criteria)
        if found:
            alike = f" with {wanted}" if criteria else ""
            raise AssertionError(
                f"{_mails(len(found))} sent{alike}, not {times}.\n{self._report()}"
            )
        nearest = self._nearest(criteria)
        raise AssertionError(
            f"No mail was sent with {wanted}.\n{self._report()}{nearest}"
            if criteria
            else self._report()
        )

    def assert_not_sent(self, **criteria: Unpack[Criteria]) -> None:
        """Assert that no mail was sent that meets all criteria.

        >>> with Outbox(app) as outbox:
        ...     receipt = mailer.send_email("ada@example.com", "Hi", "mail/welcome", name="Ada")
        >>> outbox.assert_not_sent(to="bob@example.com")

        Args:
            **criteria: As for `assert_sent()`.

        Raises:
            AssertionError: There is such a mail.
            TypeError: A criterion is unknown.
        """
        __tracebackhide__ = True
        criteria = checked(criteria)
        if found := self._find(criteria):
            listed = "\n".join(f"  {describe(mail)}" for mail in found)
            wanted = f" with {in_words(criteria)}" if criteria else ""
            raise AssertionError(f"{_mails(len(found))} sent{wanted}:\n{listed}")

    def assert_nothing_sent(self) -> None:
        """Assert that no mail was sent.

        >>> with Outbox(app) as outbox:
        ...     pass
        >>> outbox.assert_nothing_sent()

        Raises:
            AssertionError: A mail was sent. The error lists all of them.
        """
        __tracebackhide__ = True
        self.assert_not_sent()

    def _find(self, criteria: Criteria) -> list[RecordedMail]:
        return [mail for mail in self._sent if not differences(mail, criteria)]

    def _report(self) -> str:
        """Return a list of the mail that was sent, and of that which was not."""
        looked_up = self._looked_up()
        sent = [mail for mail, status in looked_up if is_sent(status)]
        lines = [f"{_mails(len(sent))} sent{':' if sent else '.'}"]
        lines += [f"  outbox[{number}] {describe(mail)}" for number, mail in enumerate(sent)]
        lines += [
            f"Not sent: {describe(mail)} ({self._reason(status)})"
            for mail, status in looked_up
            if not is_sent(status)
        ]
        return "\n".join(lines)

    def _reason(self, status: MailStatus) -> str:
        now = datetime.fromtimestamp(self._state.clock.time(), UTC)
        return "; ".join(dict.fromkeys(_in_words(delivery, now) for delivery in status))

    def _nearest(self, criteria: Criteria) -> str:
        """Return how the mail differs that meets the most criteria, sent or not."""
        missed = [
            (differences(mail, criteria), is_sent(status), mail)
            for mail, status in self._looked_up()
        ]
        if not missed:
            return ""
        wrong, was_sent, mail = min(missed, key=lambda one: (len(one[0]), not one[1]))
        but = [] if was_sent else ["it was not sent"]
        return f"\nThe nearest is {mail!r}: {'; '.join([*wrong, *but])}."

    # --- delivery --------------------------------------------------------------------------------

    def drain(self, *, after: timedelta = timedelta(0)) -> list[DeliveryStatus]:
        """Deliver the recorded mail that is due, in this thread, and return the changes.

        Without Redis and without a worker: to the relays of the app, to a `FakeRelay`, or to nobody
        with `TESTING`. Mail of others in the same database stays as it is. Failed tries, expired
        mail and mail in doubt are treated as by a worker.

        >>> from datetime import timedelta
        >>> with Outbox(app) as outbox:
        ...     receipt = mailer.send_email(
        ...         "ada@example.com", "Hi", "mail/order", number=7, send_at=timedelta(hours=1)
        ...     )
        ...     assert outbox.drain() == []
        ...     [delivery] = outbox.drain(after=timedelta(hours=1))
        >>> delivery.recipient, delivery.status.value
        ('ada@example.com', 'sent')

        Args:
            after: The time by which the clock of the app is put forward first. Nobody waits for it.
                It is set back at the end of the `with` block.

        Returns:
            The status of each delivery that was tried, or has another status than before.
        """
        if after < timedelta(0):
            raise ValueError(f"after={after!r}: time does not run backwards: give 0 or more.")
        state, store = self._state, self._state.store
        state.clock.ahead += after.total_seconds()
        store.settle_aside()
        before = self._deliveries()
        done = -1
        while done < len(self._recorded):  # a receiver of a signal may queue more
            done = len(self._recorded)
            ids, time = [mail.id for mail in self._recorded], state.clock.time()
            store.expire_overdue(time, mails=ids)
            store.resend_doubtful(time, mails=ids)
            state.inline.deliver(ids, at_most=math.inf)
            state.outlet.drain(_RECEIVERS_SECONDS)
        now = self._deliveries()
        return [delivery for number, delivery in now.items() if before.get(number) != delivery]

    def _deliveries(self) -> dict[int, DeliveryStatus]:
        return {delivery.id: delivery for _mail, status in self._looked_up() for delivery in status}


def _check_testing(app: Flask, state: State) -> None:
    """Refuse an app that was set up for production, and is under test now."""
    if state.settings.mail_suppress_send:
        return
    key = "MAIL_SUPPRESS_SEND"
    chosen = app.config.get(key, os.environ.get(key) or None)
    is_late = chosen is not False and app.config.get(key) != state.config.get(key)
    if is_late or (app.testing and chosen is None):
        late = key if is_late else "TESTING"
        raise ConfigurationError(
            f"{late} was set after Mailer(app) or init_app(app), so that mail of this app would go"
            f" to its relays, and is kept in its database. Set {late} before: give it to the"
            " function that makes the app. Set MAIL_SUPPRESS_SEND to False if this is intended."
        )


def _in_words(delivery: DeliveryStatus, now: datetime) -> str:
    words = [str(delivery.status)]
    if delivery.status is Status.HELD:
        words.append(f"the quota of {delivery.tenant!r} is used up")
    elif delivery.due_at is not None and not delivery.is_being_tried:
        wait = timedelta(seconds=round((delivery.due_at - now).total_seconds()))
        words.append(f"due in {wait}" if wait > timedelta(0) else "due: drain() delivers it")
    if delivery.reply:
        words.append(repr(delivery.reply))
    return ", ".join(words)


def _mails(count: int) -> str:
    return {0: "No mail was", 1: "1 mail was"}.get(count, f"{count} mails were")
