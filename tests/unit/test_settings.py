"""Settings: read from the app or the environment, checked once, and refused with advice."""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from subprocess import run
from typing import Any

import pytest

from mailer.errors import ConfigurationError
from mailer.message import Lane
from mailer.settings import Settings, keys
from mailer.settings.messages import allowed
from mailer.settings.rates import DomainLimit

DOCS = Path(__file__).parents[2] / "docs"
SECRET = "geheim"


def load(environ: Mapping[str, str] | None = None, /, **config: Any) -> Settings:
    return Settings.load(
        config, environ or {}, default_database_url="sqlite:////srv/mailer.sqlite3"
    )


def refusal(environ: Mapping[str, str] | None = None, /, **config: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        load(environ, **config)
    return str(error.value)


# --- where a value comes from -------------------------------------------------------------------


def test_nothing_has_to_be_set() -> None:
    """The defaults are a relay and a Redis on this machine, and SQLite."""
    settings = load()

    assert (settings.mail_server, settings.mail_port) == ("127.0.0.1", 25)
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.database_url == "sqlite:////srv/mailer.sqlite3"
    assert not settings.mail_suppress_send


#: For each kind of key, a text as in the environment, and its value.
WORDS = {
    "a text": ("value", "value"),
    "a text that is not empty": ("value", "value"),
    "a text or a pair (name, address)": ("Ada <ada@example.com>", "Ada <ada@example.com>"),
    "true or false": ("True", True),
}
OWN_WORDS = {
    "MAILER_DATABASE_URL": ("postgresql://db/mailer", "postgresql://db/mailer"),
    "MAILER_REDIS_URL": ("rediss://cache:6380/1", "rediss://cache:6380/1"),
    "MAILER_RETRY_JITTER": ("0.5", 0.5),
    "MAILER_TLS_CA_FILE": None,  # a file: see below
    "MAILER_TLS_CLIENT_CERT": None,  # the same
    "MAILER_TLS_MINIMUM": ("TLSv1.3", "TLSv1.3"),
    "MAILER_OAUTH": None,  # it wants other keys beside it
    "MAILER_PROXY": ("http://proxy:3128", "http://proxy:3128"),
    "MAILER_SOURCE_ADDRESS": ("192.0.2.1", "192.0.2.1"),
    "MAILER_RELAYS": None,  # JSON: see below
    "MAILER_DKIM_KEYS": None,  # JSON: see test_dkim_keys.py
    "MAILER_ALLOWED_RECIPIENTS": (
        "Example.com, ada@example.org",
        ("example.com", "ada@example.org"),
    ),
    "MAILER_MACHINE_HEADERS": ("precedence, Feedback-ID", ("Precedence", "Feedback-ID")),
    "MAILER_SECRET_KEYS": ("this year's, last year's", (b"this year's", b"last year's")),
    "MAILER_REDIRECT_TO": ("Me <me@example.com>", "me@example.com"),
    "MAILER_WORKER_LANES": ("bulk, critical", (Lane.CRITICAL, Lane.BULK)),
    "MAILER_RELAY_RATE": ("14/second", "14/second"),
    "MAILER_TENANT_WEIGHTS": ('{"acme": 5, "*": 0.5}', {"acme": 5.0, "*": 0.5}),
    "MAILER_TENANT_QUOTAS": ('{"*": "100/minute; 5000/day"}', {"*": "100/minute; 5000/day"}),
    "MAILER_DOMAIN_LIMITS": ('{"a.com": {"rate": "1/day"}}', {"a.com": DomainLimit(rate="1/day")}),
}


@pytest.mark.parametrize("key", keys())
def test_every_key_can_come_from_the_environment(key: str) -> None:
    """Each key can be set in the environment, as text."""
    text_and_value = OWN_WORDS.get(key, WORDS.get(allowed(Settings, key), ("7", 7)))
    if text_and_value is None:
        return
    text, value = text_and_value

    assert getattr(load({key: text}), keys()[key]) == value


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("True", True),
        ("true", True),
        ("1", True),
        ("yes", True),
        ("on", True),
        ("False", False),
        ("0", False),
        ("off", False),
    ],
)
def test_words_for_yes_and_no(text: str, meaning: bool) -> None:
    """Booleans can be written in the usual ways."""
    assert load({"MAIL_USE_TLS": text}).mail_use_tls is meaning
    assert load(MAIL_USE_TLS=text).mail_use_tls is meaning


