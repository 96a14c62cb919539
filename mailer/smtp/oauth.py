"""OAuth tokens: fetched by one thread at a time, and cached until shortly before they expire."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pkgutil import resolve_name

from mailer.settings.oauth import GoogleLogin, MicrosoftLogin, OAuth, TokenFunction

# A token that expires during the login would be a wrong password.
_SPARE_SECONDS = 120.0

Fetched = tuple[str, float]  # a token and its lifetime in seconds


class NoToken(Exception):
    """There is no token to log in with."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing  #: a later try may succeed; else the configuration is wrong


class Tokens:
    """The tokens of a relay. Threads share them."""

    def __init__(self, source: OAuth, timeout: float) -> None:
        self._fetch = _fetching(source, timeout)
        self._lock = threading.Lock()
        self._token = ""
        self._expires = 0.0

    def get(self, *, refused: str = "") -> str:
        """Return a token other than the refused one. Raise NoToken."""
        with self._lock:
            if not self._token or self._token == refused or time.monotonic() >= self._expires:
                self._token, seconds = self._fetch()
                self._expires = time.monotonic() + seconds - _SPARE_SECONDS
            return self._token


def _fetching(source: OAuth, timeout: float) -> Callable[[], Fetched]:
    match source:
        case MicrosoftLogin():
            return partial(_from_microsoft, source, timeout)
        case GoogleLogin():
            return partial(_from_google, source, timeout)
        case TokenFunction():
            return partial(_from_function, source)


def _from_microsoft(login: MicrosoftLogin, timeout: float) -> Fetched:
    import msal  # noqa: PLC0415 -- an extra, and slow to import

    try:
        # A new one each time: its cache would return the token that the relay has just refused.
        application = msal.ConfidentialClientApplication(
            login.client_id,
            login.client_secret,
            f"{login.authority.rstrip('/')}/{login.tenant}",
            timeout=timeout,
        )
        answer = application.acquire_token_for_client([login.scope])
    except ValueError as error:  # no such tenant
        raise NoToken(f"Microsoft: {error}", passing=False) from None
    except (OSError, RuntimeError) as error:
        raise NoToken(f"Microsoft does not answer: {error}", passing=True) from None
    if "access_token" not in answer:
        raise NoToken(
            f"Microsoft: {answer.get('error')}: {answer.get('error_description', '')}",
            passing=False,
        )
    return str(answer["access_token"]), float(answer.get("expires_in", 0))


def _from_google(login: GoogleLogin, timeout: float) -> Fetched:
    from google.auth.exceptions import GoogleAuthError, TransportError  # noqa: PLC0415 -- an extra, and slow to import
    from google.auth.transport.requests import Request  # noqa: PLC0415
    from google.oauth2.service_account import Credentials  # noqa: PLC0415

    try:
        credentials = Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
            login.service_account_file, scopes=[login.scope], subject=login.subject
        )
        credentials.refresh(partial(Request(), timeout=timeout))
    except TransportError as error:
        raise NoToken(f"Google does not answer: {error}", passing=True) from None
    except (GoogleAuthError, ValueError, OSError) as error:
        raise NoToken(f"Google: {error}", passing=getattr(error, "retryable", False)) from None
    seconds = (credentials.expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    return str(credentials.token), seconds


def _from_function(source: TokenFunction) -> Fetched:
    """Call the function at each login: the lifetime of its tokens is unknown."""
    try:
        function = resolve_name(source.token) if isinstance(source.token, str) else source.token
        token = function()
    except Exception as error:  # no error here is the fault of a mail
        raise NoToken(
            f"the function of MAILER_OAUTH failed: {type(error).__name__}: {error}", passing=False
        ) from error
    if not isinstance(token, str) or not token:
        returned = "an empty text" if token == "" else type(token).__name__
        raise NoToken(
            f"the function of MAILER_OAUTH returned {returned}, and no token", passing=False
        )
    return token, 0.0
