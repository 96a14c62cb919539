"""The settings: `MAIL_*` and `MAILER_*` keys, checked once, then frozen."""

import os
import re
import ssl
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Self

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticUndefined
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from mailer.errors import ConfigurationError, InvalidMail
from mailer.message import Address, check_text
from mailer.policy import RetryPolicy

# A year at most: what waits longer has waited for ever, and sockets refuse to count so far.
Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]


_RETRY = RetryPolicy()  # the defaults of what it holds are written there


def _key(alias: str, description: str, default: Any = PydanticUndefined, **bounds: Any) -> Any:
    return Field(default=default, alias=alias, description=description, **bounds)


class Settings(BaseModel):
    """Everything that can be configured. The descriptions are the settings table of the documentation."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    mail_server: str = _key("MAIL_SERVER", "Host of the relay.", "127.0.0.1", min_length=1)
    mail_port: int = _key("MAIL_PORT", "Port of the relay.", 25, ge=1, le=65535)
    mail_use_tls: bool = _key("MAIL_USE_TLS", "Upgrade the connection with STARTTLS; a relay without it gets no mail.", False)
    mail_use_ssl: bool = _key("MAIL_USE_SSL", "Speak TLS from the first byte.", False)
    mail_username: str | None = _key("MAIL_USERNAME", "Log in as.", None)
    mail_password: str | None = _key("MAIL_PASSWORD", "Log in with.", None, repr=False)
    mail_default_sender: str | tuple[str, str] | None = _key(
        "MAIL_DEFAULT_SENDER", "Sender of mails that name none: `Ada <ada@example.com>`, an address, or a pair.", None
    )
    mail_max_emails: int | None = _key(
        "MAIL_MAX_EMAILS", "Mails on one connection before it is closed; no limit if unset.", None, ge=1
    )
    mail_suppress_send: bool = _key(
        "MAIL_SUPPRESS_SEND",
        "Deliver to nobody, at once and in the calling process: everything happens but SMTP. On by default if `TESTING`.",
        False,
    )
    mail_debug: bool | int = _key(
        "MAIL_DEBUG", "Print the SMTP dialogue, passwords included: never in production. 2 adds the time.", default=False
    )
    mail_ascii_attachments: bool = _key("MAIL_ASCII_ATTACHMENTS", "Reduce the names of attachments to ASCII.", False)

    database_url: str = _key(
        "MAILER_DATABASE_URL", "Where mails are kept: `sqlite:///file` or `postgresql://…`.", min_length=1, repr=False
    )
    redis_url: str = _key(
        "MAILER_REDIS_URL",
        "The broker: `redis://`, `rediss://`, `unix:///socket`, or any URL Celery takes. `REDIS_URL` is read if it is unset.",
        "redis://127.0.0.1:6379/0",
        min_length=1,
        repr=False,
    )
    subject_prefix: str = _key("MAILER_SUBJECT_PREFIX", "Put before the subjects of `send_email`, with a space between.", "")
    tls_ca_file: str | None = _key(
        "MAILER_TLS_CA_FILE", "PEM file of the authority that signed the relay's certificate, if it is your own.", None
    )
    connect_timeout: Seconds = _key("MAILER_CONNECT_TIMEOUT", "Seconds to wait for a connection to the relay.", 10.0)
    command_timeout: Seconds = _key(
        "MAILER_COMMAND_TIMEOUT", "Seconds to wait for the greeting and for the reply to a command.", 60.0
    )
    data_timeout: Seconds = _key("MAILER_DATA_TIMEOUT", "Seconds to wait while the relay takes the bytes of a mail.", 180.0)
    reply_timeout: Seconds = _key(
        "MAILER_REPLY_TIMEOUT",
        "Seconds to wait for the reply after the last byte; a short wait makes duplicates (RFC 5321, 4.5.3.2.6).",
        600.0,
    )
    idle_timeout: Seconds = _key("MAILER_IDLE_TIMEOUT", "Seconds an unused connection is kept warm.", 30.0)
    retry_first: Seconds = _key(
        "MAILER_RETRY_FIRST", "Seconds before the first retry of a mail the relay deferred.", _RETRY.first
    )
    retry_factor: float = _key(
        "MAILER_RETRY_FACTOR", "How much longer each wait is than the one before.", _RETRY.factor, ge=1, le=100
    )
    retry_longest: Seconds = _key("MAILER_RETRY_LONGEST", "The longest wait between two tries, in seconds.", _RETRY.longest)
    retry_attempts: int = _key(
        "MAILER_RETRY_ATTEMPTS", "Tries before a deferred mail has failed.", _RETRY.max_attempts, ge=1, le=1000
    )
    retry_age: Seconds = _key("MAILER_RETRY_AGE", "Age in seconds at which a deferred mail has failed.", _RETRY.max_age)
    relay_rest: Seconds = _key(
        "MAILER_RELAY_REST", "Seconds a process leaves a relay alone that can't be reached.", _RETRY.relay_rest
    )
    doubt_resend_after: Seconds = _key(
        "MAILER_DOUBT_RESEND_AFTER", "Seconds before a mail in doubt is sent once more.", _RETRY.doubt_resend_after
    )
    slice_seconds: Seconds = _key(
        "MAILER_SLICE_SECONDS", "About how long a worker delivers before it looks again for more urgent mail.", 1.0
    )
    claim_lease: Seconds = _key(
        "MAILER_CLAIM_LEASE", "Seconds after which a claimed mail of a silent worker is given to another.", 30.0
    )
    keep_days: float = _key("MAILER_KEEP_DAYS", "Days a finished mail is kept before the purge.", 30.0, gt=0)

    @classmethod
    def load(cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, default_database_url: str) -> Self:
        """Read each key from the app's config, else from the environment, and refuse what can't be used."""
        # An empty variable, as in "MAIL_USERNAME=" of an .env file, is as good as none.
        given = {key: value for key in keys() if (value := config.get(key, environ.get(key) or None)) is not None}
        given.setdefault("MAILER_DATABASE_URL", default_database_url)
        if "MAILER_REDIS_URL" not in given and (fallback := config.get("REDIS_URL", environ.get("REDIS_URL"))):
            given["MAILER_REDIS_URL"] = fallback
        given.setdefault("MAIL_SUPPRESS_SEND", bool(config.get("TESTING", False)))
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigurationError(_explained(error, given)) from None

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        value = re.sub("^postgres://", "postgresql://", value)  # as some platforms spell it
        try:
            url = make_url(value)
        except ArgumentError:
            url = URL.create("nothing")
        is_postgresql = url.get_backend_name() == "postgresql"
        if not is_postgresql and url.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise ValueError("allowed: sqlite:////path/to/file or postgresql://user:password@host/name")
        if is_postgresql and find_spec("psycopg") is None:
            raise ValueError("PostgreSQL needs one more package: pip install 'flask-mailer-queue[postgres]'")
        return value

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: str) -> str:
        try:
            usable = re.match("[a-z][a-z0-9+.-]*://", value) is not None
            if usable and (url := _for_redis(value)):
                redis.ConnectionPool.from_url(url)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("allowed, as in REDIS_URL: redis://:password@host:6379/0, unix:///path/to/socket, or another broker")
        return value

    @field_validator("mail_default_sender")
    @classmethod
    def _usable_sender(cls, value: str | tuple[str, str] | None) -> str | tuple[str, str] | None:
        if value is not None:
            _checked(Address.parse, value, key="MAIL_DEFAULT_SENDER")
        return value

    @field_validator("subject_prefix")
    @classmethod
    def _one_line(cls, value: str) -> str:
        _checked(check_text, value, key="MAILER_SUBJECT_PREFIX")
        return value

    @field_validator("tls_ca_file")
    @classmethod
    def _usable_certificate(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                ssl.create_default_context(cafile=value)
        except OSError as error:
            raise ValueError(f"allowed: the path of a PEM file with certificates ({error.strerror or error})") from None
        return value

    @model_validator(mode="after")
    def _one_kind_of_tls(self) -> Self:
        if self.mail_use_tls and self.mail_use_ssl:
            raise ValueError(
                "MAIL_USE_TLS and MAIL_USE_SSL: set one of them: STARTTLS is usual on port 587, TLS from the start on 465"
            )
        return self

    @property
    def broker_url(self) -> str:
        """The broker as Celery spells it."""
        return self.redis_url.replace("unix://", "redis+socket://", 1)

    @property
    def flag_url(self) -> str | None:
        """The same Redis as its own client spells it; None where rings can't be coalesced over a plain Redis."""
        return _for_redis(self.redis_url)

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy(
            first=self.retry_first,
            factor=self.retry_factor,
            longest=self.retry_longest,
            max_attempts=self.retry_attempts,
            max_age=self.retry_age,
            doubt_resend_after=self.doubt_resend_after,
            relay_rest=self.relay_rest,
        )

    @property
    def longest_try(self) -> float:
        """The most seconds one mail can take on the wire: a lease must outlast it."""
        # The MAIL that finds a warm connection dead; then greeting, EHLO, STARTTLS, EHLO, AUTH in two steps, MAIL, RCPT, DATA.
        commands = 10 * self.command_timeout
        return self.connect_timeout + commands + self.data_timeout + self.reply_timeout

    @property
    def transmit_lease(self) -> float:
        return self.longest_try + 60.0


