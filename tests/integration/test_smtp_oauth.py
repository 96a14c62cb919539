"""OAuth logins: the providers' own libraries fetch tokens from endpoints on this machine."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msal
import pytest

from mailer.message import Outcome, Phase, Verdict
from mailer.settings.oauth import TokenFunction
from mailer.smtp import Relay
from mailer.smtp.oauth import Tokens
from tests.services.certificates import make_certificate, server_context
from tests.services.logins import LoginServer
from tests.services.relay import make_relay, send
from tests.services.tokens import TENANT, TokenServer

Provider = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "tokens.pem")


@pytest.fixture
def endpoint(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    # It would ask Microsoft whether our endpoint is one of its own.
    application = partial(msal.ConfidentialClientApplication, instance_discovery=False)
    monkeypatch.setattr(msal, "ConfidentialClientApplication", application)
    with TokenServer(server_context(certificate)) as server:
        yield server


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[LoginServer]:
    """Yield a relay that accepts the tokens of the endpoint."""
    with LoginServer(tmp_path, "XOAUTH2", "PLAIN") as server:
        server.tokens = {f"token {number}" for number in range(1, 10)}
        yield server


def microsoft(endpoint: TokenServer, tmp_path: Path) -> dict[str, Any]:
    return {
        "provider": "microsoft",
        "tenant": TENANT,
        "client_id": "00000000-0000-0000-0000-00000000000b",
        "client_secret": "se/cret",
        "authority": endpoint.url,
    }


def google(endpoint: TokenServer, tmp_path: Path) -> dict[str, Any]:
    file = endpoint.service_account(tmp_path / "account.json")
    return {"provider": "google", "service_account_file": str(file), "subject": "ada@example.com"}


both = pytest.mark.parametrize("provider", [microsoft, google])


def relay_at(server: LoginServer, oauth: Any, **config: Any) -> Relay:
    return make_relay(server.path, 25, MAIL_USERNAME="ada", MAILER_OAUTH=oauth, **config)


def outcome_at(server: LoginServer, oauth: Any) -> Outcome:
    relay = relay_at(server, oauth)
    outcome = send(relay)
    relay.hang_up()
    return outcome


# --- where tokens come from ---------------------------------------------------------------------


@both
def test_a_token_is_fetched_once(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path, provider: Callable[..., Any]
) -> None:
    """One token serves many logins."""
    client = relay_at(relay, json.dumps(provider(endpoint, tmp_path)), MAIL_MAX_EMAILS=1)

    assert [send(client).verdict for _ in range(3)] == [Verdict.SENT] * 3
    assert relay.seen_tokens == ["token 1"] * 3
    assert len(endpoint.asked) == 1


def test_what_microsoft_is_asked_for(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path
) -> None:
    """Microsoft is asked with the client credentials flow and the scope for SMTP."""
    outcome_at(relay, microsoft(endpoint, tmp_path))

    [asked] = endpoint.asked
    assert (asked["grant_type"], asked["scope"]) == (
        "client_credentials",
        "https://outlook.office365.com/.default",
    )
    assert (asked["client_id"], asked["client_secret"]) == (
        "00000000-0000-0000-0000-00000000000b",
        "se/cret",
    )


def test_what_google_is_asked_for(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path
) -> None:
    """Google is asked for the subject's mailbox, in the name of the service account."""
    outcome_at(relay, google(endpoint, tmp_path))

    [asked] = endpoint.asked
    claims = json.loads(base64.urlsafe_b64decode(asked["assertion"].split(".")[1] + "=="))
    assert (claims["iss"], claims["sub"]) == (
        "mailer@project.iam.gserviceaccount.com",
        "ada@example.com",
    )
    assert claims["scope"] == "https://mail.google.com/"


@both
def test_a_token_that_ends_soon(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path, provider: Callable[..., Any]
) -> None:
    """A token that is about to expire is replaced by a new one."""
    endpoint.expires_in = 60
    client = relay_at(relay, provider(endpoint, tmp_path), MAIL_MAX_EMAILS=1)

    assert [send(client).verdict for _ in range(2)] == [Verdict.SENT] * 2
    assert relay.seen_tokens == ["token 1", "token 2"]


@both
def test_a_token_that_the_relay_refuses(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path, provider: Callable[..., Any]
) -> None:
    """A refused token is replaced once by a new one over the same connection."""
    relay.tokens = {"token 2"}

    assert outcome_at(relay, provider(endpoint, tmp_path)).verdict is Verdict.SENT
    assert relay.seen_tokens == ["token 1", "token 2"]


@both
def test_a_mailbox_that_is_not_ours(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path, provider: Callable[..., Any]
) -> None:
    """After two refused tokens the relay is unreached, and no token is in the outcome."""
    relay.tokens = set()

    outcome = outcome_at(relay, provider(endpoint, tmp_path))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert (
        outcome.reply == "no connection to the relay: 535 5.7.8 Authentication credentials invalid"
    )
    assert outcome.advice.startswith("MAILER_OAUTH: the relay refuses the token")
    assert relay.seen_tokens == ["token 1", "token 2"]