def test_the_apps_config_comes_first() -> None:
    """The app's config comes before the environment."""
    assert (
        load({"MAIL_SERVER": "from.environment"}, MAIL_SERVER="from.config").mail_server
        == "from.config"
    )
    assert load({"MAIL_USE_TLS": "1"}, MAIL_USE_TLS=False).mail_use_tls is False


def test_an_empty_variable_is_none() -> None:
    """An empty variable, or None in the app's config, means the default."""
    assert (
        load(
            {"MAIL_USERNAME": "", "MAIL_PORT": "", "MAILER_DATABASE_URL": "", "REDIS_URL": ""},
            MAIL_PORT=None,
        )
        == load()
    )
    assert load({"MAIL_SERVER": "from.environment"}, MAIL_SERVER=None).mail_server == "127.0.0.1"


def test_redis_url_is_read_where_there_is_no_mailer_redis_url() -> None:
    """REDIS_URL is used if MAILER_REDIS_URL is not set."""
    assert load({"REDIS_URL": "redis://cache/1"}).redis_url == "redis://cache/1"
    assert load(REDIS_URL="redis://cache/1").redis_url == "redis://cache/1"
    assert (
        load({"REDIS_URL": "redis://cache/1", "MAILER_REDIS_URL": "redis://cache/2"}).redis_url
        == "redis://cache/2"
    )


def test_a_test_sends_nothing() -> None:
    """TESTING suppresses sending unless MAIL_SUPPRESS_SEND says otherwise, as in Flask-Mail."""
    assert load(TESTING=True).mail_suppress_send
    assert not load(TESTING=True, MAIL_SUPPRESS_SEND=False).mail_suppress_send
    assert not load({"MAIL_SUPPRESS_SEND": "False"}, TESTING=True).mail_suppress_send


def test_they_are_frozen() -> None:
    """Settings cannot be changed once they are loaded."""
    with pytest.raises(ValueError, match="frozen"):
        load().mail_port = 26


# --- several relays -----------------------------------------------------------------------------

FIRST = {
    "name": "first",
    "MAIL_SERVER": "smtp.example.com",
    "MAIL_PORT": "587",
    "MAIL_USE_TLS": True,
    "weight": 3,
}
SECOND = {
    "MAIL_SERVER": "10.0.0.1",
    "preference": 1,
    "domains": ["example.com"],
    "senders": ["Ada@example.com"],
    "lanes": ["bulk"],
}


@pytest.mark.parametrize("given", [[FIRST, SECOND], (FIRST, SECOND), json.dumps([FIRST, SECOND])])
def test_several_relays(given: object) -> None:
    """MAILER_RELAYS is a list or JSON, and a missing key has its usual default."""
    first, second = load(MAILER_RELAYS=given).relays

    assert (first.name, first.mail_server, first.mail_port, first.mail_use_tls) == (
        "first",
        "smtp.example.com",
        587,
        True,
    )
    assert (first.weight, first.preference, first.has_rules) == (3, 0, False)
    assert (second.name, second.mail_port, second.weight, second.preference) == (
        "10.0.0.1:25",
        25,
        1,
        1,
    )
    assert (second.domains, second.senders, second.lanes) == (
        ("example.com",),
        ("ada@example.com",),
        (Lane.BULK,),
    )


