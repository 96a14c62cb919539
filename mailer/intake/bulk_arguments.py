"""The types of the arguments of `send_bulk()`, for its two results."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypedDict

import flask_mail

from mailer.intake.arguments import Undo, When
from mailer.message import AddressLike, Attachment, Lane, OnDoubt
from mailer.message.bulk import BulkProgress
from mailer.message.calendar import Calendar


class BulkArguments(TypedDict, total=False):
    """The keyword arguments of `send_bulk()`, but for `dry_run`."""

    shared: Mapping[str, Any] | None
    locales: Collection[str]
    sender: AddressLike | None
    reply_to: AddressLike | Iterable[AddressLike] | None
    attachments: Iterable[Attachment | flask_mail.Attachment]
    headers: Mapping[str, str | None] | None
    lane: Lane | str
    tenant: str | None
    send_at: When
    undo: Undo
    calendar: Calendar | None
    expires_at: When
    on_doubt: OnDoubt | str
    tags: Iterable[str]
    metadata: Mapping[str, str] | None
    idempotency_key: str | None
    on_error: str
    start: str
    progress: Callable[[BulkProgress], object] | None
    require_confirmation_above: int | None
    max_failed_share: float
