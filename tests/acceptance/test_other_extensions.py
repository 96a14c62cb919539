"""Extensions that send mail of their own do so on `from mailer import Mail`, unchanged.

Their forms are filled in, their mails queued, delivered over SMTP and read, and the links in them
are followed.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from mailer import Mail
from tests.services.requirement import require
from tests.services.sink import Sink
from tests.shop import close

# They use what WTForms has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MakeApp = Callable[..., Flask]
ADA = "ada@example.com"
LINK = re.compile(r"http://localhost(/[^\s\"'<>]*)")


@pytest.fixture
def extensions() -> None:
    """Skip a test without the extensions, as with the lowest versions, which they do not take."""
    for name in ("flask_security", "flask_appbuilder"):
        require(name, name if find_spec(name) else None)


@pytest.fixture
def make_app(extensions: None, redis_url: str, sink: Sink, tmp_path: Path) -> Iterator[MakeApp]:
    """Return `make_app(**config)`, which makes an application with its database and its Mail."""
    apps: list[Flask] = []

    def make_app(**config: Any) -> Flask:
        app = Flask("app", instance_path=str(tmp_path))
        app.config.update(
            SECRET_KEY="a secret of this test",
            SQLALCHEMY_DATABASE_URI="sqlite:///app.sqlite3",
            MAILER_DATABASE_URL="sqlite:///mailer.sqlite3",
            MAILER_REDIS_URL=redis_url,
            MAIL_DEFAULT_SENDER="Shop <shop@example.com>",
            MAIL_PORT=sink.port,
            WTF_CSRF_ENABLED=False,
            **config,
        )
        Mail(app)
        apps.append(app)
        return app

    yield make_app
    for app in apps:
        close(app)


def delivered(app: Flask, sink: Sink) -> EmailMessage:
    """Deliver the only mail that is queued, as a worker does, and return it as it arrived."""
    assert sink.messages == [], "it was sent in the request"
    app.extensions["mailer"].outbound.dispatcher.deliver(at_most=10)
    [mail] = sink.messages
    sink.messages.clear()
    assert mail.recipients == (ADA,)
    return message_from_bytes(mail.raw, policy=policy.default)


def link_in(mail: EmailMessage, kind: str) -> str:
    """Return the path of the link in one version of a mail."""
    body = mail.get_body((kind,))
    assert body is not None
    found = LINK.search(body.get_content())
    assert found, body.get_content()
    return found[1].replace("&amp;", "&")


# --- Flask-Security -----------------------------------------------------------------------------


def make_secured(make_app: MakeApp, **config: Any) -> Flask:
    """Return an application with the accounts of Flask-Security."""
    from flask_security import Security, SQLAlchemyUserDatastore  # noqa: PLC0415 -- see extensions
    from flask_security.models import fsqla_v3  # noqa: PLC0415

    app = make_app(
        SECURITY_PASSWORD_SALT="a salt of this test",
        SECURITY_PASSWORD_HASH="plaintext",
        SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
        SECURITY_REGISTERABLE=True,
        SECURITY_CONFIRMABLE=True,
        SECURITY_RECOVERABLE=True,
        SECURITY_SEND_PASSWORD_RESET_NOTICE_EMAIL=False,
        **config,
    )
    db: Any = SQLAlchemy(app)
    fsqla_v3.FsModels.set_db_info(db)
    role = type("Role", (db.Model, fsqla_v3.FsRoleMixin), {})
    user = type("User", (db.Model, fsqla_v3.FsUserMixin), {})
    Security(app, SQLAlchemyUserDatastore(db, user, role))
    app.add_url_rule("/", "home", lambda: "Home")
    with app.app_context():
        db.create_all()
    return app


def test_flask_security(make_app: MakeApp, sink: Sink) -> None:
    """A new user confirms the address, and resets the password."""
    app = make_secured(make_app)
    browser = app.test_client()

    first = {"password": "first password", "password_confirm": "first password"}
    answer = browser.post("/register", json={"email": ADA, **first})
    assert answer.status_code == 200, answer.text
    mail = delivered(app, sink)
    assert (mail["From"], mail["Subject"]) == ("Shop <shop@example.com>", "Welcome")
    assert link_in(mail, "plain") == link_in(mail, "html")
    assert "confirmed" in browser.get(link_in(mail, "plain"), follow_redirects=True).text

    browser = app.test_client()
    assert browser.post("/reset", json={"email": ADA}).status_code == 200
    mail = delivered(app, sink)
    assert mail["Subject"] == "Password reset instructions"
    new = {"password": "second password", "password_confirm": "second password"}
    assert browser.post(link_in(mail, "html"), json=new).status_code == 200
    for password, status in (("first password", 400), ("second password", 200)):
        login = {"email": ADA, "password": password}
        assert app.test_client().post("/login", json=login).status_code == status


@pytest.mark.parametrize(
    ("path", "form", "subject", "config"),
    [
        ("/login", {"email": ADA}, "Login instructions", {"SECURITY_PASSWORDLESS": True}),
        (
            "/us-signin/send-code",
            {"identity": ADA, "chosen_method": "email"},
            "Verification Code",
            {
                "SECURITY_UNIFIED_SIGNIN": True,
                "SECURITY_US_ENABLED_METHODS": ["password", "email"],
                "SECURITY_TOTP_SECRETS": {"1": "a secret of this test"},
                "SECURITY_TOTP_ISSUER": "shop",
            },
        ),
    ],
    ids=["passwordless", "unified sign in"],
)
def test_a_magic_link_of_flask_security(
    make_app: MakeApp,
    sink: Sink,
    path: str,
    form: dict[str, str],
    subject: str,
    config: dict[str, Any],
) -> None:
    """A user asks for a link that logs in, and follows it."""
    app = make_secured(make_app, **config)
    with app.app_context():
        accounts = app.extensions["security"].datastore
        accounts.us_setup_email(
            accounts.create_user(email=ADA, password="password", confirmed_at=datetime.now(UTC))
        )
        accounts.commit()
    browser = app.test_client()

    assert browser.post(path, json=form).status_code == 200
    mail = delivered(app, sink)
    assert mail["Subject"] == subject
    browser.get(link_in(mail, "plain"))
    with browser.session_transaction() as session:
        assert session["_user_id"]


# --- Flask-AppBuilder ---------------------------------------------------------------------------


def test_flask_appbuilder(make_app: MakeApp, sink: Sink) -> None:
    """A new user activates the account, with a mail whose subject is in the user's language."""
    from flask_appbuilder import AppBuilder  # noqa: PLC0415 -- see extensions
    from flask_appbuilder.models.sqla.base import SQLA  # noqa: PLC0415

    app = make_app(
        TESTING=True,  # without it, the form asks a server whether its user is a robot
        MAIL_SUPPRESS_SEND=False,
        AUTH_TYPE=1,
        AUTH_USER_REGISTRATION=True,
        AUTH_USER_REGISTRATION_ROLE="Public",
        RECAPTCHA_PUBLIC_KEY="none",
        RECAPTCHA_PRIVATE_KEY="none",
        LANGUAGES={"en": {"name": "English"}, "de": {"name": "German"}},
    )
    db = SQLA(app)
    with app.app_context():
        builder = AppBuilder(app, db.session)
    browser = app.test_client()
    browser.get("/lang/de")

    form = {"username": "ada", "first_name": "Ada", "last_name": "L", "email": ADA}
    answer = browser.post("/register/form", data={**form, "password": "p", "conf_password": "p"})
    assert answer.status_code == 302, answer.text
    mail = delivered(app, sink)
    assert (mail["From"], mail["Subject"]) == ("Shop <shop@example.com>", "Kontoaktivierung")
    assert browser.get(link_in(mail, "html")).status_code == 200

    with app.app_context():
        assert builder.sm.find_user(email=ADA).is_active
