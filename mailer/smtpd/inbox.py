"""Received mails, kept as files: the SMTP server writes them, the inbox page reads them.

A mail is one file, `<id>.mail`: a line of JSON with the envelope, then the bytes exactly as they
came over the wire. Ids sort by time of arrival. Files are readable by their owner only, because
mail contains secrets.
"""

import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import cached_property
from pathlib import Path

from mailer.private import create_private_file, make_private_folder

SUFFIX = ".mail"
ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Received:
    """A received mail: the envelope and the bytes of one SMTP transaction."""

    id: str
    at: datetime
    envelope_from: str
    recipients: tuple[str, ...]
    raw: bytes

    @cached_property
    def parsed(self) -> EmailMessage:
        return message_from_bytes(self.raw, policy=policy.default)

    @property
    def subject(self) -> str:
        return str(self.parsed.get("Subject", ""))

    @property
    def message_id(self) -> str:
        return str(self.parsed.get("Message-ID", "")).strip()


class Inbox:
    """A directory of received mails. One process writes; any number read at the same time."""

    def __init__(self, directory: Path) -> None:
        self.directory: Path = Path(directory)

    def add(self, envelope_from: str, recipients: Iterable[str], raw: bytes) -> str:
        """Write a mail and return its id. A reader sees the whole mail or none of it."""
        at = datetime.now(UTC)
        mail_id = f"{at:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
        envelope = {"at": at.isoformat(), "from": envelope_from, "to": list(recipients)}
        make_private_folder(self.directory)
        unfinished = self.directory / f"{mail_id}.part"
        with os.fdopen(create_private_file(unfinished), "wb") as file:
            file.write(json.dumps(envelope).encode() + b"\n" + raw)
        unfinished.replace(self._path(mail_id))
        return mail_id

    def latest(self, limit: int = 100) -> list[Received]:
        """Return the newest mails, newest first."""
        found = (self.get(mail_id) for mail_id in sorted(self._ids(), reverse=True)[:limit])
        return [mail for mail in found if mail]

    def get(self, mail_id: str) -> Received | None:
        if not ID.fullmatch(mail_id):  # it may come from a URL and becomes a file name
            return None
        try:
            content = self._path(mail_id).read_bytes()
        except FileNotFoundError:
            return None
        head, _, raw = content.partition(b"\n")
        envelope = json.loads(head)
        return Received(
            mail_id,
            datetime.fromisoformat(envelope["at"]),
            envelope["from"],
            tuple(envelope["to"]),
            raw,
        )

    def count(self) -> int:
        return len(self._ids())

    def clear(self) -> None:
        for mail_id in self._ids():
            self._path(mail_id).unlink(missing_ok=True)

    def _path(self, mail_id: str) -> Path:
        return self.directory / f"{mail_id}{SUFFIX}"

    def _ids(self) -> list[str]:
        return [path.stem for path in self.directory.glob(f"*{SUFFIX}")]
