"""The SMTP server that receives the mails of a test."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from mailer.smtpd.inbox import Received
from mailer.smtpd.server import InboxServer
from tests.services.waiting import wait_until


class Sink(InboxServer):
    """The inbox of the local stack, in memory, with faults on demand.

    `sink.faults.add(Fault(…))`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(self._keep, **options)
        self.messages: list[Received] = []

    def wait_for(self, count: int, timeout: float = 10) -> list[Received]:
        """Return the mails, in the order of arrival, as soon as there are this many."""
        __tracebackhide__ = True
        with suppress(pytest.fail.Exception):
            wait_until(lambda: len(self.messages) >= count, timeout)
        assert len(self.messages) >= count, (
            f"waited {timeout:g} s for {count} mails, {len(self.messages)} came"
        )
        return list(self.messages)

    def _keep(self, sender: str, recipients: list[str], raw: bytes) -> str:
        mail_id = str(len(self.messages) + 1)
        self.messages.append(Received(mail_id, datetime.now(UTC), sender, tuple(recipients), raw))
        return mail_id