def test_one_relay_is_that_of_the_apps_own_keys() -> None:
    """Without MAILER_RELAYS there is one relay, named by its host and port."""
    [relay] = load(MAIL_SERVER="smtp.example.com", MAIL_PORT=587).relays

    assert (relay.name, relay.preference, relay.weight, relay.has_rules) == (
        "smtp.example.com:587",
        0,
        1,
        False,
    )


def test_relays_share_the_keys_of_the_app_but_no_login() -> None:
    """Relays inherit time-outs and limits from the app, but neither its server nor its login."""
    app = {
        "MAILER_COMMAND_TIMEOUT": 7,
        "MAILER_RELAY_RATE": "14/second",
        "MAIL_SERVER": "a",
        "MAIL_PORT": 587,
        "MAIL_USE_TLS": True,
    }
    login = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": SECRET}
    first, second = load(
        **app,
        **login,
        MAILER_RELAYS=[{"name": "first"}, {"name": "second", "MAILER_COMMAND_TIMEOUT": 8}],
    ).relays

    assert (first.command_timeout, second.command_timeout, second.relay_rate) == (7, 8, "14/second")
    assert (first.mail_server, first.mail_port, first.mail_use_tls) == ("127.0.0.1", 25, False)
    assert (first.mail_username, first.mail_password) == (None, None)


