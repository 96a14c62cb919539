"""Mailer, the email queue for Flask: a request queues a mail, and Celery workers deliver it.

>>> from mailer import send_email
>>> receipt = send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
"""

import typing

from flask_mail import Message

from mailer.bulk import Bulk
from mailer.errors import (
    BadRow,
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
from mailer.message.bulk import (
    BulkError,
    BulkProgress,
    BulkRecipient,
    BulkSample,
    BulkState,
    Rehearsal,
)
from mailer.message.calendar import Calendar

__version__ = "0.1.0"

#: Queue a mail of the current app, for code that has no `Mailer` at hand.
send_email: typing.Final = Mailer().send_email
#: Queue a bulk send of the current app.
send_bulk: typing.Final = Mailer().send_bulk

__all__ = [  # noqa: RUF022 -- grouped: the table of contents of the library
    # Entry points
    "Mail",
    "Mailer",
    "send_email",
    "send_bulk",
    # Arguments
    "Address",
    "Attachment",
    "Calendar",
    "Lane",
    "Message",
    "OnDoubt",
    # Results
    "Bulk",
    "BulkError",
    "BulkProgress",
    "BulkRecipient",
    "BulkSample",
    "BulkState",
    "DeliveryStatus",
    "MailStatus",
    "Receipt",
    "Rehearsal",
    "Status",
    # Errors
    "BadRow",
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
