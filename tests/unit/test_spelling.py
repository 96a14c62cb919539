"""Misspelt keys and keywords are refused; other unknown words are not."""

import logging
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from flask import Flask
from jinja2 import DictLoader, pass_context

from mailer import Mailer
from mailer.content import Renderer
from mailer.errors import ConfigurationError, InvalidMail
from mailer.intake.keywords import _OPTIONS, check_keywords
from mailer.settings import Settings, keys
from mailer.settings.spelling import check_keys

NEAR_KEYS = {
    "MAILER_RETRY_ATEMPTS": "MAILER_RETRY_ATTEMPTS",
    "MAILER_RETRY_ATTEMPT": "MAILER_RETRY_ATTEMPTS",
    "MAILER_RETRYATTEMPTS": "MAILER_RETRY_ATTEMPTS",
    "MALER_RETRY_ATTEMPTS": "MAILER_RETRY_ATTEMPTS",
    "mailer_retry_attempts": "MAILER_RETRY_ATTEMPTS",
    "MAILER_DATABASE_URI": "MAILER_DATABASE_URL",
    "MAILER_RELAY": "MAILER_RELAYS",
    "MAILER_SERVER": "MAIL_SERVER",
    "MAIL_PROT": "MAIL_PORT",
    "MAIL_USE_TSL": "MAIL_USE_TLS",
    "MAIL_SUPRESS_SEND": "MAIL_SUPPRESS_SEND",
    "MAIL_USER_NAME": "MAIL_USERNAME",
    "MAIL_DEFAULT_SENDR": "MAIL_DEFAULT_SENDER",
}
#: Keys of applications and of other extensions.
OTHER_KEYS = [
    *(
        "MAIL_FROM",
        "MAIL_ROOT",
        "MAIL_PASSWORD2",
        "MAIL_SUBJECT_PREFIX",
        "MAIL_BACKEND",
        "EMAIL_SERVER",
        "MAILGUN_PORT",
    ),
    *(
        "MAILS_PER_PAGE",
        "SECRET_KEY",
        "SQLALCHEMY_DATABASE_URI",
        "MAILER_INBOX_DIR",
        "ADMIN_MAIL",
        "MAIL_SENDER",
    ),
]


def load(config: dict[Any, Any], environ: dict[str, str] | None = None) -> Settings:
    return Settings.load(config, environ or {}, default_database_url="sqlite://")


@pytest.mark.parametrize(("wrong", "meant"), NEAR_KEYS.items())
def test_a_near_miss_of_a_key_is_refused(wrong: str, meant: str) -> None:
    """A misspelt key in the app's config is an error that names the right one."""
    with pytest.raises(
        ConfigurationError,
        match=rf"^{wrong}: there is no such key: did you mean .*\b{meant}\b.*\? If ",
    ):
        load({wrong: 3})


def test_an_application_may_have_several_servers(caplog: pytest.LogCaptureFixture) -> None:
    """Plurals of Flask-Mail's keys are only warned about, since applications may have them."""
    load({"MAIL_SERVERS": [], "MAIL_PORTS": [], "MAIL_USERNAMES": []})
    assert caplog.messages == [
        f"Unknown key in the app's configuration is ignored: key={key}S: did you mean {key}?"
        for key in ("MAIL_PORT", "MAIL_SERVER", "MAIL_USERNAME")
    ]
    with pytest.raises(
        ConfigurationError,
        match=r"did you mean MAILER_RELAY_RATE\? If it is your own, give it another name\.$",
    ):
        load({"MAILER_RELAY_RATES": []})


def test_each_misspelt_key_is_named() -> None:
    """All misspelt keys are reported at once."""
    with pytest.raises(ConfigurationError) as error:
        load({"MAILER_RETRY_ATEMPTS": 3, "MAIL_PROT": 25})
    assert len(str(error.value).splitlines()) == 2


def test_no_key_is_a_near_miss_of_another(caplog: pytest.LogCaptureFixture) -> None:
    """No key of Mailer or of another extension counts as misspelt."""
    check_keys(
        dict.fromkeys([*keys(), *OTHER_KEYS], "x"),
        dict.fromkeys([*keys(), *OTHER_KEYS], "x"),
        keys(),
    )
    assert caplog.messages == []


