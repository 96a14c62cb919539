"""Workers are killed while mail flows."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from mailer import Status
from tests.chaos import poison as deadly
from tests.chaos.gauges import children_of
from tests.chaos.scenario import Report, Scenario, Size
from tests.chaos.site import Site, running_site
from tests.services.waiting import wait_until
from tests.services.worker import Worker


def kill(folder: Path, size: Size, *, pool: str, on_doubt: str = "resend") -> Report:
    """Kill workers and children with SIGKILL at random moments, and start them again."""
    report, dice = Report(), random.Random(4)  # noqa: S311 -- it chooses victims
    with running_site(folder) as site:
        site.config["MAILER_DOUBT_RESEND_AFTER"] = "1"
        workers = [site.start_worker(pool, 2) for _ in range(2)]
        senders = [site.start_sender(on_doubt=on_doubt) for _ in range(2)]
        while report.faults < size.pick(6, 200):
            _wait_for_flow(site)
            time.sleep(dice.uniform(0, 0.3))
            victim = dice.randrange(len(workers))
            if not _kill_a_child(workers[victim], dice):
                workers[victim].kill()
                workers[victim] = site.start_worker(pool, 2)
            report.faults += 1
        for sender in senders:
            sender.stop()
        site.settle(timeout=120)
        report.tally = site.tally()
    holds = on_doubt == "hold"
    report.expect_nothing_lost(twice=0 if holds else report.faults, in_doubt=None if holds else 0)
    return report


def poison(folder: Path, size: Size) -> Report:
    """Queue mails that kill the process that composes them.

    They fail alone, after as many deaths as a mail has attempts.
    """
    report = Report(faults=size.pick(2, 20))
    with running_site(folder) as site:
        site.config |= {
            "MAILER_RETRY_ATTEMPTS": "3",
            "MAILER_RETRY_FIRST": "0.5",
            "MAILER_RETRY_FACTOR": "1",
        }
        site.start_worker("prefork", 2, env={deadly.TAKEN_IF: "1"})
        site.start_sender(name=deadly.NAME, count=report.faults).wait()
        site.start_sender(count=size.pick(100, 2000)).wait(timeout=600)
        site.settle()
        report.tally = site.tally()
        reasons = {
            delivery.reply or ""
            for mail in site.mails()
            for delivery in mail.deliveries
            if delivery.status is Status.FAILED
        }
    report.expect_nothing_lost()
    report.expect(
        report.tally.failed == report.faults,
        f"{report.tally.failed} failed, {report.faults} are poison",
    )
    report.expect(
        report.tally.once == report.tally.accepted - report.faults, "a healthy mail was not sent"
    )
    report.expect(
        all("died while it composed" in reason for reason in reasons), f"the reasons are {reasons}"
    )
    return report


def _wait_for_flow(site: Site) -> None:
    before = site.sink.count()
    wait_until(lambda: site.sink.count() > before, timeout=60)


def _kill_a_child(worker: Worker, dice: random.Random) -> bool:
    """Kill a child every second time, if the worker has children."""
    children = children_of(worker.process.pid)
    if not children or dice.random() < 0.5:
        return False
    os.kill(dice.choice(children), signal.SIGKILL)
    return True


SCENARIOS = [
    Scenario("kill -9 of workers, prefork", partial(kill, pool="prefork")),
    Scenario("kill -9 of workers, threads", partial(kill, pool="threads")),
    Scenario(
        "kill -9 of workers, prefork, on_doubt=hold", partial(kill, pool="prefork", on_doubt="hold")
    ),
    Scenario("a mail that kills the process that composes it", poison),
]
