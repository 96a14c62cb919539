"""A mail that a test has recorded."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mailer.intake.content import Content
from mailer.intake.recording import Accepted
from mailer.message import Attachment, Lane, MailStatus, Status
from mailer.store import Store
from mailer.testing.snapshots import Snapshots, snapshot_of

#: The states of a copy that a relay has accepted.
_TAKEN = frozenset({Status.SENT, Status.BOUNCED, Status.COMPLAINED})


class RecordedMail:
    """A mail that the application queued while it was recorded.

    >>> with Outbox(app) as outbox:
    ...     receipt = mailer.send_email(
    ...         "Ada <ada@example.com>", "Hi", "mail/welcome", bcc="log@example.com", name="Ada"
    ...     )
    >>> mail = outbox[0]
    >>> mail.to, mail.bcc, mail.subject, mail.text
    (['"Ada" <ada@example.com>'], ['log@example.com'], 'Hi', 'Welcome, Ada!')
    >>> mail.template, mail.context["name"], mail.lane.name
    ('mail/welcome', 'Ada', 'NORMAL')
    """

    def __init__(self, accepted: Accepted, store: Store, snapshots: Snapshots | None) -> None:
        self._message = message = accepted.message
        self._envelope = envelope = accepted.envelope
        self._store = store
        self._snapshots = snapshots
        self.id: str = message.id  #: for `mailer.status()`
        self.message_id: str = message.message_id
        self.sender: str = str(message.sender)
        self.to: list[str] = [str(address) for address in message.to]
        self.cc: list[str] = [str(address) for address in message.cc]
        shown = {address.email for address in (*message.to, *message.cc)}
        #: The recipients whom no header names.
        self.bcc: list[str] = [email for email in envelope.recipients if email not in shown]
        self.reply_to: list[str] = [str(address) for address in message.reply_to]
        self.subject: str = message.subject
        self.text: str = message.text or ""
        self.html: str | None = message.html
        self.headers: dict[str, str] = dict(message.headers)  #: those of the caller
        self.attachments: tuple[Attachment, ...] = message.attachments
        content = accepted.content or Content()
        self.template: str | None = content.template  #: None if the mail was not made of one
        self.context: Mapping[str, Any] = content.variables  #: of the call
        self.lane: Lane = envelope.lane
        self.tenant: str | None = envelope.tenant or None
        self.tags: tuple[str, ...] = message.tags
        self.metadata: dict[str, str] = dict(message.metadata)
        self.sensitive: bool = message.sensitive
        #: The time from which on it may be sent.
        self.send_at: datetime = datetime.fromtimestamp(envelope.due_at, UTC)
        self.expires_at: datetime | None = (
            None
            if envelope.expires_at is None
            else datetime.fromtimestamp(envelope.expires_at, UTC)
        )

    @property
    def recipients(self) -> list[str]:
        """Return the address of each recipient, of to, cc and bcc."""
        return [*self._envelope.recipients]

    @property
    def status(self) -> MailStatus:
        """Return the status of the mail now, as `mailer.status()` does.

        >>> with Outbox(app) as outbox:
        ...     receipt = mailer.send_email("ada@example.com", "Hi", "mail/welcome", name="Ada")
        >>> [delivery.status.value for delivery in outbox[0].status]
        ['sent']
        """
        return self._store.status(self.id)

    @property
    def is_sent(self) -> bool:
        """Return whether a relay has taken the copy of one recipient at least."""
        return is_sent(self.status)

    # --- snapshots -------------------------------------------------------------------------------

    def snapshot(self, replace: Mapping[str, str] | None = None) -> str:
        """Return the mail as a text to compare: headers, text, html, attachments.

        Ids and times differ from run to run, so each is replaced by a word such as `<time>`.

        >>> with Outbox(app) as outbox:
        ...     receipt = mailer.send_email("ada@example.com", "Hi", "mail/order", number=42)
        >>> print(outbox[0].snapshot(replace={"[0-9]+": "<number>"}), end="")
        From: "Shop" <shop@example.com>
        To: ada@example.com
        Subject: Hi
        <BLANKLINE>
        --- text
        Thank you! Your order has the number <number>.

        Args:
            replace: Regular expressions, each with the text to put in place of what it finds.
        """
        return snapshot_of(self._message, self.bcc, replace or {})

    def assert_matches_snapshot(self, name: str, replace: Mapping[str, str] | None = None) -> None:
        """Compare the mail with the file `snapshots/<test file>/<name>.txt` beside the test.

        `pytest --mailer-update-snapshots` writes the file.

        >>> import tempfile
        >>> from mailer.testing import Snapshots
        >>> folder = tempfile.TemporaryDirectory()
        >>> for update in (True, False):
        ...     with Outbox(app, snapshots=Snapshots(folder.name, update=update)) as outbox:
        ...         receipt = mailer.send_email("ada@example.com", "Hi", "mail/welcome", name="Ada")
        ...     outbox[0].assert_matches_snapshot("welcome")
        >>> folder.cleanup()

        Args:
            name: The name of the file, without its ending.
            replace: As for `snapshot()`.

        Raises:
            AssertionError: The mail differs, or there is no such file yet.
        """
        __tracebackhide__ = True
        if self._snapshots is None:
            raise ValueError(
                "snapshots: this outbox has no folder for them: use the fixture outbox of pytest,"
                " or Outbox(app, snapshots=Snapshots(folder))."
            )
        self._snapshots.compare(name, self.snapshot(replace))

    def __repr__(self) -> str:
        return f"<RecordedMail to {', '.join(self.recipients)}: {self.subject!r}>"


def is_sent(status: MailStatus) -> bool:
    """Return whether a relay has taken the copy of one recipient at least."""
    return any(delivery.status in _TAKEN for delivery in status)
