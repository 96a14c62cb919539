"""Mail comes in: checked, rendered, stored, and only then is the bell rung.

Whatever is wrong with a mail is said here, at the call, before anything is stored.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import flask_mail

from mailer.errors import ConfigurationError, InvalidAttachment, InvalidMail
from mailer.message import (
    Address,
    AddressLike,
    Attachment,
    Envelope,
    Lane,
    Message,
    OnDoubt,
    Receipt,
    check_headers,
    check_text,
    new_id,
    new_message_id,
    parse_addresses,
)
from mailer.rendering import Renderer, text_from_html
from mailer.settings import Settings
from mailer.store import Store

Addresses = AddressLike | Iterable[AddressLike] | None
When = datetime | timedelta | None


class Bell(Protocol):
    """Tells the workers that there is mail. A ring may get lost: the sweep finds the mail all the same."""

    def ring(self, *, urge: bool = False) -> None:
        """Never waits for long, never raises. `urge`: the last ring may have been lost."""

    def answer(self) -> None:
        """A worker is about to look: from now on the next ring counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a mail is to travel, in the caller's words."""

    lane: Lane | str = Lane.NORMAL
    send_at: When = None
    expires_at: When = None
    on_doubt: OnDoubt | str = OnDoubt.RESEND
    tags: Iterable[str] = ()


class Intake:
    """The way in, for one app."""

    def __init__(self, settings: Settings, store: Store, renderer: Renderer, bell: Bell) -> None:
        self._settings = settings
        self._store = store
        self._renderer = renderer
        self._bell = bell

    def send_email(
        self,
        to: Addresses,
        subject: str,
        template: str,
        context: Mapping[str, Any],
        *,
        cc: Addresses,
        bcc: Addresses,
        reply_to: Addresses,
        sender: AddressLike | None,
        attachments: Iterable[Attachment | flask_mail.Attachment],
        headers: Mapping[str, str] | None,
        options: Options,
    ) -> Receipt:
        """Render a template pair and queue it."""
        now = time.time()
        prefix = self._settings.subject_prefix
        bodies = self._renderer.render(template, context)
        author = self._sender(sender)
        mail_id = new_id(now)
        message = Message(
            id=mail_id,
            message_id=new_message_id(mail_id, author),
            created_at=now,
            sender=author,
            subject=check_text(f"{prefix} {subject}" if prefix else subject, field="subject"),
            text=_storable(bodies.text, field="text"),
            html=_storable(bodies.html, field="html"),
            to=parse_addresses(to, field="to"),
            cc=parse_addresses(cc, field="cc"),
            reply_to=parse_addresses(reply_to, field="reply_to"),
            headers=check_headers((headers or {}).items()),
            attachments=self._attachments(attachments),
            tags=_tags(options.tags),
        )
        return self._accept(message, parse_addresses(bcc, field="bcc"), options, now)

    def enqueue(self, mail: flask_mail.Message, options: Options, envelope_from: AddressLike | None = None) -> Receipt:
        """Queue a message of Flask-Mail as it is."""
        now = time.time()
        alternatives = {kind: content for kind, content in mail.alts.items() if kind != "html"}
        text = mail.body if mail.body is not None else text_from_html(mail.html) if mail.html else ""
        message = Message(
            id=new_id(now),
            message_id=check_text(mail.msgId, field="msgId"),
            created_at=mail.date or now,
            sender=self._sender(mail.sender),
            envelope_from=Address.parse(envelope_from, field="envelope_from").email if envelope_from else None,
            subject=check_text(mail.subject or "", field="subject"),
            text=_storable(text, field="body"),
            html=_storable(mail.html, field="html"),
            alternatives=_alternatives(alternatives),
            to=parse_addresses(mail.recipients, field="recipients"),
            cc=parse_addresses(mail.cc, field="cc"),
            reply_to=parse_addresses(mail.reply_to, field="reply_to"),
            headers=check_headers((mail.extra_headers or {}).items()),
            attachments=self._attachments(mail.attachments),
            tags=_tags(options.tags),
            mail_options=tuple(check_text(option, field="mail_options") for option in mail.mail_options),
            rcpt_options=tuple(check_text(option, field="rcpt_options") for option in mail.rcpt_options),
        )
        return self._accept(message, parse_addresses(mail.bcc, field="bcc"), options, now)

    def _accept(self, message: Message, bcc: tuple[Address, ...], options: Options, now: float) -> Receipt:
        """Store, then ring: a ring before the commit would find nothing."""
        recipients = tuple(dict.fromkeys(address.email for address in (*message.to, *message.cc, *bcc)))
        if not recipients:
            raise InvalidMail("The mail has no recipient: give at least one in to, cc or bcc.")
        envelope = _envelope(recipients, options, now)
        self._store.insert_mail(message, envelope)
        if envelope.due_at <= now:
            self._bell.ring()
        return Receipt(message.id, message.message_id, recipients)

    def _sender(self, given: AddressLike | None) -> Address:
        sender = given or self._settings.mail_default_sender
        if not sender:
            raise ConfigurationError("The mail has no sender: pass sender=…, or set MAIL_DEFAULT_SENDER.")
        return Address.parse(sender, field="sender")

    def _attachments(self, given: Iterable[Attachment | flask_mail.Attachment]) -> tuple[Attachment, ...]:
        attachments = [_attachment(one) for one in given]
        if self._settings.mail_ascii_attachments:
            attachments = [one.with_ascii_filename() for one in attachments]
        return tuple(attachments)


