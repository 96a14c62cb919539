"""Steps that scenarios share: start traffic, wait for it, and count the mails at the end."""

import time

from tests.chaos.history import Call, broken_refusals
from tests.chaos.scenario import Report
from tests.chaos.site import Site
from tests.services.waiting import wait_until


def let_mail_flow(site: Site, *, workers: int = 1, senders: int = 2, pause: float = 0.01) -> None:
    """Return when each sender has queued a mail and the relay has accepted one."""
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
    """Wait until the relay has accepted one more mail."""
    before = site.sink.count()
    wait_until(lambda: site.sink.count() > before, timeout=60)


def refused(site: Site) -> list[Call]:
    """Return the calls that raised."""
    return [call for call in site.calls() if call.error]


def wait_for_a_refusal(site: Site) -> None:
    """Wait until one more call has raised."""
    before = len(refused(site))
    wait_until(lambda: len(refused(site)) > before, timeout=60)


def note_resumption(site: Site, report: Report) -> None:
    """Note the seconds until one more mail is queued and one more is sent."""
    mended, calls = time.monotonic(), len(site.calls())
    wait_until(lambda: any(call.mail_id for call in site.calls()[calls:]), timeout=60)
    wait_for_flow(site)
    report.remarks.append(f"mail flowed again after {time.monotonic() - mended:.1f} s")


def count_up(site: Site, report: Report, *, twice: int = 0, in_doubt: int | None = 0) -> None:
    """Stop the senders, wait until all mail is decided, and check that none is lost."""
    for sender in site.senders:
        sender.stop()
    site.settle(timeout=120)
    tally = site.tally()
    report.tally = tally if report.tally is None else report.tally + tally
    report.expect_nothing_lost(twice=twice, in_doubt=in_doubt)
    false = broken_refusals(site.calls(), site.sink.recipients())
    report.expect(
        not false, f"{len(false)} calls raised 'nothing was queued', but their mail was sent"
    )
