"""Any value of a setting is either usable or refused with an error without secrets."""

from mailer.errors import ConfigurationError
from mailer.settings import Settings
from mailer.settings.messages import SECRETS
from tests.fuzz.bytes import Bytes

# Settings whose values have a form of their own. The corpus depends on their order.
_KEYS = [
    *(
        "MAIL_SERVER",
        "MAIL_PORT",
        "MAIL_USE_TLS",
        "MAIL_USERNAME",
        "MAIL_PASSWORD",
        "MAIL_DEFAULT_SENDER",
        "MAIL_DEBUG",
    ),
    *(
        "MAILER_RELAYS",
        "MAILER_PROXY",
        "MAILER_RELAY_RATE",
        "MAILER_DOMAIN_LIMITS",
        "MAILER_TLS_MINIMUM",
        "MAILER_COMMAND_TIMEOUT",
    ),
    *(
        "MAILER_DATABASE_URL",
        "MAILER_REDIS_URL",
        "MAILER_RETRY_JITTER",
        "MAILER_KEEP_DAYS",
        "MAILER_SUBJECT_PREFIX",
    ),
]
_MAY_HOLD_SECRETS = SECRETS | {"MAILER_RELAYS"}
_SECRET = "correct horse battery staple"


def configure(data: bytes) -> None:
    """Load settings with these values."""
    source = Bytes(data)
    environ = dict(_setting(source) for _ in range(source.number(4)))
    try:
        settings = Settings.load({}, environ, default_database_url="sqlite://")
    except ConfigurationError as error:
        assert _SECRET not in str(error)  # noqa: PT017 -- the text of the error is checked
    else:
        assert settings.relays
        assert _SECRET not in repr(settings)


def _setting(source: Bytes) -> tuple[str, str]:
    key, before, after = source.pick(_KEYS), source.text(), source.text()
    return key, f"{before}{_SECRET}{after}" if key in _MAY_HOLD_SECRETS else before + after
