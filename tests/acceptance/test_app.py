"""The reference application over HTTP, with a real worker where a mail has to arrive."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import app as reference
from devstack.demo import create_app
from mailer.message import Status
from mailer.smtpd.inbox import Inbox, Received
from mailer.smtpd.server import InboxServer
from tests.mails import LATER, claim, mark, record
from tests.services.databases import sqlite_only
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, StartWorker
from tests.shop import close, rows, store_of

pytestmark = sqlite_only

RACE = "/race/8a6e0804-2bd0-4672-b79d-d97027f9071a"
AWAY = "postgresql+psycopg://mailer@127.0.0.1:1/mailer"
PNG = b"\x89PNG\r\n\x1a\n"

OpenApp = Callable[..., Flask]


@pytest.fixture
def inbox(config: dict[str, str], tmp_path: Path) -> Iterator[Inbox]:
    """Return the local stack's inbox, to which the application and the worker deliver."""
    inbox = Inbox(tmp_path / "inbox")
    with InboxServer(inbox.add) as server:
        config |= {
            "MAIL_PORT": str(server.port),
            "MAILER_INBOX_DIR": str(inbox.directory),
            "INSTANCE_PATH": str(tmp_path),
        }
        yield inbox


@pytest.fixture
def open_app(config: dict[str, str]) -> Iterator[OpenApp]:
    """Return a factory of applications that are closed after the test."""
    with ExitStack() as opened:

        def open_app(create: Callable[..., Flask] = create_app, **more: object) -> Flask:
            app = create({**config, "WTF_CSRF_ENABLED": False, **more})
            opened.callback(close, app)
            return app

        yield open_app


@pytest.fixture
def app(inbox: Inbox, open_app: OpenApp) -> Flask:
    return open_app(PROPAGATE_EXCEPTIONS=True)