def test_the_relays_of_the_guide() -> None:
    """The example of MAILER_RELAYS in the guide is valid."""
    [line] = re.findall(
        r"^MAILER_RELAYS='(.*)'$", (DOCS / "guide.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    main, backup, office = load({"MAILER_RELAYS": line}).relays

    assert [relay.name for relay in (main, backup, office)] == ["main", "backup", "office"]
    assert (main.mail_use_tls, backup.preference, office.domains) == (True, 1, ("example.com",))


A_LIST = "a list that is not empty, in the environment as JSON, such as [{"


@pytest.mark.parametrize(
    ("relays", "words"),
    [
        (
            "smtp.example.com",
            f"MAILER_RELAYS=<hidden>: not JSON (line 1, column 1); allowed: {A_LIST}",
        ),
        ("[]", f"MAILER_RELAYS=<hidden>: allowed: {A_LIST}"),
        ("{}", f"MAILER_RELAYS=<hidden>: allowed: {A_LIST}"),
        ('["smtp.example.com"]', "MAILER_RELAYS[0]=<hidden>: allowed: an object."),
        ([], f"MAILER_RELAYS=<hidden>: allowed: {A_LIST}"),
        (
            [{"MAIL_PORT": "x"}],
            "MAILER_RELAYS[0]['MAIL_PORT']='x': allowed: a whole number from 1 to 65535.",
        ),
        ([{}, {"name": ""}], "MAILER_RELAYS[1]['name']='': allowed: a text that is not empty."),
        (
            [{"weight": 0}],
            "MAILER_RELAYS[0]['weight']=0: allowed: a number above 0, 1000000 at most.",
        ),
        (
            [{"weight": "inf"}],
            "MAILER_RELAYS[0]['weight']='inf': allowed: a number above 0, 1000000 at most.",
        ),
        (
            [{"preference": "high"}],
            "MAILER_RELAYS[0]['preference']='high': allowed: a whole number.",
        ),
        (
            [{"lanes": ["urgent"]}],
            (
                "MAILER_RELAYS[0]['lanes']=['urgent']: allowed: a list of 'critical', 'normal' and"
                " 'bulk'."
            ),
        ),
        ([{"lanes": "bulk"}], "MAILER_RELAYS[0]['lanes']='bulk': allowed: a list."),
        (
            [{"senders": "example.com"}],
            "MAILER_RELAYS[0]['senders']='example.com': allowed: a list.",
        ),
        (
            [{"domains": ["*.example.com"]}],
            (
                "MAILER_RELAYS[0]['domains']=['*.example.com']: '*.example.com': allowed: such as"
                " 'example.com',"
            ),
        ),
        (
            [{"domains": ["ada@example.com"]}],
            (
                "MAILER_RELAYS[0]['domains']=['ada@example.com']: 'ada@example.com':"
                " allowed: such as 'example.com',"
            ),
        ),
        (
            [{"senders": ["@example.com"]}],
            (
                "MAILER_RELAYS[0]['senders']=['@example.com']: '@example.com': allowed: such as"
                " 'ada@example.com' or 'example.com',"
            ),
        ),
        (
            [{"MAILER_RELAY_RATE": "fast"}],
            (
                "MAILER_RELAYS[0]['MAILER_RELAY_RATE']='fast':"
                " allowed: a rate such as '14/second' or '100/5 minutes',"
            ),
        ),
        ([{"nam": "x"}], "MAILER_RELAYS[0]['nam']: unknown key; did you mean name?"),
        (
            [{"all_proxy": "x"}],
            "MAILER_RELAYS[0]['all_proxy']: unknown key; allowed: MAILER_COMMAND_",
        ),
        (
            [{"MAILER_KEEP_DAYS": 1}],
            "MAILER_RELAYS[0]['MAILER_KEEP_DAYS']: unknown key; allowed: MAILER_COMMAND_",
        ),
        (
            [{"name": "first", "MAIL_USE_TLS": 1, "MAIL_USE_SSL": 1}],
            "MAILER_RELAYS[0]=<hidden>: MAIL_USE_TLS and MAIL_USE_SSL: set one of them:",
        ),
        (
            [{"name": "a"}, {"name": "a"}],
            "MAILER_RELAYS=<hidden>: two relays are named a: give each a name of its own.",
        ),
        (
            [{}, {}],
            (
                "MAILER_RELAYS=<hidden>: two relays are named 127.0.0.1:25: give each a name of its"
                " own."
            ),
        ),
        (
            [{"name": "a", "domains": ["example.com"]}, {"name": "b", "lanes": ["bulk"]}],
            "MAILER_RELAYS=<hidden>: one relay must take the mail that the rules of no other do:",
        ),
        (
            [{"MAIL_PASSWORD": [SECRET]}],
            "MAILER_RELAYS[0]['MAIL_PASSWORD']=<hidden>: allowed: a text.",
        ),
    ],
)
def test_relays_that_can_not_be_used(relays: object, words: str) -> None:
    """The error for a bad relay names the entry and what is allowed, and shows no password."""
    error = refusal(MAILER_RELAYS=relays)

    assert error.startswith(words)
    assert "all_proxy" not in error.removeprefix(words)


def test_a_value_that_relays_inherit_has_one_line() -> None:
    """A wrong value that several relays inherit is reported once."""
    error = refusal(MAILER_COMMAND_TIMEOUT="x", MAILER_RELAYS=[{"name": "a"}, {"name": "b"}])

    assert error == "MAILER_COMMAND_TIMEOUT='x': allowed: a number above 0, 31536000 at most."


# --- what is refused ----------------------------------------------------------------------------


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
        (
            "MAILER_MACHINE_HEADERS",
            "Precedence, Priority",
            "some of Auto-Submitted, X-Auto-Response-Suppress, Precedence, Feedback-ID, or none",
        ),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: object, words: str) -> None:
    """The error for a wrong value gives the key, the value and what is allowed."""
    assert refusal(**{key: value}) == f"{key}={value!r}: allowed: {words}."


@pytest.mark.parametrize(
    ("sender", "words"),
    [
        ("Ada", "'Ada' is not a usable address: An email address must have an @-sign."),
        ("", "'' is not a usable address: An email address must have an @-sign."),
        (("Ada", "ada"), "'ada' is not a usable address: An email address must have an @-sign."),
        (
            "Ada\n <ada@example.com>",
            r"'Ada\n' contains '\n': remove line breaks and other control characters.",
        ),
    ],
)
def test_a_sender_nobody_can_be_is_refused(sender: object, words: str) -> None:
    """A bad MAIL_DEFAULT_SENDER is refused at start-up."""
    assert refusal(MAIL_DEFAULT_SENDER=sender) == f"MAIL_DEFAULT_SENDER={sender!r}: {words}"


def test_a_sender_may_be_a_pair() -> None:
    """MAIL_DEFAULT_SENDER may be a pair, as in Flask-Mail."""
    assert load(MAIL_DEFAULT_SENDER=("Ada", "ada@example.com")).mail_default_sender == (
        "Ada",
        "ada@example.com",
    )


def test_a_prefix_of_two_lines_is_refused() -> None:
    """A MAILER_SUBJECT_PREFIX with a line break is refused."""
    assert refusal(MAILER_SUBJECT_PREFIX="[shop]\n").startswith(
        r"MAILER_SUBJECT_PREFIX='[shop]\n': '[shop]\n' contains '\n'"
    )


def test_two_kinds_of_tls_are_refused() -> None:
    """MAIL_USE_TLS and MAIL_USE_SSL together are refused."""
    assert refusal(MAIL_USE_TLS="1", MAIL_USE_SSL="1") == (
        "MAIL_USE_TLS and MAIL_USE_SSL: set one of them: STARTTLS is usual on port 587, TLS from"
        " the start on 465."
    )


def test_each_wrong_value_has_a_line() -> None:
    """All wrong values are reported at once, one on each line."""
    assert refusal(MAIL_PORT="x", MAIL_USE_TLS="maybe").splitlines() == [
        "MAIL_PORT='x': allowed: a whole number from 1 to 65535.",
        "MAIL_USE_TLS='maybe': allowed: true or false.",
    ]


# --- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MAIL_PASSWORD", [SECRET]),
        ("MAILER_DATABASE_URL", f"mysql://mailer:{SECRET}@db/mailer"),
        ("MAILER_DATABASE_URL", f"{SECRET}, no URL"),
        ("MAILER_REDIS_URL", f"redis://:{SECRET}@cache:port"),
        ("MAILER_REDIS_URL", f":{SECRET}@cache"),
        ("REDIS_URL", f"redis://:{SECRET}@cache:port"),
        ("MAILER_RELAYS", [{"name": "first", "MAIL_PASSWORD": [SECRET]}]),
        ("MAILER_SECRET_KEYS", [SECRET, ""]),
        ("MAILER_SECRET_KEYS", f"{SECRET},"),
    ],
)
def test_an_error_shows_no_secret(key: str, value: object) -> None:
    """No error shows a secret, since errors are logged and shared."""
    with pytest.raises(ConfigurationError, match="<hidden>: allowed") as error:
        load(**{key: value})

    assert SECRET not in str(error.value)
    assert error.value.__suppress_context__


