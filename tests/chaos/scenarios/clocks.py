"""Clocks that jump, and clocks of two machines that differ."""

import time
from functools import partial
from pathlib import Path

from tests.chaos.flow import count_up, let_mail_flow, note_resumption
from tests.chaos.scenario import Report, Scenario, Size, named
from tests.chaos.site import Sender, Site, running_site
from tests.services.clocks import Clock

_HOUR = 3600.0
_APART = 30.0


def jump(folder: Path, size: Size, *, seconds: float) -> Report:
    """Set the clock while mail is being sent and more is queued. No mail waits for its return."""
    report, clock = Report(), Clock(folder / "clock")
    with running_site(folder) as site:
        site.config |= clock.env
        let_mail_flow(site)
        for number in range(1, size.pick(1, 10) + 1):
            site.sink.hold()
            time.sleep(1)  # more mail is queued
            clock.set(number * seconds)
            report.faults += 1
            site.sink.let_go()
            note_resumption(site, report)
        count_up(site, report)
    return report


def apart(folder: Path, size: Size) -> Report:
    """Let one of two machines be half a minute ahead.

    No mail is sent twice, and none earlier than by that difference.
    """
    report, ahead = Report(faults=1), Clock(folder / "clock")
    with running_site(folder, "postgresql") as site:
        ahead.set(_APART)
        site.start_worker(env=ahead.env)
        let_mail_flow(site)
        scheduled = site.start_sender(pause=0.1, delay=_APART + 3)
        time.sleep(size.pick(8, 300))
        count_up(site, report)
        early = _seconds_early(site, scheduled, _APART + 3)
    report.remarks.append(f"scheduled mail was sent at most {max(early):.1f} s early")
    report.expect(max(early) <= _APART, f"a mail was sent {max(early):.1f} s early")
    return report


def _seconds_early(site: Site, sender: Sender, delay: float) -> list[float]:
    """Return how early each mail arrived, by the true clock of sender and relay."""
    created, taken = site.statuses(), site.sink.times()
    return [
        created[call.mail_id].created_at.timestamp() + delay - taken[call.message_id]
        for call in sender.calls()
    ]


SCENARIOS = [
    *named(
        "the clock jumps an hour",
        forwards=partial(jump, seconds=_HOUR),
        backwards=partial(jump, seconds=-_HOUR),
    ),
    Scenario("two machines' clocks are 30 s apart", apart),
]