@pytest.fixture
def visitor(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def arrives(inbox: Inbox, start_worker: StartWorker) -> Callable[[int], list[Received]]:
    """Return `arrives(2)`: the first two mails that a worker delivered, oldest first."""
    start_worker()

    def arrives(count: int) -> list[Received]:
        wait_until(lambda: inbox.count() >= count)
        return inbox.latest()[::-1]

    return arrives


def sign_up(visitor: FlaskClient, nickname: str, address: str) -> TestResponse:
    return visitor.post("/members", data={"nickname": nickname, "address": address})


def write(
    visitor: FlaskClient, to: str, subject: str = "Hello", text: str = "Dear Ada"
) -> TestResponse:
    return visitor.post("/write", data={"to": to, "subject": subject, "text": text})


def part(mail: Received, kind: str) -> str:
    found = mail.parsed.get_body((kind,))
    assert found is not None
    return str(found.get_content())


# --- a database that is down --------------------------------------------------------------------


@pytest.fixture
def without_database(inbox: Inbox, open_app: OpenApp) -> FlaskClient:
    """Return a visitor of an application whose database is not running."""
    return open_app(MAILER_DATABASE_URL=AWAY).test_client()


def test_the_database_is_away(without_database: FlaskClient) -> None:
    """The answer is 503 with Retry-After, without the database's own error text."""
    answer = write(without_database, "ada@example.org")

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "10"
    assert "Your mail is not queued" in answer.text
    assert "127.0.0.1" not in answer.text


def test_a_member_whose_mail_could_not_be_queued(without_database: FlaskClient) -> None:
    """Member and mail are stored together or not at all."""
    assert sign_up(without_database, "ada", "ada@example.org").status_code == 503

    assert "ada@example.org" not in without_database.get("/members").text


# --- members ------------------------------------------------------------------------------------


def test_a_new_name_is_told_to_the_administrator(
    visitor: FlaskClient, arrives: Callable[[int], list[Received]]
) -> None:
    """Both parts link to the profile, and a reply goes to the new member."""
    answer = sign_up(visitor, "ada", "ada@example.org")

    assert (answer.status_code, answer.location) == (302, "/members")
    [mail] = arrives(1)
    assert (mail.recipients, mail.subject) == (("admin@example.com",), "New user")
    assert mail.parsed["Reply-To"] == "ada@example.org"
    for kind in ("plain", "html"):
        assert "http://localhost/members/ada" in part(mail, kind)


def test_a_known_name_is_not_new(
    visitor: FlaskClient, arrives: Callable[[int], list[Received]]
) -> None:
    """Signing up again with the same address signs in; no mail is sent."""
    sign_up(visitor, "ada", "ada@example.org")
    sign_up(visitor, "ADA", "ada@example.org")
    sign_up(visitor, "grace", "grace@example.org")

    assert {mail.parsed["Reply-To"] for mail in arrives(2)} == {
        "ada@example.org",
        "grace@example.org",
    }


def test_a_name_belongs_to_one_address(visitor: FlaskClient) -> None:
    """A name that is taken is refused beside the field."""
    sign_up(visitor, "ada", "ada@example.org")

    answer = sign_up(visitor, "ada", "eve@example.org")

    assert answer.status_code == 422
    assert "Somebody else is called ada already." in answer.text
    assert 'value="eve@example.org"' in answer.text


def test_two_visitors_take_a_name_at_once(
    app: Flask, visitor: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two sign-ups at the same moment is told so, and no mail of it is queued."""
    sign_up(visitor, "ada", "ada@example.org")
    with monkeypatch.context() as look_at_the_same_moment:
        look_at_the_same_moment.setattr("app.find_member", lambda _nickname: None)
        answer = sign_up(app.test_client(), "ada", "eve@example.org")

    assert answer.status_code == 409
    assert "No mail is queued" in answer.text
    assert "eve@example.org" not in visitor.get("/members").text
    assert len(app.extensions["mailer"].operations.mails()) == 1


def test_an_unusable_address_is_not_kept(visitor: FlaskClient) -> None:
    """Mailer's own error message is shown, and the name stays free."""
    answer = sign_up(visitor, "ada", "nonsense")

    assert answer.status_code == 422
    assert "is not a usable address" in answer.text
    assert visitor.get("/members/ada").status_code == 404


@pytest.mark.parametrize("nickname", ["", "a", "a b", "../admin", "<b>ada</b>", "a" * 31])
def test_a_nickname_is_a_word(visitor: FlaskClient, nickname: str) -> None:
    """A nickname is part of a URL, so that only a word is accepted."""
    assert sign_up(visitor, nickname, "ada@example.org").status_code == 422


def test_the_followed_member_gets_a_mail(
    visitor: FlaskClient, arrives: Callable[[int], list[Received]]
) -> None:
    """The mail has the follower's picture and an absolute link to the profile."""
    sign_up(visitor, "ada", "ada@example.org")
    sign_up(visitor, "zoë", "zoe@example.org")

    answers = [visitor.post("/follow/ada", follow_redirects=True).text for _ in range(2)]

    assert "You follow ada now" in answers[0]
    assert "You follow ada already" in answers[1]
    sign_up(visitor, "last", "last@example.org")
    [mail] = [mail for mail in arrives(4) if mail.recipients == ("ada@example.org",)]
    assert mail.subject == "zoë follows you"
    assert "http://localhost/members/zo%C3%AB" in part(mail, "plain")
    assert 'src="cid:avatar"' in part(mail, "html")
    [picture] = [part for part in mail.parsed.walk() if part.get_content_maintype() == "image"]
    assert picture["Content-ID"] == "<avatar>"
    assert picture.get_content().startswith(PNG)


def test_looking_at_a_link_follows_nobody(visitor: FlaskClient) -> None:
    """GET changes nothing: mail scanners and browsers open links before a person does."""
    sign_up(visitor, "ada", "ada@example.org")

    assert visitor.get("/follow/ada").status_code == 405


def test_a_stranger_is_asked_to_sign_up(app: Flask, visitor: FlaskClient) -> None:
    """Following somebody needs a member who is signed in."""
    sign_up(visitor, "ada", "ada@example.org")

    answer = app.test_client().post("/follow/ada", follow_redirects=True)

    assert "Sign up first" in answer.text


# --- write --------------------------------------------------------------------------------------


def test_a_typed_mail_is_followed_to_the_inbox(
    visitor: FlaskClient, arrives: Callable[[int], list[Received]]
) -> None:
    """The page of a mail shows each recipient's copy and links to the received mail."""
    location = write(
        visitor, "ada@example.org, Grace <grace@example.org>", "Hello", "<b>Dear</b> all"
    ).location

    arrives(2)
    page = wait_until(lambda: is_over(visitor.get(location)))

    assert page.count('class="state sent"') == 2
    assert "250 2.0.0 Ok: queued as" in page
    [link] = re.findall(r'href="(/inbox\?message_id=[^"]+)"', page)
    received = re.findall(r'href="(/inbox/\d[^"]+)"', visitor.get(link).text)
    assert len(received) == 2
    assert "&lt;b&gt;Dear&lt;/b&gt; all" in visitor.get(received[0]).text
    assert "&lt;b&gt;Dear&lt;/b&gt; all" in visitor.get(f"{received[0]}/html").text


def is_over(answer: TestResponse) -> str:
    """Return the page as soon as it no longer refreshes itself."""
    return "" if "data-live" in answer.text else answer.text


@pytest.mark.parametrize(
    ("to", "subject"), [("nonsense", "Hello"), ("", "Hello"), ("ada@example.org", "a\nb")]
)
def test_what_cannot_be_sent_is_said_beside_what_was_typed(
    visitor: FlaskClient, to: str, subject: str
) -> None:
    """The form shows the error and keeps its text."""
    answer = write(visitor, to, subject, "a long letter")

    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert "a long letter" in answer.text


def test_no_next_try_lies_in_the_past(app: Flask, visitor: FlaskClient) -> None:
    """A running try, an overdue try and a later try are told apart."""
    store = store_of(app)
    page = write(visitor, "ada@example.org").location

    def shown() -> list[tuple[str, str]]:
        found = re.findall("<dt>(First|This|Next) try</dt><dd>(.*?)</dd>", visitor.get(page).text)
        return [(which, "a time" if value.startswith("<time") else value) for which, value in found]

    assert shown() == [("First", "due now")]
    [delivery] = claim(store)
    assert shown() == [("This", "being tried now")]
    mark(store, delivery)
    assert shown() == [("This", "being tried now")]
    record(store, delivery, to=Status.QUEUED)
    assert shown() == [("Next", "a time")]
    store.recall_queued(time.time() - 60, was=LATER)
    assert shown() == [("Next", "due now")]


def test_an_unknown_mail_is_not_found(visitor: FlaskClient) -> None:
    """An unknown id gives a page with status 404."""
    assert visitor.get("/mail/unknown").status_code == 404


def test_the_beginning_of_an_id_shows_nothing(visitor: FlaskClient) -> None:
    """Only the whole id shows a mail, since ids begin with the guessable time."""
    page = visitor.post(
        "/write", data={"to": "ada@example.com", "subject": "Secret", "text": "Hi"}
    ).location
    assert visitor.get(page).status_code == 200
    assert visitor.get(page[:-1]).status_code == 404


# --- race ---------------------------------------------------------------------------------------


def test_three_ways_bring_the_same_mails(
    visitor: FlaskClient, arrives: Callable[[int], list[Received]]
) -> None:
    """Each of the three ways delivers all its mails, and the page says so."""
    for way in ("request", "thread", "queue"):
        assert visitor.post(RACE, data={"way": way, "count": "5"}).status_code == 302

    page = wait_until(lambda: is_over(visitor.get(RACE)))

    assert page.count("5 sent") == 3
    assert page.count("the visitor waited") == 3
    assert len(arrives(15)) == 15


def test_mails_that_are_not_queued_fail_for_good(open_app: OpenApp, app: Flask) -> None:
    """Only queued mail survives a mail server that is down."""
    visitor = open_app(MAIL_PORT="1").test_client()
    for way in ("request", "thread", "queue"):
        visitor.post(RACE, data={"way": way, "count": "3"})

    page = wait_until(
        lambda: found if (found := visitor.get(RACE).text).count("3 failed") == 2 else ""
    )

    assert "3 queued" in page
    assert "Connection refused" in page


@pytest.mark.parametrize("count", ["", "0", "201", "many", "9" * 5000])
def test_a_race_has_1_to_200_mails(visitor: FlaskClient, count: str) -> None:
    """Any other number is refused with an explanation."""
    answer = visitor.post(RACE, data={"way": "queue", "count": count})

    assert answer.status_code == 422
    assert "from 1 to 200" in answer.text


def test_a_race_of_another_process_is_called_unknown(visitor: FlaskClient) -> None:
    """The page does not claim that the race was never run."""
    assert "does not know of it" in visitor.get(f"{RACE[:-4]}0000?ran=queue").text


# --- inbox --------------------------------------------------------------------------------------

HOSTILE = b"""\
From: eve@example.org\r
Subject: <script>alert(1)</script>\r
Message-ID: <1@example.org>\r
MIME-Version: 1.0\r
Content-Type: multipart/related; boundary=x\r
\r
--x\r
Content-Type: text/html\r
\r
<script>alert(2)</script><img src="cid:dot">\r
--x\r
Content-Type: image/gif\r
Content-ID: <dot>\r
Content-Transfer-Encoding: base64\r
\r
R0lGODlhAQABAAAAADs=\r
--x--\r
"""


def test_a_received_mail_can_do_nothing(visitor: FlaskClient, inbox: Inbox) -> None:
    """A received mail is escaped; its HTML runs no script and loads only its own pictures."""
    address = f"/inbox/{inbox.add('eve@example.org', ['ada@example.org'], HOSTILE)}"

    for page in ("/inbox", address):
        assert "<script>alert" not in visitor.get(page).text
    assert "&lt;script&gt;alert(2)" in visitor.get(address).text  # the source as received
    html = visitor.get(f"{address}/html")
    assert html.headers["Content-Security-Policy"].startswith("sandbox allow-popups")
    assert "script-src" not in html.headers["Content-Security-Policy"]
    assert 'src="data:image/gif;base64,R0lGODlhAQABAAAAADs="' in html.text


def test_an_unknown_received_mail_is_not_found(visitor: FlaskClient) -> None:
    """Any path that is not the id of a received mail gives 404."""
    for received_id in ("20260101T000000000000-00000000", "..%2Fsecret"):
        assert visitor.get(f"/inbox/{received_id}").status_code == 404


def test_without_a_local_inbox_the_pages_say_where_to_look(open_app: OpenApp, inbox: Inbox) -> None:
    """The pages link to INBOX_URL instead of the local inbox."""
    visitor = open_app(reference.create_app, INBOX_URL="http://localhost:8025").test_client()

    assert 'href="http://localhost:8025"' in visitor.get("/").text


# --- every page ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["/", "/members", "/write", RACE, "/inbox", "/nowhere"])
def test_every_page_is_guarded(visitor: FlaskClient, page: str) -> None:
    """Scripts come from files of the application only; no page has inline scripts."""
    answer = visitor.get(page)

    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?! src=)|\son\w+=|\sstyle=", answer.text)


@pytest.mark.parametrize("page", ["/write", "/members", "/follow/ada", RACE])
def test_a_form_on_another_site_does_nothing(app: Flask, visitor: FlaskClient, page: str) -> None:
    """A form without a token, or with another visitor's, is refused."""
    sign_up(visitor, "ada", "ada@example.org")
    app.config["WTF_CSRF_ENABLED"] = True
    data = {
        "to": "ada@example.org",
        "subject": "Hello",
        "text": "Dear Ada",
        "nickname": "eve",
        "address": "eve@example.org",
    }
    before = rows(app)["mailer_message"]

    for token in ({}, {"csrf_token": token_of(app.test_client())}):
        assert visitor.post(page, data={**data, **token}).status_code == 400

    assert rows(app)["mailer_message"] == before


def test_our_own_forms_work(app: Flask, visitor: FlaskClient) -> None:
    """A form with its visitor's token is accepted."""
    app.config["WTF_CSRF_ENABLED"] = True
    data = {"to": "ada@example.org", "subject": "Hello", "text": "Dear Ada"}

    assert visitor.post("/write", data={**data, "csrf_token": token_of(visitor)}).status_code == 302


def token_of(visitor: FlaskClient) -> str:
    found = re.search(
        r'name="csrf_token" type="hidden" value="([^"]+)"', visitor.get("/write").text
    )
    assert found is not None
    return found[1]


def test_a_cookie_outlives_a_restart(open_app: OpenApp, visitor: FlaskClient) -> None:
    """The key that signs cookies is created once and kept."""
    sign_up(visitor, "ada", "ada@example.org")
    cookie = visitor.get_cookie("session")
    assert cookie is not None

    restarted = open_app().test_client()
    restarted.set_cookie("session", cookie.value)

    assert 'href="/members/ada"' in restarted.get("/").text


def test_it_says_that_it_is_up(visitor: FlaskClient) -> None:
    """/healthz answers "ok", for load balancers and supervisors."""
    assert visitor.get("/healthz").text == "ok"


SHELL_SESSION = """
mail.send(Message("One", recipients=["ada@example.org"], body="from the shell"))
send_email("ada@example.org", "Two", text="from the shell")
"""


def test_the_shell_has_what_one_needs(
    app: Flask, config: dict[str, str], arrives: Callable[[int], list[Received]]
) -> None:
    """`flask shell` can send a mail without an import."""
    command = [sys.executable, "-m", "flask", "--app", "app", "shell"]
    subprocess.run(
        command, cwd=PROJECT, env=os.environ | config, input=SHELL_SESSION, text=True, check=True
    )

    assert {mail.subject for mail in arrives(2)} == {"One", "Two"}
