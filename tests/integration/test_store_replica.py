"""A replica of PostgreSQL: what can be read from there."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from flask import Flask

from mailer import Mailer, send_email
from mailer.errors import StoreUnavailable
from mailer.store import Store
from tests.services.postgres import DEBIAN_FOLDERS, SETTINGS, PostgresServer, postgres_folder
from tests.services.requirement import find_program, require
from tests.services.waiting import wait_until
from tests.shop import close


@pytest.fixture
def servers() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Yield a primary with the tables, and a replica of it."""
    initdb = require("PostgreSQL", find_program("initdb", also_in=DEBIAN_FOLDERS)).resolve()
    with ExitStack() as stack:
        primary, replica = (
            PostgresServer(initdb.parent, stack.enter_context(postgres_folder()), SETTINGS)
            for _ in range(2)
        )
        for server in (primary, replica):
            stack.callback(server.stop, signal.SIGQUIT)
        primary.initialize()
        primary.start()
        store = Store(primary.create("mailer"))
        store.migrate()
        store.engine.dispose()
        replica.follow(primary, "replica")
        replica.start()
        yield primary, replica


def test_a_replica_tells_what_became_of_mail(
    servers: tuple[PostgresServer, PostgresServer],
) -> None:
    """An app on a replica reads states and lists, and refuses to queue."""
    writing, reading = (make_app(server.url("mailer")) for server in servers)
    with writing.app_context():
        receipt = send_email("ada@example.com", "Hello", text="Hello")

    with reading.app_context():
        wait_until(lambda: Mailer().statuses([receipt.id]))  # the replica may be a moment behind
        found = Mailer().mails(state="queued")
        with pytest.raises(StoreUnavailable, match="read-only"):
            send_email("ada@example.com", "Hello", text="Hello")
        ran = reading.test_cli_runner().invoke(args=["mail", "queue"])

    assert [mail.id for mail in found] == [receipt.id]
    assert ran.exit_code == 0, ran.output
    assert "queued" in ran.output
    close(writing)
    close(reading)


def make_app(url: str) -> Flask:
    app = Flask("shop")
    app.config.update(MAILER_DATABASE_URL=url, MAIL_DEFAULT_SENDER="shop@example.com")
    Mailer(app)
    return app
