"""The exceptions of the package. Each message names the problem, its place and the remedy.

MailerError
├── ConfigurationError      a setting is missing or wrong; nothing has started
├── InvalidMail             the call was wrong; nothing was stored
│   ├── InvalidAddress
│   ├── InvalidHeader
│   ├── InvalidAttachment
│   ├── KeyReused           the idempotency key belongs to another mail, or to an erased one
│   ├── OverLimit           more than a MAILER_MAX_… setting allows
│   └── TemplateError       missing, or it could not be rendered
├── SigningFailed           a DKIM key could not sign a mail, which is tried again
├── UnknownMail             no mail has this id, or several ids begin so
└── StoreError              the database
    ├── StoreUnavailable    no answer; the mail is NOT queued, unless it is a CommitLost
    │   ├── CommitLost      connection lost during the commit; the mail may be queued
    │   └── KeyInUse        another open transaction holds the idempotency key
    ├── SchemaMismatch      the tables are older or newer than this code
    └── InUseElsewhere      another machine uses the same SQLite file

Failures of delivery are values instead of exceptions: see `mailer.message.Outcome`.
"""


class MailerError(Exception):
    """Base class of all errors of Mailer."""


class ConfigurationError(MailerError):
    """A setting is missing or has a value that can't be used."""


class InvalidMail(MailerError, ValueError):
    """The mail can't be sent as it was given. Nothing was stored."""


class InvalidAddress(InvalidMail):
    """An address that no mail server would accept."""


class InvalidHeader(InvalidMail):
    """A header that would break the mail, or that Mailer writes itself."""


class InvalidAttachment(InvalidMail):
    """An attachment whose name or type can't be written into a mail."""


class KeyReused(InvalidMail):
    """The idempotency key belongs to another mail, or to one that can't be compared any more."""


class OverLimit(InvalidMail):
    """The mail exceeds a MAILER_MAX_… setting."""


class TemplateError(InvalidMail):
    """A template that is missing or could not be rendered."""


class SigningFailed(MailerError):
    """A DKIM key could not sign a mail. The mail is tried again."""


class UnknownMail(MailerError, LookupError):
    """No mail has this id, perhaps because it was purged, or several ids begin so."""


class StoreError(MailerError):
    """Base class of errors of the database."""


class StoreUnavailable(StoreError):
    """The database did not answer. The mail is not queued, unless this is a CommitLost."""


class CommitLost(StoreUnavailable):
    """The connection was lost during the commit: the mail may or may not be queued."""


class KeyInUse(StoreUnavailable):
    """Another open transaction holds this idempotency key. Nothing was queued."""


class SchemaMismatch(StoreError):
    """The tables in the database do not match this version of Mailer."""


class InUseElsewhere(StoreError):
    """The SQLite file is in use on another machine. Two machines would corrupt it."""
