"""The MIME parts of a mail: text and html as alternatives, inline images, attached files."""

import binascii

from mailer.errors import InvalidAttachment
from mailer.message import Attachment, Message
from mailer.mime.headers import disposition_line, text_line, type_line

#: The header lines of a part, its encoded content in chunks, and whether that is 8-bit.
Part = tuple[list[str], list[bytes], bool]

_MAX_LINE = 990  # RFC 5322 allows 998
_ENCODED_AT_ONCE = 57 * 8192  # bytes of a file: a multiple of a line of base64
_BEYOND_ASCII = bytes(range(0x80, 0x100))
_CONTROLS = bytes(octet for octet in (*range(0x20), 0x7F) if octet not in b"\t\r\n")


def body(message: Message, *, eightbit: bool) -> Part:
    """Return the body of a mail. Leave non-ASCII text unencoded if `eightbit`."""
    boundary = f"=_{message.id}"
    inline = [_file(attachment) for attachment in message.attachments if attachment.content_id]
    attached = [
        _file(attachment) for attachment in message.attachments if not attachment.content_id
    ]

    versions = [] if message.text is None else [_text("text/plain", message.text, eightbit)]
    if message.html is not None:
        html = _text("text/html", message.html, eightbit)
        versions.append(
            _multipart("related", [html, *inline], f"{boundary}_r", 'type="text/html"')
            if inline
            else html
        )
    else:
        attached = inline + attached
    for kind, content in message.alternatives:
        versions.append(_text(kind if "/" in kind else f"text/{kind}", content, eightbit))

    whole = (
        versions[0] if len(versions) == 1 else _multipart("alternative", versions, f"{boundary}_a")
    )
    return _multipart("mixed", [whole, *attached], f"{boundary}_m") if attached else whole


def _multipart(kind: str, parts: list[Part], boundary: str, *parameters: str) -> Part:
    chunks: list[bytes] = []
    is_8bit = False
    for lines, content, part_is_8bit in parts:
        head = "\r\n".join([f"--{boundary}", *lines, "", ""])
        chunks += [head.encode(), *content, b"\r\n"]
        is_8bit = is_8bit or part_is_8bit
    chunks.append(f"--{boundary}--\r\n".encode())
    declared = [type_line(f"multipart/{kind}", *parameters, f'boundary="{boundary}"')]
    if is_8bit:
        declared.append("Content-Transfer-Encoding: 8bit")
    return declared, chunks, is_8bit


def _text(kind: str, text: str, eightbit: bool) -> Part:
    data = text.encode("utf-8", "replace")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not data.endswith(b"\n"):
        data += b"\n"
    encoding, content = _transfer_encoded(data, eightbit)
    return (
        [type_line(kind, "charset=utf-8"), f"Content-Transfer-Encoding: {encoding}"],
        [content],
        encoding == "8bit",
    )


def _transfer_encoded(data: bytes, eightbit: bool) -> tuple[str, bytes]:
    """Return the transfer encoding of a text and the encoded text.

    That is 7bit, 8bit or quoted-printable, or base64 if that is shorter or the text is binary.
    """
    size = len(data)
    if len(data.translate(None, _CONTROLS)) != size:
        return "base64", _base64(data.replace(b"\n", b"\r\n"))
    is_ascii = data.isascii()
    if (is_ascii or eightbit) and not _has_long_line(data):
        return "7bit" if is_ascii else "8bit", data.replace(b"\n", b"\r\n")
    if not is_ascii and size - len(data.translate(None, _BEYOND_ASCII)) > size // 6:
        return "base64", _base64(data.replace(b"\n", b"\r\n"))
    return "quoted-printable", binascii.b2a_qp(data, istext=True).replace(b"\n", b"\r\n")


def _has_long_line(data: bytes) -> bool:
    """Search for a line break once for each `_MAX_LINE` octets."""
    at = 0
    while len(data) - at > _MAX_LINE:
        end = data.rfind(b"\n", at, at + _MAX_LINE)
        if end < 0:
            return True
        at = end + 1
    return False


def _base64(data: bytes) -> bytes:
    return b"".join(_base64_chunks(data))


def _base64_chunks(data: bytes) -> list[bytes]:
    """Encode a file in chunks, so that a large one is never a list of single lines."""
    if len(data) <= _ENCODED_AT_ONCE:
        return [_base64_lines(data)]
    view = memoryview(data)
    starts = range(0, len(data), _ENCODED_AT_ONCE)
    return [_base64_lines(view[at : at + _ENCODED_AT_ONCE]) for at in starts]


def _base64_lines(data: bytes | memoryview) -> bytes:
    encoded = binascii.b2a_base64(data, newline=False)
    return b"".join([encoded[at : at + 76] + b"\r\n" for at in range(0, len(encoded), 76)])


def _file(attachment: Attachment) -> Part:
    if attachment.data is None:  # the store did not find the bytes
        raise InvalidAttachment(
            f"attachment {attachment.filename!r}: its bytes are missing from the database, or were"
            " changed"
        )
    lines = [
        type_line(attachment.content_type),
        "Content-Transfer-Encoding: base64",
        disposition_line(attachment),
    ]
    if attachment.content_id:
        lines.append(f"Content-ID: <{attachment.content_id}>")
    lines.extend(text_line(name, value) for name, value in attachment.headers)
    return lines, _base64_chunks(attachment.data), False
