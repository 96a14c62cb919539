"""Workers are told to stop while they send: no mail stays claimed or in doubt."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import text

from tests.chaos.gauges import children_of
from tests.chaos.scenario import Report, Size, named
from tests.chaos.site import Site, running_site
from tests.services.requirement import do_without
from tests.services.waiting import wait_until
from tests.services.worker import Worker

# Runs a worker as the first process of a container, as Docker does.
_CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
_LONGEST_STOP = 20.0  # seconds after the reply of the relay


def stop(folder: Path, size: Size, *, pool: str) -> Report:
    """Stop a worker while the relay keeps it waiting. No other worker cleans up after it."""
    report = Report()
    with running_site(folder) as site:
        senders = [site.start_sender(pause=0.01) for _ in range(2)]
        for way in size.pick(_SHORT_WAYS, [*_WAYS] * 3):
            worker = site.start_worker(pool, 2, within=_container() if way == "docker stop" else ())
            _wait_for_flow(site)
            site.sink.freeze()
            wait_until(lambda: _held(site, "transmitting"))
            _WAYS[way](worker)
            # The relay is slow: a process that the signal ends at once has ended by now.
            time.sleep(size.pick(1, 5))
            site.sink.thaw()
            _expect_clean_end(report, site, worker, way)
            report.faults += 1
        for sender in senders:
            sender.stop()
        _end(report, site, pool)
    return report


def stop_without_redis(folder: Path, size: Size, *, pool: str) -> Report:
    """Stop a worker while Redis is frozen. The worker does not wait for it for long."""
    report = Report(faults=1)
    with running_site(folder) as site:
        sender = site.start_sender(pause=0.01)
        worker = site.start_worker(pool, 2)
        _wait_for_flow(site)
        site.redis.pause()
        _wait_for_flow(site)
        worker.signal(signal.SIGTERM)
        try:
            _expect_clean_end(report, site, worker, "SIGTERM")
        finally:
            site.redis.resume()
        sender.stop()
        _end(report, site, pool)
    return report


def _end(report: Report, site: Site, pool: str) -> None:
    """Let another worker send the mail that was given back."""
    site.start_worker(pool, 4)
    site.settle()
    report.tally = site.tally()
    report.expect_nothing_lost()


def rolling_restart(folder: Path, size: Size, *, pool: str) -> Report:
    """Start a new worker, stop the oldest, and so on."""
    report = Report()
    with running_site(folder) as site:
        senders = [site.start_sender() for _ in range(2)]
        old = site.start_worker(pool, 2)
        for _ in range(size.pick(2, 20)):
            new = site.start_worker(pool, 2)
            _wait_for_flow(site)
            old.stop()
            old = new
            report.faults += 1
        for sender in senders:
            sender.stop()
        site.settle()
        report.tally = site.tally()
    report.expect_nothing_lost()
    return report


# --- ways to stop a worker ------------------------------------------------------------------------


def _send(*signals: signal.Signals, to_group: bool = False) -> Callable[[Worker], None]:
    """Send signals to the main process, or to its group as a terminal and systemd do."""

    def tell(worker: Worker) -> None:
        for number, signum in enumerate(signals):
            wait_until(partial(_has_begun_to_stop, worker, number))
            worker.signal(signum, to_group=to_group)

    return tell


def _has_begun_to_stop(worker: Worker, times: int) -> bool:
    return worker.log.read_text().count("shutdown (MainProcess)") >= times


def _docker_stop(worker: Worker) -> None:
    [first] = children_of(worker.process.pid)
    worker.signal()
    os.kill(first, signal.SIGTERM)


def _container() -> tuple[str, ...]:
    if subprocess.run([*_CONTAINER, "true"], check=False, capture_output=True).returncode:
        do_without("unshare, and the right to use it")
    return _CONTAINER


_WAYS = {
    "SIGTERM": _send(signal.SIGTERM),
    "SIGTERM to the group": _send(signal.SIGTERM, to_group=True),
    "SIGTERM to the group, twice": _send(signal.SIGTERM, signal.SIGTERM, to_group=True),
    "SIGINT": _send(signal.SIGINT),
    "Ctrl-C": _send(signal.SIGINT, to_group=True),
    "Ctrl-C twice": _send(signal.SIGINT, signal.SIGINT, to_group=True),
    "SIGQUIT": _send(signal.SIGQUIT),
    "SIGQUIT to the group": _send(signal.SIGQUIT, to_group=True),
    "docker stop": _docker_stop,
}
_SHORT_WAYS = ["SIGTERM to the group", "Ctrl-C twice", "SIGQUIT", "docker stop"]


# --- checks -------------------------------------------------------------------------------------


def _wait_for_flow(site: Site) -> None:
    before = site.sink.count()
    wait_until(lambda: site.sink.count() > before, timeout=60)


def _expect_clean_end(report: Report, site: Site, worker: Worker, way: str) -> None:
    started = time.monotonic()
    worker.process.wait(40)
    seconds = time.monotonic() - started
    report.remarks.append(
        f"{way}: ended with code {worker.process.returncode}, {seconds:.1f} s after the relay's"
        " reply"
    )
    report.expect(seconds < _LONGEST_STOP, f"{way}: it took {seconds:.0f} s to end")
    for status in ("claimed", "transmitting"):
        if held := _held(site, status):
            report.broken.append(f"{way}: {held} mails of the worker that ended are {status}")


def _held(site: Site, status: str) -> int:
    query = text("SELECT count(*) FROM mailer_delivery WHERE status = :status")
    with site.app().extensions["mailer"].store.engine.connect() as connection:
        return int(connection.scalar(query, {"status": status}))


_POOLS = ("prefork", "threads")

SCENARIOS = [
    *named("workers are told to stop", **{pool: partial(stop, pool=pool) for pool in _POOLS}),
    *named(
        "workers are told to stop while Redis is frozen",
        **{pool: partial(stop_without_redis, pool=pool) for pool in _POOLS},
    ),
    *named("rolling restart", **{pool: partial(rolling_restart, pool=pool) for pool in _POOLS}),
]