def test_an_unknown_key_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown key in the app's config is logged, with a suggestion if there is one."""
    load({"MAILER_MAX_ATTEMPTS": 3, "MAILER_COLOUR": "blue"})
    assert caplog.messages == [
        "Unknown key in the app's configuration is ignored: key=MAILER_COLOUR",
        (
            "Unknown key in the app's configuration is ignored: key=MAILER_MAX_ATTEMPTS:"
            " did you mean MAILER_RETRY_ATTEMPTS?"
        ),
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_environment_is_only_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt variable is only logged, since the environment is shared."""
    load(
        {},
        {
            "MAILER_RETRY_ATEMPTS": "3",
            "MAILER_COLOUR": "blue",
            "MAIL": "/var/mail/ada",
            "MAIL_PROT": "",
        },
    )
    assert caplog.messages == [
        (
            "Unknown environment variable is ignored: key=MAILER_RETRY_ATEMPTS: did you mean"
            " MAILER_RETRY_ATTEMPTS?"
        )
    ]


def test_a_misspelt_key_of_a_relay() -> None:
    """The error for a misspelt key in MAILER_RELAYS suggests the right one."""
    words = r"MAILER_RELAYS\[0\]\['MAIL_SEVER'\]: unknown key; did you mean MAIL_SERVER\?"
    with pytest.raises(ConfigurationError, match=words):
        load({"MAILER_RELAYS": [{"MAIL_SEVER": "smtp.example.com"}]})


# --- keywords of send_email() -------------------------------------------------------------------


def test_the_options_are_those_of_the_call() -> None:
    """A near miss of each argument of `send_email()` is noticed, and of no other name."""
    arguments = signature(Mailer.send_email).parameters

    assert {*_OPTIONS} == arguments.keys() - {"self", "more_context"}


TEMPLATES = {
    "plain.txt": "Hello {{ name }}",
    "uses.txt": "{{ body }} {% if attachment %}{{ attachment }}{% endif %}",
    "uses_all.txt": "{{ [session, delay, when, ttl, files, file, key, retry, retries, max_retries,"
    " sync] }}",
    "html_only.html": "{% for recipient in recipients %}{{ recipient }}{% endfor %}",
    "base.txt": "{{ body }}{% block main %}{% endblock %}",
    "extends.txt": "{% extends 'base.txt' %}",
    "includes.txt": "{% include ['nowhere.txt', 'extends.txt'] ignore missing %}",
    "macros.txt": "{% macro show() %}{{ body }}{% endmacro %}",
    "imports.txt": "{% from 'macros.txt' import show with context %}{{ show() }}",
    "endless.txt": "{% include 'endless.txt' %}",
    "dynamic.txt": "{% include name %}",
    "context.txt": "{{ everything() }}",
    "context_filter.txt": "{{ name|seen }}",
    "maps.txt": "{{ [name]|map('upper')|join }}",
    "default.txt": "{% set body = body|default('') %}",
    "broken.txt": "{% if %}",
}
Check = Callable[..., None]


@pytest.fixture
def check() -> Check:
    """Return `check(template, *keywords)`, which checks keywords as `send_email()` does."""
    app = Flask("shop")
    app.jinja_loader = DictLoader(TEMPLATES)
    app.jinja_env.globals["everything"] = pass_context(lambda context: str(context.get_all()))
    app.jinja_env.filters["seen"] = pass_context(lambda context, value: str(context.get_all()))
    renderer = Renderer(app)
    return lambda template, *keywords: check_keywords(renderer, template, keywords)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        *[
            ("idempotancy_key", "idempotency_key"),
            ("idempotencyKey", "idempotency_key"),
            ("idempotency", "idempotency_key"),
        ],
        *[
            ("attachment", "attachments"),
            ("atachments", "attachments"),
            ("body", "text"),
            ("html_body", "html"),
        ],
        *[
            ("msg", "text"),
            ("recipients", "to"),
            ("To", "to"),
            ("from_", "sender"),
            ("from", "sender"),
            ("CC", "cc"),
        ],
        *[
            ("replyto", "reply_to"),
            ("reply_too", "reply_to"),
            ("tag", "tags"),
            ("lnae", "lane"),
            ("lanes", "lane"),
        ],
        *[
            ("sensitve", "sensitive"),
            ("expire_at", "expires_at"),
            ("sent_at", "send_at"),
            ("on_doubts", "on_doubt"),
        ],
        *[
            ("conection", "connection"),
            ("sendr", "sender"),
            ("header", "headers"),
            ("contxt", "context"),
        ],
        *[
            ("session", "connection"),
            ("delay", "send_at"),
            ("when", "send_at"),
            ("ttl", "expires_at"),
        ],
        *[
            ("files", "attachments"),
            ("file", "attachments"),
            ("dedupe_key", "idempotency_key"),
            ("unique", "idempotency_key"),
            ("key", "idempotency_key"),
        ],
    ],
)
def test_a_near_miss_of_an_option_is_refused(check: Check, keyword: str, meant: str) -> None:
    """A misspelt option of `send_email()` is refused if the template does not use it."""
    with pytest.raises(
        InvalidMail, match=rf"^{keyword}: there is no such option.*'plain'.* did you mean {meant}\?"
    ):
        check("plain", "name", keyword)


@pytest.mark.parametrize("keyword", ["retry", "retries", "max_retries", "sync"])
def test_what_no_option_does_is_refused(check: Check, keyword: str) -> None:
    """A wish that no option grants is refused with the remedy, unless the template uses it."""
    with pytest.raises(InvalidMail, match=rf"^{keyword}: there is no such option, .*[Ww]orker"):
        check("plain", keyword)
    check("uses_all", keyword)


@pytest.mark.parametrize("keyword", ["session", "delay", "when", "ttl", "files", "file", "key"])
def test_words_that_are_variables_as_well(check: Check, keyword: str) -> None:
    """A template that uses such a word gets it."""
    check("uses_all", keyword)


def test_words_of_their_own(check: Check) -> None:
    """Other keywords that a template does not use are allowed, as calls share values."""
    words = (
        "user order invoice lang line date page render gender vendor object"
        " url token code name link year items no ok x"
    )
    check("plain", *words.split())


@pytest.mark.parametrize(
    ("template", "keyword"),
    [
        *[
            ("uses", "body"),
            ("uses", "attachment"),
            ("html_only", "recipients"),
            ("html_only", "recipient"),
        ],
        *[("extends", "body"), ("includes", "body"), ("imports", "body"), ("default", "body")],
    ],
)
def test_what_a_template_uses_is_its_own(check: Check, template: str, keyword: str) -> None:
    """A keyword is allowed if the template, or one that it uses, reads it."""
    check(template, keyword)
    check(template, keyword)
    with pytest.raises(InvalidMail):
        check(template, "idempotancy_key")


@pytest.mark.parametrize("template", ["dynamic", "context", "context_filter", "broken", "nowhere"])
def test_what_a_template_may_use_is_let_through(check: Check, template: str) -> None:
    """Any keyword is allowed if the template's variables cannot be determined."""
    check(template, "body", "idempotancy_key")


@pytest.mark.parametrize("template", ["endless", "maps"])
def test_what_can_be_known(check: Check, template: str) -> None:
    """A template's variables are known despite built-in filters and recursive includes."""
    with pytest.raises(InvalidMail):
        check(template, "body")


class ClearedSet(set[object]):
    """A set that is cleared right after each addition, as if by another thread."""

    def add(self, element: object) -> None:
        super().add(element)
        self.clear()


def test_what_another_thread_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking keywords works while another thread clears the cache of variables."""
    app = Flask("shop")
    app.jinja_loader = DictLoader(TEMPLATES)
    renderer = Renderer(app)
    monkeypatch.setattr(renderer, "_used", ClearedSet())

    assert renderer.may_use("uses", "body")


def test_a_template_is_read_once(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's variables are read once."""
    check("uses", "body")
    monkeypatch.setattr(DictLoader, "get_source", None)
    check("uses", "body")
