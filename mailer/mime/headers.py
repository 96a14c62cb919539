"""The header lines of a mail and its parts: plain, folded or encoded."""

import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import encode_rfc2231, format_datetime
from functools import cache, lru_cache

from mailer.message import Address, Attachment, Message
from mailer.message.headers import SENDER

_MAX_NAME = 60
_LINE = 78
_ENCODED_LINE = 76  # RFC 2047 allows less than RFC 5322
_MIN_ROOM = 20  # for an encoded word, even beside a very long header name
# The characters that RFC 2047 allows everywhere.
_LITERALS = b" !*+-/0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ESCAPED = [chr(octet) if octet in _LITERALS else f"={octet:02X}" for octet in range(256)]
_ESCAPED[ord(" ")] = "_"
_WORD = re.compile(r"[ \t]*[^ \t]+")  # with the blanks before it, where a line may break
_MAX_WORD = 900  # RFC 5322 allows lines of 998, and the name of the header is on the first
SPECIALS = re.compile(r'[()<>\[\]:;@\\,."]')
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
# Without "=?": many readers decode it, even in a quoted name.
_PLAIN_FILENAME = re.compile(r"(?!.*=\?)[\x20-\x7e]{0,60}")
_PARAMETER = re.compile(r';\s*([^\s;="]+="[^"]*"|[^\s;="]+=[^\s;"]*)')


def header_lines(message: Message) -> list[str]:
    """Return the headers of the mail as a whole, always in the same order."""
    lines = [_date_line(int(message.dated)), _address_line("From", (message.sender,))]
    if message.to:
        lines.append(_address_line("To", message.to))
    elif not message.cc:
        # Without a To or Cc header, some relays add one that contains the Bcc recipient.
        lines.append("To: undisclosed-recipients:;")
    if message.cc:
        lines.append(_address_line("Cc", message.cc))
    if message.reply_to:
        lines.append(_address_line("Reply-To", message.reply_to))
    lines.append(text_line("Subject", message.subject))
    lines.append(f"Message-ID: {message.message_id}")
    lines.extend(_added_line(name, value) for name, value in message.headers)
    return lines


def _added_line(name: str, value: str) -> str:
    """Return a header that the application added."""
    if name.lower() == SENDER:
        return _address_line(name, (Address.stored(value),))
    return text_line(name, value)


@lru_cache(maxsize=64)
def _date_line(second: int) -> str:
    """Return the Date header. Cached: mails in a batch were often queued in the same second."""
    return f"Date: {format_datetime(datetime.fromtimestamp(second, UTC))}"


def text_line(name: str, value: str) -> str:
    """Return a header of free text."""
    column = len(name) + 2
    write = _encoded if _needs_encoding(value) else _folded
    return f"{name}: {write(value, column)}"


def type_line(content_type: str, *more: str) -> str:
    """Return a Content-Type header, in which the parameters `more` replace those of the type."""
    kind, semicolon, rest = content_type.partition(";")
    given = (
        []
        if not semicolon
        else [one for one in _PARAMETER.findall(semicolon + rest) if not _is_among(one, more)]
    )
    return _in_pieces([f"Content-Type: {kind}", *given, *more])


def _is_among(parameter: str, others: tuple[str, ...]) -> bool:
    name = parameter.partition("=")[0].lower()
    return any(other.startswith(f"{name}=") for other in others)


def disposition_line(attachment: Attachment) -> str:
    """Return a Content-Disposition header with the name of the file."""
    return _in_pieces(
        [f"Content-Disposition: {attachment.disposition}", *_filename(attachment.filename)]
    )


def _filename(name: str | None) -> list[str]:
    """Return the parameters of a file name, as in RFC 2231: several if the name is long."""
    if name is None:
        return []
    if _PLAIN_FILENAME.fullmatch(name):
        return [f"filename={_quoted(name)}"]
    pieces = re.findall(r"(?:%..|[^%]){1,60}", encode_rfc2231(name, "utf-8"))
    if len(pieces) == 1:
        return [f"filename*={pieces[0]}"]
    return [f"filename*{number}*={piece}" for number, piece in enumerate(pieces)]


def _in_pieces(pieces: list[str]) -> str:
    """Join the pieces of a header on one line, or on a line each if they are too long."""
    line = "; ".join(pieces)
    return line if len(line) <= _LINE else ";\r\n ".join(pieces)


def _address_line(name: str, addresses: Iterable[Address]) -> str:
    return f"{name}: " + ",\r\n ".join([_mailbox(address, len(name) + 2) for address in addresses])


def _mailbox(address: Address, column: int) -> str:
    name = address.name
    if not name:
        return address.email
    if _needs_encoding(name) or len(name) > _MAX_NAME:
        return f"{_encoded(name, column)}\r\n <{address.email}>"
    if not _ATOM.fullmatch(name):
        name = _quoted(name)
    return f"{name} <{address.email}>"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- lines --------------------------------------------------------------------------------------


def _needs_encoding(value: str) -> bool:
    # "=?" would be decoded as an encoded word; blanks at the ends would be lost.
    if not value.isascii() or "=?" in value or value != value.strip():
        return True
    return len(value) > _MAX_WORD and any(len(word) > _MAX_WORD for word in _WORD.findall(value))


def _folded(value: str, column: int) -> str:
    """Fold a value before blanks. Unfolding restores it, with runs of blanks."""
    if column + len(value) <= _LINE:
        return value
    lines, line = [], ""
    for word in _WORD.findall(value):
        if line and column + len(line) + len(word) > _LINE:
            lines.append(line)
            line, column = "", 0
        line += word
    return "\r\n".join([*lines, line])


def _encoded(value: str, column: int) -> str:
    """Return encoded words (RFC 2047) of whole characters, in the shorter encoding."""
    room = max(_ENCODED_LINE - column - len("=?utf-8?q??="), _MIN_ROOM)
    octets = value.encode()
    to_escape = len(octets.translate(None, _LITERALS))
    if to_escape > len(octets) // 6:
        pieces = [
            binascii.b2a_base64(piece, newline=False).decode()
            for piece in _octets_in(room // 4 * 3).findall(octets)
        ]
        return "\r\n ".join([f"=?utf-8?b?{piece}?=" for piece in pieces])
    escaped = "".join([_ESCAPED[octet] for octet in octets])
    return "\r\n ".join([f"=?utf-8?q?{piece}?=" for piece in _escapes_in(room).findall(escaped)])


@cache
def _octets_in(room: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?s:.){1,%d}(?![\x80-\xbf])" % room)


@cache
def _escapes_in(room: int) -> re.Pattern[str]:
    return re.compile(rf".{{1,{room}}}(?<!=)(?<!=.)(?!=[89AB])")
