"""How long a request waits for `send_email()`, and how soon the mail is at the SMTP server: `make bench`.

Everything is real: the broker, the worker process, the SMTP server, SQLite with an fsync for each commit. Figures depend on the
machine and on what else it does: compare only what one run prints.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from flask import Flask

from mailer import send_email
from mailer.devstack.broker import find_program
from tests.application import create_app
from tests.services.broker import RedisServer
from tests.services.sink import Sink
from tests.services.worker import Fleet

MAILS = 200
FEWER = 30  # where each takes long
BURST = 60


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Sink() as sink:
        redis = RedisServer(find_program(), Path(folder))
        redis.start()
        config = {
            "MAILER_DATABASE_URL": f"sqlite:///{folder}/mailer.sqlite3",
            "MAILER_REDIS_URL": redis.url,
            "MAIL_SERVER": sink.host,
            "MAIL_PORT": str(sink.port),
            "MAIL_DEFAULT_SENDER": "Mailer <mailer@example.com>",
        }
        cut_off = {**config, "MAILER_REDIS_URL": f"unix://{folder}/nowhere.sock"}
        print(f"{'':44}{'first':>9}{'p50':>9}{'p99':>9}{'mails':>8}   in milliseconds")
        with worker(config, Path(folder)):
            report("send_email(), all well", queue_all(create_app(config)))
            report("send_email() until the mail has arrived", arrive_all(create_app(config), sink, MAILS))
            report(f"the same, right after a burst of {BURST}", arrive_all(create_app(config), sink, FEWER, BURST))
            report("the same, the ring lost: found by the sweep", arrive_all(create_app(cut_off), sink, FEWER))
        redis.pause()
        report("send_email(), Redis frozen", queue_all(create_app(config)))
        redis.resume()
        redis.stop()
        report("send_email(), Redis down", queue_all(create_app(config)))


@contextmanager
def worker(config: dict[str, str], folder: Path) -> Iterator[None]:
    fleet = Fleet({**os.environ, **config}, folder)
    fleet.start(pool="threads")
    try:
        yield
    finally:
        fleet.end(show_logs=False)


def queue_all(app: Flask) -> list[float]:
    with app.test_request_context():
        return [timed(queue_one) for _ in range(MAILS)]


def arrive_all(app: Flask, sink: Sink, mails: int, burst: int = 0) -> list[float]:
    """One at a time, on an idle system, or when the last of a burst has just arrived."""
    seen = 0
    while seen != len(sink.messages):  # what was queued before is out of the way
        seen = len(sink.messages)
        time.sleep(0.5)

    def arrive(count: int) -> None:
        expected = len(sink.messages) + count
        for _ in range(count):
            queue_one()
        while len(sink.messages) < expected:
            time.sleep(0.0002)

    def arrive_after_burst() -> float:
        arrive(burst)
        return timed(lambda: arrive(1))

    with app.test_request_context():
        return [arrive_after_burst() for _ in range(mails)]


def queue_one() -> None:
    send_email("ada@example.com", "Welcome", "welcome", name="Ada")


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def report(what: str, times: list[float]) -> None:
    print(f"{what:44}{times[0]:9.1f}{median(times):9.1f}{quantiles(times, n=100)[98]:9.1f}{len(times):8}")


if __name__ == "__main__":
    main()