def test_no_secret_is_shown_by_accident() -> None:
    """The repr of the settings shows no secret."""
    settings = load(
        MAIL_PASSWORD=SECRET,
        MAILER_DATABASE_URL=f"postgresql://u:{SECRET}@db/x",
        MAILER_REDIS_URL=f"redis://:{SECRET}@cache",
        SECRET_KEY=SECRET,
    )

    assert SECRET not in f"{settings} {settings!r}"
    assert settings.mail_password == SECRET


# --- addresses of services ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////srv/mailer.sqlite3",
        "sqlite://",
        "postgresql://db/mailer",
        "postgresql+psycopg2://db/mailer",
    ],
)
def test_databases(url: str) -> None:
    """SQLite and PostgreSQL URLs are accepted."""
    assert load(MAILER_DATABASE_URL=url).database_url == url


def test_the_old_name_of_postgresql() -> None:
    """`postgres://` is accepted, since some platforms still provide it."""
    assert (
        load(MAILER_DATABASE_URL="postgres://u:p@db/mailer").database_url
        == "postgresql://u:p@db/mailer"
    )


@pytest.mark.parametrize(
    "url",
    [
        "mysql://db/mailer",
        "sqlite+aiosqlite:///file",
        "/srv/mailer.sqlite3",
        "sqlite",
        f"postgresql://ada:{SECRET}/mailer",
    ],
)
def test_other_databases_are_refused(url: str) -> None:
    """Other databases are refused; the error hides the value, which may hold a password."""
    assert refusal(MAILER_DATABASE_URL=url) == (
        "MAILER_DATABASE_URL=<hidden>: allowed: sqlite:////path/to/file or"
        " postgresql://user:password@host/name."
    )


