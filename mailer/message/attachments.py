"""Attachments, checked, so that they can be written into a mail."""

import mimetypes
import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Any, Self

from mailer.errors import InvalidAttachment
from mailer.message.headers import HEADER_NAME
from mailer.message.text import check_text

# A multipart or a whole message is no file: base64, in which files travel, is forbidden for them.
_WORD = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_FILE_TYPE = re.compile(
    rf"(?!multipart/|message/){_WORD}/{_WORD}"
    rf'(?:; ?{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]{{0,126}}")){{0,4}}',
    re.IGNORECASE,
)
_WRITTEN_FOR_PARTS = frozenset(
    {
        "content-type",
        "content-transfer-encoding",
        "content-disposition",
        "content-id",
        "mime-version",
    }
)
_CONTENT_ID = re.compile(r"[A-Za-z0-9._@+-]{1,120}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a mail, or an image that its html shows.

    >>> invoice = Attachment("invoice.pdf", b"%PDF-1.7 ...")
    >>> invoice.content_type, invoice.disposition
    ('application/pdf', 'attachment')

    With a `content_id`, the attachment is an inline image: `<img src="cid:logo">`.

    >>> logo = Attachment("logo.png", b"...", content_id="logo")
    >>> files = [invoice, logo]
    >>> receipt = mailer.send_email(
    ...     "ada@example.com", "Your order", "mail/order", number=42, attachments=files
    ... )

    Args:
        filename: The name that a reader sees. None: it has no name.
        data: The bytes of the file.
        content_type: The MIME type. If it is empty, it is guessed from the name.
        content_id: The name of an inline image.
        disposition: `"attachment"` or `"inline"`. If it is empty, `"inline"` with a `content_id`.
        headers: Pairs of more headers of this part: `(("Content-Description", "The invoice"),)`.

    Raises:
        InvalidAttachment: A value can't be written into a mail.
    """

    filename: str | None
    data: bytes = field(repr=False)
    content_type: str = ""
    content_id: str | None = None
    disposition: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"attachment {self.filename!r}"
        if not isinstance(self.data, bytes):
            hint = (
                " The order is filename, data, content_type, unlike in flask_mail.Attachment."
                if is_file_type(self.data)
                else ""
            )
            raise InvalidAttachment(
                f"{where}: its data is {type(self.data).__name__}: give bytes.{hint}"
            )
        if self.filename is not None:
            name = check_text(self.filename, field=f"{where}: filename", error=InvalidAttachment)
            object.__setattr__(self, "filename", name)
        if not self.content_type:
            object.__setattr__(self, "content_type", _guessed_type(self.filename))
        if not is_file_type(self.content_type):
            raise InvalidAttachment(
                f"{where}: {self.content_type!r} is no type for a file: give one such as"
                " 'application/pdf'."
            )
        if self.content_id is not None and not (
            isinstance(self.content_id, str) and _CONTENT_ID.fullmatch(self.content_id)
        ):
            raise InvalidAttachment(
                f"{where}: content_id {self.content_id!r}: use letters, digits and . _ @ + - only."
            )
        if not self.disposition:
            object.__setattr__(self, "disposition", "inline" if self.content_id else "attachment")
        if self.disposition not in ("inline", "attachment"):
            raise InvalidAttachment(
                f"{where}: disposition {self.disposition!r}: use 'attachment' or 'inline'."
            )
        object.__setattr__(self, "headers", _check_part_headers(where, self.headers))

    @classmethod
    def stored(cls, **fields: Any) -> Self:
        """Return a stored attachment. It was checked at intake: a newer rule must not stop it."""
        attachment = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(attachment, name, value)
        return attachment

    def with_ascii_filename(self) -> "Attachment":
        """Return the attachment with its name in ASCII, as MAIL_ASCII_ATTACHMENTS asks for.

        Accents are dropped, and letters of other scripts are left out, as Flask-Mail does it.
        """
        plain = (
            unicodedata.normalize("NFKD", self.filename or "").encode("ascii", "ignore").decode()
        )
        return replace(
            self, filename=" ".join(plain.split()) if self.filename is not None else None
        )


def is_file_type(given: object) -> bool:
    """Return whether a part of a mail can have this content type, parameters included."""
    return isinstance(given, str) and _FILE_TYPE.fullmatch(given) is not None


def _guessed_type(filename: str | None) -> str:
    kind, compression = mimetypes.guess_type(filename or "")
    return kind if kind and not compression and is_file_type(kind) else "application/octet-stream"


def _check_part_headers(where: str, headers: Any) -> tuple[tuple[str, str], ...]:
    are_pairs = isinstance(headers, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in headers
    )
    if not are_pairs:
        raise InvalidAttachment(
            f"{where}: headers {headers!r}: give pairs, such as (('Content-Description', 'The"
            " invoice'),)."
        )
    return tuple(_check_part_header(where, name, value) for name, value in headers)


def _check_part_header(where: str, name: str, value: str) -> tuple[str, str]:
    if (
        not isinstance(name, str)
        or not HEADER_NAME.fullmatch(name)
        or name.lower() in _WRITTEN_FOR_PARTS
    ):
        raise InvalidAttachment(
            f"{where}: the header {name!r} is written by Mailer or no header name: leave it out."
        )
    return name, check_text(value, field=f"{where}: {name}", error=InvalidAttachment)
