"""A relay with scripted answers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Self

from flask import Flask, current_app, has_app_context

from mailer.delivery import build_delivery
from mailer.errors import ConfigurationError
from mailer.settings import Settings
from mailer.settings.relay import ListedRelay
from mailer.smtpd.faults import ACCEPT_AND_DROP, DROP, HANG, Fault, Stage
from mailer.smtpd.inbox import Received
from mailer.testing.bells import SilentBell, ring_instead
from mailer.wiring import State, state_of

#: The stages at which a relay knows whom the mail is for.
_OF_A_MAIL = ("rcpt", "data", "dot")


class FakeRelay:
    """A relay on this machine that accepts each mail, or answers as a test has told it.

    In the `with` block, mail of the app waits in the queue. `drain()` delivers it to this relay,
    which keeps it in `mails`, and passes nothing on. Only `Mail(app, when="now")` delivers to it in
    the call.

    >>> from mailer.testing import FakeRelay, Outbox
    >>> with Outbox(app) as outbox, FakeRelay(app) as relay:
    ...     relay.refuse("eve@example.com", 550, "no such user")
    ...     receipt = mailer.send_email(
    ...         ["ada@example.com", "eve@example.com"], "Welcome", "mail/welcome", name="you"
    ...     )
    ...     for delivery in outbox.drain():
    ...         print(delivery.recipient, delivery.status, delivery.reply)
    ada@example.com sent 250 2.0.0 Ok: queued as 1
    eve@example.com failed 550 no such user
    >>> [mail.recipients for mail in relay.mails]
    [('ada@example.com',)]

    Args:
        app: The app whose mail the relay gets. None: the current app. Without an app context, set
            `MAIL_SERVER` and `MAIL_PORT` of an app to `host` and `port`.
        timeout: The seconds after which Mailer gives up on a relay that does not answer.

    Raises:
        ConfigurationError: aiosmtpd is not installed: `pip install 'flask-mailer-queue[testing]'`.
    """

    def __init__(self, app: Flask | None = None, *, timeout: float = 2.0) -> None:
        if find_spec("aiosmtpd") is None:
            raise ConfigurationError(
                "FakeRelay needs aiosmtpd, which is not installed. Install it with: pip install"
                " 'flask-mailer-queue[testing]'"
            )
        from mailer.smtpd.server import InboxServer  # noqa: PLC0415 -- aiosmtpd is an extra

        self._app = app
        self._timeout = timeout
        self._server = InboxServer(self._keep)
        self._stack = ExitStack()
        self.mails: list[Received] = []  #: the accepted mails, in the order of arrival

    @property
    def host(self) -> str:
        """Return the host, for `MAIL_SERVER`."""
        return self._server.host

    @property
    def port(self) -> int:
        """Return the port, for `MAIL_PORT`. It is chosen at the beginning of the `with` block."""
        return self._server.port

    @property
    def connections(self) -> int:
        """Return how many connections were opened. A connection carries many mails."""
        return self._server.connections

    # --- the script ------------------------------------------------------------------------------

    def refuse(
        self,
        recipient: str | None = None,
        code: int = 550,
        text: str = "5.1.1 no such user",
        *,
        times: int | None = None,
    ) -> None:
        """Refuse mail for good.

        >>> relay = FakeRelay()
        >>> relay.refuse("ada@example.com", 550, "no such user")

        Args:
            recipient: The recipient whose mail is refused. None: each.
            code: The code of the reply, from 500 to 599.
            text: The words of the reply.
            times: How often. None: always.
        """
        self._add("rcpt", _reply(code, text, 5), recipient, times)

    def defer(
        self,
        recipient: str | None = None,
        code: int = 451,
        text: str = "4.7.1 try again later",
        *,
        times: int | None = 1,
    ) -> None:
        """Refuse mail for now: Mailer tries again later.

        >>> relay = FakeRelay()
        >>> relay.defer("ada@example.com", 451, "greylisted", times=2)

        Args:
            recipient: The recipient whose mail is refused. None: each.
            code: The code of the reply, from 400 to 499. After 421, the connection is closed.
            text: The words of the reply.
            times: How often. None: always.
        """
        self._add("rcpt", _reply(code, text, 4), recipient, times)

    def drop(
        self, recipient: str | None = None, *, at: Stage = "dot", times: int | None = 1
    ) -> None:
        """Close the connection instead of answering.

        >>> relay = FakeRelay()
        >>> relay.drop(at="connect", times=None)  # as if nobody were there

        Args:
            recipient: The recipient whose mail is meant. None: each.
            at: The stage: `"connect"`, `"ehlo"`, `"mail"`, `"rcpt"`, `"data"`, or `"dot"`, the end
                of the mail.
            times: How often. None: always.
        """
        self._add(at, DROP, recipient, times)

    def hang(
        self, recipient: str | None = None, *, at: Stage = "dot", times: int | None = 1
    ) -> None:
        """Say nothing, until Mailer gives the connection up after `timeout` seconds.

        >>> relay = FakeRelay(timeout=0.1)
        >>> relay.hang("ada@example.com", at="rcpt")

        Args:
            recipient: The recipient whose mail is meant. None: each.
            at: The stage, as for `drop()`.
            times: How often. None: always.
        """
        self._add(at, HANG, recipient, times)

    def lose_reply(self, recipient: str | None = None, *, times: int | None = 1) -> None:
        """Accept the mail, and close the connection instead of saying so: the mail is in doubt.

        >>> relay = FakeRelay()
        >>> relay.lose_reply("ada@example.com")

        Args:
            recipient: The recipient whose mail is meant. None: each.
            times: How often. None: always.
        """
        self._add("dot", ACCEPT_AND_DROP, recipient, times)

    def behave(self) -> None:
        """Forget the script: accept each mail from now on.

        >>> relay = FakeRelay()
        >>> relay.drop(at="connect", times=None)
        >>> relay.behave()
        """
        self._server.faults.clear()

    def _add(self, stage: Stage, action: str, recipient: str | None, times: int | None) -> None:
        if recipient is not None and stage not in _OF_A_MAIL:
            raise ValueError(
                f"at={stage!r}: the relay does not know yet whom the mail is for: give one of"
                f" {', '.join(_OF_A_MAIL)}, or no recipient."
            )
        self._server.faults.add(Fault(stage, action, times, recipient))

    def _keep(self, sender: str, recipients: list[str], raw: bytes) -> str:
        mail_id = str(len(self.mails) + 1)
        self.mails.append(Received(mail_id, datetime.now(UTC), sender, tuple(recipients), raw))
        return mail_id

    # --- start and stop ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        app = self._app or (current_app._get_current_object() if has_app_context() else None)  # type: ignore[attr-defined]  # noqa: SLF001 -- Werkzeug's own name
        with ExitStack() as stack:
            stack.enter_context(self._server)
            if app is not None:
                stack.enter_context(self._carrying_mail_of(app, state_of(app)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @contextmanager
    def _carrying_mail_of(self, app: Flask, state: State) -> Iterator[None]:
        """Deliver the app's mail here, at each `drain()`."""
        settings = self._settings(state.settings)
        parts = build_delivery(app, settings, state.store, SilentBell(), state.clock)
        with ring_instead(SilentBell(), state.intake):
            before = state.outbound.replace_parts(parts)
            try:
                yield
            finally:
                state.outbound.replace_parts(before)
                parts.dispatcher.hang_up()

    def _settings(self, settings: Settings) -> Settings:
        """Return the settings of the app, but with this relay, and without limits in Redis."""
        names = ("CONNECT", "COMMAND", "DATA", "REPLY")
        relay = ListedRelay.model_validate(
            {
                "MAIL_SERVER": self.host,
                "MAIL_PORT": self.port,
                **{f"MAILER_{name}_TIMEOUT": self._timeout for name in names},
            }
        )
        changes = {
            "mail_suppress_send": False,
            "listed_relays": (relay,),
            "redis_url": "memory://",
        }
        return settings.model_copy(update=changes)


def _reply(code: int, text: str, first_digit: int) -> str:
    if code // 100 != first_digit:
        raise ValueError(f"code {code}: give one from {first_digit}00 to {first_digit}99.")
    return f"{code} {text}"
