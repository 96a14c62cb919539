"""Where the tokens come from that are said instead of a password. No text of an error holds a secret."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MICROSOFT = '{"provider": "microsoft", "tenant": "…", "client_id": "…", "client_secret": "…"}'
_GOOGLE = '{"provider": "google", "service_account_file": "/path/to/key.json", "subject": "ada@example.com"}'
_FUNCTION = '{"token": "package.module:function"}'
_ALLOWED = f"allowed: {_MICROSOFT}, or {_GOOGLE}, or {_FUNCTION}"


@dataclass(frozen=True, slots=True)
class MicrosoftLogin:
    """An application that was given a mailbox: the client credentials flow of Entra ID."""

    tenant: str
    client_id: str
    client_secret: str = field(repr=False)
    authority: str = "https://login.microsoftonline.com"
    scope: str = "https://outlook.office365.com/.default"


@dataclass(frozen=True, slots=True)
class GoogleLogin:
    """A service account; in Workspace it acts for a mailbox, the `subject`."""

    service_account_file: str
    subject: str | None = None
    scope: str = "https://mail.google.com/"


@dataclass(frozen=True, slots=True)
class TokenFunction:
    """A function that returns a token, at each login; its name if it is still to be imported."""

    function: str | Callable[[], str]


OAuth = MicrosoftLogin | GoogleLogin | TokenFunction


def read_oauth(given: object) -> OAuth | None:
    """Take a function, an object, or the JSON of one; a ValueError says what is wrong with it."""
    if given is None or isinstance(given, OAuth):
        return given
    if callable(given):
        return TokenFunction(given)
    entry = _parsed(given) if isinstance(given, str) else given
    if not isinstance(entry, Mapping):
        raise _wrong(_ALLOWED)
    match entry.get("provider"):
        case "microsoft":
            _require("msal")
            return MicrosoftLogin(**_texts(entry, "tenant", "client_id", "client_secret", optional=("authority", "scope")))
        case "google":
            _require("google.auth", "requests")
            return _readable(GoogleLogin(**_texts(entry, "service_account_file", optional=("subject", "scope"))))
        case None if callable(entry.get("token")):
            return TokenFunction(entry["token"])
        case None:
            return _importable(_texts(entry, "token")["token"])
        case _:
            raise _wrong(f"provider: {_ALLOWED}")


def _wrong(words: str) -> ValueError:
    return ValueError(words)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # whose words may quote a secret
        raise _wrong(f"this is no JSON: {_ALLOWED}") from None


def _texts(entry: Mapping[Any, Any], *required: str, optional: tuple[str, ...] = ()) -> dict[str, str]:
    """What the entry says, besides who the provider is."""
    said = {name: value for name, value in entry.items() if name != "provider"}
    if unknown := sorted(map(str, said.keys() - {*required, *optional})):
        raise _wrong(f"{unknown[0]!r} is not known: {_ALLOWED}")
    for name in [*required, *(said.keys() - {*required})]:
        if not isinstance(said.get(name), str) or not said[name]:
            raise _wrong(f"{name}: give a text that is not empty")
    return said


def _readable(login: GoogleLogin) -> GoogleLogin:
    name = login.service_account_file
    try:
        usable = {"client_email", "private_key", "token_uri"} <= json.loads(Path(name).read_bytes()).keys()
    except OSError as error:
        raise _wrong(f"service_account_file: {name!r} can't be read: {error.strerror}") from None
    except (ValueError, AttributeError):
        usable = False
    if not usable:
        raise _wrong(f"service_account_file: {name!r} is no key of a service account: make one in Google Cloud, as JSON")
    return login


def _importable(name: str) -> TokenFunction:
    module, _, function = name.partition(":")
    try:
        found = function.isidentifier() and find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise _wrong(f"token: there is no {name!r}: give the module that can be imported and its function, {_FUNCTION}")
    return TokenFunction(name)


def _require(*modules: str) -> None:
    try:
        missing = [module for module in modules if find_spec(module) is None]
    except ImportError:  # not even the package that it is in
        missing = [*modules]
    if missing:
        raise _wrong("OAuth needs one more package: pip install 'flask-mailer-queue[oauth]'")
