"""Signed mail is verified by OpenDKIM, which many mail servers use, and by dkimpy."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import flask_mail
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings

from mailer import Mail, Mailer
from mailer.errors import ConfigurationError
from mailer.message import Address, Message
from mailer.mime import compose, make_signer
from mailer.settings.dkim import DkimKey
from tests.generated_mails import mails
from tests.services.opendkim import program, verified_by_opendkim
from tests.signing import ED25519, RSA, dkim_key, records, verified_by_dkimpy

NOW = 1_790_000_000.0

# --- an app -------------------------------------------------------------------------------------


def create_app(**config: Any) -> Flask:
    app = Flask("app")
    app.config.update(
        TESTING=True,
        MAILER_DATABASE_URL="sqlite://",
        MAILER_REDIS_URL="redis://127.0.0.1:1/0",
        **config,
    )
    Mailer(app)
    return app


def test_an_app_signs_what_its_own_senders_say(tmp_path: Path) -> None:
    """MAILER_DKIM_KEYS alone makes an app sign mail of these domains, and no other."""
    file = tmp_path / "rsa.pem"
    file.write_bytes(RSA.pem)
    app = create_app(
        MAILER_DKIM_KEYS=json.dumps(
            [{"domain": "example.com", "selector": "rsa", "key_file": str(file)}]
        )
    )

    with app.app_context(), Mail(app).record_messages() as outbox:
        for sender in ("ada@example.com", "ada@example.org"):
            Mail(app).send(flask_mail.Message("Hello", ["bob@example.com"], "Grüße", sender=sender))

    ours, others = (message.as_bytes() for message in outbox)
    assert verified_by_dkimpy(ours, records(RSA)) == [True]
    assert verified_by_dkimpy(others, records(RSA)) == []


def test_an_app_does_not_start_with_a_key_that_can_not_sign() -> None:
    """An app does not start with a key that can't sign."""
    with pytest.raises(ConfigurationError, match="no private key in PEM"):
        create_app(
            MAILER_DKIM_KEYS=[{"domain": "example.com", "selector": "2026a", "key": "nonsense"}]
        )


# --- OpenDKIM -----------------------------------------------------------------------------------


def signed(message: Message, *keys: DkimKey) -> bytes:
    return compose(message, make_signer(keys)).as_bytes()


def a_mail(sender: str = "ada@example.com") -> Message:
    return Message(
        id="1",
        message_id="<1@example.com>",
        created_at=NOW,
        sender=Address(sender, "Ada"),
        subject="Hello",
        text="Hello\n",
        html="<p>Grüße</p>",
        to=(Address("bob@example.com"),),
        headers=(
            ("List-Unsubscribe", "<https://example.com/stop>"),
            ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ),
    )


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(mails)
def test_every_mail(tmp_path: Path, message: Message) -> None:
    """Every mail verifies with each algorithm, whatever its content."""
    keys = [dkim_key(message.sender.domain, key.selector, key.pem) for key in (RSA, ED25519)]

    assert verified_by_opendkim(signed(message, *keys), records(*keys), tmp_path) == {
        "rsa": "pass",
        "ed": "pass",
    }


def test_a_sender_of_a_subdomain(tmp_path: Path) -> None:
    """The key of the domain above signs for a sender in a subdomain."""
    mail = signed(a_mail("ada@news.example.com"), RSA)

    assert verified_by_opendkim(mail, records(RSA), tmp_path) == {"rsa": "pass"}


def test_a_mail_that_was_changed(tmp_path: Path) -> None:
    """Another body, another unsubscribe link or a second From breaks the signatures."""
    mail = signed(a_mail(), RSA, ED25519)

    for changed in (
        mail.replace(b"Hello", b"Hallo"),
        mail.replace(b"/stop", b"/stay"),
        b"From: eve@example.com\r\n" + mail,
    ):
        assert set(verified_by_opendkim(changed, records(RSA, ED25519), tmp_path).values()) == {
            "fail"
        }


def test_a_key_that_opendkim_made(tmp_path: Path) -> None:
    """A key and a DNS record made by OpenDKIM's tool are usable as they are."""
    options = "-b 2048 -d example.com -s made -D".split()
    subprocess.run([program("opendkim-genkey"), *options, tmp_path], check=True)
    key = dkim_key("example.com", "made", (tmp_path / "made.private").read_bytes())
    record = "".join(re.findall(r'"([^"]*)"', (tmp_path / "made.txt").read_text(encoding="ascii")))

    assert verified_by_opendkim(
        signed(a_mail(), key), {"made._domainkey.example.com": record}, tmp_path
    ) == {"made": "pass"}
