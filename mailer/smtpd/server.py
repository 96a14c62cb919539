"""The SMTP server, which accepts every mail and plays faults on demand (see `faults`).

    with InboxServer(inbox.add) as server:          # a free port on loopback, in its own thread
        server.faults.add(Fault("rcpt", "550 5.1.1 no such user"))
        ... server.port, server.connections ...

This module needs aiosmtpd, the extra `inbox`.
"""

import asyncio
import hmac
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import MISSING, SMTP, AuthResult, Envelope, LoginPassword, Session

from mailer.smtpd.faults import (
    ACCEPT_AND_DROP,
    AFTER_ACCEPTING,
    CLOSE_AFTER_250,
    DELAY,
    DROP,
    HANG,
    Fault,
    Faults,
    Stage,
)

log: logging.Logger = logging.getLogger("mailer.inbox")

#: (envelope sender, recipients, bytes of the mail) -> the id for the reply; called in the server's
#: thread. `Inbox.add` is one.
Accept = Callable[[str, list[str], bytes], str]


class InboxServer:
    """An SMTP server on the loopback interface, in one thread, from `start()` to `stop()`.

    With `tls`, the server offers STARTTLS and requires it; with `implicit_tls` as well, TLS begins
    at the first byte. With `credentials`, a pair of user and password, the server accepts mail only
    after AUTH.
    """

    def __init__(
        self,
        accept: Accept,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Iterable[Fault] = (),
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self.accept = accept
        self.host = host
        self.port: int = port
        self.faults: Faults = Faults(faults)
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.credentials = credentials
        self.connections = 0  # a warm connection that is used again counts once
        self._sessions: set[_Session] = set()

    def start(self) -> Self:
        # Here, so that a port in use is the caller's error.
        listener = socket.create_server((self.host, self.port), backlog=512)
        self.port = listener.getsockname()[1]
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(listener),), name="inbox", daemon=True
        )
        self._thread.start()
        self._started.wait()
        return self

    def stop(self) -> None:
        """Close all connections and wait for the thread to end. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def _serve(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        # aiosmtpd leaves the exceptions of sessions that were cut off to the loop; faults cut
        # sessions all the time.
        self._loop.set_exception_handler(
            lambda loop, context: log.debug(
                "%s", context["message"], exc_info=context.get("exception")
            )
        )
        self._stopping = asyncio.Event()
        server = await self._loop.create_server(
            self._new_session, sock=listener, ssl=self.tls if self.implicit_tls else None
        )
        self._started.set()
        await self._stopping.wait()
        # Before close(): a connection that asyncio is just accepting would leak.
        self._loop.remove_reader(listener)
        await self._end_sessions()
        server.close()

    async def _end_sessions(self) -> None:
        while self._sessions or self._tasks():
            tasks = self._tasks()
            # A connection accepted just now gets its transport, which alone can close it.
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for session in list(self._sessions):
                session.abort()

    def _tasks(self) -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    def _new_session(self) -> "_Session":
        starttls = None if self.implicit_tls else self.tls
        return _Session(
            _Conversation(self),
            sessions=self._sessions,
            loop=self._loop,
            hostname="inbox.localhost",  # the default asks the DNS at every connection
            ident="Mailer inbox",
            enable_SMTPUTF8=True,
            tls_context=starttls,
            require_starttls=starttls is not None,
            auth_require_tls=starttls is not None,  # aiosmtpd does not see implicit TLS
            authenticator=self._authenticate,
        )

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: Any
    ) -> AuthResult:
        given = (login.login, login.password) if isinstance(login, LoginPassword) else (b"", b"")
        wanted = tuple(text.encode() for text in self.credentials or ("", ""))
        equal = hmac.compare_digest(b"\0".join(given), b"\0".join(wanted))
        return AuthResult(
            success=equal and self.credentials is not None, handled=False, auth_data=login
        )


class _Session(SMTP):
    """The protocol of one connection.

    aiosmtpd has no hooks for the greeting and the reply to DATA, so these two are overridden.
    """

    event_handler: "_Conversation"

    def __init__(
        self, conversation: "_Conversation", sessions: "set[_Session]", **options: Any
    ) -> None:
        super().__init__(conversation, **options)
        self._sessions = sessions

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self not in self._sessions:  # STARTTLS comes here a second time
            self._sessions.add(self)
            self.event_handler.server.connections += 1
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._sessions.discard(self)
        super().connection_lost(error)

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            # Python 3.11.2, that of Debian 12, trips over a TLS connection that is closed already.
            with suppress(AttributeError):
                self.transport.abort()

    async def never(self) -> None:
        """Wait until the connection is lost: aiosmtpd then cancels its session."""
        await asyncio.Event().wait()

    async def _handle_client(self) -> None:
        refusal = await self.event_handler.play_fault(self, "connect")
        if refusal:
            await self.push_and_close(refusal)
        await super()._handle_client()

    async def smtp_DATA(self, arg: str) -> None:
        assert self.envelope is not None
        refusal = await self.event_handler.play_fault(self, "data", self.envelope.rcpt_tos)
        if refusal:
            await self.push(refusal)
        else:
            await super().smtp_DATA(arg)

    async def push_and_close(self, reply: str) -> None:
        await self.push(reply)
        self._writer.close()
        await self.never()


class _Conversation:
    """The hooks of aiosmtpd: the reply at each stage of the conversation."""

    def __init__(self, server: InboxServer) -> None:
        self.server = server

    async def handle_HELO(
        self, smtp: _Session, session: Session, envelope: Envelope, name: str
    ) -> str:
        refusal = await self.play_fault(smtp, "ehlo")
        if refusal:
            return refusal
        session.host_name = name
        return f"250 {smtp.hostname}"

    async def handle_EHLO(
        self, smtp: _Session, session: Session, envelope: Envelope, name: str, offers: list[str]
    ) -> list[str]:
        refusal = await self.play_fault(smtp, "ehlo")
        if refusal:
            return [refusal]
        session.host_name = name
        return [
            offer for offer in offers if self.server.credentials or not offer.startswith("250-AUTH")
        ]

    async def handle_AUTH(
        self, smtp: _Session, session: Session, envelope: Envelope, args: Sequence[str]
    ) -> Any:
        return await self.play_fault(smtp, "auth") or MISSING

    async def handle_MAIL(
        self, smtp: _Session, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        # aiosmtpd's own auth_required warns at every connection without STARTTLS.
        if self.server.credentials and not session.authenticated:
            return "530 5.7.0 Authentication required"
        return await self.play_fault(smtp, "mail") or MISSING

    async def handle_RCPT(
        self, smtp: _Session, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        return await self.play_fault(smtp, "rcpt", [address]) or MISSING

    async def handle_DATA(self, smtp: _Session, session: Session, envelope: Envelope) -> str:
        fault = self.server.faults.take("dot", envelope.rcpt_tos)
        refusal = await self.play(smtp, fault) if fault else None
        if refusal:
            return refusal
        reply = self._accept(envelope)
        if fault and fault.action == ACCEPT_AND_DROP:
            smtp.abort()
            await smtp.never()
        if fault and fault.action == CLOSE_AFTER_250:
            await smtp.push_and_close(reply)
        return reply

    async def handle_QUIT(self, smtp: _Session, session: Session, envelope: Envelope) -> Any:
        return await self.play_fault(smtp, "quit") or MISSING

    async def play_fault(
        self, smtp: _Session, stage: Stage, recipients: Sequence[str] = ()
    ) -> str | None:
        """Play the fault of this stage, if any. Return the reply that replaces the usual one."""
        fault = self.server.faults.take(stage, recipients)
        return await self.play(smtp, fault) if fault else None

    async def play(self, smtp: _Session, fault: Fault) -> str | None:
        await asyncio.sleep(fault.delay)
        if fault.action == DELAY or fault.action in AFTER_ACCEPTING:
            return None
        if fault.action == DROP:
            smtp.abort()
        if fault.action in (DROP, HANG):
            await smtp.never()
        if fault.action.startswith("421"):  # "closing transmission channel"
            await smtp.push_and_close(fault.action)
        return fault.action

    def _accept(self, envelope: Envelope) -> str:
        sender = "" if envelope.mail_from in (None, "<>") else str(envelope.mail_from)
        assert envelope.original_content is not None
        try:
            mail_id = self.server.accept(sender, list(envelope.rcpt_tos), envelope.original_content)
        except OSError as error:
            return f"451 4.3.0 The mail could not be kept: {error}"
        return f"250 2.0.0 Ok: queued as {mail_id}"
