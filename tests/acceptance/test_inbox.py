"""`flask mail inbox`, as a user of the package runs it in debug mode."""

import signal
import smtplib
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo

from mailer import Mailer
from mailer.cli import mail_group
from tests.services.inbox import MAIL, Inbox
from tests.services.ports import free_port


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(tmp_path)
    inbox.start()
    yield inbox
    inbox.process.kill()
    inbox.process.wait()


def test_it_shows_what_it_received(inbox: Inbox) -> None:
    """Received mail is on the page and in the terminal.

    The terminal ignores escape sequences in a mail, and the files are readable by their owner only.
    """
    assert "Nothing yet." in inbox.get("/")

    inbox.send("ada@example.com", '"\x1b[2J"@example.com')

    page = inbox.get("/")
    assert "Hello &lt;you&gt;" in page
    assert "ada@example.com" in page
    [file] = (inbox.folder / "instance" / "inbox").iterdir()
    assert MAIL in file.read_bytes()
    assert [
        stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent, file.parent.parent)
    ] == [0o600, 0o700, 0o700]
    assert "ada@example.com" in inbox.said
    assert "\x1b" not in inbox.said


def test_an_address_asks_for_a_fault(inbox: Inbox) -> None:
    """A recipient such as 550@ is refused, so that an application can try its error path."""
    with pytest.raises(smtplib.SMTPRecipientsRefused, match="No such user here"):
        inbox.send("550@fault.example")


def test_other_web_sites_read_nothing(inbox: Inbox) -> None:
    """A request for a foreign host name is refused, against DNS rebinding."""
    assert "Nothing yet." in inbox.get("/", host="localhost")
    with pytest.raises(HTTPError, match="400"):
        inbox.get("/inbox", host="inbox.evil.example")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to(inbox: Inbox, number: signal.Signals) -> None:
    """A signal ends the command with 0, even while a browser is connected."""
    with socket.create_connection(("127.0.0.1", inbox.web_port)):
        inbox.process.send_signal(number)

        assert inbox.process.wait(timeout=20) == 0
    assert "Traceback" not in inbox.said


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.from_mapping(MAILER_DATABASE_URL="sqlite://", MAIL_SERVER="127.0.0.1", MAIL_PORT=25)
    Mailer(app)
    return app


@pytest.mark.parametrize("option", ["--smtp-port", "--web-port"])
def test_a_port_in_use(app: Flask, option: str) -> None:
    """The error names the option that chooses another port."""
    ports = {"--smtp-port": free_port(), "--web-port": free_port()}
    with socket.create_server(("127.0.0.1", ports[option])):
        words = [str(word) for pair in ports.items() for word in pair]
        result = app.test_cli_runner().invoke(args=["mail", "inbox", *words])

    assert result.exit_code == 1
    assert f"Port {ports[option]} can't be used" in result.stderr
    assert f"Choose another one with {option}." in result.stderr
    assert f"set MAIL_SERVER=127.0.0.1 and MAIL_PORT={ports['--smtp-port']}." in result.stdout


def test_an_app_whose_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inbox starts without the app, says why, and tries to open its port."""

    def create_app() -> Flask:
        app = Flask("shop", instance_path=str(tmp_path))
        app.config.from_mapping(DEBUG=True, MAIL_PORT=25)
        Mailer(app)
        return app

    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["inbox", "--smtp-port", str(taken.getsockname()[1])]
        result = CliRunner().invoke(mail_group, words, obj=ScriptInfo(create_app=create_app))

    assert "The inbox starts, but the app can't: MAIL_SERVER:" in result.stdout
    assert "MAIL_PORT in app.config" in result.stdout
    assert "Choose another one with --smtp-port." in result.stderr


def test_without_aiosmtpd(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package to install."""
    monkeypatch.setitem(sys.modules, "aiosmtpd", None)
    result = app.test_cli_runner().invoke(args=["mail", "inbox"])

    assert result.exit_code == 1
    assert "pip install 'flask-mailer-queue[inbox]'" in result.stderr
