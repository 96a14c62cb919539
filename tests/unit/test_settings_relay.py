"""A relay's settings: mistakes are found at start-up, and reported without secrets."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mailer.errors import ConfigurationError
from mailer.settings import Settings, oauth, proxy
from mailer.settings.oauth import GoogleLogin, MicrosoftLogin, TokenFunction
from tests.services.certificates import make_certificate

SECRET = "geheim"
TLS = {"MAIL_SERVER": "smtp.example.com", "MAIL_USE_TLS": True, "MAIL_USERNAME": "ada"}
MICROSOFT = {"provider": "microsoft", "tenant": "t", "client_id": "c", "client_secret": SECRET}


def make_token() -> str:
    return SECRET


def load(**config: Any) -> Settings:
    return Settings.load(config, {}, default_database_url="sqlite://")


def refusal(**config: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        load(**config)
    assert SECRET not in str(error.value)
    return str(error.value)


def without(monkeypatch: pytest.MonkeyPatch, module: ModuleType, package: str) -> None:
    """Hide the package from the module, as if it were not installed."""
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name == package else find_spec(name)
    )


# --- the route ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "proxy:1080",
        "gopher://proxy:70",
        "socks5://",
        "socks5://:1080",
        "socks5://proxy",
        "socks5://proxy:many",
        f"x://a:{SECRET}@p:1",
    ],
)
def test_a_proxy_that_is_none(url: str) -> None:
    """The error for a bad MAILER_PROXY shows the form of one, and hides the value."""
    assert refusal(MAILER_PROXY=url).startswith(
        "MAILER_PROXY=<hidden>: allowed: socks5://user:password@host:1080"
    )


def test_a_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the package for SOCKS is missing, the error tells how to install it."""
    without(monkeypatch, proxy, "python_socks")

    assert "pip install 'flask-mailer-queue[socks]'" in refusal(MAILER_PROXY="socks5://proxy:1080")
    assert load(MAILER_PROXY="None").proxy == "none"


@pytest.mark.parametrize("address", ["localhost", "192.0.2", "192.0.2.1:25"])
def test_a_source_address_that_is_none(address: str) -> None:
    """MAILER_SOURCE_ADDRESS must be an IP address, since a name may have several."""
    assert refusal(MAILER_SOURCE_ADDRESS=address).startswith(
        f"MAILER_SOURCE_ADDRESS='{address}': allowed: an IP address"
    )


@pytest.mark.parametrize("key", ["MAIL_USE_TLS", "MAIL_USE_SSL"])
def test_a_socket_has_no_certificate(key: str) -> None:
    """TLS over a Unix socket is refused, since there is no name to verify."""
    assert "MAIL_SERVER is a socket" in refusal(MAIL_SERVER="/run/relay.sock", **{key: True})


def test_the_name_of_a_relay() -> None:
    """A relay is named by its host and port, or by the path of its socket."""
    assert load(MAIL_SERVER="/run/relay.sock").name == "/run/relay.sock"
    assert load(MAIL_SERVER="smtp.example.com", MAIL_PORT=587).name == "smtp.example.com:587"


# --- TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["TLSv1.4", "1.2", "SSLv3", ""])
def test_a_version_of_tls_that_is_none(version: str) -> None:
    """The error for an unknown TLS version lists those that are allowed."""
    assert refusal(MAILER_TLS_MINIMUM=version).endswith(
        "allowed: TLSv1, TLSv1.1, TLSv1.2, TLSv1.3."
    )


def test_a_certificate_of_ours(tmp_path: Path) -> None:
    """MAILER_TLS_CLIENT_CERT must be a PEM file with a certificate and its key."""
    file = make_certificate(tmp_path / "ours.pem")
    certificate_only = tmp_path / "certificate.pem"
    certificate_only.write_bytes(file.read_bytes().partition(b"-----BEGIN PRIVATE KEY")[0])

    assert load(MAILER_TLS_CLIENT_CERT=str(file)).tls_client_certificate == str(file)
    for wrong in (certificate_only, tmp_path / "missing.pem"):
        assert "a PEM file with a certificate and its key" in refusal(
            MAILER_TLS_CLIENT_CERT=str(wrong)
        )


# --- OAuth --------------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path: Path) -> str:
    file = tmp_path / "account.json"
    file.write_text(
        json.dumps({"client_email": "a@b", "private_key": SECRET, "token_uri": "https://c"}),
        encoding="utf-8",
    )
    return str(file)


