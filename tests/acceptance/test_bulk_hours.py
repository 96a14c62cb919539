"""A bulk send with a calendar, from the call to the SMTP server, by workers with a faked clock."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jinja2
import pytest
from flask import Flask

from mailer import Bulk, BulkState, Calendar, Mailer
from mailer.smtpd.faults import DELAY, Fault
from tests.services.clocks import Clock
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker

MakeApp = Callable[..., Flask]

mailer = Mailer()

HOUR = 3600.0
# So slow and so many that the hours end in the middle.
NEAR, FAR, SECONDS = 400, 60, 0.1
CALENDAR = Calendar(hours="08:00-16:00", time_zone="UTC")


@pytest.fixture
def app(make_app: MakeApp, tmp_path: Path) -> Flask:
    made = make_app()
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "news.txt").write_text("Hello {{ name }}")
    made.jinja_loader = jinja2.FileSystemLoader(folder)
    return made


@pytest.fixture
def set_clocks(app: Flask, tmp_path: Path) -> tuple[Clock, Callable[[float], None]]:
    """Return the clock of workers, and a call that sets it and that of the app to a time."""
    clock = Clock(tmp_path / "clock")

    def set_clocks(seconds: float) -> None:
        ahead = seconds - time.time()
        app.extensions["mailer"].clock.ahead = ahead
        clock.set(ahead)

    return clock, set_clocks


def readers() -> list[dict[str, str]]:
    """Return recipients in UTC, and others whose clocks are twelve hours behind."""
    far = [
        {"email": f"reader{one}@far.example", "name": "Bob", "time_zone": "Etc/GMT+12"}
        for one in range(FAR)
    ]
    return [*far, *({"email": f"reader{one}@near.example", "name": "Ada"} for one in range(NEAR))]


def arrived(sink: Sink, domain: str) -> Counter[str]:
    found = (to for mail in sink.messages for to in mail.recipients)
    return Counter(to for to in found if to.endswith(domain))


def is_held(bulk: Bulk, sink: Sink) -> bool:
    """Return whether nothing is queued, and all that has arrived is recorded."""
    progress = bulk.progress()
    return progress.queued == 0 and len(sink.messages) == progress.sent


@pytest.mark.timeout(300)
def test_hours_that_end_in_the_middle(
    app: Flask,
    start_worker: StartWorker,
    sink: Sink,
    set_clocks: tuple[Clock, Callable[[float], None]],
) -> None:
    """Outside the hours of a zone, its recipients get nothing; in the end, each has one mail."""
    clock, set_to = set_clocks
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    closes = tomorrow.replace(hour=16, minute=0, second=0, microsecond=0).timestamp()
    sink.faults.add(Fault("dot", DELAY, delay=SECONDS, times=None))
    set_to(closes - 600)
    with app.app_context():
        start_worker(env=clock.env)
        bulk = mailer.send_bulk("News", "news", readers(), calendar=CALENDAR)
        sink.wait_for(1, timeout=60)
        set_to(closes - 1)
        wait_until(lambda: is_held(bulk, sink), timeout=60)

        progress, sent = bulk.progress(), len(sink.messages)
        assert 0 < sent < NEAR
        assert arrived(sink, "@far.example") == {}
        assert (progress.state, progress.held) == (BulkState.RUNNING, NEAR + FAR - sent)
        assert progress.reason == "it waits for its hours: mon-sun 08:00-16:00"
        assert progress.resumes_at == datetime.fromtimestamp(closes + 4 * HOUR, UTC)

        sink.faults.clear()
        set_to(closes + 4 * HOUR)
        wait_until(lambda: len(arrived(sink, "@far.example")) == FAR, timeout=60)
        wait_until(lambda: is_held(bulk, sink), timeout=60)
        assert len(sink.messages) == sent + FAR
        assert bulk.progress().resumes_at == datetime.fromtimestamp(closes + 16 * HOUR, UTC)

        set_to(closes + 16 * HOUR)
        wait_until(lambda: bulk.progress().state is BulkState.FINISHED, timeout=120)

    assert arrived(sink, ".example") == {one["email"]: 1 for one in readers()}
