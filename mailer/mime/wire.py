"""A composed mail for one recipient, in the shape of a message of Flask-Mail."""

from collections.abc import Callable, Mapping
from typing import Any

import flask_mail

from mailer.message import Address, Attachment, Message
from mailer.mime.composed import Composed
from mailer.mime.headers import SPECIALS


class WireMessage(flask_mail.Message):
    """A composed mail for one recipient, for the connection and the signal of Flask-Mail.

    One is made for each delivery, and few are ever inspected: the attributes that the `__init__` of
    Flask-Mail would set are made on demand. That `__init__` would also make a Message-ID, with a
    DNS look-up that may take seconds.
    """

    def __init__(self, message: Message, recipient: str, composed: Composed) -> None:
        self.recipient = recipient
        self.mail_options: list[str] = list(message.mail_options)
        self.rcpt_options: list[str] = list(message.rcpt_options)
        self._mail = message
        self._composed = composed

    # --- for the relay ---------------------------------------------------------------------------

    @property
    def mail_id(self) -> str:
        return self._mail.id

    @property
    def is_sensitive(self) -> bool:
        return self._mail.sensitive

    @property
    def envelope_from(self) -> str:
        return self._mail.bounce_address

    @property
    def needs_smtputf8(self) -> bool:
        return self._composed.needs_smtputf8 or not self.recipient.isascii()

    def wire(self, eightbit: bool) -> bytes:
        """Return the bytes after DATA with the final dot; `eightbit`: the relay offers 8BITMIME."""
        return self._composed.form(eightbit=eightbit).wire

    def size(self, eightbit: bool) -> int:
        """Return the size to declare in SIZE=."""
        return self._composed.form(eightbit=eightbit).size

    def is_8bit(self, eightbit: bool) -> bool:
        """Return whether to declare BODY=8BITMIME."""
        return eightbit and self._composed.form(eightbit=True).is_8bit

    # --- for Flask-Mail --------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name not in _ATTRIBUTES:
            raise AttributeError(f"WireMessage has no attribute {name!r}.", name=name, obj=self)
        value = _ATTRIBUTES[name](self._mail)
        setattr(self, name, value)
        return value

    @property
    def send_to(self) -> set[str | tuple[str, str]]:
        return {self.recipient}

    def as_bytes(self) -> bytes:
        """Return the 7-bit form, which every relay accepts."""
        return self._composed.as_bytes()

    def as_string(self) -> str:
        return self.as_bytes().decode()


def _as_given(address: Address) -> str:
    """Return an address without unneeded quotes, as an application writes it."""
    bare = address.name and not SPECIALS.search(address.name)
    return f"{address.name} <{address.email}>" if bare else str(address)


def _alternatives(message: Message) -> dict[str, str]:
    html = {} if message.html is None else {"html": message.html}
    return {**dict(message.alternatives), **html}


def _as_flask_mail(attachment: Attachment) -> flask_mail.Attachment:
    headers = dict(attachment.headers)
    if attachment.content_id:
        headers["Content-ID"] = f"<{attachment.content_id}>"
    return flask_mail.Attachment(
        attachment.filename,
        attachment.content_type,
        attachment.data,
        attachment.disposition,
        headers,
    )


_ATTRIBUTES: Mapping[str, Callable[[Message], Any]] = {
    "subject": lambda message: message.subject,
    "sender": lambda message: _as_given(message.sender),
    "recipients": lambda message: [_as_given(address) for address in message.to],
    "cc": lambda message: [_as_given(address) for address in message.cc],
    "bcc": lambda _: [],
    "reply_to": lambda message: ", ".join(map(_as_given, message.reply_to)) or None,
    "body": lambda message: message.text,
    "alts": _alternatives,
    "charset": lambda _: None,
    "date": lambda message: message.dated,
    "msgId": lambda message: message.message_id,
    "extra_headers": lambda message: dict(message.headers),
    "attachments": lambda message: [
        _as_flask_mail(attachment) for attachment in message.attachments
    ],
}