def test_where_tokens_come_from(account: str) -> None:
    """MAILER_OAUTH is an object, JSON, or a function."""
    given = {"provider": "google", "service_account_file": account}

    assert load(**TLS, MAILER_OAUTH=MICROSOFT).oauth == MicrosoftLogin(
        tenant="t", client_id="c", client_secret=SECRET
    )
    assert load(**TLS, MAILER_OAUTH=json.dumps(given)).oauth == GoogleLogin(
        service_account_file=account
    )
    assert load(**TLS, MAILER_OAUTH={**given, "subject": "ada@example.com"}).oauth == GoogleLogin(
        service_account_file=account, subject="ada@example.com"
    )
    assert (
        load(**TLS, MAILER_OAUTH=make_token).oauth
        == load(**TLS, MAILER_OAUTH={"token": make_token}).oauth
        == TokenFunction(token=make_token)
    )
    assert load(**TLS, MAILER_OAUTH={"token": "json:dumps"}).oauth == TokenFunction(
        token="json:dumps"
    )


FORMS = (
    'allowed: an object, in the environment as JSON, such as {"provider": "microsoft", "tenant": '
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (f"{{{SECRET}", f"=<hidden>: not JSON (line 1, column 2); {FORMS}"),
        ([MICROSOFT], f"=<hidden>: {FORMS}"),
        (7, f"=<hidden>: {FORMS}"),
        ({"provider": "gmail", "client_secret": SECRET}, f"=<hidden>: {FORMS}"),
        ({"provider": [SECRET]}, f"=<hidden>: {FORMS}"),
        (
            {**MICROSOFT, "secret": SECRET},
            "['secret']: unknown key; allowed: authority, client_id,",
        ),
        (
            {**MICROSOFT, "client_sicret": SECRET},
            "['client_sicret']: unknown key; did you mean client_s",
        ),
        (
            {"provider": "microsoft", "tenant": "t", "client_secret": SECRET},
            "['client_id']: missing; allowed: a text that is not empty",
        ),
        ({**MICROSOFT, "tenant": ""}, "['tenant']=<hidden>: allowed: a text that is not empty"),
        ({**MICROSOFT, "scope": 7}, "['scope']=<hidden>: allowed: a text that is not empty"),
        (
            {"provider": "google"},
            "['service_account_file']: missing; allowed: a text that is not empty",
        ),
        (
            {"provider": "google", "service_account_file": "/missing.json"},
            "['service_account_file']=<hidden>: '/missing.json' can't be read: No such file",
        ),
        (
            {"provider": "google", "service_account_file": __file__},
            f"['service_account_file']=<hidden>: {__file__!r} is no key of a service account",
        ),
        ({}, "['token']: missing; allowed: a text"),
        ({"token": ""}, "['token']=<hidden>: give a function, or the module and the name of one"),
        ({"token": "json"}, "['token']=<hidden>: there is no 'json'"),
        (
            {"token": "missing.module:function"},
            "['token']=<hidden>: there is no 'missing.module:function'",
        ),
        ({"token": "json:not a name"}, "['token']=<hidden>: there is no"),
    ],
)
def test_an_oauth_that_is_no_good(given: Any, words: str) -> None:
    """The error for a bad MAILER_OAUTH names the wrong part, and shows no secret."""
    assert refusal(**TLS, MAILER_OAUTH=given).startswith(f"MAILER_OAUTH{words}")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"MAIL_PASSWORD": SECRET}, "MAILER_OAUTH and MAIL_PASSWORD: set one of them"),
        ({"MAIL_USERNAME": None}, "MAILER_OAUTH: set MAIL_USERNAME too"),
        (
            {"MAIL_USE_TLS": False},
            "MAILER_OAUTH: anybody can use an intercepted token: set MAIL_USE_TLS",
        ),
    ],
)
def test_what_goes_with_oauth(config: dict[str, Any], words: str) -> None:
    """MAILER_OAUTH needs MAIL_USERNAME and TLS, and excludes MAIL_PASSWORD."""
    assert words in refusal(**{**TLS, "MAILER_OAUTH": MICROSOFT, **config})


def test_oauth_needs_packages(monkeypatch: pytest.MonkeyPatch, account: str) -> None:
    """If packages for OAuth are missing, the error tells how to install them."""
    for package, given in {
        "msal": MICROSOFT,
        "requests": {"provider": "google", "service_account_file": account},
    }.items():
        without(monkeypatch, oauth, package)
        assert "pip install 'flask-mailer-queue[oauth]'" in refusal(**TLS, MAILER_OAUTH=given)
    assert load(**TLS, MAILER_OAUTH=make_token).oauth == TokenFunction(token=make_token)


def test_secrets_do_not_show() -> None:
    """The repr of the settings shows no secret of OAuth or of a proxy."""
    settings = load(**TLS, MAILER_OAUTH=MICROSOFT, MAILER_PROXY=f"socks5://ada:{SECRET}@proxy:1080")

    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.oauth)


def test_what_relays_share() -> None:
    """Relays inherit the proxy from the app, but not its login."""
    first = {"name": "first", "MAIL_SERVER": "smtp.example.com"}
    [relay] = load(
        **TLS, MAILER_OAUTH=MICROSOFT, MAILER_PROXY="http://proxy:3128", MAILER_RELAYS=[first]
    ).relays

    assert (relay.oauth, relay.mail_username, relay.proxy) == (None, None, "http://proxy:3128")