def _for_redis(url: str) -> str | None:
    url = url.replace("redis+socket://", "unix://", 1)
    return url if url.startswith(("redis://", "rediss://", "unix://")) else None


def keys() -> dict[str, str]:
    """Key -> the name of its field."""
    return {str(field.alias): name for name, field in Settings.model_fields.items()}


_SECRETS = frozenset({"MAIL_PASSWORD", "MAILER_DATABASE_URL", "MAILER_REDIS_URL"})
_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a pair (name, address)",
}


def allowed(key: str) -> str:
    """What a key takes, in words."""
    schema = Settings.model_json_schema()["properties"][key]
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind["type"] != "null"]
    return " or ".join(_KINDS[kind["type"]] + _bounds(kind) for kind in kinds)


def _bounds(kind: Mapping[str, Any]) -> str:
    least, above, most = kind.get("minimum"), kind.get("exclusiveMinimum"), kind.get("maximum")
    if kind.get("minLength"):
        return " that is not empty"
    if least is not None:
        return f" from {least:g} to {most:g}" if most is not None else f", {least:g} or more"
    if above is not None:
        return f" above {above:g}" + (f", {most:.0f} at most" if most is not None else "")
    return ""


def _checked(check: Callable[..., Any], value: object, *, key: str) -> None:
    """Check as at a call; the key is named by `_explained`."""
    try:
        check(value, field=key)
    except InvalidMail as error:
        raise ValueError(str(error).removeprefix(f"{key}: ")) from None


def _explained(error: ValidationError, given: Mapping[str, Any]) -> str:
    """One line a wrong key: the key, the value (secrets left out) and what is allowed."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        key = str(fault["loc"][0]) if fault["loc"] else ""
        shown = "" if not key else f"{key}=<hidden>: " if key in _SECRETS else f"{key}={given.get(key)!r}: "
        ours = fault["type"] == "value_error"
        lines.append(shown + (fault["msg"].removeprefix("Value error, ") if ours else f"allowed: {allowed(key)}"))
    return "\n".join(f"{line.rstrip('.')}." for line in dict.fromkeys(lines))
