"""A database is restored from a backup in which mail that was sent since is still queued."""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from flask import Flask
from sqlalchemy import make_url

from mailer import Mailer, Status
from mailer.store import Store
from tests.chaos.scenario import Report, Size, named
from tests.chaos.site import Database, Site, running_site
from tests.services.postgres import DEBIAN_FOLDERS
from tests.services.requirement import find_program, require
from tests.services.waiting import wait_until


def restore(folder: Path, size: Size, *, database: Database) -> Report:
    """Pause, look, cancel mail that was due before the disaster, resume: none is sent twice."""
    report, count = Report(faults=1), size.pick(20, 2000)
    with running_site(folder, database) as site:
        site.config["MAILER_DOUBT_RESEND_AFTER"] = "1"
        site.start_sender(count=count).wait()
        tomorrow, on_the_wire = _queue_more(site.app())
        bring_back = _back_up(site)
        worker = site.start_worker()
        site.start_sender(count=count).wait()  # these mails are not in the backup
        site.settle(timeout=300)
        # This mail was in doubt and was sent once more.
        wait_until(lambda: _state(site, on_the_wire) is Status.SENT, timeout=60)
        worker.stop()
        disaster = datetime.now(UTC)
        sent = site.sink.count()
        bring_back()
        _flask_mail(site, "pause", "--reason", "restored from a backup")
        site.start_worker()
        site.start_sender(count=count).wait()
        wait_until(lambda: _state(site, on_the_wire) is Status.DOUBTFUL, timeout=60)

        report.expect(
            site.sink.count() == sent,
            f"{site.sink.count() - sent} were sent while everything was paused",
        )
        outlook = _flask_mail(site, "due")
        for line in (
            "restored from a backup",
            f"queued {2 * count + 1}",
            "doubtful 1",
            f"example.com {2 * count + 2}",
        ):
            report.expect(line in outlook, f"`flask mail due` does not say {line!r}: {outlook}")
        report.remarks.append(_flask_mail(site, "cancel", "--due-before", disaster.isoformat()))
        report.remarks.append(_flask_mail(site, "resume"))
        site.settle(timeout=300)
        report.tally = site.tally()
        states = [_state(site, mail_id) for mail_id in (tomorrow, on_the_wire)]
        report.expect(
            states == [Status.QUEUED, Status.DOUBTFUL],
            f"the mail for tomorrow, and the one in transmission, are {states}",
        )
    report.expect_nothing_lost()
    report.expect(
        report.tally.once == 3 * count, f"{report.tally.once} arrived once, and not {3 * count}"
    )
    report.expect(
        report.tally.uninvited == 1,
        f"the mail in transmission arrived {report.tally.uninvited} times",
    )
    return report


def _queue_more(app: Flask) -> tuple[str, str]:
    """Queue a mail for tomorrow, and one that a worker is sending during the backup."""
    mailer, store, now = Mailer(), _store(app), time.time()
    with app.app_context():
        tomorrow = mailer.send_email(
            "tomorrow@example.com", "Chaos", "welcome", name="T", send_at=timedelta(days=1)
        )
        on_the_wire = mailer.send_email(
            "wire@example.com", "Chaos", "welcome", name="W", lane="critical"
        )
    [delivery] = store.claim_due(1, token="then", now=now + 1, lease_until=now + 2)
    store.mark_if_claimed([delivery.id], token="then", now=now, lease_until=now + 2)
    return tomorrow.id, on_the_wire.id


def _back_up(site: Site) -> Callable[[], None]:
    """Make a backup while everything runs, and return a function that restores it."""
    url = make_url(site.config["MAILER_DATABASE_URL"])
    copy = site.folder / "backup"
    if url.get_backend_name() == "sqlite":
        file = Path(str(url.database))
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return partial(_copy_back, copy, file)
    dump = require("PostgreSQL", find_program("pg_dump", also_in=DEBIAN_FOLDERS))
    where = [
        "--host",
        str(url.query["host"]),
        "--username",
        "mailer",
        "--dbname",
        str(url.database),
        "--file",
        str(copy),
    ]
    subprocess.run([str(dump), *where, "--clean"], check=True)
    return partial(
        _load, [str(dump.with_name("psql")), *where, "--quiet", "--set", "ON_ERROR_STOP=1"]
    )


def _load(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _copy_back(copy: Path, file: Path) -> None:
    for left in file.parent.glob(f"{file.name}-*"):  # the log of a database that is no more
        left.unlink()
    copy.replace(file)


def _flask_mail(site: Site, *arguments: str) -> str:
    result = site.app().test_cli_runner().invoke(args=["mail", *arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def _state(site: Site, mail_id: str) -> Status:
    [delivery] = _store(site.app()).status(mail_id)
    return delivery.status


def _store(app: Flask) -> Store:
    store: Store = app.extensions["mailer"].store
    return store


SCENARIOS = named(
    "an old database is restored from a backup",
    SQLite=partial(restore, database="sqlite"),
    PostgreSQL=partial(restore, database="postgresql"),
)
