"""The settings: read from the app or the environment, checked once, and refused in words that say what to do."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from subprocess import run
from typing import Any

import pytest

from mailer.errors import ConfigurationError
from mailer.settings import Settings, allowed, keys

DOCS = Path(__file__).parents[2] / "docs"
SECRET = "geheim"


def load(environ: Mapping[str, str] | None = None, /, **config: Any) -> Settings:
    return Settings.load(config, environ or {}, default_database_url="sqlite:////srv/mailer.sqlite3")


def refusal(environ: Mapping[str, str] | None = None, /, **config: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        load(environ, **config)
    return str(error.value)


# --- where a value comes from -----------------------------------------------------------------------------------------


def test_nothing_has_to_be_set() -> None:
    """With no setting at all: a relay and a broker on this machine, and SQLite where the app keeps its data."""
    settings = load()

    assert (settings.mail_server, settings.mail_port) == ("127.0.0.1", 25)
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.database_url == "sqlite:////srv/mailer.sqlite3"
    assert not settings.mail_suppress_send


#: For each kind of key: a text as an environment has it, and what it means.
WORDS = {
    "a text": ("value", "value"),
    "a text that is not empty": ("value", "value"),
    "a text or a pair (name, address)": ("Ada <ada@example.com>", "Ada <ada@example.com>"),
    "true or false": ("True", True),
}
OWN_WORDS = {
    "MAILER_DATABASE_URL": ("postgresql://db/mailer", "postgresql://db/mailer"),
    "MAILER_REDIS_URL": ("rediss://cache:6380/1", "rediss://cache:6380/1"),
    "MAILER_TLS_CA_FILE": None,  # a file: see below
}


@pytest.mark.parametrize("key", keys())
def test_every_key_can_come_from_the_environment(key: str) -> None:
    """A text means what it says: "True" is true, "7" is a number."""
    text_and_value = OWN_WORDS.get(key, WORDS.get(allowed(key), ("7", 7)))
    if text_and_value is None:
        return
    text, value = text_and_value

    assert getattr(load({key: text}), keys()[key]) == value


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("True", True), ("true", True), ("1", True), ("yes", True), ("on", True), ("False", False), ("0", False), ("off", False)],
)
def test_words_for_yes_and_no(text: str, meaning: bool) -> None:
    """As people write them, in the environment and in the app's config."""
    assert load({"MAIL_USE_TLS": text}).mail_use_tls is meaning
    assert load(MAIL_USE_TLS=text).mail_use_tls is meaning


def test_the_apps_config_comes_first() -> None:
    """What is set in code is not changed from outside."""
    assert load({"MAIL_SERVER": "from.environment"}, MAIL_SERVER="from.config").mail_server == "from.config"
    assert load({"MAIL_USE_TLS": "1"}, MAIL_USE_TLS=False).mail_use_tls is False


def test_an_empty_variable_is_none() -> None:
    """`MAIL_USERNAME=` in an .env file is as good as no setting; so is None in the app's config, which comes first."""
    assert load({"MAIL_USERNAME": "", "MAIL_PORT": "", "MAILER_DATABASE_URL": "", "REDIS_URL": ""}, MAIL_PORT=None) == load()
    assert load({"MAIL_SERVER": "from.environment"}, MAIL_SERVER=None).mail_server == "127.0.0.1"


def test_redis_url_is_read_where_there_is_no_mailer_redis_url() -> None:
    """The name that most platforms give it."""
    assert load({"REDIS_URL": "redis://cache/1"}).redis_url == "redis://cache/1"
    assert load(REDIS_URL="redis://cache/1").redis_url == "redis://cache/1"
    assert load({"REDIS_URL": "redis://cache/1", "MAILER_REDIS_URL": "redis://cache/2"}).redis_url == "redis://cache/2"


def test_a_test_sends_nothing() -> None:
    """As with Flask-Mail: TESTING suppresses, unless MAIL_SUPPRESS_SEND says otherwise."""
    assert load(TESTING=True).mail_suppress_send
    assert not load(TESTING=True, MAIL_SUPPRESS_SEND=False).mail_suppress_send
    assert not load({"MAIL_SUPPRESS_SEND": "False"}, TESTING=True).mail_suppress_send


