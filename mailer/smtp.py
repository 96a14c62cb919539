"""Mail goes to a relay: Flask-Mail's `Connection`, with what it lacks.

Each phase has its time-out, TLS is verified, a connection stays warm for the next mail, the server's reply is kept, and a QUIT
that fails never turns an accepted mail into a failed one. What went wrong is a value (`Outcome`): exceptions end in this room.
"""

import logging
import os
import smtplib
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import flask_mail
from flask import Flask

from mailer.message import Outcome, Phase, Verdict
from mailer.mime import WireMessage
from mailer.policy import classify
from mailer.settings import Settings

# For RSET, and for sending QUIT: a relay that is slow at these loses its warm connection, and nothing else.
_COURTESY_SECONDS = 2.0
# A connection that was silent for longer is asked whether it is still there, before a mail depends on it.
_TRUSTED_IDLE_SECONDS = 2.0
_LONGEST_REPLY = 1000
_MOST_LINES = 100

log = logging.getLogger(__name__)


class RelayConnection(flask_mail.Connection):
    """One SMTP session. Not for two threads at once."""

    def __init__(self, mail: flask_mail._Mail, settings: Settings, app: Flask) -> None:
        super().__init__(mail)  # type: ignore[arg-type]  # annotated as Mail, used as its state
        self._settings = settings
        self._app = app
        self._phase = Phase.CONNECT
        self._last_used = time.monotonic()

    # --- a session ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, greet, secure and log in, unless that is done or nothing is to be sent anyway."""
        self._phase = Phase.CONNECT
        if self.host is None and not self.mail.suppress:
            self.host = self.configure_host()
            self.num_emails = 0

    def configure_host(self) -> smtplib.SMTP:
        settings = self._settings
        if settings.mail_use_ssl:
            context = _verifying(settings)
            host: _Session = _TlsSession(local_hostname=_own_name(), timeout=settings.connect_timeout, context=context)
        else:
            host = _Session(local_hostname=_own_name(), timeout=settings.connect_timeout)
        host.set_debuglevel(int(settings.mail_debug))
        host.greeting_timeout = settings.command_timeout
        host.expect_name(settings.mail_server)
        try:
            self._greet(host)
        except BaseException:
            host.close()
            raise
        return host

    def _greet(self, host: smtplib.SMTP) -> None:
        settings = self._settings
        code, reply = host.connect(settings.mail_server, settings.mail_port)
        if code != 220:
            raise smtplib.SMTPConnectError(code, reply)
        _say_hello(host)
        if settings.mail_use_tls:
            # Refuses when the relay does not offer it: a stripped STARTTLS must not send passwords in clear.
            host.starttls(context=_verifying(settings))
            _say_hello(host)
        if settings.mail_username and settings.mail_password:
            host.login(settings.mail_username, settings.mail_password)

    def close(self) -> None:
        """Say goodbye if the relay listens, and hang up in any case."""
        host, self.host = self.host, None
        if host is None:
            return
        with suppress(OSError, smtplib.SMTPException):
            _wait_at_most(host, _COURTESY_SECONDS)
            host.putcmd("quit")  # the reply would change nothing, so nobody waits for it
        host.close()

    def drop(self) -> None:
        """Hang up on a relay that has stopped making sense."""
        host, self.host = self.host, None
        if host is not None:
            host.close()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def idle_seconds(self) -> float:
        return time.monotonic() - self._last_used

    def is_alive(self) -> bool:
        """Whether the relay is still there, asked only when it was silent for a while."""
        if self.host is None or self.idle_seconds < _TRUSTED_IDLE_SECONDS:
            return True
        try:
            _wait_at_most(self.host, self._settings.connect_timeout)
            return self.host.noop()[0] == 250
        except (OSError, smtplib.SMTPException):
            return False

    # --- a mail -------------------------------------------------------------------------------------------------------

    def send(self, message: WireMessage, envelope_from: str | None = None) -> Outcome:  # type: ignore[override]
        """One mail to one recipient, and what came of it."""
        try:
            self.open()
            reply = self._transmit(message, envelope_from or message.envelope_from) if self.host else "250 delivered to nobody"
        except _NoYes as error:
            outcome = self._answered(error.smtp_code, error.smtp_error)
        except (smtplib.SMTPNotSupportedError, ValueError) as error:
            outcome = self._unspeakable(error)
        except (OSError, smtplib.SMTPException) as error:
            outcome = self._broken(error)
        else:
            outcome = Outcome(Verdict.SENT, reply)
            self._accepted(message)
        self._last_used = time.monotonic()
        return outcome

    def _transmit(self, message: WireMessage, sender: str) -> str:
        """The dialogue. `_phase` always says how far it came; only the relay's 250 to the final dot returns."""
        host = self.host
        assert host is not None
        _wait_at_most(host, self._settings.command_timeout)
        self._phase = Phase.MAIL
        _expect(host.mail(sender, self._mail_options(host, message)), {250})
        self._phase = Phase.RCPT
        _expect(host.rcpt(message.recipient, message.rcpt_options), {250, 251})
        self._phase = Phase.DATA
        _expect(host.docmd("DATA"), {354})
        _wait_at_most(host, self._settings.data_timeout)
        host.send(_dot_stuffed(message.as_bytes()))
        self._phase = Phase.DOT
        _wait_at_most(host, self._settings.reply_timeout)
        reply = host.getreply()
        _expect(reply, range(200, 300))
        return _words(*reply)

    def _mail_options(self, host: smtplib.SMTP, message: WireMessage) -> list[str]:
        options = [option for option in message.mail_options if option.upper() != "SMTPUTF8"]
        if host.has_extn("size"):
            options.append(f"SIZE={len(message.as_bytes())}")
        if message.needs_smtputf8:
            if not host.has_extn("smtputf8"):
                raise _NoYes(553, b"5.6.7 an address has letters beyond ASCII, and the relay does not know SMTPUTF8")
            options.append("SMTPUTF8")
        return options

    def _accepted(self, message: WireMessage) -> None:
        self.num_emails += 1
        try:
            flask_mail.email_dispatched.send(self._app, message=message)
        except Exception:  # whatever a receiver does, the mail was accepted
            log.exception("A receiver of email_dispatched failed; mail %s was delivered all the same.", message.msgId)
        if self._settings.mail_max_emails and self.num_emails >= self._settings.mail_max_emails:
            self.close()

    def _answered(self, code: int, text: bytes | str) -> Outcome:
        """A reply that is no yes: the session can go on after RSET, unless the relay is closing it."""
        outcome = Outcome(classify(self._phase, code), _words(code, text), self._phase)
        if code == 421 or outcome.verdict is Verdict.UNREACHED or not self._reset():
            self.drop()
        return outcome

    def _reset(self) -> bool:
        if self.host is None:
            return False
        try:
            _wait_at_most(self.host, _COURTESY_SECONDS)
            return self.host.rset()[0] == 250
        except (OSError, smtplib.SMTPException):
            return False

    def _broken(self, error: Exception) -> Outcome:
        """No reply. After the final dot nobody knows; before it, the relay has no mail."""
        self.drop()
        verdict, words = _SILENCE[self._phase]
        return Outcome(verdict, f"{words}: {_reason(error)}", self._phase)

    def _unspeakable(self, error: Exception) -> Outcome:
        """A sender, recipient or option that can't be said to this relay is the mail's fault; our name or password is not."""
        if self._phase not in (Phase.MAIL, Phase.RCPT):
            return self._broken(error)
        self.drop()
        return Outcome(Verdict.REFUSED, f"the relay would not understand it: {_reason(error)}", self._phase)


