"""Intake under stress: repeated keys, the application's own transactions, damaged rows."""

import random
import sqlite3
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from mailer import MailStatus, Status
from tests.chaos.flow import refused
from tests.chaos.scenario import Report, Scenario, Size, named
from tests.chaos.site import Database, Sender, Site, running_site
from tests.services.waiting import wait_until

# --- one key, many callers -----------------------------------------------------------------------


def keys(folder: Path, size: Size, *, database: Database) -> Report:
    """Kill processes that queue the same mails, and let them begin again with the first."""
    report, dice = Report(), random.Random(4)  # noqa: S311 -- it chooses victims
    mails, callers = size.pick(60, 300), size.pick(6, 50)
    with running_site(folder, database) as site:
        site.start_worker()
        start = partial(site.start_sender, shared="orders", count=mails)
        alive = [start() for _ in range(callers)]
        while report.faults < size.pick(4, 30):
            _wait_for_calls(alive[report.faults % callers])
            time.sleep(dice.uniform(0, 0.2))
            victim = dice.randrange(callers)
            alive[victim].kill()
            alive[victim] = start()
            report.faults += 1
        for sender in alive:
            sender.wait(timeout=600)
        site.settle(timeout=120)
        report.tally = tally = site.tally()
        received: dict[str, set[str]] = defaultdict(set)
        for call in site.calls():
            received[call.recipient].add(call.mail_id)
        copies = Counter(site.sink.recipients())
    report.remarks.append(f"{sum(len(sender.calls()) for sender in site.senders)} calls")
    report.expect_nothing_lost()
    report.expect(tally.refused == 0, f"{tally.refused} calls raised")
    report.expect(tally.uninvited == 0, f"{tally.uninvited} mails without a receipt arrived")
    report.expect(len(received) == mails, f"{len(received)} mails were queued, not {mails}")
    report.expect(all(len(ids) == 1 for ids in received.values()), "one key has several ids")
    report.expect(set(copies.values()) == {1}, "a recipient got several mails")
    return report


def _wait_for_calls(sender: Sender) -> None:
    wait_until(sender.calls, timeout=300)  # fifty processes start slowly


# --- one transaction with an order --------------------------------------------------------------


def transactions(folder: Path, size: Size, *, database: Database) -> Report:
    """Kill an application that queues in its transaction before, in and after the commit."""
    report, dice = Report(), random.Random(4)  # noqa: S311 -- it chooses moments
    with running_site(folder, database) as site:
        engine = _with_orders(site)
        site.start_worker()
        while report.faults < size.pick(6, 50):
            sender = site.start_sender(orders=1)
            _wait_for_calls(sender)
            time.sleep(dice.uniform(0, 0.3))
            sender.kill()
            report.faults += 1
        orders = _orders(engine)
        wait_until(lambda: set(orders) <= set(site.sink.recipients()), timeout=120)
        site.settle()
        report.tally = site.tally()
        copies = Counter(site.sink.recipients())
        dropped = {call.recipient for call in site.calls() if call.error == "RolledBack"}
        engine.dispose()
    report.remarks.append(f"{len(orders)} orders, {len(dropped)} rolled back")
    report.expect_nothing_lost()
    report.expect(
        bool(dropped) and not dropped & set(copies),
        "a transaction that was rolled back has sent a mail, or none was rolled back",
    )
    report.expect(
        set(copies) == set(orders),
        f"{len(set(copies) ^ set(orders))} mails without an order, or orders without a mail",
    )
    report.expect(set(copies.values()) == {1}, "an order has sent several mails")
    return report


def _with_orders(site: Site) -> Engine:
    """Create the application's own table beside those of Mailer."""
    with site.app().app_context():
        site.app().extensions["mailer"].store.check_schema()
    engine = create_engine(
        site.config["MAILER_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
    )
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE chaos_order (recipient TEXT PRIMARY KEY)"))
    return engine


def _orders(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT recipient FROM chaos_order")))


# --- mail that can't be sent --------------------------------------------------------------------

#: The damage by name of the recipient: the attachment of `spoilt` is missing, that of `changed` has
#: other bytes, and the headers of `unreadable` are not JSON.
_SPOILING = """
DELETE FROM mailer_blob WHERE length(data) = 1001;
UPDATE mailer_blob SET data = x'00' WHERE length(data) = 1002;
UPDATE mailer_message SET headers = 'no JSON' WHERE "to" LIKE '%unreadable-%';
"""
_REASONS = {
    "spoilt": "its bytes are missing from the database, or were changed",
    "changed": "its bytes are missing from the database, or were changed",
    "unreadable": "what it said is erased, or can't be read",
}


def poison(folder: Path, size: Size) -> Report:
    """Damage rows in the database, among healthy mail and lines of five million characters."""
    each = size.pick(3, 50)
    report = Report(faults=len(_REASONS) * each)
    with running_site(folder) as site:
        senders = [
            site.start_sender(count=size.pick(100, 2000)),
            site.start_sender(name="spoilt", count=each, file=1001),
            site.start_sender(name="changed", count=each, file=1002),
            site.start_sender(name="unreadable", count=each),
            site.start_sender(name="long", count=size.pick(1, 10), line=5_000_000),
            site.start_sender(count=size.pick(100, 2000)),
        ]
        for sender in senders:
            sender.wait(timeout=600)
        _spoil(site)
        began = time.monotonic()
        site.start_worker()
        site.settle(timeout=600)
        report.remarks.append(
            f"all mail was decided {time.monotonic() - began:.1f} s after the worker was started"
        )
        report.tally = tally = site.tally()
        mails, raised = site.mails(), refused(site)
    report.expect_nothing_lost()
    report.expect(not raised, f"calls raised: {raised}")
    report.expect(
        tally.failed == report.faults, f"{tally.failed} failed, {report.faults} were damaged"
    )
    report.expect(tally.once == tally.accepted - report.faults, "a healthy mail was not sent")
    for mail in mails:
        _expect_reason(report, mail)
    return report


def _spoil(site: Site) -> None:
    connection = sqlite3.connect(site.config["MAILER_DATABASE_URL"].removeprefix("sqlite:///"))
    connection.executescript(_SPOILING)
    connection.close()


def _expect_reason(report: Report, mail: MailStatus) -> None:
    [delivery] = mail.deliveries
    reason = _REASONS.get(delivery.recipient.partition("-")[0])
    ended_well = delivery.status is (Status.SENT if reason is None else Status.FAILED)
    report.expect(
        ended_well and (reason or "") in (delivery.reply or ""),
        f"{delivery.recipient}: {delivery.status}, {delivery.reply}",
    )


SCENARIOS = [
    *named(
        "one idempotency key, callers killed",
        PostgreSQL=partial(keys, database="postgresql"),
        SQLite=partial(keys, database="sqlite"),
    ),
    *named(
        "an application killed in its transaction",
        PostgreSQL=partial(transactions, database="postgresql"),
        SQLite=partial(transactions, database="sqlite"),
    ),
    Scenario("mail damaged in the database", poison),
]
