"""Workers that are frozen for longer than their leases and then continue."""

import random
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from mailer import Mailer, Status, send_email
from tests.chaos.scenario import Report, Scenario, Size, named
from tests.chaos.site import Site, running_site
from tests.services.clocks import Clock
from tests.services.script import HOLD, Point, ScriptedRelay
from tests.services.waiting import wait_until
from tests.services.worker import Worker

# Longer than any lease. The clock jumps while the worker is frozen, so that no test waits an hour.
_AN_HOUR = 3600.0
#: How far a worker has got with a mail, and where the relay makes the worker wait for that.
_MOMENTS: dict[str, Point] = {
    "claimed, not yet marked": "dot",  # of the mail before
    "marked, before MAIL": "greeting",
    "after 354, before the body": "data",
}


def at_each_moment(folder: Path, size: Size) -> Report:
    """Freeze workers at chosen moments; another worker sends their mail before they wake."""
    report, mails = Report(), dict[str, str]()
    with running_site(folder) as site, ScriptedRelay() as relay:
        clock = Clock(folder / "clock")
        site.config |= {
            **clock.env,
            "MAIL_PORT": str(relay.port),
            "MAILER_CLAIM_LEASE": "60",
            "MAILER_DOUBT_RESEND_AFTER": "1",
        }
        for number in range(1, size.pick(1, 10) + 1):
            frozen = [
                _frozen_worker(site, relay, f"{point}{number}@example.com", point, mails)
                for point in _MOMENTS.values()
            ]
            clock.set(number * _AN_HOUR)
            successor = site.start_worker()
            wait_until(
                lambda: set(_statuses(site, mails)) <= {Status.SENT, Status.DOUBTFUL}, timeout=60
            )
            successor.stop()
            for worker in frozen:
                worker.thaw()
            relay.go_on()
            for worker in frozen:
                worker.stop()
            report.faults += len(frozen)
        copies, statuses = Counter(relay.acknowledged), _statuses(site, mails)
    report.remarks.append(f"frozen {', '.join(_MOMENTS)}")
    for sender, status in zip(mails, statuses, strict=True):
        report.expect(
            (copies[sender], status) == (1, Status.SENT),
            f"{sender}: {copies[sender]} copies, {status}",
        )
    return report


def _frozen_worker(
    site: Site, relay: ScriptedRelay, sender: str, point: Point, mails: dict[str, str]
) -> Worker:
    """Return a worker that is frozen at this point of a mail from this sender.

    The new mail is added to `mails`, which maps senders to ids.
    """
    worker = site.start_worker(concurrency=1)
    held = relay.held
    # A mail that may not be sent twice is marked alone, so that the next one is only claimed.
    if point == "dot":
        relay.faults[f"ahead-{sender}", "dot"] = [HOLD]
        mails[f"ahead-{sender}"] = _queue(site, f"ahead-{sender}", on_doubt="hold")
    else:
        relay.faults["" if point == "greeting" else sender, point] = [HOLD]
    mails[sender] = _queue(site, sender)
    wait_until(lambda: relay.held > held)
    worker.freeze()
    return worker


def _queue(site: Site, sender: str, **options: Any) -> str:
    with site.app().test_request_context():
        return send_email(
            "reader@example.org", "Chaos", "welcome", name="reader", sender=sender, **options
        ).id


def _statuses(site: Site, mails: dict[str, str]) -> list[Status]:
    with site.app().app_context():
        found = Mailer().statuses([*mails.values()])
    return [copy.status for mail_id in mails.values() for copy in found[mail_id]]


def at_random(folder: Path, size: Size, *, pool: str) -> Report:
    """Freeze one of two workers under load, at a random moment, until its leases lapse.

    Not with SQLite: a worker that is frozen in the middle of a transaction locks out all others.
    """
    report, dice = Report(), random.Random(4)  # noqa: S311 -- it chooses victims
    with running_site(folder, "postgresql") as site:
        clock = Clock(folder / "clock")
        site.config |= clock.env
        workers = [site.start_worker(pool, 2) for _ in range(2)]
        senders = [site.start_sender(on_doubt="hold", pause=0.01) for _ in range(2)]
        for number in range(1, size.pick(4, 100) + 1):
            _wait_for_more(site, 10)
            time.sleep(dice.uniform(0, 0.3))
            victim = dice.choice(workers)
            victim.freeze()
            clock.set(number * _AN_HOUR)
            _wait_for_more(site, 30)  # the other one goes on, and finds the lapsed leases
            victim.thaw()
            report.faults += 1
        for sender in senders:
            sender.stop()
        site.settle()
        report.tally = site.tally()
    # A worker that wakes up gives up the mails that it had not begun, and finds the relay's reply
    # to the one that it had sent. So none is sent twice, and none stays in doubt.
    report.expect_nothing_lost()
    return report


def _wait_for_more(site: Site, mails: int) -> None:
    before = site.sink.count()
    wait_until(lambda: site.sink.count() >= before + mails, timeout=60)


SCENARIOS = [
    Scenario("frozen beyond the lease, at each moment", at_each_moment),
    *named(
        "frozen beyond the lease, under load",
        threads=partial(at_random, pool="threads"),
        prefork=partial(at_random, pool="prefork"),
    ),
]
