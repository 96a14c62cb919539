"""Outside production, no mail reaches a real person by accident."""

import errno
from typing import Any

import pytest
from flask import Flask

from mailer import ConfigurationError, Mailer
from mailer.delivery.routing import destination
from mailer.settings import Settings
from mailer.smtp import advice
from mailer.smtp.session import Step

REAL: dict[str, Any] = {"MAIL_SERVER": "smtp.example.com", "MAIL_PORT": 587}


def load(**config: Any) -> Settings:
    return Settings.load(config, {}, default_database_url="sqlite://")


# --- debug mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [{}, {"MAIL_SERVER": "localhost"}, {"MAIL_SERVER": "127.0.0.1"}])
def test_the_default_is_the_local_inbox(server: dict[str, str]) -> None:
    """In debug mode, and only there, the default relay is the local inbox."""
    settings = load(DEBUG=True, **server)

    assert (settings.is_local, settings.mail_port) == (True, 1025)
    assert load(**server).mail_port == 25


RISKY: dict[str, dict[str, Any]] = {
    "smtp.example.com:587": REAL,
    "smtp.example.com:25": {"MAIL_SERVER": "smtp.example.com"},
    "192.0.2.1:1025": {"MAIL_SERVER": "192.0.2.1", "MAIL_PORT": 1025},
    "127.0.0.1:25": {"MAIL_PORT": 25},
    "localhost:465": {"MAIL_SERVER": "localhost", "MAIL_PORT": 465},
    "/run/relay.sock": {"MAIL_SERVER": "/run/relay.sock"},
    "second": {"MAILER_RELAYS": [{"name": "first", "MAIL_PORT": 1025}, {"name": "second", **REAL}]},
}


@pytest.mark.parametrize("name", RISKY)
def test_a_real_relay_is_refused(name: str) -> None:
    """In debug mode, a real relay is an error at start that names the ways to allow it."""
    with pytest.raises(ConfigurationError) as error:
        load(DEBUG=True, **RISKY[name])

    assert str(error.value) == (
        f"MAIL_SERVER: the app is in debug mode, and {name} may bring its mail to real people:"
        " set MAILER_REDIRECT_TO to your own address, or MAILER_ALLOWED_RECIPIENTS to those who"
        " may get mail ('*': everybody), or set MAIL_SERVER to 127.0.0.1 and MAIL_PORT to 1025, and"
        " start the inbox with `flask mail inbox`. Now set:"
        f" {' and '.join(RISKY[name])} in app.config."
    )
    load(**RISKY[name])


def test_the_error_says_where_the_relay_is_set() -> None:
    """A key that the code sets in app.config can't be unset in the environment."""
    environ = {"MAIL_SERVER": "smtp.example.com", "MAIL_PORT": "1025"}
    with pytest.raises(ConfigurationError) as error:
        Settings.load({"DEBUG": True, "MAIL_PORT": 25}, environ, default_database_url="sqlite://")

    assert str(error.value).endswith(
        "Now set: MAIL_PORT in app.config, MAIL_SERVER in the environment."
    )


@pytest.mark.parametrize(
    "said",
    [
        {"MAILER_REDIRECT_TO": "me@example.com"},
        {"MAILER_ALLOWED_RECIPIENTS": "*"},
        {"MAIL_SUPPRESS_SEND": True},
    ],
)
def test_unless_it_is_said_who_gets_mail(said: dict[str, Any]) -> None:
    """In debug mode, a real relay is allowed once the recipients are restricted."""
    assert load(DEBUG=True, **REAL, **said).name == "smtp.example.com:587"


def test_the_debug_mode_is_that_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """The debug mode is that of the Flask app."""
    monkeypatch.setenv("FLASK_DEBUG", "1")
    app = Flask("tests")
    app.config.from_mapping({"MAILER_DATABASE_URL": "sqlite://", **REAL})

    with pytest.raises(ConfigurationError, match="debug mode"):
        Mailer(app)


@pytest.mark.parametrize(
    ("config", "is_inbox"),
    [
        ({"DEBUG": True}, True),
        ({"MAIL_PORT": 1025}, True),
        ({}, False),
        ({"MAIL_SERVER": "192.0.2.1", "MAIL_PORT": 1025}, False),
    ],
)
def test_an_inbox_that_is_not_running(config: dict[str, Any], is_inbox: bool) -> None:
    """The error of a connection that is refused there names the command that starts an inbox."""
    [relay] = load(**config).relays
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    remedy = advice.for_error(refused, Step.CONNECT, relay)

    assert ("`flask mail inbox`" in remedy) is is_inbox


# --- who gets mail ------------------------------------------------------------------------------

ME = "me@example.com"


@pytest.mark.parametrize(
    ("allowed", "redirect_to", "recipient", "to"),
    [
        ("", None, "ada@example.com", "ada@example.com"),
        ("example.com", None, "ada@example.com", "ada@example.com"),
        ("example.com", None, "Ada@Sub.Example.COM", "Ada@Sub.Example.COM"),
        ("example.com", None, "ada@notexample.com", None),
        ("example.com", None, "ada@example.com.org", None),
        ("bob@example.org, ada@example.com", None, "Ada@example.com", "Ada@example.com"),
        ("ada@example.com", None, "lada@example.com", None),
        ("*", None, "ada@example.com", "ada@example.com"),
        ("", ME, "ada@example.com", ME),
        ("example.org", ME, "ada@example.com", ME),
        ("example.org", ME, "ada@example.org", "ada@example.org"),
    ],
)
def test_who_gets_a_copy(
    allowed: str, redirect_to: str | None, recipient: str, to: str | None
) -> None:
    """A recipient who is not allowed is replaced by MAILER_REDIRECT_TO, or gets no mail."""
    settings = load(
        MAILER_ALLOWED_RECIPIENTS=allowed,
        **{"MAILER_REDIRECT_TO": redirect_to} if redirect_to else {},
    )

    assert destination(settings, recipient) == to


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "MAILER_ALLOWED_RECIPIENTS",
            ["ada@"],
            "MAILER_ALLOWED_RECIPIENTS=['ada@']: 'ada@': allowed: such as 'ada@example.com'",
        ),
        ("MAILER_ALLOWED_RECIPIENTS", 7, "MAILER_ALLOWED_RECIPIENTS=7: allowed: a list"),
        ("MAILER_REDIRECT_TO", "me", "MAILER_REDIRECT_TO='me': 'me' is not a usable address"),
    ],
)
def test_what_nobody_would_ever_meet(key: str, value: object, says: str) -> None:
    """A mistake in the keys that restrict recipients is an error at start."""
    with pytest.raises(ConfigurationError) as error:
        load(**{key: value})

    assert str(error.value).startswith(says)
