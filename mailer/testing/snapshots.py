"""Snapshots: mails as texts, which files beside the tests keep."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mailer.message import Message

#: Ids and times, which differ from run to run, in the order in which they are looked for.
_VARIABLE = {
    r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b": "<uuid>",
    # ISO 8601, as `isoformat()` and `str()` write a datetime
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|[+-]\d\d:?\d\d)\b)?": "<time>",
    # of mails and of HTTP
    r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d( (GMT|[+-]\d{4})\b)?": (
        "<time>"
    ),
    r"\b\d{4}-\d\d-\d\d\b": "<date>",
}
_NAME = re.compile(r"[\w.-]+")
_HASH_DIGITS = 16


class Snapshots:
    """A folder of snapshots.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> Snapshots(folder.name, update=True).compare("hello", "Hello Ada!")
    >>> Snapshots(folder.name).compare("hello", "Hello Ada!")
    >>> folder.cleanup()

    Args:
        folder: The folder, which is made if it is needed.
        update: Whether to write each snapshot instead of comparing it.
    """

    def __init__(self, folder: Path | str, *, update: bool = False) -> None:
        self._folder = Path(folder)
        self._update = update

    def compare(self, name: str, text: str) -> None:
        """Compare a text with the snapshot of this name, or write the snapshot.

        Raises:
            AssertionError: The text differs, or there is no such snapshot yet.
            ValueError: The name can't be that of a file.
        """
        __tracebackhide__ = True
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"snapshot {name!r}: use letters, digits, '_', '-' and '.', since it is the name of"
                " a file."
            )
        file = self._folder / f"{name}.txt"
        if self._update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        if not file.exists():
            raise AssertionError(
                f"There is no snapshot {file}. pytest --mailer-update-snapshots writes it with this"
                f" text:\n\n{text}"
            )
        kept = file.read_text(encoding="utf-8")
        if kept != text:
            raise AssertionError(
                f"The mail is not that of the snapshot {file}. If the change is meant, pytest"
                f" --mailer-update-snapshots writes the new one.\n\n{_difference(kept, text)}"
            )


def _difference(kept: str, text: str) -> str:
    lines = difflib.unified_diff(
        kept.splitlines(), text.splitlines(), "snapshot", "mail", lineterm=""
    )
    return "\n".join(lines) or "They differ in the end of a line only."


def snapshot_of(message: Message, bcc: Iterable[str], replace: Mapping[str, str]) -> str:
    """Return a message as a text, with a word in place of each id and time."""
    text = "\n".join(_lines(message, bcc)) + "\n"
    for own in (message.message_id, message.id):
        text = text.replace(own, "<id>")
    for pattern, word in (*replace.items(), *_VARIABLE.items()):
        text = re.sub(pattern, word, text)
    return text


def _lines(message: Message, bcc: Iterable[str]) -> Iterator[str]:
    recipients = {"To": message.to, "Cc": message.cc, "Bcc": bcc, "Reply-To": message.reply_to}
    yield f"From: {message.sender}"
    for name, addresses in recipients.items():
        if listed := ", ".join(map(str, addresses)):
            yield f"{name}: {listed}"
    yield f"Subject: {message.subject}"
    for name, value in message.headers:
        yield f"{name}: {value}"
    parts = {"text": message.text, "html": message.html, **dict(message.alternatives)}
    for kind, content in parts.items():
        if content is not None:
            yield from ("", f"--- {kind}", *content.rstrip().splitlines())
    if message.attachments:
        yield from ("", "--- attachments")
    for one in message.attachments:
        digest = hashlib.sha256(one.data).hexdigest()[:_HASH_DIGITS]
        named = one.filename or one.content_id or "(no name)"
        yield f"{named} {one.content_type} {len(one.data)} bytes sha256 {digest}"
