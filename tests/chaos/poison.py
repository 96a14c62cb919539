"""Mail that kills the process that composes it, as a crash inside a parser would.

A worker does so if the variable TAKEN_IF is in its environment.
"""

import os
import signal

from mailer.delivery import preparing
from mailer.message import Message
from mailer.mime import Composed, Signer, compose

#: The beginning of the recipient's address of such a mail.
NAME = "poison"
#: The environment variable that makes a worker call `take()`.
TAKEN_IF = "TESTS_WITH_POISON"


def take() -> None:
    """Let composing such a mail kill this process or one of its children from now on."""
    preparing.compose = _deadly  # type: ignore[attr-defined]  # where delivery calls it


def _deadly(message: Message, signer: Signer | None = None) -> Composed:
    if message.to[0].email.startswith(NAME):
        os.kill(os.getpid(), signal.SIGKILL)
    return compose(message, signer)
