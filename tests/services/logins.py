"""A real SMTP server that requires a login, on a Unix socket."""

import hmac
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiosmtpd.controller import UnixSocketController
from aiosmtpd.smtp import MISSING, SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "ada", "secret"
_KNOWN = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")


class LoginSMTP(SMTP):
    line_length_limit = 12288  # RFC 4954, section 4: the length of AUTH lines


class LoginServer:
    """A server that offers these mechanisms; `refusals` are replies instead of a check."""

    def __init__(
        self,
        folder: Path,
        *offers: str,
        refusals: dict[str, str] | None = None,
        protocol: type[SMTP] = LoginSMTP,
    ) -> None:
        self.path = str(folder / "relay.sock")
        self.offers = offers
        self.tried: list[str] = []  # mechanisms, with "at once" if the login was in the same line
        self.tokens = {"good"}  # accepted with XOAUTH2
        self.seen_tokens: list[str] = []
        self.mails: list[bytes] = []
        self._controller = _Controller(self, refusals or {}, protocol)

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._controller.stop()


class _Controller(UnixSocketController):
    def __init__(self, server: LoginServer, refusals: dict[str, str], protocol: type[SMTP]) -> None:
        super().__init__(_Conversation(server, refusals), unix_socket=server.path)
        self._server = server
        self._protocol = protocol

    def factory(self) -> SMTP:
        return self._protocol(
            self.handler,
            hostname="relay.localhost",
            authenticator=self._authenticate,
            auth_require_tls=False,
            auth_exclude_mechanism=[name for name in _KNOWN if name not in self._server.offers],
        )

    def _authenticate(
        self, smtp: SMTP, session: Session, envelope: Envelope, mechanism: str, login: Any
    ) -> AuthResult:
        assert isinstance(login, LoginPassword)
        return AuthResult(
            success=(login.login, login.password) == (USER.encode(), PASSWORD.encode()),
            handled=False,
        )


class _Conversation:
    """The hooks of aiosmtpd."""

    def __init__(self, server: LoginServer, refusals: dict[str, str]) -> None:
        self._server = server
        self._refusals = refusals

    async def handle_AUTH(
        self, smtp: SMTP, session: Session, envelope: Envelope, args: Sequence[str]
    ) -> Any:
        self._server.tried.append(" ".join([args[0], *(["at once"] if len(args) > 1 else [])]))
        return self._refusals.get(args[0], MISSING)

    async def auth_CRAM__MD5(self, smtp: SMTP, args: Sequence[str]) -> AuthResult:
        challenge = "<1896.697170952@relay.localhost>"
        said = await smtp.challenge_auth(challenge)
        digest = hmac.new(PASSWORD.encode(), challenge.encode(), "md5").hexdigest()
        return AuthResult(success=said == f"{USER} {digest}".encode(), handled=False)

    async def auth_XOAUTH2(self, smtp: SMTP, args: Sequence[str]) -> AuthResult:
        said = b64decode(args[1]) if len(args) > 1 else await smtp.challenge_auth("")
        assert isinstance(said, bytes)
        user, token, *_ = said.decode().split("\x01")
        self._server.seen_tokens.append(token.removeprefix("auth=Bearer "))
        success = user == f"user={USER}" and self._server.seen_tokens[-1] in self._server.tokens
        if not success:
            assert await smtp.challenge_auth('{"status":"401","schemes":"bearer"}') == b""
        return AuthResult(success=success, handled=False)

    async def handle_MAIL(
        self, smtp: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        return (
            MISSING
            if session.authenticated or not self._server.offers
            else "530 5.7.0 Authentication required"
        )

    async def handle_DATA(self, smtp: SMTP, session: Session, envelope: Envelope) -> str:
        assert envelope.original_content is not None
        self._server.mails.append(envelope.original_content)
        return "250 2.0.0 taken"
