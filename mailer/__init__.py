"""Mailer, the email queue for Flask: queue a mail in the request, let Celery workers deliver it, lose none."""

from flask_mail import Message

from mailer.errors import (
    CommitLost,
    ConfigurationError,
    InUseElsewhere,
    InvalidAddress,
    InvalidAttachment,
    InvalidHeader,
    InvalidMail,
    KeyInUse,
    KeyReused,
    MailerError,
    OverLimit,
    SchemaMismatch,
    SigningFailed,
    StoreError,
    StoreUnavailable,
    TemplateError,
    UnknownMail,
)
from mailer.extension import Mail, Mailer
from mailer.message import (
    Address,
    Attachment,
    DeliveryStatus,
    Lane,
    MailStatus,
    OnDoubt,
    Receipt,
    Status,
)

__version__ = "0.1.0"

#: Queue a mail of the current app, for code that has no `Mailer` at hand.
send_email = Mailer().send_email

__all__ = [  # noqa: RUF022 -- grouped: the table of contents of the library
    # The doors
    "Mail",
    "Mailer",
    "send_email",
    # What goes in
    "Address",
    "Attachment",
    "Lane",
    "Message",
    "OnDoubt",
    # What comes back
    "DeliveryStatus",
    "MailStatus",
    "Receipt",
    "Status",
    # What can be wrong
    "CommitLost",
    "ConfigurationError",
    "InUseElsewhere",
    "InvalidAddress",
    "InvalidAttachment",
    "InvalidHeader",
    "InvalidMail",
    "KeyInUse",
    "KeyReused",
    "MailerError",
    "OverLimit",
    "SchemaMismatch",
    "SigningFailed",
    "StoreError",
    "StoreUnavailable",
    "TemplateError",
    "UnknownMail",
]
