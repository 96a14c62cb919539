"""`make soak`: an hour of mixed traffic with faults, checked for resources that grow.

The watched processes live through all of it: the web processes, a prefork worker and a worker of
threads. A third worker is there to be killed. At the end the three records are compared, as after
any scenario. The figures, the plots and `docs/soak.md` are written anew.
"""

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from pathlib import Path

from kombu.exceptions import OperationalError

from bench.program import PROJECT
from mailer.celery.app import PURGE
from mailer.message import Status
from mailer.store import Store
from tests.chaos.scenario import Report
from tests.chaos.site import Database, Site, running_site
from tests.chaos.soak_page import Soak, publish, table
from tests.chaos.watch import Watch
from tests.services.waiting import wait_until

#: The senders and their options. Names that begin with "grey" are greylisted.
TRAFFIC: dict[str, dict[str, object]] = {
    "orders": {"pause": 0.05},
    "codes": {"pause": 0.2, "lane": "critical", "on_doubt": "hold"},
    "news": {"pause": 0.1, "lane": "bulk", "delay": 20},
    "files": {"pause": 0.5, "file": 200_000},
    "greylisted": {"pause": 1.0},
}
_BETWEEN_FAULTS = 10.0  # seconds
_SAMPLES = 600
# Share of the run after which a finished mail is purged: the database has reached its full size
# within the first quarter.
_KEPT = 1 / 20
_CONNECTIONS = 10  # at most, of three workers to the relay
_UNDECIDED = (Status.QUEUED, Status.CLAIMED, Status.TRANSMITTING)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=60, help="how long the traffic flows (default: 60)"
    )
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument(
        "--into",
        type=Path,
        default=PROJECT / "docs",
        help="where soak.md and soak/*.svg are written (default: docs)",
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="mailer-soak-"))
    print(
        f"Running for {options.minutes:g} minutes. Logs: {folder} (deleted if all is well).",
        file=sys.stderr,
    )
    with (folder / "logs").open("w") as logs, redirect_stdout(logs):
        soak = run(folder, options.database, seconds=60 * options.minutes)
    print(table(soak), end="")
    publish(soak, options.into)
    if not soak.is_kept:
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def run(folder: Path, database: Database, *, seconds: float) -> Soak:
    report = Report()
    with running_site(folder, database) as site, ThreadPoolExecutor(max_workers=1) as aside:
        site.config.update(_settings(kept=seconds * _KEPT))
        watch, over = _stage(site, database), threading.Event()
        nemesis = Nemesis(site)
        breaking = aside.submit(nemesis.work, over)
        try:
            _look_on(site, watch, seconds, breaking)
        finally:
            over.set()
        breaking.result()
        for sender in site.senders:
            sender.stop()
        _wait_until_decided(site)
        report.tally = site.tally()
    report.faults = nemesis.faults.total()
    report.expect_nothing_lost(twice=nemesis.on_the_wire, in_doubt=nemesis.on_the_wire)
    return Soak(database, seconds, watch, nemesis.faults, report)


def _settings(kept: float) -> dict[str, str]:
    """Shorten all delays to seconds, since an hour is short for a mail."""
    return {
        "MAILER_KEEP_DAYS": f"{kept / 86400:.8f}",
        "MAILER_CONNECT_TIMEOUT": "1",
        "MAILER_COMMAND_TIMEOUT": "2",
        "MAILER_DATA_TIMEOUT": "2",
        "MAILER_REPLY_TIMEOUT": "8",
        "MAILER_RETRY_FIRST": "2",
        "MAILER_RETRY_LONGEST": "10",
        "MAILER_RELAY_REST": "1",
        "MAILER_RELAY_REST_LONGEST": "4",
        "MAILER_DOUBT_RESEND_AFTER": "2",
    }


def _stage(site: Site, database: Database) -> Watch:
    """Start the workers and senders, and return the watch over them."""
    prefork, threads = site.start_worker("prefork", 2), site.start_worker("threads", 4)
    senders = [site.start_sender(name=name, **options) for name, options in TRAFFIC.items()]
    return Watch(
        site,
        database,
        web=[sender.process.pid for sender in senders],
        prefork=prefork.process.pid,
        threads=threads.process.pid,
    )


def _look_on(site: Site, watch: Watch, seconds: float, breaking: "Future[None]") -> None:
    """Read all figures at regular moments, and purge more often than once an hour."""
    celery = site.app().extensions["celery"]
    began = time.monotonic()
    interval = max(1.0, seconds / _SAMPLES)
    while (now := time.monotonic() - began) < seconds and not breaking.done():
        watch.read(now)
        with suppress(OperationalError):  # Redis may be down as one of the faults
            celery.send_task(PURGE, retry=True, retry_policy={"max_retries": 0})
        time.sleep(interval - (time.monotonic() - began) % interval)


def _wait_until_decided(site: Site) -> None:
    """Wait until no mail is queued or in a worker's hands.

    The lease of a mail that a killed worker was sending lasts minutes.
    """
    store: Store = site.app().extensions["mailer"].store
    wait_until(lambda: not any(status in _UNDECIDED for status, *_ in store.counts()), timeout=600)


class Nemesis:
    """A source of faults, which causes one after the other and ends each."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._victim = site.start_worker("threads", 2)
        self.faults: Counter[str] = Counter()
        self.on_the_wire = 0  #: at most so many mails were being sent when a process was killed

    def work(self, over: threading.Event) -> None:
        dice = random.Random(4)  # noqa: S311 -- it chooses faults
        while not over.wait(_BETWEEN_FAULTS):
            name, fault = dice.choice(list(_FAULTS.items()))
            fault(self, over)
            self.faults[name] += 1

    def kill_a_worker(self, _over: threading.Event) -> None:
        self.on_the_wire += 2
        self._victim.kill()
        self._victim = self._site.start_worker("threads", 2)

    def freeze_redis(self, over: threading.Event) -> None:
        self._site.redis.pause()
        over.wait(12)  # longer than a worker waits for Redis
        self._site.redis.resume()

    def restart_redis(self, over: threading.Event) -> None:
        self._site.redis.stop()
        over.wait(3)
        self._site.redis.start()

    def kill_the_relay(self, over: threading.Event) -> None:
        """Kill the relay, which then refuses connections for a while."""
        self.on_the_wire += _CONNECTIONS
        self._site.sink.stop()
        over.wait(3)
        self._site.sink.start()

    def stall_the_relay(self, over: threading.Event) -> None:
        """Freeze the relay for longer than MAILER_COMMAND_TIMEOUT, not the reply."""
        self._site.sink.freeze()
        over.wait(4)
        self._site.sink.thaw()


_FAULTS: dict[str, Callable[[Nemesis, threading.Event], None]] = {
    "kill -9 of a worker": Nemesis.kill_a_worker,
    "Redis frozen for 12 s": Nemesis.freeze_redis,
    "Redis down for 3 s, and empty afterwards": Nemesis.restart_redis,
    "the relay killed, and down for 3 s": Nemesis.kill_the_relay,
    "the relay silent for 4 s": Nemesis.stall_the_relay,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