class _Session(smtplib.SMTP):
    """An SMTP session that may take longer to greet us than to be connected, but no reply longer than its time-out."""

    greeting_timeout: float

    def expect_name(self, name: str) -> None:
        """The name the relay's certificate is checked against; smtplib would learn it from its constructor only."""
        self._host = name

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connected: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]
        connected.settimeout(self.greeting_timeout)
        return connected

    def getreply(self) -> tuple[int, bytes]:
        """A reply, the whole of it within the time-out: smtplib would wait that long for every single byte."""
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("not connected")
        patience = self.sock.gettimeout() or 0.0
        deadline = time.monotonic() + patience
        try:
            lines = [self._line(self.sock, deadline)]
            while lines[-1][3:4] == b"-":
                lines = [*lines[:_MOST_LINES], self._line(self.sock, deadline)]
        finally:
            self.sock.settimeout(patience)
        code = lines[-1][:3]
        return int(code) if code.isdigit() else -1, b"\n".join(line[4:].strip() for line in lines)

    def _line(self, sock: socket.socket, deadline: float) -> bytes:
        """The next line; of one that is too long the rest is read and thrown away."""
        if self.file is None:
            self.file = sock.makefile("rb")
        line = b""
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            arrived = self.file.peek()
            if not arrived:
                raise smtplib.SMTPServerDisconnected("the relay hung up")
            end = arrived.find(b"\n") + 1
            line = (line + self.file.read(end or len(arrived)))[:_LONGEST_REPLY]
            if end:
                if self.debuglevel:
                    print("reply:", line, file=sys.stderr)
                return line
        raise TimeoutError("timed out")


class _TlsSession(_Session, smtplib.SMTP_SSL):
    """The same, with TLS from the first byte."""


class _NoYes(smtplib.SMTPResponseException):
    """The relay answered a command, with something else than yes."""


