"""Secrets are put in every setting and mail, and then searched for in every output."""

import base64
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from sqlalchemy import make_url, select
from werkzeug.debug import DebuggedApplication
from werkzeug.test import Client

from mailer import ConfigurationError, Mailer, schema
from mailer.settings import Settings
from tests.application import create_app
from tests.services import canaries, logins
from tests.services.canaries import BODY, PERSON, SECRETS, SUBJECT, heard
from tests.services.logins import LoginServer
from tests.services.ports import free_port
from tests.services.relay import RawServer
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, StartWorkers, Worker
from tests.signing import RSA

CHATTY = (
    f"550 5.1.1 <{PERSON}@example.com> is unknown,"
    f" see https://relay.example/?to={PERSON}%40example.com\r\n"
).encode()


@pytest.fixture
def locked_redis(redis_program: Path, tmp_path: Path) -> Iterator[str]:
    """Start a Redis that requires a password, and return its URL."""
    port = free_port()
    command = [
        str(redis_program),
        "--port",
        str(port),
        "--requirepass",
        canaries.REDIS,
        "--dir",
        str(tmp_path),
        "--save",
        "",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        url = f"redis://:{canaries.REDIS}@127.0.0.1:{port}/0"
        try:
            with redis.Redis.from_url(url) as client:
                wait_until(lambda: answers(client))
            yield url
        finally:
            process.kill()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def relays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Return relays for each kind of secret.

    One accepts the password, one refuses the token and repeats it, two can't be reached, and one
    repeats the recipient.
    """
    monkeypatch.setattr(logins, "PASSWORD", canaries.PASSWORD)
    for name in ("good", "echo"):
        (tmp_path / name).mkdir()
    login = base64.b64encode(
        f"user={logins.USER}\x01auth=Bearer {canaries.TOKEN}\x01\x01".encode()
    ).decode()
    with (
        LoginServer(tmp_path / "good", "PLAIN", "LOGIN") as good,
        LoginServer(
            tmp_path / "echo", "XOAUTH2", refusals={"XOAUTH2": f"535 5.7.8 no good: {login}"}
        ) as echoing,
        RawServer(RCPT=CHATTY) as chatty,
    ):
        ada = {"MAIL_USERNAME": logins.USER, "MAIL_DEBUG": 1}
        microsoft = {
            "provider": "microsoft",
            "tenant": "nobody",
            "client_id": "shop",
            "client_secret": canaries.CLIENT_SECRET,
            "authority": f"https://127.0.0.1:{free_port()}",
        }
        yield [
            {"name": "good", "MAIL_SERVER": good.path, "MAIL_PASSWORD": canaries.PASSWORD, **ada},
            {"name": "token", "senders": ["token.example"], "MAIL_SERVER": echoing.path, **ada}
            | {"MAILER_OAUTH": {"token": "tests.services.canaries:token"}},
            {
                "name": "secret",
                "senders": ["secret.example"],
                "MAIL_SERVER": echoing.path,
                **ada,
                "MAILER_OAUTH": microsoft,
            },
            {"name": "proxy", "senders": ["proxy.example"], "MAIL_SERVER": "192.0.2.1"}
            | {"MAILER_PROXY": f"socks5://shop:{canaries.PROXY}@127.0.0.1:{free_port()}"},
            {
                "name": "chatty",
                "senders": ["chatty.example"],
                "MAIL_SERVER": chatty.host,
                "MAIL_PORT": chatty.port,
            },
        ]


@pytest.fixture
def config(postgres_url: str, locked_redis: str, relays: list[dict[str, Any]]) -> dict[str, str]:
    key = {"domain": "example.com", "selector": "2026a", "key": RSA.pem.decode()}
    return {
        "MAILER_DATABASE_URL": make_url(postgres_url)
        .set(password=canaries.DATABASE)
        .render_as_string(hide_password=False),
        "MAILER_REDIS_URL": locked_redis,
        "MAILER_RELAYS": json.dumps(relays),
        "MAILER_DKIM_KEYS": json.dumps([key]),
        "MAILER_SECRET_KEYS": f"{canaries.SECRET_KEY}-new, {canaries.SECRET_KEY}",
        "MAIL_PASSWORD": canaries.PASSWORD,
        "MAIL_DEFAULT_SENDER": "mailer@example.com",
    }


SENDERS = ("example.com", "token.example", "secret.example", "proxy.example", "chatty.example")


def queue(app: Flask) -> list[str]:
    """Queue a sensitive mail for each relay, and return the ids."""
    options: dict[str, Any] = {"name": BODY, "sensitive": True}
    with app.app_context():
        return [
            Mailer()
            .send_email(
                f"{PERSON}@example.com",
                SUBJECT,
                "welcome",
                sender=f"shop@{domain}",
                idempotency_key=domain,
                **options,
            )
            .id
            for domain in SENDERS
        ]


def await_outcomes(app: Flask, ids: list[str]) -> None:
    """Wait until all mail is decided and the three broken relays are paused."""

    def is_over() -> bool:
        store = app.extensions["mailer"].store
        return len(store.relay_pauses()) == 3 and all(
            store.status(mail_id).is_finished for mail_id in ids
        )

    wait_until(is_over, timeout=60)


def test_nothing_sings(config: dict[str, str], start_workers: StartWorkers) -> None:
    """Logs at DEBUG, MAIL_DEBUG, Redis and all commands are free of secrets."""
    app = create_app(config)
    ids = queue(app)
    in_redis = everything_in(config["MAILER_REDIS_URL"])
    [worker] = start_workers(1, loglevel="DEBUG")
    await_outcomes(app, ids)
    seen = {
        "Redis": in_redis,
        **{
            f"celery {command}": celery(config, command)
            for command in ("report", "inspect conf", "inspect stats")
        },
        **{
            f"flask mail {command}": flask_mail(app, command)
            for command in ("queue", "due", "relays", "pause", "resume")
        },
        **{f"flask mail status {mail_id}": flask_mail(app, f"status {mail_id}") for mail_id in ids},
        "objects": "\n".join(f"{name} {one!r} {one}" for name, one in app.extensions.items()),
        "settings": repr(
            (app.extensions["mailer"].settings, app.extensions["mailer"].settings.relays)
        ),
        "database": everything_in_sql(app),
    }
    log = finished_log(worker)

    assert {
        where: song
        for where, text in {**seen, "log": log}.items()
        if (song := heard(text, *SECRETS))
    } == {}
    assert heard(log + in_redis, BODY, SUBJECT, PERSON) == []
    for evidence in (
        "535 5.7.8 no good: ***",
        "(login)",
        "octets, with a mail",
        "a***@example.com",
        "Microsoft does not answer",
    ):
        assert evidence in log
    assert PERSON in seen[f"flask mail status {ids[-1]}"]  # which an operator may see


def everything_in(redis_url: str) -> str:
    """Return everything that Redis holds, as stored."""
    with redis.Redis.from_url(redis_url) as client:
        keys = client.keys()
        assert keys, "no ring in Redis: the test proves nothing"
        return repr(
            [
                (
                    key,
                    client.dump(key),
                    client.lrange(key, 0, -1) if client.type(key) == b"list" else "",
                )
                for key in keys
            ]
        )


def everything_in_sql(app: Flask) -> str:
    """Return the contents of the tables of mails, as a backup has them."""
    with app.extensions["mailer"].store.engine.connect() as connection:
        return repr(
            [
                connection.execute(select(one)).all()
                for one in (schema.message, schema.delivery, schema.attempt)
            ]
        )


def celery(config: Mapping[str, str], command: str) -> str:
    program = [sys.executable, "-m", "celery", "-A", "tests.worker_app", *command.split()]
    ran = subprocess.run(
        program,
        cwd=PROJECT,
        env={**os.environ, **config},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.stdout + ran.stderr


def flask_mail(app: Flask, command: str) -> str:
    return app.test_cli_runner().invoke(args=["mail", *command.split()]).output


WRONG: dict[str, dict[str, Any]] = {
    "MAILER_DATABASE_URL": {"MAILER_DATABASE_URL": f"mysql://shop:{canaries.DATABASE}@db/mailer"},
    "MAILER_DATABASE_URL, a port": {
        "MAILER_DATABASE_URL": f"postgresql://shop:{canaries.DATABASE}@db:x/mailer"
    },
    "MAILER_REDIS_URL": {"MAILER_REDIS_URL": f"redis://:{canaries.REDIS}@cache:x/0"},
    "MAIL_PASSWORD": {"MAIL_PASSWORD": [canaries.PASSWORD]},
    "MAILER_PROXY": {"MAILER_PROXY": f"ftp://shop:{canaries.PROXY}@proxy:1080"},
    "MAILER_OAUTH": {
        "MAILER_OAUTH": {"provider": "microsoft", "client_secret": canaries.CLIENT_SECRET}
    },
    "MAILER_OAUTH, no JSON": {"MAILER_OAUTH": f'{{"client_secret": "{canaries.CLIENT_SECRET}"'},
    "MAILER_OAUTH and MAIL_PASSWORD": {
        "MAILER_OAUTH": canaries.token,
        "MAIL_PASSWORD": canaries.PASSWORD,
        "MAIL_USERNAME": "ada",
    },
    "MAILER_DKIM_KEYS": {"MAILER_DKIM_KEYS": [{"domain": "example.com", "key": RSA.pem.decode()}]},
    "MAILER_DKIM_KEYS, no JSON": {"MAILER_DKIM_KEYS": f'[{{"key": "{RSA.pem.decode()}"'},
    "MAILER_SECRET_KEYS": {"MAILER_SECRET_KEYS": [canaries.SECRET_KEY, ""]},
    "MAILER_RELAYS": {"MAILER_RELAYS": [{"MAIL_PASSWORD": canaries.PASSWORD, "MAIL_PORT": "x"}]},
    "MAILER_RELAYS, no JSON": {"MAILER_RELAYS": f'[{{"MAIL_PASSWORD": "{canaries.PASSWORD}"'},
    "MAILER_RELAYS, an unknown key": {"MAILER_RELAYS": [{"MAIL_PASSWORT": canaries.PASSWORD}]},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_setting_that_is_wrong(case: str) -> None:
    """The error names the setting and never quotes its value."""
    with pytest.raises(ConfigurationError) as error:
        Settings.load(WRONG[case], {}, default_database_url="sqlite://")

    assert heard("".join(traceback.format_exception(error.value)), *SECRETS) == []


def test_the_page_of_an_error(config: dict[str, str]) -> None:
    """No error page, not even Flask's debugger, shows the database's password."""
    url = f"postgresql://shop:{canaries.DATABASE}@127.0.0.1:{free_port()}/mailer"
    app = create_app({**config, "MAILER_DATABASE_URL": url})
    app.add_url_rule(
        "/",
        "order",
        lambda: Mailer().send_email(f"{PERSON}@example.com", SUBJECT, "welcome", name=BODY).id,
    )
    pages = [app.test_client().get("/")]
    app.config["PROPAGATE_EXCEPTIONS"] = True
    pages.append(Client(DebuggedApplication(app, pin_security=False)).get("/"))

    assert [page.status_code for page in pages] == [500, 500]
    assert "StoreUnavailable" in pages[1].text
    assert [heard(page.text, *SECRETS, BODY, SUBJECT, PERSON) for page in pages] == [[], []]


def test_the_local_stack(tmp_path: Path) -> None:
    """The output of the local stack and its error messages have no secrets."""
    secrets = {
        "MAIL_PASSWORD": canaries.PASSWORD,
        "MAILER_PROXY": f"socks5://shop:{canaries.PROXY}@127.0.0.1:1",
        "MAILER_SECRET_KEYS": canaries.SECRET_KEY,
        "MAILER_OAUTH": json.dumps({"token": "tests.services.canaries:token"}),
        "MAILER_REDIS_URL": f"redis://:{canaries.REDIS}@127.0.0.1:{free_port()}/0",
    }
    program = [sys.executable, "-m", "devstack"]
    ran = subprocess.run(
        program,
        cwd=PROJECT,
        env={
            **os.environ,
            **secrets,
            "INSTANCE_PATH": str(tmp_path),
            "PORT": str(free_port()),
            "MAIL_PORT": str(free_port()),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "does not answer" in ran.stderr
    assert heard(ran.stdout + ran.stderr, *SECRETS) == []


def finished_log(worker: Worker) -> str:
    worker.stop()
    return worker.log.read_text()
