"""The exceptions of the package. Each message names the problem, its place and the remedy.

MailerError
├── ConfigurationError      a setting is missing or wrong; nothing has started
│   └── MissingSender       neither the call nor MAIL_DEFAULT_SENDER names one
├── InvalidMail             the call was wrong; nothing was stored
│   ├── MissingRecipient
│   ├── InvalidAddress
│   ├── InvalidHeader
│   ├── InvalidAttachment
│   ├── KeyReused           the idempotency key belongs to another mail, or to an erased one
│   ├── OverLimit           more than a MAILER_MAX_… setting allows
│   ├── BadRow              a recipient of a bulk send can't be used; nothing is sent
│   └── TemplateError       missing, or it could not be rendered
├── InvalidArgument         an argument of a background function, or of its decorator
├── BrokerUnavailable       no answer; the call of a background function is NOT queued
├── SigningFailed           a DKIM key could not sign a mail, which is tried again
├── UnknownMail             no mail has this id, or several ids begin so
└── StoreError              the database
    ├── StoreUnavailable    no answer; the mail is NOT queued, unless it is a CommitLost
    │   ├── CommitLost      connection lost during the commit; the mail may be queued
    │   └── KeyInUse        another open transaction holds the idempotency key
    ├── SchemaMismatch      the tables are older or newer than this code
    └── InUseElsewhere      another machine uses the same SQLite file

Failures of delivery are values instead of exceptions: see `mailer.message.Outcome`.

Four are those of Flask-Mail as well, so that an application that moves over keeps its `except`:
`InvalidAddress` and `InvalidHeader` are a `flask_mail.BadHeaderError`, `MissingSender` and
`MissingRecipient` an `AssertionError`.
"""

import flask_mail


class MailerError(Exception):
    """Base class of all errors of Mailer.

    >>> try:
    ...     mailer.status("unknown")
    ... except MailerError as error:
    ...     print(type(error).__name__)
    UnknownMail
    """


class ConfigurationError(MailerError):
    """A setting is missing or has a value that can't be used.

    Most are found when the app starts. The error names the key and the remedy.

    >>> mailer.init_app(app)
    Traceback (most recent call last):
        ...
    mailer.errors.ConfigurationError: This app has its Mailer already: ...
    """


class MissingSender(ConfigurationError, AssertionError):
    """The mail has no sender, and `MAIL_DEFAULT_SENDER` is not set. Nothing was stored.

    It is an `AssertionError`, too, as in Flask-Mail.

    >>> app.extensions["mail"].default_sender = None
    >>> mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.MissingSender: The mail has no sender: pass sender=…, or set MAIL_DEFAULT_SENDER.
    """


class InvalidMail(MailerError, ValueError):
    """The mail can't be sent as it was given. Nothing was stored.

    The error names the argument, its value and the remedy. It is a `ValueError`, too.

    >>> mailer.send_email("ada@example.com", None, "mail/welcome", name="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.InvalidHeader: subject: give a str, not NoneType.
    """


class MissingRecipient(InvalidMail, AssertionError):
    """The mail has no recipient. Nothing was stored. It is an `AssertionError`, too.

    >>> mailer.send_email([], "Welcome", "mail/welcome", name="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.MissingRecipient: The mail has no recipient: give at least one in to, cc or bcc.
    """


class InvalidAddress(InvalidMail, flask_mail.BadHeaderError):
    """An address that no mail server would accept. It is a `flask_mail.BadHeaderError`, too.

    >>> mailer.send_email("ada@", "Welcome", "mail/welcome", name="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.InvalidAddress: to: 'ada@' is not a usable address: ...
    """


class InvalidHeader(InvalidMail, flask_mail.BadHeaderError):
    """A header that would break the mail, or that Mailer writes itself.

    It is a `flask_mail.BadHeaderError`, too.

    >>> headers = {"From": "bob@example.com"}
    >>> mailer.send_email("ada@example.com", "Hi", "mail/welcome", headers=headers, name="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.InvalidHeader: headers: 'From' is written by Mailer: ...
    """


class InvalidAttachment(InvalidMail):
    """An attachment whose name, type or content can't be written into a mail.

    >>> Attachment("notes.txt", "Hello")
    Traceback (most recent call last):
        ...
    mailer.errors.InvalidAttachment: attachment 'notes.txt': its data is str: give bytes.
    """


