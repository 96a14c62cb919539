"""Every exception of the package. Each text says what is wrong, where, and what to do.

MailerError
├── ConfigurationError      a setting is missing or wrong; nothing has started
├── InvalidMail             the call was wrong; nothing was stored
│   ├── InvalidAddress
│   ├── InvalidHeader
│   ├── InvalidAttachment
│   ├── KeyReused           its idempotency key belongs to another mail, or nobody can tell any more
│   ├── OverLimit           more than a MAILER_MAX_… setting allows
│   └── TemplateError       missing, or it could not be rendered
├── SigningFailed           a DKIM key could not sign a mail, which is tried again
├── UnknownMail             no mail has this id, or several begin so
└── StoreError              the database
    ├── StoreUnavailable    it did not answer; the mail is NOT queued, unless it is a CommitLost
    │   ├── CommitLost      it went away during the commit; the mail may be queued
    │   └── KeyInUse        another transaction holds the idempotency key, and is still open
    ├── SchemaMismatch      its tables are older or newer than this code
    └── InUseElsewhere      another machine uses the same SQLite file

Failures of delivery are no exceptions: they are values, see `mailer.message.Outcome`.
"""


class MailerError(Exception):
    """Any error of Mailer."""


class ConfigurationError(MailerError):
    """A setting is missing or has a value that can't be used."""


class InvalidMail(MailerError, ValueError):
    """The mail can't be sent as it was given. Nothing was stored."""


class InvalidAddress(InvalidMail):
    """An address that no mail server would take."""


class InvalidHeader(InvalidMail):
    """A header that would break the mail, or that Mailer writes itself."""


class InvalidAttachment(InvalidMail):
    """An attachment whose name or type can't be written into a mail."""


class KeyReused(InvalidMail):
    """Its idempotency key belongs to another mail, or to one of which nobody can tell any more whether it says the same."""


class OverLimit(InvalidMail):
    """More than a MAILER_MAX_… setting allows."""


class TemplateError(InvalidMail):
    """A template that is missing or could not be rendered."""


class SigningFailed(MailerError):
    """A DKIM key that was loaded could not sign. The mail is not to blame, and is tried again."""


class UnknownMail(MailerError, LookupError):
    """No mail has this id, as it may have been purged, or several begin with what was given."""


class StoreError(MailerError):
    """Something is wrong with the database."""


class StoreUnavailable(StoreError):
    """The database did not answer. What was being queued is not queued, unless this is a CommitLost."""


class CommitLost(StoreUnavailable):
    """The database went away during the commit. Nobody knows yet whether what was being queued is queued."""


class KeyInUse(StoreUnavailable):
    """Another transaction that has not ended yet holds this idempotency key. Nothing was queued."""


class SchemaMismatch(StoreError):
    """The tables in the database do not fit this version of Mailer."""


class InUseElsewhere(StoreError):
    """The SQLite file is in use on another machine: two of them would break it."""
