"""Snapshots of mails: what they show, and what they leave out."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from uuid import uuid4

import pytest
from flask import Flask

from mailer import Attachment, Mailer
from mailer.testing import Outbox, Snapshots
from tests.shop import close, create_shop

mailer = Mailer()

TEMPLATES = {
    "welcome.txt": "Welcome, {{ name }}!\n\n  Yours\n",
    "welcome.html": "<p>Welcome, {{ name }}!</p>\n",
    "order.txt": "{{ uuid }} at {{ now }}, {{ now.isoformat() }}, {{ now.date() }}, {{ mailed }}",
}
WELCOME = """\
From: "Shop" <shop@example.com>
To: "Ada" <ada@example.com>, bob@example.com
Cc: cy@example.com
Bcc: di@example.com
Reply-To: help@example.com
Subject: Welcome
X-Campaign: november

--- text
Welcome, Ada!

  Yours

--- html
<p>Welcome, Ada!</p>

--- attachments
terms.pdf application/pdf 4 bytes sha256 315d429b7714cedb
"""


@pytest.fixture
def app() -> Iterator[Flask]:
    app = create_shop(
        {"TESTING": True, "MAIL_DEFAULT_SENDER": "Shop <shop@example.com>"}, TEMPLATES
    )
    with app.app_context():
        yield app
    close(app)


def welcome(app: Flask, snapshots: Snapshots | None = None, name: str = "Ada") -> Outbox:
    with Outbox(app, snapshots=snapshots) as outbox:
        mailer.send_email(
            ["Ada <ada@example.com>", "bob@example.com"],
            "Welcome",
            "welcome",
            cc="cy@example.com",
            bcc="di@example.com",
            reply_to="help@example.com",
            headers={"X-Campaign": "november"},
            attachments=[Attachment("terms.pdf", b"%PDF")],
            name=name,
        )
    return outbox


def test_a_snapshot_shows_what_a_reader_sees(app: Flask) -> None:
    """A snapshot has recipients, subject, headers of the caller, texts and attachments."""
    assert welcome(app)[0].snapshot() == WELCOME


def test_ids_and_times_are_left_out(app: Flask) -> None:
    """Two mails that differ in ids and times only have the same snapshot."""
    with Outbox(app) as outbox:
        for year in (2026, 2031):
            now = datetime(year, 11, 27, 19, 20, 1, year, UTC)
            context = {"uuid": uuid4(), "now": now, "mailed": format_datetime(now)}
            mailer.send_email("ada@example.com", "Order", "order", context=context)

    first, second = (mail.snapshot() for mail in outbox)
    assert first == second
    assert "<uuid> at <time>, <time>, <date>, <time>\n" in first


def test_what_else_differs_is_replaced_on_request(app: Flask) -> None:
    """Regular expressions of the caller replace what else differs from run to run."""
    snapshots = [
        welcome(app, name=name)[0].snapshot({"Welcome, (Ada|Bob)": "Welcome, <name>"})
        for name in ("Ada", "Bob")
    ]

    assert snapshots[0] == snapshots[1]


def test_a_mail_that_matches(app: Flask, tmp_path: Path) -> None:
    """An update writes the file, and later runs compare with it."""
    folder = tmp_path / "snapshots"

    welcome(app, Snapshots(folder, update=True))[0].assert_matches_snapshot("welcome")
    welcome(app, Snapshots(folder))[0].assert_matches_snapshot("welcome")

    assert (folder / "welcome.txt").read_text() == WELCOME


def test_a_mail_that_differs(app: Flask, tmp_path: Path) -> None:
    """The failure shows the difference, names the file, and how to accept the change."""
    (tmp_path / "welcome.txt").write_text(WELCOME)

    with pytest.raises(AssertionError) as failed:
        welcome(app, Snapshots(tmp_path), name="Bob")[0].assert_matches_snapshot("welcome")

    said = str(failed.value)
    assert f"{tmp_path / 'welcome.txt'}" in said
    assert "--mailer-update-snapshots" in said
    assert "\n-Welcome, Ada!\n+Welcome, Bob!\n" in said
    assert (tmp_path / "welcome.txt").read_text() == WELCOME


def test_a_snapshot_that_is_missing(app: Flask, tmp_path: Path) -> None:
    """Without an update nothing is written, so that a test in CI can't approve itself."""
    with pytest.raises(AssertionError, match=r"There is no snapshot .*welcome\.txt"):
        welcome(app, Snapshots(tmp_path))[0].assert_matches_snapshot("welcome")

    assert [*tmp_path.iterdir()] == []


def test_names_that_are_no_files(app: Flask, tmp_path: Path) -> None:
    """The name of a snapshot can't lead out of its folder."""
    with pytest.raises(ValueError, match="letters, digits"):
        welcome(app, Snapshots(tmp_path))[0].assert_matches_snapshot("../welcome")


def test_an_outbox_without_a_folder(app: Flask) -> None:
    """The error says where the folder of snapshots comes from."""
    with pytest.raises(ValueError, match=r"snapshots=Snapshots\(folder\)"):
        welcome(app)[0].assert_matches_snapshot("welcome")
