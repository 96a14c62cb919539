"""Mailer, the email queue for Flask: a request queues a mail, and Celery workers deliver it.

>>> from mailer import send_email
>>> receipt = send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
"""

import typing

from flask_mail import Message

from mailer.errors import (
    BrokerUnavailable,
    CommitLost,
    ConfigurationError,
    InUseElsewhere,
    InvalidAddress,
    InvalidArgument,
    InvalidAttachment,
    InvalidHeader,
    InvalidMail,
    KeyInUse,
    KeyReused,
    MailerError,
    MissingRecipient,
    MissingSender,
    OverLimit,
    SchemaMismatch,
    SigningFailed,
    StoreError,
    StoreUnavailable,
    TemplateError,
    UnknownMail,
)
from mailer.extension import Mailer
from mailer.mail import Mail
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
send_email: typing.Final = Mailer().send_email

__all__ = [  # noqa: RUF022 -- grouped: the table of contents of the library
    # Entry points
    "Mail",
    "Mailer",
    "send_email",
    # Arguments
    "Address",
    "Attachment",
    "Lane",
    "Message",
    "OnDoubt",
    # Results
    "DeliveryStatus",
    "MailStatus",
    "Receipt",
    "Status",
    # Errors
    "BrokerUnavailable",
    "CommitLost",
    "ConfigurationError",
    "InUseElsewhere",
    "InvalidAddress",
    "InvalidArgument",
    "InvalidAttachment",
    "InvalidHeader",
    "InvalidMail",
    "KeyInUse",
    "KeyReused",
    "MailerError",
    "MissingRecipient",
    "MissingSender",
    "OverLimit",
    "SchemaMismatch",
    "SigningFailed",
    "StoreError",
    "StoreUnavailable",
    "TemplateError",
    "UnknownMail",
]
