"""Mail that kills the process which composes it, as a parser that overruns its memory does.

Workers take it when told to.
"""

import os
import signal

from mailer.delivery import preparing
from mailer.message import Message
from mailer.mime import Composed, Signer, compose

#: To whom such a mail is.
NAME = "poison"
#: The variable in the environment of a worker.
TAKEN_IF = "TESTS_WITH_POISON"


def take() -> None:
    """From now on, in this process and its children."""
    preparing.compose = _deadly  # type: ignore[attr-defined]  # where it is called


def _deadly(message: Message, signer: Signer | None = None) -> Composed:
    if message.to[0].email.startswith(NAME):
        os.kill(os.getpid(), signal.SIGKILL)
    return compose(message, signer)
