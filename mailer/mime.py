"""A mail becomes bytes: headers are encoded once, bodies by the encoders of the standard library.

`Message.as_bytes()` of Flask-Mail parses and folds every header a second time, which takes longer than delivering the mail.
"""

import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.header import Header
from email.utils import encode_rfc2231, format_datetime

import flask_mail

from mailer.message import Address, Attachment, Message

Part = tuple[list[str], bytes]  # the header lines of a MIME part, and its encoded content

_LONGEST_LINE = 990  # RFC 5322 allows 998
_LONGEST_NAME = 60
_NEWLINE = re.compile(rb"\r\n|\r|\n")
_LONG_LINE = re.compile(rf"[^\n]{{{_LONGEST_LINE}}}".encode())
_LONG_WORD = re.compile(r"\S{500}|\s{400}")  # a header line breaks between words: a word and the blanks before it must fit
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_SPECIALS = re.compile(r'[()<>\[\]:;@\\,."]')
_PLAIN_FILENAME = re.compile(r"[\x20-\x7e]{0,60}")


def compose(message: Message) -> bytes:
    """The mail as it goes over the wire, the same for every recipient: Bcc is nowhere in it."""
    inner, content = _body(message)
    lines = [*_envelope_headers(message), "MIME-Version: 1.0", *inner]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class WireMessage(flask_mail.Message):
    """A composed mail for one recipient, in the shape that Flask-Mail's connection and its signal know."""

    def __init__(self, message: Message, recipient: str, composed: bytes) -> None:
        # Flask-Mail's own __init__ makes a Message-ID and asks the DNS for it, which takes seconds where DNS is slow.
        self.subject = message.subject
        self.sender = _as_given(message.sender)
        self.recipients = [_as_given(address) for address in message.to]
        self.cc = [_as_given(address) for address in message.cc]
        self.bcc = []
        self.reply_to = ", ".join(map(_as_given, message.reply_to)) or None
        self.body = message.text
        self.alts = dict(message.alternatives)
        self.html = message.html
        self.charset = None
        self.date = message.dated
        self.msgId = message.message_id
        self.extra_headers = dict(message.headers)
        self.mail_options = list(message.mail_options)
        self.rcpt_options = list(message.rcpt_options)
        self.attachments = [_as_flask_mail(attachment) for attachment in message.attachments]
        self.envelope_from = message.bounce_address
        self.recipient = recipient
        self._composed = composed

    @property
    def send_to(self) -> set[str | tuple[str, str]]:
        return {self.recipient}

    @property
    def needs_smtputf8(self) -> bool:
        header = self._composed[: self._composed.find(b"\r\n\r\n")]
        return not (self.envelope_from.isascii() and self.recipient.isascii() and header.isascii())

    def as_bytes(self) -> bytes:
        return self._composed

    def as_string(self) -> str:
        return self._composed.decode()


def _as_given(address: Address) -> str:
    """Without quotes, as in the application's code and in its tests, where none are needed."""
    bare = address.name and not _SPECIALS.search(address.name)
    return f"{address.name} <{address.email}>" if bare else str(address)


def _as_flask_mail(attachment: Attachment) -> flask_mail.Attachment:
    headers = dict(attachment.headers)
    if attachment.content_id:
        headers["Content-ID"] = f"<{attachment.content_id}>"
    return flask_mail.Attachment(attachment.filename, attachment.content_type, attachment.data, attachment.disposition, headers)


# --- headers ----------------------------------------------------------------------------------------------------------


def _envelope_headers(message: Message) -> list[str]:
    sent_at = datetime.fromtimestamp(message.dated, UTC)
    lines = [f"Date: {format_datetime(sent_at)}", _address_header("From", [message.sender])]
    if message.to:
        lines.append(_address_header("To", message.to))
    elif not message.cc:
        # Without a To or Cc header some relays write one of their own, with the Bcc recipient in it.
        lines.append("To: undisclosed-recipients:;")
    if message.cc:
        lines.append(_address_header("Cc", message.cc))
    if message.reply_to:
        lines.append(_address_header("Reply-To", message.reply_to))
    lines.append(_text_header("Subject", message.subject))
    lines.append(f"Message-ID: {message.message_id}")
    lines.extend(_text_header(name, value) for name, value in message.headers)
    return lines


def _text_header(name: str, value: str) -> str:
    """Plain where that is safe, folded where it is long, RFC 2047 where it must be."""
    write = _encoded if _needs_encoding(value) else _folded
    return f"{name}: {write(value, len(name) + 2)}"


def _address_header(name: str, addresses: Iterable[Address]) -> str:
    return f"{name}: " + ",\r\n ".join(_mailbox(address, len(name) + 2) for address in addresses)


