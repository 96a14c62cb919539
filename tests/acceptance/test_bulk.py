"""Bulk sends from the call to the SMTP server, with real workers that die."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import pytest
from flask import Flask

from mailer import Bulk, BulkState, Mailer, OnDoubt
from mailer.smtpd.faults import DELAY, Fault
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker, StartWorkers

MakeApp = Callable[..., Flask]

mailer = Mailer()


def readers(number: int) -> Iterator[tuple[str, dict[str, object]]]:
    for one in range(number):
        yield f"reader{one}@example.com", {"name": f"Reader {one}"}


@pytest.fixture
def app(make_app: MakeApp, tmp_path: Path) -> Flask:
    """Return an app with templates that its workers do not have."""
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "news.txt").write_text("Hello {{ name }}{% include 'end.txt' %}")
    (folder / "end.txt").write_text(", yours {{ company }}")
    made = make_app()
    made.jinja_loader = jinja2.FileSystemLoader(folder)
    return made


def assert_each_has_the_own_mail(sink: Sink, number: int) -> None:
    assert Counter(to for mail in sink.messages for to in mail.recipients) == {
        address: 1 for address, _context in readers(number)
    }
    said = {
        (mail.recipients[0], mail.parsed["Subject"], mail.parsed.get_content().strip())
        for mail in sink.messages
    }
    assert said == {
        (address, f"News for {own['name']}", f"Hello {own['name']}, yours Shop")
        for address, own in readers(number)
    }
    assert len({mail.message_id for mail in sink.messages}) == number


def send(number: int, on_doubt: OnDoubt = OnDoubt.RESEND) -> Bulk:
    shared = {"company": "Shop"}
    return mailer.send_bulk(
        "News for {{ name }}", "news", readers(number), shared=shared, on_doubt=on_doubt
    )


@pytest.mark.timeout(300)
def test_a_bulk_send_survives_a_deployment_and_killed_workers(
    app: Flask, start_workers: StartWorkers, sink: Sink, tmp_path: Path
) -> None:
    """Each reader gets the mail of the call once, whatever the templates are later.

    Those in doubt are the only exception: mail that was on the wire when its worker was killed.
    """
    # So slow that each worker is killed with most of the mail before it.
    sink.faults.add(Fault("dot", DELAY, delay=0.02, times=None))
    with app.app_context():
        soon = {"MAILER_RETRY_FIRST": "1"}  # for mail that a worker composed when it was killed
        workers = start_workers(2, env=soon)
        bulk = send(number := 400, OnDoubt.HOLD)
        for template in (tmp_path / "templates").iterdir():
            template.write_text("This is another version.")
        for worker in workers:
            sink.wait_for(len(sink.messages) + 50)
            worker.kill()
            start_workers(1, env=soon)
        wait_until(lambda: not waits(bulk), timeout=120)
        progress, doubtful = bulk.progress(), [*bulk.recipients(state="doubtful")]
        for one in doubtful:
            bulk.resolve("sent", to=one.address)
        wait_until(lambda: bulk.progress().state is BulkState.FINISHED, timeout=30)

    assert progress.sent + progress.doubtful == number
    arrived = Counter(to for mail in sink.messages for to in mail.recipients)
    certain = {address for address, _context in readers(number)} - {one.address for one in doubtful}
    assert {address: arrived[address] for address in certain} == dict.fromkeys(certain, 1)
    assert all(arrived[one.address] <= 1 for one in doubtful)
    assert {mail.parsed.get_content().strip()[-10:] for mail in sink.messages} == {"yours Shop"}


def waits(bulk: Bulk) -> bool:
    progress = bulk.progress()
    return progress.held + progress.queued > 0


def test_pause_and_resume_while_workers_deliver(
    app: Flask, start_worker: StartWorker, sink: Sink
) -> None:
    """A pause stops a send within a sweep, a resume ends it with each mail sent once."""
    with app.app_context():
        start_worker()
        bulk = send(number := 1500)
        sink.wait_for(20)
        assert bulk.pause("the prices are wrong")
        wait_until(lambda: bulk.progress().queued == 0, timeout=30)
        paused = bulk.progress()
        assert (paused.state, paused.reason) == (BulkState.PAUSED, "the prices are wrong")
        assert paused.held + paused.sent == number
        assert paused.held > 0
        bulk.resume()
        wait_until(lambda: bulk.progress().state is BulkState.FINISHED, timeout=120)

    assert_each_has_the_own_mail(sink, number)
