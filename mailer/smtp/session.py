"""A session with a relay: that of smtplib, with time-outs for whole replies."""

import select
import smtplib
import socket
import ssl
import sys
import time
from contextlib import suppress
from datetime import datetime
from enum import Enum, auto
from math import inf

from mailer.logs import mask_unless_shown
from mailer.message.text import LONGEST_REPLY
from mailer.smtp.names import own_name
from mailer.smtp.replies import is_reply

_MAX_LINES = 100  # lines to keep of a reply
_ENDLESS = 10_000  # lines after which a reply is an attack
_CHUNK = 65536
_SHOWN = 60
# The beginnings of one-line replies that need no further check.
_USUAL = frozenset({b"250 ", b"354 "})


class Step(Enum):
    """The steps of the login sequence."""

    CONNECT = auto()
    GREET = auto()
    SECURE = auto()
    LOGIN = auto()


class Session(smtplib.SMTP):
    """A connection that sends EHLO and STARTTLS by smtplib. Not thread-safe."""

    sock: socket.socket | None
    #: The time-out of optional commands: a slow relay only loses its warm connection.
    courtesy_seconds: float = 2.0
    does_esmtp: bool
    esmtp_features: dict[str, str]

    def __init__(self, name: str, *, command_timeout: float, is_lmtp: bool) -> None:
        super().__init__(local_hostname=own_name(self.courtesy_seconds))
        self.is_lmtp = is_lmtp
        self.ehlo_msg = "lhlo" if is_lmtp else "ehlo"
        self._host = name  # the name in the certificate of the relay
        self.step: Step = Step.CONNECT
        self._command_timeout = command_timeout
        self._arrived = b""
        self._read = 0  # position in `_arrived`
        self._timeout: float | None = None  # of the socket
        self.expires = inf  #: the deadline of the login sequence
        self.sent: int = 0  #: bytes of the last `send_bytes` that the kernel has accepted
        self.logs_in = False  #: commands and replies may contain a password: MAIL_DEBUG hides them

    # --- bytes -----------------------------------------------------------------------------------

    def send_bytes(
        self, data: bytes, seconds: float, more: bytes = b"", *, is_mail: bool = False
    ) -> None:
        """Send `data` and `more` within the time-out, or raise OSError; `sent` counts the bytes."""
        self.sent = 0
        sock = self._connected()
        deadline = time.monotonic() + seconds
        if self.debuglevel:
            self._show(
                "send:", b"(%d octets, with a mail)" % len(data + more) if is_mail else data + more
            )
        self._wait_at_most(seconds)
        self.sent = sock.send(data)
        if self.sent < len(data) or more:
            self._send_rest(sock, deadline, data, more)

    def _send_rest(self, sock: socket.socket, deadline: float, *parts: bytes) -> None:
        began = 0
        for part in parts:
            view = memoryview(part)
            while (done := self.sent - began) < len(part):
                self._wait_at_most(_left(deadline))
                self.sent += sock.send(view[done:])
            began += len(part)

    def receive_reply(self, seconds: float) -> bytes:
        """Receive a reply, all of it within the time-out: smtplib would wait for each byte anew.

        The codes of lines after the first are removed. Long replies are truncated.
        """
        start = self._read
        end = self._arrived.find(b"\n", start)
        if end < 0:
            deadline = time.monotonic() + seconds
            self._receive_more(seconds)
            return self._receive_lines(deadline)
        reply = self._arrived[start:end]
        if reply[:4] not in _USUAL or self.debuglevel:
            return self._receive_lines(time.monotonic() + seconds)
        self._read = end + 1
        return reply

    def _receive_lines(self, deadline: float) -> bytes:
        lines: list[bytes] = []
        count = 0
        while (line := self._line(deadline))[3:4] == b"-":
            count += 1
            if count <= _MAX_LINES:
                lines.append(line[4 : LONGEST_REPLY + 4].strip())
            elif count == _ENDLESS:
                raise smtplib.SMTPServerDisconnected("the relay's reply has no end")
        reply = b"%b %b" % (line[:3], b"\n".join([*lines, line[4:]])) if lines else line
        if self.debuglevel:
            self._show("reply:", reply)
        if not is_reply(reply):
            raise smtplib.SMTPServerDisconnected(
                f"the relay sent something that is no reply: {reply[:_SHOWN]!r}"
            )
        return reply

    def _line(self, deadline: float) -> bytes:
        while (end := self._arrived.find(b"\n", self._read)) < 0:
            self._receive_more(_left(deadline))
        line = self._arrived[self._read : end]
        self._read = end + 1
        return line

    def _receive_more(self, seconds: float) -> None:
        self._wait_at_most(seconds)
        arrived = self._connected().recv(_CHUNK)
        if not arrived:
            raise smtplib.SMTPServerDisconnected("the relay hung up")
        unread = self._arrived[self._read :]
        # The unread part is the beginning of a line.
        self._arrived = unread[:LONGEST_REPLY] + arrived
        self._read = 0

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._timeout:
            self._connected().settimeout(seconds)
            self._timeout = seconds

    def _connected(self) -> socket.socket:
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("not connected")
        return self.sock

    def _show(self, label: str, data: bytes) -> None:
        data = b"(login)" if self.logs_in else data
        now = [datetime.now().astimezone().time()] if self.debuglevel > 1 else []
        with suppress(OSError, ValueError):  # a closed stderr must not end a mail
            print(*now, label, mask_unless_shown(str(data)), file=sys.stderr)

    # --- the login sequence, for smtplib ---------------------------------------------------------

    def send(self, s: bytes | str) -> None:  # type: ignore[override]
        """Send a command of smtplib."""
        self.send_bytes(s.encode("ascii") if isinstance(s, str) else s, self._seconds())

    def getreply(self) -> tuple[int, bytes]:
        """Receive the reply to a command of smtplib."""
        reply = self.receive_reply(self._seconds())
        return int(reply[:3]), reply[4:].strip()

    def _seconds(self) -> float:
        return min(self._command_timeout, _left(self.expires))

    def greet(self) -> None:
        """Receive the greeting, and send EHLO."""
        self.step = Step.GREET
        code, reply = self.getreply()
        if code != 220:
            raise smtplib.SMTPConnectError(code, reply)
        self._hello()

    def _hello(self) -> None:
        """Send EHLO, and HELO if the relay does not know EHLO.

        smtplib sends HELO after a 421, too, and so loses the reason.
        """
        code, reply = self.ehlo()
        if 500 <= code < 600 and not self.is_lmtp:
            code, reply = self.helo()
        if code != 250:
            raise smtplib.SMTPHeloError(code, reply)

    def start_tls(self, context: ssl.SSLContext, resumable: ssl.SSLSession | None) -> None:
        """Start TLS, or fail: an attacker may have removed STARTTLS from the offers."""
        self.step = Step.SECURE
        if not self.has_extn("starttls"):
            raise smtplib.SMTPNotSupportedError("the relay offers no STARTTLS")
        code, reply = self.docmd("STARTTLS")
        if code != 220:
            raise smtplib.SMTPResponseException(code, reply)
        if self.has_unread:
            raise smtplib.SMTPServerDisconnected(
                "unexpected data before TLS: somebody may be intercepting the connection"
            )
        self.secure(context, resumable, self._seconds())
        self.does_esmtp, self.esmtp_features = False, {}  # an attacker may have sent these
        self._hello()

    def secure(
        self, context: ssl.SSLContext, resumable: ssl.SSLSession | None, seconds: float
    ) -> None:
        """Switch the connection to TLS."""
        self.step = Step.SECURE
        sock = self._connected()
        sock.settimeout(seconds)
        self.sock = context.wrap_socket(sock, server_hostname=self._host, session=resumable)
        self._timeout = None

    @property
    def is_secure(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket)

    # --- the end ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.sock is not None

    @property
    def has_unread(self) -> bool:
        """True if data has arrived that is not yet read."""
        return self._read < len(self._arrived)

    def is_quiet(self) -> bool:
        """Return whether the relay sent nothing unasked, such as that it closes the connection."""
        if self.sock is None or self.has_unread:
            return False
        look = select.poll()
        look.register(self.sock, select.POLLIN)
        return not look.poll(0)

    def leave(self) -> None:
        """Send QUIT, if that is possible at once, and close the connection."""
        with suppress(OSError):
            self.send_bytes(b"QUIT\r\n", self.courtesy_seconds)  # without waiting for the reply
        self.close()

    def abort(self) -> None:
        """Close the connection without QUIT, also if a forked process has the socket, too."""
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
