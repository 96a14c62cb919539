"""The pytest plugin of Mailer: fixtures for the mail of a Flask app under test.

pytest imports this module at its start, also for projects that never send a mail, so it imports
nothing of Mailer before a fixture is used.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from mailer.testing import FakeRelay, Outbox


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes snapshots."""
    parser.getgroup("mailer").addoption(
        "--mailer-update-snapshots",
        action="store_true",
        help="write the snapshots of mails instead of comparing them",
    )


def _app_of(request: pytest.FixtureRequest) -> "Flask":
    try:
        app: Flask = request.getfixturevalue("app")
    except pytest.FixtureLookupError as error:
        if error.argname != "app":
            raise
        pytest.fail(
            "The fixtures of Mailer need your Flask app: define a fixture named app that returns"
            " it.",
            pytrace=False,
        )
    return app


@pytest.fixture
def outbox(request: pytest.FixtureRequest) -> "Iterator[Outbox]":
    """Record the mail of the fixture `app`: see `mailer.testing.Outbox`."""
    from mailer.testing import Outbox, Snapshots  # noqa: PLC0415 -- see above

    folder = request.path.parent / "snapshots" / request.path.stem
    update: bool = request.config.getoption("--mailer-update-snapshots")
    with Outbox(_app_of(request), snapshots=Snapshots(folder, update=update)) as outbox:
        yield outbox


@pytest.fixture
def drain(outbox: "Outbox") -> Callable[..., Any]:
    """Return `outbox.drain`, which delivers the mail that waits."""
    return outbox.drain


@pytest.fixture
def fake_relay(request: pytest.FixtureRequest, outbox: "Outbox") -> "Iterator[FakeRelay]":
    """Start a relay with scripted answers for `app`: see `mailer.testing.FakeRelay`."""
    from mailer.testing import FakeRelay  # noqa: PLC0415 -- see above

    with FakeRelay(_app_of(request)) as relay:
        yield relay
