"""A session with a relay: smtplib's, in which no wait is without end, and it is known how much of a mail was taken."""

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

_MOST_LINES = 100  # that are kept
_ENDLESS = 10_000  # lines; to read on would keep a core busy until the time-out
_CHUNK = 65536
_SHOWN = 60
# How replies of one line begin that need no closer look.
_USUAL = frozenset({b"250 ", b"354 "})


class Step(Enum):
    """How far the way in has been gone."""

    CONNECT = auto()
    GREET = auto()
    SECURE = auto()
    LOGIN = auto()


class Session(smtplib.SMTP):
    """One connection, greeted and secured by the commands of smtplib, used by our own. Not for two threads at once."""

    sock: socket.socket | None
    #: For what is mere politeness: a relay that is slow at it loses its warm connection, and nothing else.
    courtesy_seconds = 2.0

    def __init__(self, name: str, *, command_timeout: float, is_lmtp: bool) -> None:
        super().__init__(local_hostname=own_name(self.courtesy_seconds))
        self.is_lmtp = is_lmtp
        self.ehlo_msg = "lhlo" if is_lmtp else "ehlo"
        self._host = name  # the one the relay's certificate is checked against
        self.step = Step.CONNECT
        self._command_timeout = command_timeout
        self._arrived = b""
        self._read = 0  # of what has arrived
        self._patience: float | None = None  # the time-out of the socket
        self.expires = inf  #: when it must be ready to use
        self.taken = 0  #: bytes of what was said last that are in the hands of the kernel
        self.logs_in = False  #: what is said is a password, and may be said again by who hears it: MAIL_DEBUG does not show it

    # --- bytes ------------------------------------------------------------------------------------

    def say(self, data: bytes, seconds: float, more: bytes = b"", *, is_mail: bool = False) -> None:
        """All of it within the time-out, or an OSError; `taken` tells how far it came."""
        self.taken = 0
        sock = self._connected()
        deadline = time.monotonic() + seconds
        if self.debuglevel:
            self._show("send:", b"(%d octets, with a mail)" % len(data + more) if is_mail else data + more)
        self._wait_at_most(seconds)
        self.taken = sock.send(data)
        if self.taken < len(data) or more:
            self._say_rest(sock, deadline, data, more)

    def _say_rest(self, sock: socket.socket, deadline: float, *parts: bytes) -> None:
        began = 0
        for part in parts:
            view = memoryview(part)
            while (said := self.taken - began) < len(part):
                self._wait_at_most(_left(deadline))
                self.taken += sock.send(view[said:])
            began += len(part)

    def hear(self, seconds: float) -> bytes:
        """The next reply, the whole of it within the time-out: smtplib would wait that long for every single byte.

        Lines after the first have lost their codes. What is too long is cut.
        """
        start = self._read
        end = self._arrived.find(b"\n", start)
        if end < 0:
            deadline = time.monotonic() + seconds
            self._receive(seconds)
            return self._hear_whole(deadline)
        reply = self._arrived[start:end]
        if reply[:4] not in _USUAL or self.debuglevel:
            return self._hear_whole(time.monotonic() + seconds)
        self._read = end + 1
        return reply

    def _hear_whole(self, deadline: float) -> bytes:
        lines: list[bytes] = []
        count = 0
        while (line := self._line(deadline))[3:4] == b"-":
            count += 1
            if count <= _MOST_LINES:
                lines.append(line[4 : LONGEST_REPLY + 4].strip())
            elif count == _ENDLESS:
                raise smtplib.SMTPServerDisconnected("the relay's reply has no end")
        reply = b"%b %b" % (line[:3], b"\n".join([*lines, line[4:]])) if lines else line
        if self.debuglevel:
            self._show("reply:", reply)
        if not is_reply(reply):
            raise smtplib.SMTPServerDisconnected(f"the relay said something that is no reply: {reply[:_SHOWN]!r}")
        return reply

    def _line(self, deadline: float) -> bytes:
        while (end := self._arrived.find(b"\n", self._read)) < 0:
            self._receive(_left(deadline))
        line = self._arrived[self._read : end]
        self._read = end + 1
        return line

    def _receive(self, seconds: float) -> None:
        self._wait_at_most(seconds)
        arrived = self._connected().recv(_CHUNK)
        if not arrived:
            raise smtplib.SMTPServerDisconnected("the relay hung up")
        unread = self._arrived[self._read :]
        self._arrived = unread[:LONGEST_REPLY] + arrived  # all that is unread is the beginning of a line
        self._read = 0

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._patience:
            self._connected().settimeout(seconds)
            self._patience = seconds

    def _connected(self) -> socket.socket:
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("not connected")
        return self.sock

    def _show(self, what: str, said: bytes) -> None:
        said = b"(login)" if self.logs_in else said
        now = [datetime.now().astimezone().time()] if self.debuglevel > 1 else []
        with suppress(OSError, ValueError):  # nobody reads stderr any more, which is no reason to end a mail
            print(*now, what, mask_unless_shown(str(said)), file=sys.stderr)

    # --- the way in -------------------------------------------------------------------------------

    def send(self, s: bytes | str) -> None:  # type: ignore[override]
        """A command of smtplib's."""
        self.say(s.encode("ascii") if isinstance(s, str) else s, self._granted())

    def getreply(self) -> tuple[int, bytes]:
        """The reply to a command of smtplib's."""
        reply = self.hear(self._granted())
        return int(reply[:3]), reply[4:].strip()

    def _granted(self) -> float:
        return min(self._command_timeout, _left(self.expires))

    def greet(self) -> None:
        """Hear who is there, and say who we are."""
        self.step = Step.GREET
        code, reply = self.getreply()
        if code != 220:
            raise smtplib.SMTPConnectError(code, reply)
        self._hello()

    def _hello(self) -> None:
        """EHLO, and HELO to a relay that does not know it. smtplib says HELO after a 421 as well, and so loses the reason."""
        code, reply = self.ehlo()
        if 500 <= code < 600 and not self.is_lmtp:
            code, reply = self.helo()
        if code != 250:
            raise smtplib.SMTPHeloError(code, reply)

    def start_tls(self, context: ssl.SSLContext, resumable: ssl.SSLSession | None) -> None:
        """Or nothing at all: if STARTTLS was stripped from what the relay offers, a password must not go in clear."""
        self.step = Step.SECURE
        if not self.has_extn("starttls"):
            raise smtplib.SMTPNotSupportedError("the relay offers no STARTTLS")
        code, reply = self.docmd("STARTTLS")
        if code != 220:
            raise smtplib.SMTPResponseException(code, reply)
        if self.has_unread:
            raise smtplib.SMTPServerDisconnected("more was said before TLS than was asked for: somebody is in between")
        self.secure(context, resumable, self._granted())
        self.does_esmtp, self.esmtp_features = False, {}  # anybody may have said that
        self._hello()

    def secure(self, context: ssl.SSLContext, resumable: ssl.SSLSession | None, seconds: float) -> None:
        """Speak TLS from here on."""
        self.step = Step.SECURE
        sock = self._connected()
        sock.settimeout(seconds)
        self.sock = context.wrap_socket(sock, server_hostname=self._host, session=resumable)
        self._patience = None

    @property
    def is_secure(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket)

    # --- its end ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.sock is not None

    @property
    def has_unread(self) -> bool:
        """Whether more has arrived than was asked for so far."""
        return self._read < len(self._arrived)

    def is_quiet(self) -> bool:
        """Whether the relay has said nothing by itself: what it would say while we are silent is that it hangs up."""
        if self.sock is None or self.has_unread:
            return False
        look = select.poll()
        look.register(self.sock, select.POLLIN)
        return not look.poll(0)

    def leave(self) -> None:
        """Say goodbye if the relay listens, and hang up in any case."""
        with suppress(OSError):
            self.say(b"QUIT\r\n", self.courtesy_seconds)  # the reply would change nothing, so nobody waits for it
        self.close()

    def cut(self) -> None:
        """Hang up on a relay that has stopped making sense. Forked processes may hold the socket too: that must not keep it."""
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