def test_postgresql_needs_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the PostgreSQL driver is missing, the error tells how to install it."""
    monkeypatch.setattr(
        "mailer.settings.database.find_spec",
        lambda name: None if name == "psycopg" else find_spec(name),
    )

    assert refusal(MAILER_DATABASE_URL="postgresql://db/mailer") == (
        "MAILER_DATABASE_URL=<hidden>: PostgreSQL needs one more package: pip install"
        " 'flask-mailer-queue[postgres]'."
    )


@pytest.mark.parametrize(
    ("url", "for_celery", "for_redis"),
    [
        ("redis://cache:6379/1", "redis://cache:6379/1", "redis://cache:6379/1"),
        ("rediss://cache", "rediss://cache", "rediss://cache"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        (
            "redis+socket:///run/redis.sock",
            "redis+socket:///run/redis.sock",
            "unix:///run/redis.sock",
        ),
        ("sentinel://a:26379;sentinel://b:26379", "sentinel://a:26379;sentinel://b:26379", None),
        ("amqp://guest@rabbit//", "amqp://guest@rabbit//", None),
    ],
)
def test_brokers(url: str, for_celery: str, for_redis: str | None) -> None:
    """A broker's URL is rendered for Celery and for Redis; other brokers have no Redis URL."""
    settings = load(MAILER_REDIS_URL=url)

    assert settings.broker_url == for_celery
    assert settings.flag_url == for_redis


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "cache",
        "redis://cache:port",
        "redis://cache:99999",
        "redis://c?socket_timeout=x",
    ],
)
def test_a_broker_nobody_can_reach_is_refused(url: str) -> None:
    """The error for a bad broker URL shows the form of one, and hides the value."""
    for key in ("MAILER_REDIS_URL", "REDIS_URL"):
        assert refusal(**{key: url}) == (
            "MAILER_REDIS_URL=<hidden>: allowed, as in REDIS_URL:"
            " redis://:password@host:6379/0, unix:///path/to/socket, or another broker."
        )


def test_an_authority_of_ones_own(tmp_path: Path) -> None:
    """MAILER_TLS_CA_FILE must be a PEM file with a certificate, checked at start-up."""
    good, bad = tmp_path / "ca.pem", tmp_path / "bad.pem"
    request = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=ours"]
    run([*request, "-keyout", tmp_path / "key.pem", "-out", good], check=True, capture_output=True)
    bad.write_text("no certificate")

    assert load(MAILER_TLS_CA_FILE=str(good)).tls_ca_file == str(good)
    for path, why in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "Is a directory"),
        (bad, "no certificate"),
    ):
        assert why in refusal(MAILER_TLS_CA_FILE=str(path))
        assert refusal(MAILER_TLS_CA_FILE=str(path)).startswith(
            f"MAILER_TLS_CA_FILE='{path}': allowed: the path of a PEM file"
        )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ()),
        ({"SECRET_KEY": ""}, ()),
        (
            {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": [b"old", "older"]},
            (b"new", b"old", b"older"),
        ),
        ({"SECRET_KEY": "flask's", "MAILER_SECRET_KEYS": ["a, b", b"c"]}, (b"a, b", b"c")),
    ],
)
def test_secret_keys(config: dict[str, Any], expected: tuple[bytes, ...]) -> None:
    """The secret keys are Flask's unless MAILER_SECRET_KEYS is set."""
    assert load(**config).secret_keys == expected


