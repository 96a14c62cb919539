"""Much old mail is purged in small batches, which delay no other mail."""

import statistics
import time
from functools import partial
from pathlib import Path

from flask import Flask
from sqlalchemy import Engine, select

from mailer import Mailer, schema
from mailer.celery.app import PURGE
from mailer.message import id_at
from mailer.store import Store
from tests.chaos.history import Call
from tests.chaos.scenario import Report, Size, named
from tests.chaos.site import Database, Sender, Site, running_site
from tests.services.waiting import wait_until

_DAY = 86400
_AT_ONCE = 5000


def purge(folder: Path, size: Size, *, database: Database) -> Report:
    """Purge old records and bodies, while queueing and delivery go on almost undisturbed."""
    report, count = Report(faults=1), size.pick(4000, 200_000)
    with running_site(folder, database) as site:
        site.config |= {"MAILER_KEEP_DAYS": "30", "MAILER_KEEP_BODIES_DAYS": "5"}
        store: Store = site.app().extensions["mailer"].store
        store.take_chore(PURGE, now=time.time(), every=3600)  # no purge yet
        site.start_worker()
        for days in (60, 10):
            _fill(store.engine, count // 2, finished_at=time.time() - days * _DAY)
        alone = site.start_sender(count=300, pause=0.005)
        alone.wait()
        site.settle()
        beside = site.start_sender(pause=0.005)
        wait_until(beside.calls, timeout=60)
        began = time.monotonic()
        with store.engine.begin() as connection:
            connection.execute(
                schema.chore.update().values(due_at=0).where(schema.chore.c.name == PURGE)
            )
        wait_until(lambda: _is_purged(store.engine), timeout=1800)
        took = time.monotonic() - began
        beside.stop()
        site.settle()
        report.tally = site.tally()
        report.remarks.append(
            f"{count} purged in {took:.1f} s; before {_figures(site, alone)}; meanwhile"
            f" {_figures(site, beside)}"
        )
        calls = [call.seconds for call in beside.calls()]
    report.expect_nothing_lost()
    report.expect(
        statistics.median(calls) < 0.05,
        f"half of the calls took more than {statistics.median(calls):.3f} s",
    )
    report.expect(max(calls) < 2, f"a call took {max(calls):.1f} s")
    return report


def _fill(engine: Engine, count: int, finished_at: float) -> None:
    """Insert mails that were sent at this time."""
    nothing: list[str] = []
    mail = {
        "created_at": finished_at,
        "sender": "shop@example.com",
        "subject": "Old",
        "text": "x" * 500,
        "html": "x" * 500,
    }
    mail |= dict.fromkeys(
        ("to", "cc", "reply_to", "headers", "alternatives", "tags", "mail_options", "rcpt_options"),
        nothing,
    )
    copy = {
        "recipient": "ada@example.com",
        "domain": "example.com",
        "status": "sent",
        "lane": 1,
        "on_doubt": "resend",
    }
    copy |= {
        "queued_at": finished_at,
        "finished_at": finished_at,
        "attempts": 1,
        "doubts": 0,
        "reply": "250 ok",
    }
    for start in range(0, count, _AT_ONCE):
        ids = [
            f"{id_at(finished_at)}{number:020x}"
            for number in range(start, min(start + _AT_ONCE, count))
        ]
        with engine.begin() as connection:
            connection.execute(
                schema.message.insert(),
                [{**mail, "id": one, "message_id": f"<{one}@x>"} for one in ids],
            )
            connection.execute(schema.delivery.insert(), [{**copy, "mail_id": one} for one in ids])


def _is_purged(engine: Engine) -> bool:
    """Ask with queries that an index answers, so that the check delays nothing."""
    recent = time.time() - 5 * _DAY
    record = (
        select(schema.delivery.c.id)
        .where(schema.delivery.c.finished_at < recent - 25 * _DAY)
        .limit(1)
    )
    body = (
        select(schema.message.c.id)
        .where(schema.message.c.erased_at.is_(None), schema.message.c.id < id_at(recent))
        .limit(1)
    )
    with engine.connect() as connection:
        return (
            connection.execute(record).first() is None and connection.execute(body).first() is None
        )


def _figures(site: Site, sender: Sender) -> str:
    calls = sender.calls()
    queueing, delivery = [call.seconds for call in calls], _waits(site.app(), calls)
    return f"{len(calls)} calls of {_spread(queueing)} ms, sent after {_spread(delivery)} ms"


def _spread(seconds: list[float]) -> str:
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return "/".join(
        f"{1000 * value:.0f}" for value in (hundredths[49], hundredths[98], max(seconds))
    )


def _waits(app: Flask, calls: list[Call]) -> list[float]:
    """Return the seconds between queueing and delivery of each mail."""
    with app.app_context():
        mails = Mailer().statuses([call.mail_id for call in calls]).values()
    return [
        (one.finished_at - mail.created_at).total_seconds()
        for mail in mails
        for one in mail
        if one.finished_at
    ]


SCENARIOS = named(
    "old mail is purged while mail flows",
    PostgreSQL=partial(purge, database="postgresql"),
    SQLite=partial(purge, database="sqlite"),
)