def _mailbox(address: Address, column: int) -> str:
    if not address.name:
        return address.email
    name = address.name
    if _needs_encoding(name) or len(name) > _LONGEST_NAME:
        return f"{_encoded(name, column)}\r\n <{address.email}>"
    if not _ATOM.fullmatch(name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        name = f'"{escaped}"'
    return f"{name} <{address.email}>"


def _encoded(value: str, column: int) -> str:
    """RFC 2047, in lines."""
    return Header(value, "utf-8", maxlinelen=76, header_name="x" * (column - 2)).encode(linesep="\r\n")


def _needs_encoding(value: str) -> bool:
    # "=?" would be read as an encoded word; blanks at the ends would be lost.
    return not value.isascii() or "=?" in value or value != value.strip() or _LONG_WORD.search(value) is not None


def _folded(value: str, column: int) -> str:
    """Break before a blank; unfolding gives the same value back, runs of blanks included."""
    if column + len(value) <= 78:
        return value
    lines, line = [], ""
    for word in re.findall(r"[ \t]*[^ \t]+", value):
        if line and column + len(line) + len(word) > 78:
            lines.append(line)
            line, column = "", 0
        line += word
    return "\r\n".join([*lines, line])


def _filename(attachment: Attachment) -> list[str]:
    """The parameters of Content-Disposition: RFC 2231, in pieces where the name is long."""
    name = attachment.filename
    if name is None:
        return []
    if _PLAIN_FILENAME.fullmatch(name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return [f'filename="{escaped}"']
    pieces = re.findall(r"(?:%..|[^%]){1,60}", encode_rfc2231(name, "utf-8"))
    if len(pieces) == 1:
        return [f"filename*={pieces[0]}"]
    return [f"filename*{number}*={piece}" for number, piece in enumerate(pieces)]


# --- bodies -----------------------------------------------------------------------------------------------------------


def _body(message: Message) -> Part:
    boundary = f"=_{message.id}"
    inline = [_attached(attachment) for attachment in message.attachments if attachment.content_id]
    attached = [_attached(attachment) for attachment in message.attachments if not attachment.content_id]

    versions = [] if message.text is None else [_text("text/plain", message.text)]
    if message.html is not None:
        html = _text("text/html", message.html)
        versions.append(_multipart("related", [html, *inline], f"{boundary}_r", 'type="text/html"') if inline else html)
    else:
        attached = inline + attached
    versions.extend(_text(kind if "/" in kind else f"text/{kind}", content) for kind, content in message.alternatives)

    body = versions[0] if len(versions) == 1 else _multipart("alternative", versions, f"{boundary}_a")
    return _multipart("mixed", [body, *attached], f"{boundary}_m") if attached else body


def _multipart(kind: str, parts: list[Part], boundary: str, *parameters: str) -> Part:
    declared = ";\r\n ".join([f"Content-Type: multipart/{kind}", *parameters, f'boundary="{boundary}"'])
    delimiter = f"--{boundary}\r\n".encode()
    content = b"".join(delimiter + "\r\n".join(lines).encode() + b"\r\n\r\n" + body + b"\r\n" for lines, body in parts)
    return [declared], content + f"--{boundary}--\r\n".encode()


def _text(kind: str, text: str) -> Part:
    data = _NEWLINE.sub(b"\n", text.encode("utf-8", "replace"))
    if not data.endswith(b"\n"):
        data += b"\n"
    encoding, content = _transfer_encoded(data)
    return [f"Content-Type: {kind}; charset=utf-8", f"Content-Transfer-Encoding: {encoding}"], content


def _transfer_encoded(data: bytes) -> tuple[str, bytes]:
    """7bit, quoted-printable or base64: the first that carries the text, the last where it is the shorter."""
    strange = len(data) - len(data.decode().encode("ascii", "ignore")) if not data.isascii() else 0
    if strange > len(data) // 6 or _CONTROLS.search(data):
        return "base64", _base64(_NEWLINE.sub(b"\r\n", data))
    if strange or _LONG_LINE.search(data):
        return "quoted-printable", _NEWLINE.sub(b"\r\n", binascii.b2a_qp(data, istext=True))
    return "7bit", data.replace(b"\n", b"\r\n")


def _base64(data: bytes) -> bytes:
    return b"".join(binascii.b2a_base64(data[at : at + 57], newline=False) + b"\r\n" for at in range(0, len(data), 57))


def _attached(attachment: Attachment) -> Part:
    lines = [
        f"Content-Type: {attachment.content_type}",
        "Content-Transfer-Encoding: base64",
        ";\r\n ".join([f"Content-Disposition: {attachment.disposition}", *_filename(attachment)]),
    ]
    if attachment.content_id:
        lines.append(f"Content-ID: <{attachment.content_id}>")
    lines.extend(_text_header(name, value) for name, value in attachment.headers)
    return lines, _base64(attachment.data)