@pytest.mark.parametrize(
    ("provider", "status", "said", "is_ours"),
    [
        (
            microsoft,
            401,
            {
                "error": "invalid_client",
                "error_description": "AADSTS7000215: Invalid client secret.",
            },
            True,
        ),
        (
            google,
            400,
            {"error": "invalid_grant", "error_description": "Invalid email or User ID"},
            True,
        ),
        (
            google,
            401,
            {"error": "unauthorized_client", "error_description": "Client is unauthorized."},
            True,
        ),
    ],
)
def test_a_provider_that_refuses_us(
    endpoint: TokenServer,
    relay: LoginServer,
    tmp_path: Path,
    provider: Callable[..., Any],
    status: int,
    said: dict[str, str],
    is_ours: bool,
) -> None:
    """A provider's refusal is kept without secrets, and the relay is not called."""
    endpoint.refusal = (status, said)

    outcome = outcome_at(relay, provider(endpoint, tmp_path))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert said["error"] in outcome.reply
    assert outcome.advice.startswith("MAILER_OAUTH: ") is is_ours
    assert "se/cret" not in outcome.reply
    assert relay.tried == []


def test_a_tenant_that_there_is_not(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path
) -> None:
    """An unknown tenant is reported as a mistake in MAILER_OAUTH."""
    outcome = outcome_at(relay, {**microsoft(endpoint, tmp_path), "tenant": "nowhere"})

    assert "tenant" in outcome.reply
    assert outcome.advice.startswith("MAILER_OAUTH: ")


@both
def test_a_provider_that_is_away(
    endpoint: TokenServer, relay: LoginServer, tmp_path: Path, provider: Callable[..., Any]
) -> None:
    """A provider that does not answer leaves the relay unreached and gives no advice."""
    oauth = provider(endpoint, tmp_path)
    with TokenServer(endpoint.socket.context) as gone:  # type: ignore[attr-defined]  # a TLS socket
        away = gone.url
    oauth = json.loads(json.dumps(oauth).replace(endpoint.url, away))
    if "service_account_file" in oauth:
        Path(oauth["service_account_file"]).write_text(
            Path(oauth["service_account_file"])
            .read_text(encoding="utf-8")
            .replace(endpoint.url, away),
            encoding="utf-8",
        )

    outcome = outcome_at(relay, oauth)

    assert outcome.verdict is Verdict.UNREACHED
    assert "does not answer" in outcome.reply
    assert outcome.advice == ""


# --- a function ---------------------------------------------------------------------------------


def token_of_a_module() -> str:
    return "good"


@pytest.mark.parametrize("way", ["object", "config", "name"])
def test_a_function(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token function may be passed as an object or named as `module:function`."""
    (tmp_path / "tokens_of_ours.py").write_text("def make():\n    return 'good'\n")
    monkeypatch.syspath_prepend(tmp_path)
    oauth = {
        "object": token_of_a_module,
        "config": {"token": token_of_a_module},
        "name": '{"token": "tokens_of_ours:make"}',
    }[way]
    with LoginServer(tmp_path, "XOAUTH2") as relay:
        assert outcome_at(relay, oauth).verdict is Verdict.SENT


def test_a_function_is_asked_at_each_login(tmp_path: Path) -> None:
    """A token function is called at each login, and once more after a refused token."""
    tokens = iter(["good", "bad", "good"])
    with LoginServer(tmp_path, "XOAUTH2") as relay:
        client = relay_at(relay, lambda: next(tokens), MAIL_MAX_EMAILS=1)

        assert [send(client).verdict for _ in range(2)] == [Verdict.SENT] * 2
        assert relay.seen_tokens == ["good", "bad", "good"]


def test_a_function_that_has_no_other_token(tmp_path: Path) -> None:
    """A refused token is not sent again if the function returns the same one."""
    with LoginServer(tmp_path, "XOAUTH2") as relay:
        assert outcome_at(relay, lambda: "bad").verdict is Verdict.UNREACHED
        assert relay.seen_tokens == ["bad"]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: None, "returned NoneType"),
        (lambda: "", "returned an empty text"),
    ],
)
def test_a_function_that_fails(tmp_path: Path, function: Callable[[], Any], why: str) -> None:
    """A failing token function leaves the relay unreached, with advice about MAILER_OAUTH."""
    with LoginServer(tmp_path, "XOAUTH2") as relay:
        outcome = outcome_at(relay, function)

    assert outcome.verdict is Verdict.UNREACHED
    assert why in outcome.reply
    assert outcome.advice.startswith("MAILER_OAUTH: ")


# --- how a token is sent ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "tried"), [("short", "XOAUTH2 at once"), ("long" * 500, "XOAUTH2")]
)
def test_a_long_token(tmp_path: Path, token: str, tried: str) -> None:
    """A token that is too long for the command line is sent after it (RFC 4954)."""
    with LoginServer(tmp_path, "XOAUTH2") as relay:
        relay.tokens = {token}

        assert outcome_at(relay, lambda: token).verdict is Verdict.SENT
        assert relay.tried == [tried]


def test_a_relay_that_takes_no_tokens(tmp_path: Path) -> None:
    """A token is never sent with a mechanism that expects a password."""
    with LoginServer(tmp_path, "PLAIN", "LOGIN") as relay:
        outcome = outcome_at(relay, lambda: "good")

    assert "AUTH XOAUTH2" in outcome.reply
    assert outcome.advice.startswith("MAIL_USERNAME: ")


def test_threads_wait_for_one_token() -> None:
    """Threads that need a token at the same time share one request."""
    together = threading.Barrier(8)
    fetched = []

    def fetch() -> tuple[str, float]:
        fetched.append(1)
        return f"token {len(fetched)}", 3600.0

    tokens = Tokens(TokenFunction(token=str), 1.0)
    tokens._fetch = fetch

    def get(_: int) -> str:
        together.wait()
        return tokens.get()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(get, range(8))) == {"token 1"}