class KeyReused(InvalidMail):
    """The idempotency key belongs to another mail, or to one that can't be compared any more.

    The first mail stays as it is. Give each mail a key of its own, such as `order-42-confirmed`.

    >>> first = mailer.send_email(
    ...     "ada@example.com", "Your order", "mail/order", number=42, idempotency_key="order-42"
    ... )
    >>> mailer.send_email(
    ...     "ada@example.com", "Your order", "mail/order", number=43, idempotency_key="order-42"
    ... )
    Traceback (most recent call last):
        ...
    mailer.errors.KeyReused: ...
    """


class OverLimit(InvalidMail):
    """The mail exceeds a MAILER_MAX_… setting, which the error names.

    >>> mailer.send_email("ada@example.com", "Hi" * 10_000, "mail/welcome", name="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.OverLimit: subject: 20000 characters, MAILER_MAX_HEADER allows 4000.
    """


class BadRow(InvalidMail):
    """A recipient of a bulk send that can't be used, with `on_error="abort"`: nothing is sent.

    >>> mailer.send_bulk("News", "mail/news", ["ada@example"], on_error="abort")
    Traceback (most recent call last):
        ...
    mailer.errors.BadRow: recipients: row 1 (ada@example): recipient: 'ada@example' is not ...

    Args:
        row: The place of the recipient, counted from 1.
        address: Its address, as it was given.
        reason: Why it can't be used.
    """

    def __init__(self, row: int, address: str, reason: str) -> None:
        super().__init__(f"recipients: row {row} ({address}): {reason}")
        self.row = row
        self.address = address
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadRow"], tuple[int, str, str]]:
        return type(self), (self.row, self.address, self.reason)


class TemplateError(InvalidMail):
    """A template that is missing or could not be rendered.

    The error names the template and the line, and its `__cause__` is the error of Jinja, if any.

    >>> mailer.send_email("ada@example.com", "Welcome", "mail/welcome", nam="Ada")
    Traceback (most recent call last):
        ...
    mailer.errors.TemplateError: template 'mail/welcome.html': 'name' is undefined...
    """


class InvalidArgument(MailerError, TypeError):
    """An argument of a background function that can't be sent to a worker, or of its decorator.

    The error names the argument and the remedy. It is a `TypeError`, too.

    >>> @mailer.background
    ... def rebuild_index(app):
    ...     app.logger.info("rebuilt")
    >>> rebuild_index(app)
    Traceback (most recent call last):
        ...
    mailer.errors.InvalidArgument: ...: app can't be sent to a worker: it is of the type Flask. ...
    """


class BrokerUnavailable(MailerError, ConnectionError):
    """The broker did not answer. The call of a background function is not queued.

    Mail is never concerned: it is stored without the broker. It is a `ConnectionError`, too.
    """


class SigningFailed(MailerError):
    """A DKIM key could not sign a mail, which is tried again.

    A worker raises and logs it; no call of an application does.
    """


class UnknownMail(MailerError, LookupError):
    """No mail has this id, perhaps because it was purged, or several ids begin so.

    It is a `LookupError`, too.

    >>> mailer.status("unknown")
    Traceback (most recent call last):
        ...
    mailer.errors.UnknownMail: No mail has the id 'unknown': ...
    """


class StoreError(MailerError):
    """Base class of errors of the database. Each message says how to repair it."""


class StoreUnavailable(StoreError):
    """The database did not answer. The mail is not queued, unless this is a `CommitLost`.

    Ask the caller to come back:

    >>> @app.errorhandler(StoreUnavailable)
    ... def come_back(error):
    ...     return "The mail is not queued: try again.", 503, {"Retry-After": "10"}
    """


class CommitLost(StoreUnavailable):
    """The connection was lost during the commit: the mail may or may not be queued.

    With an `idempotency_key`, call again: that queues the mail once.
    """


class KeyInUse(StoreUnavailable):
    """Another transaction, or another import, holds this idempotency key: call again."""


class SchemaMismatch(StoreError):
    """The tables in the database do not match this version of Mailer: `flask mail migrate`."""


class InUseElsewhere(StoreError):
    """The SQLite file is in use on another machine. Two machines would corrupt it."""


def is_time_limit(error: BaseException) -> bool:
    """Return whether an error is the soft time limit of a Celery task, which is for the task."""
    from celery.exceptions import SoftTimeLimitExceeded  # noqa: PLC0415 -- see wiring.wire()

    return isinstance(error, SoftTimeLimitExceeded)