@cache
def _own_name() -> str:
    # Asked once: where DNS is slow, each look-up takes seconds. Where there is no name, smtplib takes the address.
    return smtplib.SMTP().local_hostname


# What it means that the relay fell silent. At RCPT and DATA it may be this mail that it can't bear: that counts as a try.
_SILENCE = {
    Phase.CONNECT: (Verdict.UNREACHED, "no connection to the relay"),
    Phase.MAIL: (Verdict.UNREACHED, "connection lost at MAIL"),
    Phase.RCPT: (Verdict.DEFERRED, "connection lost at RCPT"),
    Phase.DATA: (Verdict.DEFERRED, "connection lost before the end of the mail"),
    Phase.DOT: (Verdict.DOUBTFUL, "no reply after the end of the mail"),
}


def _say_hello(host: smtplib.SMTP) -> None:
    """EHLO, and HELO to a relay that does not know it. smtplib says HELO after a 421 as well, and so loses the reason."""
    code, reply = host.ehlo()
    if 500 <= code < 600:
        code, reply = host.helo()
    if code != 250:
        raise smtplib.SMTPHeloError(code, reply)


def _verifying(settings: Settings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=settings.tls_ca_file)


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return _words(error.smtp_code, error.smtp_error)
    return _printable(f"{type(error).__name__}: {error}")


def _wait_at_most(host: smtplib.SMTP, seconds: float) -> None:
    if host.sock is not None:
        host.sock.settimeout(seconds)


def _expect(reply: tuple[int, bytes], codes: Container[int]) -> None:
    if not 200 <= reply[0] < 600:
        raise smtplib.SMTPServerDisconnected("the relay said something that is no reply")
    if reply[0] not in codes:
        raise _NoYes(*reply)


def _words(code: int, text: bytes | str) -> str:
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return _printable(f"{code} {said}")


def _printable(text: str) -> str:
    """On one line, for people: a relay may say anything."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:_LONGEST_REPLY]


def _dot_stuffed(mail: bytes) -> bytes:
    if mail.startswith(b"."):
        mail = b"." + mail
    return mail.replace(b"\r\n.", b"\r\n..") + (b".\r\n" if mail.endswith(b"\r\n") else b"\r\n.\r\n")


class Relay:
    """The relay of one app in one process: its warm connections, shared by the threads."""

    def __init__(self, settings: Settings, app: Flask, mail: flask_mail._Mail) -> None:
        self.name = f"{settings.mail_server}:{settings.mail_port}"
        self._settings = settings
        self._app = app
        self._mail = mail
        self._idle: list[RelayConnection] = []
        self._parents: list[RelayConnection] = []
        self._lock = threading.Lock()
        self._rests_until = 0.0
        _survive_forks(self)

    @property
    def is_resting(self) -> bool:
        """Whether it could not be reached a moment ago: then nobody should wait for it again so soon."""
        return time.monotonic() < self._rests_until

    @contextmanager
    def connection(self) -> Iterator[RelayConnection]:
        """A warm connection if there is one; it is kept for the next mail."""
        connection = self._take() or RelayConnection(self._mail, self._settings, self._app)
        try:
            yield connection
        except BaseException:
            connection.drop()
            raise
        self._keep(connection)

    def send(self, connection: RelayConnection, message: WireMessage) -> Outcome:
        """Send; a warm connection that turns out to be gone before the mail began is replaced once."""
        was_warm = connection.host is not None
        outcome = connection.send(message)
        if outcome.verdict is Verdict.UNREACHED and was_warm:
            outcome = connection.send(message)
        if outcome.verdict is Verdict.UNREACHED:
            self._rests_until = time.monotonic() + self._settings.relay_rest
        return outcome

    def close_idle(self, longer_than: float = 0.0) -> None:
        """Hang up on connections nobody used for so long."""
        with self._lock:
            old = [connection for connection in self._idle if connection.idle_seconds >= longer_than]
            self._idle = [connection for connection in self._idle if connection not in old]
        for connection in old:
            connection.close()

    def _take(self) -> RelayConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.idle_seconds < self._settings.idle_timeout and connection.is_alive():
                return connection
            connection.drop()

    def _keep(self, connection: RelayConnection) -> None:
        if connection.host is not None:
            with self._lock:
                self._idle.append(connection)

    def after_fork_in_child(self) -> None:
        """In a child: the sessions are the parent's. Kept, so that no collector closes a TLS session that is not ours."""
        self._parents, self._idle = self._idle, []
        self._lock = threading.Lock()


def _survive_forks(relay: Relay) -> None:
    reference = weakref.ref(relay)

    def forked() -> None:
        if (survivor := reference()) is not None:
            survivor.after_fork_in_child()

    os.register_at_fork(after_in_child=forked)