def _envelope(recipients: tuple[str, ...], options: Options, now: float) -> Envelope:
    due_at = _seconds(options.send_at, now, field="send_at") or now
    expires_at = _seconds(options.expires_at, now, field="expires_at")
    if expires_at is not None and expires_at <= due_at:
        raise InvalidMail("expires_at: the mail would expire before it is due: give a later time.")
    return Envelope(
        recipients=recipients,
        lane=_lane(options.lane),
        due_at=due_at,
        expires_at=expires_at,
        on_doubt=_on_doubt(options.on_doubt),
    )


def _lane(given: Lane | str) -> Lane:
    try:
        return given if isinstance(given, Lane) else Lane[given.upper()]
    except (KeyError, AttributeError):
        raise InvalidMail(f"lane: {given!r}: use 'critical', 'normal' or 'bulk'.") from None


def _on_doubt(given: OnDoubt | str) -> OnDoubt:
    try:
        return OnDoubt(given)
    except ValueError:
        raise InvalidMail(f"on_doubt: {given!r}: use 'resend' or 'hold'.") from None


def _seconds(given: When, now: float, *, field: str) -> float | None:
    if given is None:
        return None
    if isinstance(given, timedelta):
        return now + given.total_seconds()
    if not isinstance(given, datetime) or given.utcoffset() is None:
        raise InvalidMail(f"{field}: {given!r}: give a timedelta, or a datetime with a time zone: datetime.now(UTC) + …")
    return given.timestamp()


def _storable(text: str | None, *, field: str) -> str | None:
    if text is None:
        return None
    if "\x00" in text:
        raise InvalidMail(f"{field}: it contains a NUL character, which no mail can carry: remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMail(f"{field}: it contains half of a character at {error.start}: {error.reason}.") from None
    return text


def _alternatives(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (check_text(kind, field="alts"), _storable(content, field=f"alts[{kind!r}]") or "") for kind, content in given.items()
    )


def _tags(given: Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise InvalidMail(f"tags: {given!r} is one text: give a list of tags.")
    return tuple(check_text(tag, field="tags") for tag in given)


def _attachment(given: Attachment | flask_mail.Attachment) -> Attachment:
    if isinstance(given, Attachment):
        return given
    if not isinstance(given, flask_mail.Attachment):
        raise InvalidAttachment(f"attachments: {type(given).__name__}: give Attachment(filename, data).")
    data = given.data.encode() if isinstance(given.data, str) else bytes(given.data)
    headers = dict(given.headers or {})
    content_id = next((headers.pop(name).strip("<>") for name in list(headers) if name.lower() == "content-id"), None)
    return Attachment(given.filename, data, given.content_type, content_id, given.disposition, tuple(headers.items()))
