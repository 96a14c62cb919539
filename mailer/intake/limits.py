"""The limits of a mail: sizes and numbers."""

from collections.abc import Iterable, Iterator

from mailer.errors import OverLimit
from mailer.intake.arguments import Item
from mailer.message import Message
from mailer.settings import Settings


def check_limits(
    message: Message, size: int, recipients: tuple[str, ...], settings: Settings
) -> None:
    """Raise `OverLimit` for a mail that is too much. The error names the setting to raise."""
    if len(recipients) > settings.max_recipients:
        raise OverLimit(
            f"to, cc, bcc: {len(recipients)} recipients, MAILER_MAX_RECIPIENTS allows"
            f" {settings.max_recipients} in one mail."
        )
    for field, text in _header_texts(message):
        if len(text) > settings.max_header:
            raise OverLimit(
                f"{field}: {len(text)} characters, MAILER_MAX_HEADER allows {settings.max_header}."
            )
    if size > settings.max_size:
        raise OverLimit(f"The mail has {size} bytes, MAILER_MAX_SIZE allows {settings.max_size}.")


def _header_texts(message: Message) -> Iterator[tuple[str, str]]:
    """Return the texts of headers that have no limit of their own, as addresses have."""
    yield "subject", message.subject
    yield "sender", message.sender.name
    for field, addresses in (
        ("to", message.to),
        ("cc", message.cc),
        ("reply_to", message.reply_to),
    ):
        for address in addresses:
            yield field, address.name
    for name, value in message.headers:
        yield f"headers[{name!r}]", value
    for attachment in message.attachments:
        yield "attachment: filename", attachment.filename or ""
        for name, value in attachment.headers:
            yield f"attachment {attachment.filename!r}: {name}", value


def size_of(message: Message) -> int:
    texts = [
        message.text or "",
        message.html or "",
        *(content for _kind, content in message.alternatives),
    ]
    headers = [text for pair in message.headers for text in pair]
    data = sum(len(attachment.data) for attachment in message.attachments)
    return data + sum(len(text.encode()) for text in (*texts, *headers, message.subject))


def while_small(files: Iterable[Item], most: int) -> Iterator[Item]:
    """Yield the files. Raise `OverLimit` at the first that a mail can't carry as well."""
    size = 0
    for file in files:
        data = getattr(file, "data", b"")
        # Anything else is refused in a moment.
        size += len(data) if isinstance(data, (str, bytes)) else 0
        if size > most:
            name = getattr(file, "filename", None)
            raise OverLimit(
                f"attachment {name!r}: with it the mail has {size} bytes, MAILER_MAX_SIZE allows"
                f" {most}."
            )
        yield file
