"""A hook for tests: each accepted mail, with the parts of the call that are not stored."""

from collections.abc import Callable
from dataclasses import dataclass

from mailer.intake.content import Content
from mailer.message import Envelope, Message


@dataclass(frozen=True, slots=True)
class Accepted:
    """A mail that is stored, and the content that it was made of, if that was of `send_email()`."""

    message: Message
    envelope: Envelope
    content: Content | None


#: It is called once the mail is stored: with a caller's transaction, after the commit.
Recorder = Callable[[Accepted], None]
