"""The public API: the names that `from mailer import …` gives, and the cost of an import."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import flask_mail
import pytest

import mailer
from mailer import errors
from mailer.mail import _OF_MAILER

PROJECT = Path(__file__).parents[2]

#: The public names. To add one is easy; to remove one breaks applications.
PUBLIC = set(
    """
    Mail Mailer send_bulk send_email
    Address Attachment Calendar Lane Message OnDoubt
    Bulk BulkError BulkProgress BulkRecipient BulkSample BulkState
    DeliveryStatus MailStatus Receipt Rehearsal Status
    BadRow BrokerUnavailable CommitLost ConfigurationError InUseElsewhere
    InvalidAddress InvalidArgument InvalidAttachment InvalidHeader InvalidMail
    KeyInUse KeyReused MailerError MissingRecipient MissingSender OverLimit
    SchemaMismatch SigningFailed StoreError StoreUnavailable TemplateError UnknownMail
""".split()
)
ERRORS = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def test_what_is_public() -> None:
    """`__all__` and `dir()` list the public names, and no others."""
    assert set(mailer.__all__) == PUBLIC
    assert len(mailer.__all__) == len(PUBLIC)
    assert {
        name
        for name in dir(mailer)
        if not name.startswith("_") and not inspect.ismodule(getattr(mailer, name))
    } == PUBLIC


@pytest.mark.parametrize(
    "page",
    [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_the_documentation_imports_what_is_public(page: Path) -> None:
    """The documentation imports public names only."""
    for names in re.findall(r"from mailer import ([\w, ]+)", page.read_text(encoding="utf-8")):
        assert set(names.replace(" ", "").split(",")) <= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_everything_public_is_explained(name: str) -> None:
    """Each public name has a docstring."""
    assert inspect.getdoc(getattr(mailer, name))


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, _ in inspect.getmembers(mailer.Mailer, inspect.isfunction)
        if name != "__init__"
    ],
)
def test_every_method_is_explained(method: str) -> None:
    """Each method of Mailer has a docstring."""
    assert getattr(mailer.Mailer, method).__doc__


def test_a_mail_knows_the_methods_of_mailer() -> None:
    """A method of Mailer that Mail does not have is an error on Mail, not None."""
    methods = {name for name in dir(mailer.Mailer) if not name.startswith("_")}

    assert methods - {"init_app"} == _OF_MAILER


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_has_one_ancestor(name: str) -> None:
    """Each error derives from MailerError, has a docstring and is public."""
    assert issubclass(ERRORS[name], mailer.MailerError)
    assert vars(ERRORS[name])["__doc__"]
    assert getattr(mailer, name) is ERRORS[name]


def test_the_tree_of_errors_is_drawn() -> None:
    """The tree in the docstring of `mailer.errors` matches the classes."""
    drawn = {
        name: len(line) // 4
        for line, name in re.findall(
            r"^([│├└─ ]*)(\w+)(?:  .*)?$", errors.__doc__ or "", re.MULTILINE
        )
    }

    assert drawn == {name: kind.mro().index(mailer.MailerError) for name, kind in ERRORS.items()}


def test_errors_are_what_python_calls_them() -> None:
    """InvalidMail is a ValueError, and UnknownMail a LookupError."""
    assert issubclass(mailer.InvalidMail, ValueError)
    assert issubclass(mailer.UnknownMail, LookupError)


def test_errors_are_what_flask_mail_calls_them() -> None:
    """An `except` that was written for Flask-Mail catches the errors that replace its own."""
    for bad_header in (mailer.InvalidAddress, mailer.InvalidHeader):
        assert issubclass(bad_header, flask_mail.BadHeaderError)
    for missing in (mailer.MissingRecipient, mailer.MissingSender):
        assert issubclass(missing, AssertionError)


def test_message_is_flask_mails() -> None:
    """`mailer.Message` is Flask-Mail's, and `Mail` derives from Flask-Mail's."""
    assert mailer.Message is flask_mail.Message
    assert issubclass(mailer.Mail, flask_mail.Mail)


IMPORT = """
import logging, sys, threading
from pathlib import Path

TOUCHED = ("socket.connect", "socket.bind", "sqlite3.connect", "subprocess.Popen")
events = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in TOUCHED else None)
before = {path for path in Path.cwd().rglob("*")}

import mailer

assert events == [], events
assert {path for path in Path.cwd().rglob("*")} == before
assert threading.active_count() == 1, threading.enumerate()
assert logging.root.handlers == [], "a handler at the root"
assert logging.root.level == logging.WARNING
for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "mailer"]:
    assert logging.getLogger(name).handlers == [], name
    assert logging.getLogger(name).level == logging.NOTSET, name
for heavy in ("alembic", "psycopg", "aiosmtpd", "devstack"):
    assert heavy not in sys.modules, heavy
"""


def test_an_import_does_nothing(tmp_path: Path) -> None:
    """`import mailer` connects to nothing, starts no thread, and touches no file or log handler.

    Optional packages are not loaded.
    """
    command = [sys.executable, "-W", "error", "-c", IMPORT]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_types_come_with_it() -> None:
    """The package has a `py.typed` marker for type checkers."""
    assert (PROJECT / "mailer" / "py.typed").exists()


def test_the_version_is_the_last_release() -> None:
    """CHANGELOG.md has a section for the current version, and one above it for the next."""
    headings = re.findall(
        r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$",
        (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )

    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == mailer.__version__
    assert headings[1][1]


def test_the_changelog_has_its_order() -> None:
    """The sections of each release in CHANGELOG.md have a fixed order."""
    order = ["Security", "Removed", "Deprecated", "Added", "Changed", "Fixed"]
    for release in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        sections = re.findall(r"^### (\w+)$", release, re.MULTILINE)
        assert sections == [name for name in order if name in sections]


def test_the_changelog_says_nothing_twice() -> None:
    """No entry is twice in CHANGELOG.md."""
    entries = re.findall(
        r"^- (.{40})", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert len(entries) == len(set(entries)) > 0
