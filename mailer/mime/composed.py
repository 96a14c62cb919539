"""The bytes of a mail, composed once for all recipients."""

from collections.abc import Iterable

from mailer.message import Message
from mailer.mime.bodies import body
from mailer.mime.dkim import SigningKey, signature_lines
from mailer.mime.headers import header_lines
from mailer.mime.signer import Signer

_END = b".\r\n"


class Composed:
    """The bytes of a mail for the wire, the same for every recipient. They never contain Bcc.

    Relays with 8BITMIME get the 8-bit form. The 7-bit form for other relays is made on demand.
    """

    __slots__ = ("_eight", "_message", "_seven", "needs_smtputf8")

    def __init__(self, message: Message, keys: tuple[SigningKey, ...]) -> None:
        # RFC 6376, 5.3: a signed body must never be encoded again.
        head, chunks = _serialise(message, keys, eightbit=not keys)
        self.needs_smtputf8: bool = not (head.isascii() and message.bounce_address.isascii())
        self._eight = Form(head, chunks)
        # A mail whose head alone is 8-bit has a single form.
        is_seven = not self._eight.is_8bit or all(chunk.isascii() for chunk in chunks)
        self._seven = self._eight if is_seven else None
        self._message = message

    def form(self, *, eightbit: bool) -> "Form":
        """Return the form for relays with 8BITMIME, or the one for all others."""
        if eightbit:
            return self._eight
        if self._seven is None:  # without keys: a signed mail is always ASCII
            self._seven = Form(*_serialise(self._message, (), eightbit=False))
        return self._seven

    def as_bytes(self) -> bytes:
        """Return the 7-bit form, which every relay accepts."""
        return self.form(eightbit=False).as_bytes()


class Form:
    """The bytes after DATA, with doubled dots and the final dot."""

    __slots__ = ("is_8bit", "size", "wire")

    def __init__(self, head: bytes, chunks: Iterable[bytes]) -> None:
        mail = b"".join([head, *chunks, _END])
        self.size: int = len(mail) - len(_END)  #: as RFC 1870 counts, without the additions of DATA
        self.is_8bit: bool = not mail.isascii()
        if mail.find(b"\r\n.", 0, -1 - len(b"\r\n")) >= 0:  # before the last line
            mail = mail[: -len(_END)].replace(b"\r\n.", b"\r\n..") + _END
        self.wire: bytes = mail

    def as_bytes(self) -> bytes:
        return self.wire[:-3].replace(b"\r\n..", b"\r\n.")


def compose(message: Message, signer: Signer | None = None) -> Composed:
    """Compose a mail, signed if the signer has a key for its sender."""
    return Composed(message, signer.keys_for(message.sender.domain) if signer else ())


def _serialise(
    message: Message, keys: tuple[SigningKey, ...], *, eightbit: bool
) -> tuple[bytes, list[bytes]]:
    """Return the head and the chunks of the body, which are joined only once."""
    outermost, chunks, _ = body(message, eightbit=eightbit)
    lines = [*header_lines(message), "MIME-Version: 1.0", *outermost]
    if keys:
        content = b"".join(chunks)
        lines = [*signature_lines(keys, lines, content, signed_at=message.created_at), *lines]
    return "\r\n".join([*lines, "", ""]).encode(), chunks
