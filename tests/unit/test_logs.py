"""Log lines, in which all addresses are masked."""

import logging
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mailer import logs
from mailer.logs import TaskMask, addresses_shown, get_logger, masked

MASKED = {
    "550 5.1.1 <ada@example.com>: user unknown": "550 5.1.1 <a***@example.com>: user unknown",
    "to: 'ada@example.com' is no address": "to: 'a***@example.com' is no address",
    "ada.lovelace+news@sub.example.com, bob@example.com;": (
        "a***@sub.example.com, b***@example.com;"
    ),
    "o'neil@example.com": "o***@example.com",
    "Ada <ada@example.com>": "Ada <a***@example.com>",
    '"ada lovelace"@example.com refused': "a***@example.com refused",
    "jürgen@müller.example": "j***@müller.example",
    "bounce+ada=example.org@example.com": "b***@example.com",
    "https://relay.example/why?to=ada%40example.com": "https://relay.example/why?t***@example.com",
    "ada@[192.0.2.1] and ada@localhost": "a***@[192.0.2.1] and a***@localhost",
    "postgresql://user:geheim@db/mailer": "postgresql://user:g***@db/mailer",
    "250 2.0.0 queued as 7F3A": "250 2.0.0 queued as 7F3A",
    "12 tried @ 3 ms": "12 tried @ 3 ms",
}


@pytest.mark.parametrize("text", MASKED)
def test_addresses(text: str) -> None:
    """Masking keeps an address's first letter and domain, and the text around it."""
    assert masked(text) == MASKED[text]


def shout() -> None:
    try:
        int("ada@example.com")
    except ValueError as error:
        get_logger("mailer.test").exception("%d failed: %s, %s", 1, error, "bob@example.com")


def test_a_line_and_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Log lines and tracebacks are masked inside and outside an app."""
    shout()
    with Flask("tests").app_context():
        shout()

    assert (
        caplog.text.count(
            "1 failed: invalid literal for int() with base 10: 'a***@example.com', b***@example.com"
        )
        == 2
    )
    assert (
        caplog.text.count("ValueError: invalid literal for int() with base 10: 'a***@example.com'")
        == 2
    )
    assert "ada@" not in caplog.text


def test_an_app_that_wants_to_see_them(caplog: pytest.LogCaptureFixture) -> None:
    """Addresses are shown in the log lines of an app that allows it, and of no other."""
    with addresses_shown(True):
        shout()
        with addresses_shown(False):
            get_logger("mailer.test").error("eve@example.com")

    assert "bob@example.com" in caplog.text
    assert "with base 10: 'ada@example.com'" in caplog.text
    assert caplog.messages[-1] == "e***@example.com"


class Unspeakable:
    """An object whose conversion to text fails."""

    def __str__(self) -> str:
        raise RuntimeError("ada@example.com")

    __repr__ = __str__


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(
    ("message", "args", "line"),
    [
        ("%s was refused", (Unspeakable(),), "<Unspeakable>"),
        ("%d of %d", ("one",), "%d of %d one"),
        ("%(name)s", ({"other": 1},), "%(name)s 1"),
        (Unspeakable(), (), "<Unspeakable>"),
        ("100 %", (1,), "100 % 1"),
    ],
)
def test_a_line_that_cannot_be_written(
    caplog: pytest.LogCaptureFixture, shown: bool, message: Any, args: tuple[Any, ...], line: str
) -> None:
    """A log line that cannot be formatted is written as far as possible, and raises nothing."""
    with addresses_shown(shown):
        get_logger("mailer.test").error(message, *args)

    assert line in caplog.messages[0]


def test_the_line_of_a_failed_task(caplog: pytest.LogCaptureFixture) -> None:
    """Celery's line about a failed task is masked for Mailer's tasks, and for no others."""
    logger = logging.getLogger("tests.trace")
    logger.addFilter(TaskMask("mailer.send_email"))
    for name in ("mailer.send_email", "shop.report"):
        context = {"name": name, "exc": "ValueError('ada@example.com')"}
        logger.error("Task %(name)s raised: %(exc)s", context, extra={"data": context})

    assert [record.getMessage() for record in caplog.records] == [
        "Task mailer.send_email raised: ValueError('a***@example.com')",
        "Task shop.report raised: ValueError('ada@example.com')",
    ]
    assert "ada@" not in str(caplog.records[0].__dict__)


def test_every_module_logs_so() -> None:
    """All modules of the package get their logger from `mailer.logs`."""
    package = Path(logs.__file__).parent
    others = [file for file in package.rglob("*.py") if "getLogger(__name__)" in file.read_text()]

    assert others == []