@pytest.mark.parametrize(
    ("url", "is_same"),
    [
        (
            "postgresql+psycopg://worker:secret@DB/shop?sslmode=require&application_name=worker",
            True,
        ),
        ("postgresql://db:5432/shop", True),
        ("postgres:///shop?host=db", True),
        ("postgresql://web@db/blog", False),
        ("postgresql:///shop?host=db&port=5432", True),
        ("postgresql://web@db:5433/shop", False),
        ("postgresql://web@other/shop", False),
        ("postgresql://web@db/shop?options=-csearch_path%3Dblog", False),
        ("postgresql://web@db/shop?options=--search-path%3Dblog", False),
        ("sqlite:////srv/shop.sqlite3", False),
    ],
)
def test_the_name_of_an_installation(url: str, is_same: bool) -> None:
    """An installation's name depends on the database only, not on how it is reached."""
    name = load(MAILER_DATABASE_URL="postgresql://web:word@db/shop").installation

    assert (load(MAILER_DATABASE_URL=url).installation == name) is is_same
    assert load(MAILER_DATABASE_URL=url, MAILER_NAMESPACE="shop").installation == "shop"


def test_no_options_through_a_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAILER_PGBOUNCER with session options is refused, since a pooler ignores them."""
    with pytest.raises(
        ConfigurationError, match=r"MAILER_PGBOUNCER: .*'-csearch_path=blog'.* ALTER ROLE"
    ):
        load(
            MAILER_DATABASE_URL="postgresql://web@db/shop?options=-csearch_path%3Dblog",
            MAILER_PGBOUNCER=True,
        )
    monkeypatch.setenv("PGOPTIONS", "-c search_path=blog")
    with pytest.raises(ConfigurationError, match="PGOPTIONS"):
        load(MAILER_DATABASE_URL="postgresql://web@db/shop", MAILER_PGBOUNCER=True)
    load(MAILER_DATABASE_URL="sqlite:////srv/shop.sqlite3", MAILER_PGBOUNCER=True)


def test_the_name_of_an_installation_with_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation's name with SQLite depends on the file, whatever path leads to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    urls = [
        "sqlite:///shop.db",
        f"sqlite:///{tmp_path}/shop.db",
        f"sqlite:///{tmp_path}/link/shop.db",
    ]
    urls += [
        f"sqlite:///file:{tmp_path}/shop.db?uri=true",
        f"sqlite:///file://{tmp_path}/shop.db?uri=true&mode=rw",
    ]

    assert len({load(MAILER_DATABASE_URL=url).installation for url in urls}) == 1
    assert (
        load(MAILER_DATABASE_URL="sqlite:///blog.db").installation
        != load(MAILER_DATABASE_URL=urls[0]).installation
    )


@pytest.mark.parametrize("name", ["my shop", "shop:1", "Laden\n", "x" * 65])
def test_a_namespace_that_is_no_name(name: str) -> None:
    """A MAILER_NAMESPACE that cannot be part of a key is refused."""
    assert refusal(MAILER_NAMESPACE=name).startswith("MAILER_NAMESPACE=")


# --- the page about them ------------------------------------------------------------------------


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    """docs/settings.md is what the settings generate."""
    script = run_path(str(DOCS / "settings_table.py"))

    assert (DOCS / "settings.md").read_text(encoding="utf-8") == script["page"](), (
        "run: python -m docs.settings_table"
    )


@pytest.mark.parametrize("key", keys())
def test_every_setting_is_described(key: str) -> None:
    """Each setting has a description that is a sentence, and a key that matches its field."""
    name = keys()[key]
    description = Settings.model_fields[name].description

    assert description is not None
    assert description.endswith(".")
    assert name.upper().removeprefix("LISTED_").startswith(key.removeprefix("MAILER_"))
