"""What scenarios begin with, wait for and end with: mail that flows, calls that are refused, and the count."""

import time

from tests.chaos.history import Call, broken_refusals
from tests.chaos.scenario import Report
from tests.chaos.site import Site
from tests.services.waiting import wait_until


def let_mail_flow(site: Site, *, workers: int = 1, senders: int = 2, pause: float = 0.01) -> None:
    """Return when each of the senders has queued one, and the relay has got one."""
    for _ in range(workers):
        site.start_worker()
    for _ in range(senders):
        site.start_sender(pause=pause)
    wait_until(
        lambda: all(any(call.mail_id for call in sender.calls()) for sender in site.senders),
        timeout=60,
    )
    wait_for_flow(site)


def wait_for_flow(site: Site) -> None:
    """The relay gets one more."""
    before = site.sink.count()
    wait_until(lambda: site.sink.count() > before, timeout=60)


def refused(site: Site) -> list[Call]:
    """The calls that raised."""
    return [call for call in site.calls() if call.error]


def wait_for_a_refusal(site: Site) -> None:
    """Somebody is told that nothing can be queued."""
    before = len(refused(site))
    wait_until(lambda: len(refused(site)) > before, timeout=60)


def note_resumption(site: Site, report: Report) -> None:
    """What was broken is mended: from now on, one more is queued, and one more sent."""
    mended, calls = time.monotonic(), len(site.calls())
    wait_until(lambda: any(call.mail_id for call in site.calls()[calls:]), timeout=60)
    wait_for_flow(site)
    report.remarks.append(f"mail flowed again after {time.monotonic() - mended:.1f} s")


def count_up(site: Site, report: Report, *, twice: int = 0, in_doubt: int | None = 0) -> None:
    """When all is done that is to be done: what became of it."""
    for sender in site.senders:
        sender.stop()
    site.settle(timeout=120)
    tally = site.tally()
    report.tally = tally if report.tally is None else report.tally + tally
    report.expect_nothing_lost(twice=twice, in_doubt=in_doubt)
    false = broken_refusals(site.calls(), site.sink.recipients())
    report.expect(
        not false, f"{len(false)} calls raised that nothing was queued, and their mail went out"
    )
