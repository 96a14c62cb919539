"""The settings: `MAIL_*` and `MAILER_*` keys, validated once, then frozen."""

import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator
from sqlalchemy import make_url

from mailer.errors import ConfigurationError, InvalidMail
from mailer.message import MACHINE_HEADERS, Address, Lane, check_text
from mailer.policy import TenantRules
from mailer.settings import database
from mailer.settings.broker import url_for_redis
from mailer.settings.dkim import DkimKeys
from mailer.settings.lanes import WorkerLanes
from mailer.settings.machine_headers import MachineHeaderNames
from mailer.settings.messages import LOGINS, explain, origins
from mailer.settings.namespace import check_namespace, namespace_of
from mailer.settings.proxy import EnvironmentProxy, is_local
from mailer.settings.rates import DomainLimits
from mailer.settings.relay import (
    Context,
    ListedRelay,
    RelaySettings,
    Rule,
    Seconds,
    checked_rule,
    key,
)
from mailer.settings.retries import RetrySettings
from mailer.settings.secret_keys import flask_keys, read_secret_keys
from mailer.settings.spelling import check_keys
from mailer.settings.structured import FromJson
from mailer.settings.tenants import TenantQuotas, Weights, read_quotas

__all__ = ["INBOX_PORT", "RelaySettings", "Settings", "keys"]

#: The entry of MAILER_ALLOWED_RECIPIENTS that allows every recipient.
EVERYBODY = "*"
#: The port of `flask mail inbox`, the default in debug mode.
INBOX_PORT = 1025


