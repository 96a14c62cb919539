"""MAILER_OAUTH: where the tokens come from that replace the password of a relay."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from mailer.settings.structured import STRICT, Text, parse_json

_FUNCTION = '{"token": "package.module:function"}'


def _readable_account(file: str) -> str:
    try:
        content = json.loads(Path(file).read_bytes())
        is_account = {"client_email", "private_key", "token_uri"} <= content.keys()
    except OSError as error:
        raise ValueError(f"{file!r} can't be read: {error.strerror}") from None
    except (ValueError, AttributeError):
        is_account = False
    if not is_account:
        raise ValueError(
            f"{file!r} is no key of a service account: make one in Google Cloud, as JSON"
        )
    return file


def _importable(token: Any) -> Any:
    """Check that the module of a function exists. Do not import it: it may import the app."""
    if callable(token):
        return token
    if not isinstance(token, str) or not token:
        raise ValueError(f"give a function, or the module and the name of one, as in {_FUNCTION}")
    module, _, function = token.partition(":")
    try:
        found = function.isidentifier() and find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ValueError(
            f"there is no {token!r}: give the module that can be imported and its function, as in"
            f" {_FUNCTION}"
        )
    return token


class MicrosoftLogin(BaseModel):
    """An application with access to a mailbox: the client credentials flow of Entra ID."""

    model_config = STRICT

    provider: Literal["microsoft"] = "microsoft"
    tenant: Text
    client_id: Text
    client_secret: Text = Field(repr=False)
    authority: Text = "https://login.microsoftonline.com"
    scope: Text = "https://outlook.office365.com/.default"


class GoogleLogin(BaseModel):
    """A service account. In Workspace it acts for a mailbox, the `subject`."""

    model_config = STRICT

    provider: Literal["google"] = "google"
    service_account_file: Annotated[Text, AfterValidator(_readable_account)]
    subject: Text | None = None
    scope: Text = "https://mail.google.com/"


class TokenFunction(BaseModel):
    """A function that returns a token, called at each login, or its name: `module:function`."""

    model_config = STRICT

    provider: Literal["function"] = "function"
    token: Annotated[
        str | Callable[[], str], PlainValidator(_importable), WithJsonSchema({"type": "string"})
    ]


#: The package that each provider needs, and the modules that it must have.
_MODULES: Mapping[object, tuple[str, ...]] = {
    "microsoft": ("msal",),
    "google": ("google.auth", "requests"),
}


def _with_provider(value: Any) -> Any:
    """Name the provider of a function, and check that the package of any other is installed."""
    if callable(value):
        return {"provider": "function", "token": value}
    if isinstance(value, Mapping):
        value = {"provider": "function", **value}
        _require(*_MODULES.get(str(value["provider"]), ()))
    return value


def _require(*modules: str) -> None:
    try:
        is_missing = any(find_spec(module) is None for module in modules)
    except ImportError:  # the package that contains the module is missing
        is_missing = True
    if is_missing:
        raise ValueError("OAuth needs one more package: pip install 'flask-mailer-queue[oauth]'")


OAuth = MicrosoftLogin | GoogleLogin | TokenFunction

GivenOAuth = Annotated[
    Annotated[OAuth, Field(discriminator="provider")],
    BeforeValidator(_with_provider),
    BeforeValidator(parse_json),
]
