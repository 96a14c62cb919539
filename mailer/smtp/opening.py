"""The login sequence of a relay: connect, greet, start TLS, log in."""

import smtplib
import socket
import ssl
import threading
import time
from logging import Logger
from math import inf

from mailer.logs import get_logger
from mailer.message import Outcome, Phase, Verdict
from mailer.message.text import printable
from mailer.policy import classify
from mailer.settings import RelaySettings
from mailer.settings.proxy import checked_proxy
from mailer.smtp import advice
from mailer.smtp.login import log_in, log_in_with_token
from mailer.smtp.oauth import NoToken, Tokens
from mailer.smtp.session import Session, Step
from mailer.smtp.sockets import Misconfigured, connect, connect_unix
from mailer.smtp.tls import make_context

log: Logger = get_logger(__name__)


class SessionOpener:
    """Opens sessions with a relay. Connections share its TLS context and its tokens."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._tokens = (
            Tokens(settings.oauth, settings.connect_timeout) if settings.oauth is not None else None
        )
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._resumable: ssl.SSLSession | None = None  # makes the next handshake shorter
        self._has_warned = False

    def open(self) -> Session | Outcome:
        """Return a session that is ready for mail, or the failure."""
        settings = self._settings
        session = Session(
            settings.mail_server, command_timeout=settings.command_timeout, is_lmtp=settings.lmtp
        )
        session.set_debuglevel(int(settings.mail_debug))
        try:
            self._open(session)
        except (OSError, ValueError, NoToken) as error:
            # ValueError: an unencodable name or password.
            session.abort()
            return self._failure(error, session.step)
        except BaseException:
            session.abort()
            raise
        return session

    def _open(self, session: Session) -> None:
        settings = self._settings
        session.expires = time.monotonic() + settings.longest_opening
        # Before the connection: the relay would have to wait for the token.
        token = "" if self._tokens is None else self._tokens.get()
        session.sock = self._connect()
        if settings.mail_use_ssl:
            session.secure(self._tls_context(), self._resumable, settings.connect_timeout)
        session.greet()
        if settings.mail_use_tls:
            session.start_tls(self._tls_context(), self._resumable)
        session.step, session.logs_in = Step.LOGIN, True
        self._log_in(session, token)
        session.logs_in = False
        session.expires = inf
        if isinstance(session.sock, ssl.SSLSocket):
            self._resumable = session.sock.session

    def _log_in(self, session: Session, token: str) -> None:
        user, password = self._settings.mail_username, self._settings.mail_password
        if user and self._tokens is not None:
            log_in_with_token(session, user, token, self._tokens)
        elif user and password:
            if not (session.is_secure or self._settings.is_local):
                self._warn_once()
            log_in(session, user, password)

    def _warn_once(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            name = self._settings.name
            log.warning(
                "Login is sent without TLS: relay=%s. Set MAIL_USE_TLS or MAIL_USE_SSL.", name
            )

    def _connect(self) -> socket.socket:
        """Connect within `connect_timeout`, through a proxy if there is one."""
        settings = self._settings
        if settings.is_unix:
            return connect_unix(settings.mail_server, settings.connect_timeout)
        deadline = time.monotonic() + settings.connect_timeout
        server, port, source, proxy = (
            settings.mail_server,
            settings.mail_port,
            settings.source_address,
            settings.proxy_to_use,
        )
        if proxy is None:
            return connect(server, port, source, deadline)
        key = "ALL_PROXY" if settings.proxy is None else "MAILER_PROXY"
        try:
            checked_proxy(proxy)
            from mailer.smtp.proxy import connect_through  # noqa: PLC0415 -- an extra
        except ValueError as error:
            raise Misconfigured(
                f"the proxy of {key} is unusable", f"{key}: {error}; or set MAILER_PROXY to none."
            ) from None
        return connect_through(proxy, server, port, key=key, source=source, deadline=deadline)

    def _tls_context(self) -> ssl.SSLContext:
        """Return the context of all sessions: TLS resumes a session only in its own context."""
        with self._lock:
            if self._context is None:
                self._context = make_context(self._settings)
            return self._context

    def _failure(self, error: Exception, step: Step) -> Outcome:
        reason, retry_after = f"{type(error).__name__}: {error}", None
        if isinstance(error, NoToken | Misconfigured):
            reason = str(error)
        elif isinstance(error, smtplib.SMTPResponseException):
            text = (
                error.smtp_error.decode("utf-8", "replace")
                if isinstance(error.smtp_error, bytes)
                else error.smtp_error
            )
            reason = f"{error.smtp_code} {text}"
            retry_after = classify(Phase.CONNECT, error.smtp_code, reason).retry_after
        reply = printable(f"no connection to the relay: {reason}")
        return Outcome(
            Verdict.UNREACHED,
            reply,
            Phase.CONNECT,
            retry_after,
            advice.for_error(error, step, self._settings),
        )