def test_they_are_frozen() -> None:
    """Checked once, and not changed behind the back of who was given them."""
    with pytest.raises(ValueError, match="frozen"):
        load().mail_port = 26


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MAIL_PORT", "abc", "a whole number from 1 to 65535"),
        ("MAIL_PORT", "70000", "a whole number from 1 to 65535"),
        ("MAIL_PORT", 0, "a whole number from 1 to 65535"),
        ("MAIL_PORT", "587.5", "a whole number from 1 to 65535"),
        ("MAIL_PORT", [587], "a whole number from 1 to 65535"),
        ("MAIL_USE_TLS", "maybe", "true or false"),
        ("MAIL_USE_SSL", "", "true or false"),
        ("MAIL_SERVER", "", "a text that is not empty"),
        ("MAIL_SERVER", 5, "a text that is not empty"),
        ("MAIL_USERNAME", 5, "a text"),
        ("MAIL_MAX_EMAILS", "0", "a whole number, 1 or more"),
        ("MAIL_DEFAULT_SENDER", 5, "a text or a pair (name, address)"),
        ("MAILER_CONNECT_TIMEOUT", "0", "a number above 0, 31536000 at most"),
        ("MAILER_CONNECT_TIMEOUT", "-1", "a number above 0, 31536000 at most"),
        ("MAILER_CONNECT_TIMEOUT", "soon", "a number above 0, 31536000 at most"),
        ("MAILER_CONNECT_TIMEOUT", "nan", "a number above 0, 31536000 at most"),
        ("MAILER_CONNECT_TIMEOUT", "inf", "a number above 0, 31536000 at most"),
        ("MAILER_RETRY_FACTOR", "0.9", "a number from 1 to 100"),
        ("MAILER_RETRY_ATTEMPTS", "100000", "a whole number from 1 to 1000"),
        ("MAILER_KEEP_DAYS", "0", "a number above 0"),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: object, words: str) -> None:
    """With the key, the value, and what is allowed, in plain words."""
    assert refusal(**{key: value}) == f"{key}={value!r}: allowed: {words}."


@pytest.mark.parametrize(
    ("sender", "words"),
    [
        ("Ada", "'Ada' is not a usable address: An email address must have an @-sign."),
        ("", "'' is not a usable address: An email address must have an @-sign."),
        (("Ada", "ada"), "'ada' is not a usable address: An email address must have an @-sign."),
        ("Ada\n <ada@example.com>", r"'Ada\n' contains '\n': remove line breaks and other control characters."),
    ],
)
def test_a_sender_nobody_can_be_is_refused(sender: object, words: str) -> None:
    """At start-up, not at the first mail."""
    assert refusal(MAIL_DEFAULT_SENDER=sender) == f"MAIL_DEFAULT_SENDER={sender!r}: {words}"


def test_a_sender_may_be_a_pair() -> None:
    """As with Flask-Mail."""
    assert load(MAIL_DEFAULT_SENDER=("Ada", "ada@example.com")).mail_default_sender == ("Ada", "ada@example.com")


def test_a_prefix_of_two_lines_is_refused() -> None:
    """It would make every mail invalid."""
    assert refusal(MAILER_SUBJECT_PREFIX="[shop]\n").startswith(r"MAILER_SUBJECT_PREFIX='[shop]\n': '[shop]\n' contains '\n'")


def test_two_kinds_of_tls_are_refused() -> None:
    """One of them is a mistake, and nobody can say which."""
    assert refusal(MAIL_USE_TLS="1", MAIL_USE_SSL="1") == (
        "MAIL_USE_TLS and MAIL_USE_SSL: set one of them: STARTTLS is usual on port 587, TLS from the start on 465."
    )


def test_each_wrong_value_has_a_line() -> None:
    """So that a deployment is mended in one go."""
    assert refusal(MAIL_PORT="x", MAIL_USE_TLS="maybe").splitlines() == [
        "MAIL_PORT='x': allowed: a whole number from 1 to 65535.",
        "MAIL_USE_TLS='maybe': allowed: true or false.",
    ]


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MAIL_PASSWORD", [SECRET]),
        ("MAILER_DATABASE_URL", f"mysql://mailer:{SECRET}@db/mailer"),
        ("MAILER_DATABASE_URL", f"{SECRET}, no URL"),
        ("MAILER_REDIS_URL", f"redis://:{SECRET}@cache:port"),
        ("MAILER_REDIS_URL", f":{SECRET}@cache"),
        ("REDIS_URL", f"redis://:{SECRET}@cache:port"),
    ],
)
def test_an_error_shows_no_secret(key: str, value: object) -> None:
    """Errors of a start-up are printed, logged and pasted into tickets."""
    with pytest.raises(ConfigurationError, match="<hidden>: allowed") as error:
        load(**{key: value})

    assert SECRET not in str(error.value)
    assert error.value.__suppress_context__


