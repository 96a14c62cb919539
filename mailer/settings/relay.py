"""The settings of a relay: its address, how to talk to it, and which mail it accepts."""

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUndefined

from mailer.errors import InvalidAddress
from mailer.message import Address, Lane
from mailer.settings.lanes import lanes_by_name
from mailer.settings.oauth import GivenOAuth
from mailer.settings.proxy import NO_PROXY, EnvironmentProxy, checked_proxy, is_local
from mailer.settings.rates import Rate
from mailer.settings.server import checked_server

# A year at most: sockets refuse longer time-outs.
Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]
#: An address, or a domain with its subdomains.
Rule = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]

_PORTS_OF_RELAYS = (25, 465, 587)

TlsVersion = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]


def key(alias: str, description: str, default: Any = PydanticUndefined, **bounds: Any) -> Any:
    return Field(default=default, alias=alias, description=description, **bounds)


class RelaySettings(BaseModel):
    """The settings of a relay: the keys of the app, or an entry of `MAILER_RELAYS`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True
    )

    mail_server: str = key(
        "MAIL_SERVER",
        "Host of the relay, or the path of its socket: `/run/relay.sock`.",
        "127.0.0.1",
        min_length=1,
    )
    mail_port: int = key("MAIL_PORT", "Port of the relay.", 25, ge=1, le=65535)
    mail_use_tls: bool = key(
        "MAIL_USE_TLS",
        "Upgrade the connection with STARTTLS; a relay without STARTTLS gets no mail.",
        False,
    )
    mail_use_ssl: bool = key("MAIL_USE_SSL", "Speak TLS from the first byte.", False)
    mail_username: str | None = key("MAIL_USERNAME", "User name of the login.", None)
    mail_password: str | None = key("MAIL_PASSWORD", "Password of the login.", None, repr=False)
    mail_max_emails: int | None = key(
        "MAIL_MAX_EMAILS",
        "Maximum of mails on a connection. Unset: no limit.",
        None,
        ge=1,
    )
    mail_debug: bool | int = key(
        "MAIL_DEBUG",
        "Print SMTP commands and replies, without logins and mails. 2 adds the time.",
        default=False,
    )
    tls_ca_file: str | None = key(
        "MAILER_TLS_CA_FILE",
        "PEM file of your own authority that signed the relay's certificate.",
        None,
    )
    tls_client_certificate: str | None = key(
        "MAILER_TLS_CLIENT_CERT",
        "PEM file with a client certificate and its key, for a relay that requires one.",
        None,
    )
    tls_minimum: TlsVersion = key(
        "MAILER_TLS_MINIMUM", "The oldest version of TLS to use with the relay.", "TLSv1.2"
    )
    oauth: GivenOAuth | None = key(
        "MAILER_OAUTH",
        "The source of the token with which `MAIL_USERNAME` logs in instead of a password, in the"
        ' environment as JSON: `{"provider": "microsoft", "tenant": "…", "client_id": "…",'
        ' "client_secret": "…"}`,'
        ' `{"provider": "google", "service_account_file": "…", "subject": "ada@example.com"}` or'
        ' `{"token": "package.module:function"}`.',
        None,
        repr=False,
        examples=[
            '{"provider": "microsoft", "tenant": "…", "client_id": "…", "client_secret": "…"}',
            '{"provider": "google", "service_account_file": "…", "subject": "ada@example.com"}',
            '{"token": "package.module:function"}',
        ],
    )
    lmtp: bool = key(
        "MAILER_LMTP", "Use LMTP, the protocol of mail stores, instead of SMTP.", False
    )
    proxy: str | None = key(
        "MAILER_PROXY",
        "Connect to the relay through a proxy: `socks5://user:password@host:1080`, `socks5h://…`"
        " (the proxy asks the DNS), `socks4://…`, `http://host:3128`. If it is unset, `ALL_PROXY`"
        " and `NO_PROXY` of the environment apply to relays on other machines; `none` turns that"
        " off.",
        None,
        repr=False,
    )
    source_address: str | None = key(
        "MAILER_SOURCE_ADDRESS",
        "IP address of this machine from which to connect to the relay.",
        None,
    )
    connect_timeout: Seconds = key(
        "MAILER_CONNECT_TIMEOUT",
        "Seconds to wait for a connection to the relay, or to it through the proxy.",
        10.0,
    )
    command_timeout: Seconds = key(
        "MAILER_COMMAND_TIMEOUT",
        "Seconds to wait for the greeting and for the reply to a command.",
        60.0,
    )
    data_timeout: Seconds = key(
        "MAILER_DATA_TIMEOUT", "Seconds to wait while the bytes of a mail are sent.", 180.0
    )
    reply_timeout: Seconds = key(
        "MAILER_REPLY_TIMEOUT",
        "Seconds to wait for the reply after the last byte; a short wait makes duplicates (RFC"
        " 5321, 4.5.3.2.6).",
        600.0,
    )
    idle_timeout: Seconds = key(
        "MAILER_IDLE_TIMEOUT", "Seconds after which an unused connection is closed.", 30.0
    )
    relay_rate: Rate | None = key(
        "MAILER_RELAY_RATE",
        "Limit of mails to this relay, for all workers together: `14/second; 50000/day`.",
        None,
    )
    relay_concurrency: int | None = key(
        "MAILER_RELAY_CONCURRENCY",
        "Limit of connections to this relay, for all workers together.",
        None,
        ge=1,
    )

    # Only in an entry of MAILER_RELAYS:
    given_name: str | None = Field(None, alias="name", min_length=1)
    preference: int = Field(0, alias="preference")
    weight: float = Field(1.0, alias="weight", gt=0, le=1_000_000)
    senders: tuple[Rule, ...] = Field((), alias="senders")
    domains: tuple[Rule, ...] = Field((), alias="domains")
    lanes: tuple[Lane, ...] = Field((), alias="lanes")

    _environment_proxy: EnvironmentProxy = PrivateAttr(EnvironmentProxy())

    def model_post_init(self, context: "Context | None", /) -> None:
        if context is not None:
            self._environment_proxy = context.environment_proxy

    @property
    def name(self) -> str:
        """The name of the relay in deliveries, pauses and log lines."""
        return self.given_name or (
            self.mail_server if self.is_unix else f"{self.mail_server}:{self.mail_port}"
        )

    @property
    def is_unix(self) -> bool:
        """True if the relay is a socket in the file system."""
        return self.mail_server.startswith("/")

    @property
    def is_local(self) -> bool:
        """True if the relay is on this machine, so that nobody can eavesdrop."""
        return is_local(self.mail_server)

    @property
    def is_inbox(self) -> bool:
        """True if the relay looks like an inbox for developers, which sends nothing on."""
        return self.is_local and not self.is_unix and self.mail_port not in _PORTS_OF_RELAYS

    @property
    def uses_tls(self) -> bool:
        return self.mail_use_tls or self.mail_use_ssl

    @property
    def proxy_to_use(self) -> str | None:
        """The proxy of the relay, or that of the environment. None: connect directly."""
        if self.is_unix or self.proxy == NO_PROXY:
            return None
        if self.proxy is not None:
            return self.proxy
        return None if self.is_local else self._environment_proxy.for_server(self.mail_server)

    def accepts(self, lane: Lane) -> bool:
        """Return whether the relay carries mail of a lane."""
        return not self.lanes or lane in self.lanes

    @property
    def has_rules(self) -> bool:
        """True if the relay accepts only some of the mail."""
        return bool(self.senders or self.domains or self.lanes)

    @property
    def longest_opening(self) -> float:
        """The maximum of seconds to connect, start TLS and log in."""
        # Two tokens, as the relay may refuse one; three tries each, with a connection and a reply.
        tokens = 0 if self.oauth is None else 2 * 3 * 2 * self.connect_timeout
        return tokens + self.connect_timeout + 4 * self.command_timeout

    @property
    def longest_body(self) -> float:
        """The maximum of seconds from the first byte of a mail's body to the reply."""
        return self.data_timeout + self.reply_timeout

    @property
    def longest_try(self) -> float:
        """The maximum of seconds until a requested mail has an outcome. Leases last longer."""
        envelope = 4 * self.command_timeout  # RSET, MAIL, RCPT and DATA
        mail = self.longest_body
        # The mail is requested while the previous one is on the wire, or without a connection. At
        # worst that connection ends before the mail begins, and the mail begins again on another.
        waiting = max(mail, self.longest_opening)
        return waiting + envelope + self.longest_opening + envelope + mail

    @property
    def lacks_password(self) -> bool:
        """True if there is a user name, and neither a password nor a source of tokens."""
        return bool(self.mail_username and not self.mail_password and self.oauth is None)

    @field_validator("mail_server")
    @classmethod
    def _host_alone(cls, value: str) -> str:
        return checked_server(value)

    @field_validator("lanes", mode="before")
    @classmethod
    def _lanes_by_name(cls, value: Any) -> Any:
        return lanes_by_name(value)

    @field_validator("senders", "domains")
    @classmethod
    def _as_addresses_are_stored(
        cls, value: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        return tuple(checked_rule(rule, for_senders=info.field_name == "senders") for rule in value)

    @field_validator("tls_ca_file")
    @classmethod
    def _usable_certificate(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                ssl.create_default_context(cafile=value)
        except OSError as error:
            raise ValueError(
                f"allowed: the path of a PEM file with certificates ({error.strerror or error})"
            ) from None
        return value

    @field_validator("tls_client_certificate")
    @classmethod
    def _usable_client_certificate(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                # With an empty password, OpenSSL never asks at the terminal.
                ssl.create_default_context().load_cert_chain(value, password="")
        except OSError as error:
            raise ValueError(
                "allowed: the path of a PEM file with a certificate and its key"
                f" ({error.strerror or error})"
            ) from None
        return value

    @field_validator("proxy")
    @classmethod
    def _usable_proxy(cls, value: str | None) -> str | None:
        return None if value is None else checked_proxy(value)

    @field_validator("source_address")
    @classmethod
    def _an_ip_address(cls, value: str | None) -> str | None:
        try:
            return None if value is None else str(ipaddress.ip_address(value))
        except ValueError:
            raise ValueError("allowed: an IP address of this machine, such as 192.0.2.1") from None

    @model_validator(mode="after")
    def _one_kind_of_tls(self) -> Self:
        if self.mail_use_tls and self.mail_use_ssl:
            raise ValueError(
                "MAIL_USE_TLS and MAIL_USE_SSL: set one of them: STARTTLS is usual on port 587,"
                " TLS from the start on 465"
            )
        return self

    @model_validator(mode="after")
    def _tls_needs_a_name(self) -> Self:
        if self.is_unix and self.uses_tls:
            raise ValueError(
                "MAIL_USE_TLS and MAIL_USE_SSL: unset them: MAIL_SERVER is a socket, and"
                " certificates are for host names"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_log_in(self) -> Self:
        if self.oauth is None:
            return self
        if self.mail_password:
            raise ValueError("MAILER_OAUTH and MAIL_PASSWORD: set one of them")
        if not self.mail_username:
            raise ValueError("MAILER_OAUTH: set MAIL_USERNAME too, to the mailbox of the login")
        if not (self.uses_tls or self.is_local):
            raise ValueError(
                "MAILER_OAUTH: anybody can use an intercepted token: set MAIL_USE_TLS (port 587)"
                " or MAIL_USE_SSL (port 465)"
            )
        return self


class ListedRelay(RelaySettings):
    """An entry of MAILER_RELAYS. Its defaults are the `MAILER_*` keys of the app."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _with_keys_of_the_app(cls, entry: Any, info: ValidationInfo) -> Any:
        if info.context is None or not isinstance(entry, Mapping):
            return entry
        return {**info.context.shared, **entry}


@dataclass(frozen=True, slots=True)
class Context:
    """The context of validation: values from elsewhere that relays need."""

    #: By key, the values of the app that the relays of MAILER_RELAYS share.
    shared: Mapping[str, Any]
    environment_proxy: EnvironmentProxy


def checked_rule(rule: str, *, for_senders: bool) -> str:
    """Refuse a rule that no address can match: mail would silently go over the wrong relay."""
    at, domain = rule.rpartition("@")[1:]
    try:
        if for_senders and at:
            return Address.parse(rule, field="senders").email.lower()
        if not at:
            return (
                Address.parse(f"postmaster@sub.{domain}", field="domains")
                .domain.lower()
                .removeprefix("sub.")
            )
    except InvalidAddress:
        pass
    example = "'ada@example.com' or 'example.com'" if for_senders else "'example.com'"
    raise ValueError(
        f"{rule!r}: allowed: such as {example}, a domain stands for its subdomains too"
    )