class Settings(RetrySettings):
    """The settings of an app. The documentation is generated from the descriptions."""

    listed_relays: Annotated[tuple[ListedRelay, ...], Field(min_length=1), FromJson] = key(
        "MAILER_RELAYS",
        "Several relays, in the environment as JSON: a list of objects with the keys of the relay"
        " and, if needed, `name`, `preference`, `weight`, `senders`, `domains`, `lanes`.",
        (),
        repr=False,
        examples=['[{"name": "first", "MAIL_SERVER": "smtp.example.com", "MAIL_PORT": 587}, …]'],
    )
    mail_default_sender: str | tuple[str, str] | None = key(
        "MAIL_DEFAULT_SENDER",
        "Default sender: `Ada <ada@example.com>`, an address, or a pair.",
        None,
    )
    mail_suppress_send: bool = key(
        "MAIL_SUPPRESS_SEND",
        "Deliver nothing: everything but SMTP happens, at once and in the calling process. On by"
        " default if `TESTING`.",
        False,
    )
    mail_ascii_attachments: bool = key(
        "MAIL_ASCII_ATTACHMENTS", "Reduce file names of attachments to ASCII.", False
    )

    database_url: str = key(
        "MAILER_DATABASE_URL",
        "The database: `postgresql://…` or `sqlite:///file`; a relative path starts in the"
        " instance folder. Unset: `SQLALCHEMY_DATABASE_URI` if that is PostgreSQL, else"
        " `mailer.sqlite3` in the instance folder.",
        min_length=1,
        repr=False,
    )
    pgbouncer: bool = key(
        "MAILER_PGBOUNCER",
        "The database is behind PgBouncer, or another pooler, in transaction mode: use no state of"
        " a session.",
        False,
    )
    redis_url: str = key(
        "MAILER_REDIS_URL",
        "The broker: `redis://`, `rediss://`, `unix:///socket`, or any URL that Celery accepts."
        " Unset: `REDIS_URL`, else the broker of your own Celery app if there is one, else the"
        " default.",
        "redis://127.0.0.1:6379/0",
        min_length=1,
        repr=False,
    )
    namespace: str = key(
        "MAILER_NAMESPACE",
        "The name of this installation in a shared Redis: part of its keys and of the name of its"
        " queue. If it is unset, it is derived from host, port and name of the database in"
        " `MAILER_DATABASE_URL`: `localhost` and `127.0.0.1`, or a socket and TCP, are two"
        " installations. They do not get each other's rings, so that mail waits for the sweep, and"
        " they count limits separately. Use the same URL in every process, or set this key.",
        "",
    )
    domain_limits: DomainLimits = key(
        "MAILER_DOMAIN_LIMITS",
        "Limits of recipient domains, for all workers together, in the environment as JSON:"
        ' `{"gmail.com": {"rate": "20/second", "concurrency": 5}, "*": {"rate": "100/minute"}}`;'
        " `*` is each domain that is not named.",
        {},
        examples=[
            '{"gmail.com": {"rate": "20/second", "concurrency": 5}, "*": {"rate": "100/minute"}}'
        ],
    )
    tenant_weights: Weights = key(
        "MAILER_TENANT_WEIGHTS",
        "The shares of tenants in a lane, in the environment as JSON: a tenant of weight 2 gets"
        " twice as many mails delivered as one of weight 1, while both have mail waiting; `*` is"
        " each tenant that is not named.",
        {},
        examples=['{"acme": 5, "*": 1}'],
    )
    tenant_quotas: TenantQuotas = key(
        "MAILER_TENANT_QUOTAS",
        "The mails that a tenant may send in a period, in the environment as JSON: what is over"
        " that is held until the next period. `*` is each tenant that is not named.",
        {},
        examples=['{"acme": "50000/day", "*": "100/minute; 5000/day"}'],
    )
    dkim_keys: DkimKeys = key(
        "MAILER_DKIM_KEYS",
        "The keys that sign mail, in the environment as JSON:"
        ' `[{"domain": "example.com", "selector": "2026a", "key_file": "…"}]`, or `key` with the'
        " PEM itself.",
        (),
        repr=False,
        examples=[
            '[{"domain": "example.com", "selector": "2026a", "key_file": "/path/to/2026a.pem"}]'
        ],
    )
    secret_keys: tuple[bytes, ...] = key(
        "MAILER_SECRET_KEYS",
        "Secrets that sign and hash, in the environment separated by commas: the first one signs,"
        " all verify. If it is unset, Flask's `SECRET_KEY`, then `SECRET_KEY_FALLBACKS`.",
        (),
        repr=False,
    )
    undo_seconds: float = key(
        "MAILER_UNDO_SECONDS",
        "Seconds for which a mail without `send_at` and `undo` can still be cancelled. Not in the"
        ' lane `critical`, and not where mail is delivered at once: `when="now"`,'
        " `MAIL_SUPPRESS_SEND`.",
        0.0,
        ge=0,
        le=86400,
    )
    max_recipients: int = key(
        "MAILER_MAX_RECIPIENTS",
        "Maximum of recipients of a mail: to, cc and bcc together.",
        1000,
        ge=1,
    )
    max_size: int = key(
        "MAILER_MAX_SIZE",
        "Maximum of bytes of a mail: its texts, headers and attachments together, before encoding.",
        25_000_000,
        ge=1,
    )
    max_bytes_in_flight: int = key(
        "MAILER_MAX_BYTES_IN_FLIGHT",
        "Maximum of bytes of memory that a process uses at once for mails in delivery, all its"
        " threads together. A mail counts four times its size; a larger mail goes while at most an"
        " eighth of this is in use.",
        128_000_000,
        ge=1,
    )
    max_header: int = key(
        "MAILER_MAX_HEADER",
        "Maximum of characters of a subject, a name, a header's value or a file name.",
        4000,
        ge=1,
    )
    subject_prefix: str = key(
        "MAILER_SUBJECT_PREFIX",
        "A prefix, followed by a space, for the subjects of `send_email`.",
        "",
    )
    machine_headers: MachineHeaderNames = key(
        "MAILER_MACHINE_HEADERS",
        "The headers that `send_email` and `send_bulk` add by themselves, as in `Auto-Submitted,"
        " Precedence`, or `none`.",
        MACHINE_HEADERS,
    )
    allowed_recipients: tuple[Rule, ...] = key(
        "MAILER_ALLOWED_RECIPIENTS",
        "The only recipients of mail, as in `ada@example.com, example.org`: a domain includes its"
        " subdomains, and `*` allows everybody. Mail to others fails, or goes to"
        " `MAILER_REDIRECT_TO`.",
        (),
    )
    redirect_to: str | None = key(
        "MAILER_REDIRECT_TO",
        "An address of your own, which gets all mail but that to `MAILER_ALLOWED_RECIPIENTS`.",
        None,
    )
    batch_seconds: Seconds = key(
        "MAILER_BATCH_SECONDS",
        "Approximate seconds for which a worker delivers what it has claimed at once. More urgent"
        " mail overtakes the rest of it meanwhile.",
        1.0,
    )
    worker_lanes: WorkerLanes = key(
        "MAILER_WORKER_LANES",
        "The only lanes that a worker serves, as in `critical,normal`. Unset: all.",
        (),
    )
    claim_lease: Seconds = key(
        "MAILER_CLAIM_LEASE",
        "Seconds after which another worker may claim a mail of a silent worker.",
        30.0,
    )
    black_box: str = key(
        "MAILER_BLACK_BOX",
        "Folder on a local disk, where workers note which mails they are sending. Empty:"
        " `black-box` in the instance folder.",
        "",
    )
    log_addresses: bool = key(
        "MAILER_LOG_ADDRESSES",
        "Log whole addresses instead of `a***@example.com`.",
        False,
    )
    keep_days: float = key(
        "MAILER_KEEP_DAYS", "Days before the purge deletes a finished mail.", 30.0, gt=0
    )
    keep_bodies_days: float | None = key(
        "MAILER_KEEP_BODIES_DAYS",
        "Days after which the texts and attachments of a finished mail are deleted, and contexts"
        " and templates of bulk sends, so that it can't be requeued. Unset: they stay.",
        None,
        gt=0,
    )

    @classmethod
    def load(
        cls,
        config: Mapping[str, Any],
        environ: Mapping[str, str] = os.environ,
        *,
        default_database_url: str,
        folder: str = "",
        broker_url: str | None = None,
    ) -> Self:
        """Read each key from the app's config, or else from the environment.

        `folder` is the instance folder, where relative paths of SQLite files start; `broker_url` is
        that of the application's own Celery app. Raise ConfigurationError for unusable values.
        """
        check_keys(config, environ, keys())
        # An empty variable, such as "MAIL_USERNAME=" in an .env file, counts as unset.
        given = {
            key: value
            for key in keys()
            if (value := config.get(key, environ.get(key) or None)) is not None
        }
        given["MAILER_DATABASE_URL"] = database.placed(
            given.get("MAILER_DATABASE_URL", default_database_url), folder
        )
        if "MAILER_REDIS_URL" not in given and (
            fallback := config.get("REDIS_URL", environ.get("REDIS_URL")) or broker_url
        ):
            given["MAILER_REDIS_URL"] = fallback
        given.setdefault("MAILER_SECRET_KEYS", flask_keys(config))
        given.setdefault("MAIL_SUPPRESS_SEND", bool(config.get("TESTING", False)))
        is_debugging = bool(config.get("DEBUG", False))
        if is_debugging and is_local(str(given.get("MAIL_SERVER", "localhost"))):
            given.setdefault("MAIL_PORT", INBOX_PORT)
        context = Context(_shared_by_relays(given), EnvironmentProxy.read(environ))
        try:
            settings = cls.model_validate(given, context=context)
        except ValidationError as error:
            raise ConfigurationError(explain(cls, error, given)) from None
        settings.check_for_pgbouncer()
        if is_debugging:
            settings.check_for_debugging(origins(config, environ))
        return settings

    def check_for_pgbouncer(self) -> None:
        """Refuse session options behind a pooler, which drops them, the schema included."""
        if self.pgbouncer and (asked := database.server_options(make_url(self.database_url))):
            raise ConfigurationError(
                f"MAILER_PGBOUNCER: a pooler does not hand on '{asked.strip()}', the options of"
                " MAILER_DATABASE_URL or of PGOPTIONS. Take them out, and set them for the role"
                " that logs in: ALTER ROLE … SET search_path = …; with a schema of its own, give"
                " this installation a MAILER_NAMESPACE, too."
            )

    def check_for_debugging(self, origins: str) -> None:
        """Refuse, in debug mode, settings that could send mail to real people by accident.

        `origins` says where the keys of the relay are set.
        """
        if self.mail_suppress_send or self.allowed_recipients or self.redirect_to:
            return
        if real := [relay.name for relay in self.relays if not relay.is_inbox]:
            raise ConfigurationError(
                f"MAIL_SERVER: the app is in debug mode, and {', '.join(real)} may bring its mail"
                " to real people: set MAILER_REDIRECT_TO to your own address, or"
                " MAILER_ALLOWED_RECIPIENTS to those who may get mail ('*': everybody), or set"
                f" MAIL_SERVER to 127.0.0.1 and MAIL_PORT to {INBOX_PORT}, and start the inbox with"
                f" `flask mail inbox`. {origins}"
            )

    @field_validator("listed_relays")
    @classmethod
    def _complete(cls, value: tuple[RelaySettings, ...]) -> tuple[RelaySettings, ...]:
        if value and all(relay.has_rules for relay in value):
            raise ValueError(
                "one relay must take the mail that the rules of no other do: give one without"
                " senders, domains and lanes"
            )
        names = [relay.name for relay in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two relays are named {', '.join(twice)}: give each a name of its own"
            )
        return value

    @field_validator("allowed_recipients", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [one for one in value.split(",") if one.strip()] if isinstance(value, str) else value

    @field_validator("allowed_recipients")
    @classmethod
    def _usable_recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            one if one == EVERYBODY else checked_rule(one, for_senders=True) for one in value
        )

    @field_validator("redirect_to")
    @classmethod
    def _usable_recipient(cls, value: str | None) -> str | None:
        if value is not None:
            _checked(Address.parse, value, key="MAILER_REDIRECT_TO")
        return value and Address.parse(value, field="MAILER_REDIRECT_TO").email

    @field_validator("secret_keys", mode="before")
    @classmethod
    def _usable_secrets(cls, value: object) -> tuple[bytes, ...]:
        return read_secret_keys(value)

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        return database.checked_url(value)

    @field_validator("namespace")
    @classmethod
    def _usable_namespace(cls, value: str) -> str:
        return check_namespace(value)

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: str) -> str:
        try:
            usable = re.match("[a-z][a-z0-9+.-]*://", value) is not None
            if usable and (url := url_for_redis(value)):
                # 6 MB, for those that have another broker or none
                from redis import ConnectionPool  # noqa: PLC0415

                ConnectionPool.from_url(url)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                "allowed, as in REDIS_URL: redis://:password@host:6379/0, unix:///path/to/socket,"
                " or another broker"
            )
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

    @property
    def broker_url(self) -> str:
        """The broker in the spelling of Celery."""
        return self.redis_url.replace("unix://", "redis+socket://", 1)

    @property
    def flag_url(self) -> str | None:
        """The Redis of the broker in the spelling of redis-py. None if there is no plain Redis."""
        return url_for_redis(self.redis_url)

    @property
    def installation(self) -> str:
        """The name of this installation in a shared Redis."""
        return self.namespace or namespace_of(self.database_url)

    @property
    def queue_name(self) -> str:
        """The default queue of a Celery app that Mailer makes."""
        return f"mailer-{self.installation}"

    @property
    def served_lanes(self) -> tuple[Lane, ...]:
        return self.worker_lanes or tuple(Lane)

    @cached_property
    def tenant_rules(self) -> TenantRules:
        return TenantRules(self.tenant_weights, read_quotas(self.tenant_quotas))

    @property
    def relays(self) -> tuple[RelaySettings, ...]:
        """The relays of MAILER_RELAYS, or the one of the app's own keys."""
        return self.listed_relays or (self,)

    @property
    def longest_delivery(self) -> float:
        """The maximum of seconds that a relay can take for a mail."""
        return max(relay.longest_try for relay in self.relays)

    @property
    def longest_transmission(self) -> float:
        """The maximum of seconds that a relay can take for a mail after its first byte."""
        return max(relay.longest_body for relay in self.relays)

    @property
    def transmit_lease(self) -> float:
        """The seconds after which a marked mail becomes doubtful: more than any relay can take."""
        return self.longest_delivery + 120.0


def keys() -> dict[str, str]:
    """Return the name of the field of each key."""
    return {
        str(field.alias): name
        for name, field in Settings.model_fields.items()
        if str(field.alias).isupper()
    }


def _shared_by_relays(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that relays share: a `MAIL_*` key or a login belongs to a single relay."""
    keys = {str(field.alias) for field in RelaySettings.model_fields.values()} - LOGINS
    return {key: given[key] for key in keys & given.keys() if not key.startswith("MAIL_")}


def _checked(check: Callable[..., Any], value: object, *, key: str) -> None:
    """Check a value like an argument of a call. `explain` adds the key to the message."""
    try:
        check(value, field=key)
    except InvalidMail as error:
        raise ValueError(str(error).removeprefix(f"{key}: ")) from None