def test_no_secret_is_shown_by_accident() -> None:
    """Neither in a log nor on a page for debugging."""
    settings = load(
        MAIL_PASSWORD=SECRET, MAILER_DATABASE_URL=f"postgresql://u:{SECRET}@db/x", MAILER_REDIS_URL=f"redis://:{SECRET}@cache"
    )

    assert SECRET not in f"{settings} {settings!r}"
    assert settings.mail_password == SECRET


# --- addresses of services --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["sqlite:////srv/mailer.sqlite3", "sqlite://", "postgresql://db/mailer", "postgresql+psycopg2://db/mailer"]
)
def test_databases(url: str) -> None:
    """SQLite and PostgreSQL; the driver is ours to choose."""
    assert load(MAILER_DATABASE_URL=url).database_url == url


def test_the_old_name_of_postgresql() -> None:
    """Some platforms still hand it out."""
    assert load(MAILER_DATABASE_URL="postgres://u:p@db/mailer").database_url == "postgresql://u:p@db/mailer"


@pytest.mark.parametrize("url", ["mysql://db/mailer", "sqlite+aiosqlite:///file", "/srv/mailer.sqlite3", "sqlite"])
def test_other_databases_are_refused(url: str) -> None:
    """The error shows how the two are written."""
    assert refusal(MAILER_DATABASE_URL=url) == (
        "MAILER_DATABASE_URL=<hidden>: allowed: sqlite:////path/to/file or postgresql://user:password@host/name."
    )


def test_postgresql_needs_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: who has not installed it reads how to."""
    monkeypatch.setattr("mailer.settings.find_spec", lambda name: None if name == "psycopg" else find_spec(name))

    assert refusal(MAILER_DATABASE_URL="postgresql://db/mailer") == (
        "MAILER_DATABASE_URL=<hidden>: PostgreSQL needs one more package: pip install 'flask-mailer-queue[postgres]'."
    )


@pytest.mark.parametrize(
    ("url", "for_celery", "for_redis"),
    [
        ("redis://cache:6379/1", "redis://cache:6379/1", "redis://cache:6379/1"),
        ("rediss://cache", "rediss://cache", "rediss://cache"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        ("sentinel://a:26379;sentinel://b:26379", "sentinel://a:26379;sentinel://b:26379", None),
        ("amqp://guest@rabbit//", "amqp://guest@rabbit//", None),
    ],
)
def test_brokers(url: str, for_celery: str, for_redis: str | None) -> None:
    """Celery and Redis' own client spell a socket differently; where the broker is another one there is no shared flag."""
    settings = load(MAILER_REDIS_URL=url)

    assert settings.broker_url == for_celery
    assert settings.flag_url == for_redis


@pytest.mark.parametrize(
    "url", ["localhost:6379", "cache", "redis://cache:port", "redis://cache:99999", "redis://c?socket_timeout=x"]
)
def test_a_broker_nobody_can_reach_is_refused(url: str) -> None:
    """The error shows how it is written, and that it may be REDIS_URL that is wrong."""
    for key in ("MAILER_REDIS_URL", "REDIS_URL"):
        assert refusal(**{key: url}) == (
            "MAILER_REDIS_URL=<hidden>: allowed, as in REDIS_URL:"
            " redis://:password@host:6379/0, unix:///path/to/socket, or another broker."
        )


def test_an_authority_of_ones_own(tmp_path: Path) -> None:
    """A PEM file with a certificate; anything else is refused before a mail depends on it."""
    good, bad = tmp_path / "ca.pem", tmp_path / "bad.pem"
    request = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=ours"]
    run([*request, "-keyout", tmp_path / "key.pem", "-out", good], check=True, capture_output=True)
    bad.write_text("no certificate")

    assert load(MAILER_TLS_CA_FILE=str(good)).tls_ca_file == str(good)
    for path, why in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory"), (bad, "no certificate")):
        assert why in refusal(MAILER_TLS_CA_FILE=str(path))
        assert refusal(MAILER_TLS_CA_FILE=str(path)).startswith(f"MAILER_TLS_CA_FILE='{path}': allowed: the path of a PEM file")


# --- the page about them ----------------------------------------------------------------------------------------------


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    """docs/settings.md is what the settings say of themselves."""
    script = run_path(str(DOCS / "settings_table.py"))

    assert (DOCS / "settings.md").read_text(encoding="utf-8") == script["page"](), "run: python -m docs.settings_table"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    """By a sentence, as the page is made of them; a key is spelt as its field, or shorter by our name."""
    field = Settings.model_fields[name]

    assert field.description is not None
    assert field.description.endswith(".")
    assert field.alias in (name.upper(), f"MAILER_{name.upper()}")
