"""The bytes of a mail, made once for all its recipients."""

from collections.abc import Iterable

from mailer.message import Message
from mailer.mime.bodies import body
from mailer.mime.dkim import SigningKey, signature_lines
from mailer.mime.headers import header_lines
from mailer.mime.signer import Signer

_END = b".\r\n"


class Composed:
    """A mail as it goes over the wire, the same for every recipient: Bcc is nowhere in it.

    Relays with 8BITMIME take letters beyond ASCII as they are; for one without, they are encoded once that is asked for.
    """

    __slots__ = ("_eight", "_message", "_seven", "needs_smtputf8")

    def __init__(self, message: Message, keys: tuple[SigningKey, ...]) -> None:
        head, chunks = _written(message, keys, eightbit=not keys)  # RFC 6376, 5.3: nobody may encode a signed body again
        self.needs_smtputf8 = not (head.isascii() and message.bounce_address.isascii())
        self._eight = Form(head, chunks)
        is_seven = not self._eight.is_8bit or all(chunk.isascii() for chunk in chunks)  # only the head may have other letters
        self._seven = self._eight if is_seven else None
        self._message = message

    def form(self, *, eightbit: bool) -> "Form":
        """For a relay that offers 8BITMIME, or for one that does not."""
        if eightbit:
            return self._eight
        if self._seven is None:  # then it is not signed: what is signed is ASCII
            self._seven = Form(*_written(self._message, (), eightbit=False))
        return self._seven

    def as_bytes(self) -> bytes:
        """As any relay takes it."""
        return self.form(eightbit=False).as_bytes()


class Form:
    """What goes over the wire after DATA: dots doubled, and the one that ends it all."""

    __slots__ = ("is_8bit", "size", "wire")

    def __init__(self, head: bytes, chunks: Iterable[bytes]) -> None:
        mail = b"".join([head, *chunks, _END])
        self.size = len(mail) - len(_END)  #: as RFC 1870 counts, without what DATA adds
        self.is_8bit = not mail.isascii()
        if mail.find(b"\r\n.", 0, -1 - len(b"\r\n")) >= 0:  # before the last line
            mail = mail[: -len(_END)].replace(b"\r\n.", b"\r\n..") + _END
        self.wire = mail

    def as_bytes(self) -> bytes:
        return self.wire[:-3].replace(b"\r\n..", b"\r\n.")


def compose(message: Message, signer: Signer | None = None) -> Composed:
    """Write it down; with a signer that has a key for its sender, sign it."""
    return Composed(message, signer.keys_for(message.sender.domain) if signer else ())


def _written(message: Message, keys: tuple[SigningKey, ...], *, eightbit: bool) -> tuple[bytes, list[bytes]]:
    """Write the header and the chunks of the body: a large mail is put together once."""
    outermost, chunks, _ = body(message, eightbit=eightbit)
    lines = [*header_lines(message), "MIME-Version: 1.0", *outermost]
    if keys:
        content = b"".join(chunks)
        lines = [*signature_lines(keys, lines, content, signed_at=message.created_at), *lines]
    return "\r\n".join([*lines, "", ""]).encode(), chunks
