"""Redis fails in every way, while web processes queue and workers of both pools deliver."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import redis

from tests.chaos.history import Call
from tests.chaos.scenario import Report, Scenario, Size
from tests.chaos.site import Site, running_site
from tests.services.detour import Detour
from tests.services.waiting import wait_until
from tests.services.worker import Worker

Fault = Callable[[Site], AbstractContextManager[None]]

# Limits in seconds: for a call if Redis refuses, for a call if Redis is silent, for each later
# call, and until mail flows again.
_REFUSED, _SILENT, _THEN = 0.2, 2.2, 0.02
_RESUMES_WITHIN = 15.0


def outage(
    folder: Path, size: Size, *, fault: Fault, longest_call: float, calls: int = 100
) -> Report:
    """Break Redis for as many calls, while each pool has a worker."""
    with running_site(folder) as site:
        return _outage(site, size, partial(fault, site), longest_call, size.pick(calls, 1000))


def black_hole(folder: Path, size: Size) -> Report:
    """Drop all packets from and to Redis. Lost packets are not sent again."""
    with running_site(folder) as site, Detour(site.redis.url.removeprefix("unix://")) as detour:
        site.config["MAILER_REDIS_URL"] = f"redis://{detour.host}:{detour.port}/0"
        report = _outage(site, size, partial(_blocked, detour), _SILENT, size.pick(100, 1000))
        site.end()
        return report


def absent_at_boot(folder: Path, size: Size) -> Report:
    """Start web processes and workers without Redis."""
    report = Report(faults=1)
    with running_site(folder) as site:
        site.start_sender(count=1).wait()  # creates the tables
        usual = site.start_sender(count=100)
        usual.wait()
        site.redis.stop()
        workers = [site.start_worker(pool, 2, until_ready=False) for pool in ("prefork", "threads")]
        sender = site.start_sender(pause=0.02)
        _wait_for_calls(site, size.pick(100, 1000))
        _check_calls(report, sender.calls(), usual.calls(), _REFUSED)
        site.redis.start()
        _wait_for_flow(report, site, workers)
        _end(report, site, workers)
    return report


def _outage(
    site: Site,
    size: Size,
    fault: Callable[[], AbstractContextManager[None]],
    longest_call: float,
    calls: int,
) -> Report:
    report = Report()
    workers = [site.start_worker(pool, 2) for pool in ("prefork", "threads")]
    sender = site.start_sender(pause=0.02)
    _wait_for_flow(Report(), site, workers)
    _wait_for_calls(site, 100)
    for _ in range(size.pick(1, 4)):
        before = len(sender.calls())
        usual = sender.calls()[-100:]
        with fault():
            _wait_for_calls(site, calls)
        _wait_for_flow(report, site, workers)
        _wait_for_calls(site, 100)
        _check_calls(report, sender.calls()[before:], usual, longest_call)
        report.faults += 1
    _end(report, site, workers)
    return report


def _wait_for_calls(site: Site, count: int) -> None:
    """Wait until `count` more calls have been made.

    Only their number is read, since this process carries the detour as well.
    """

    def made() -> int:
        return sum(sender.count() for sender in site.senders)

    before = made()
    wait_until(lambda: made() >= before + count, timeout=120)


def _wait_for_flow(report: Report, site: Site, workers: Sequence[Worker]) -> None:
    """Wait until mail is delivered and each worker has received a ring."""
    started, taken = time.monotonic(), site.sink.count()
    heard = [_rings(worker) for worker in workers]
    wait_until(lambda: site.sink.count() > taken, timeout=60)
    flows = time.monotonic() - started
    wait_until(
        lambda: all(_rings(worker) > before for worker, before in zip(workers, heard, strict=True)),
        timeout=60,
    )
    resumed = time.monotonic() - started
    report.remarks.append(
        f"resumed after {flows:.1f} s, all workers received rings after {resumed:.1f} s"
    )
    report.expect(resumed <= _RESUMES_WITHIN, f"resumed after {resumed:.1f} s")


def _rings(worker: Worker) -> int:
    return worker.log.read_text().count("Task mailer.send_email[")


def _check_calls(
    report: Report, calls: Sequence[Call], usual: Sequence[Call], longest: float
) -> None:
    """Check that at most one call waited for a time-out.

    The time that the same calls took before the fault is subtracted: a busy machine is no fault of
    Redis.
    """
    seconds = sorted(call.seconds for call in calls)
    median, machine = statistics.median(seconds), sorted(call.seconds for call in usual)
    added = median - statistics.median(machine)
    report.remarks.append(
        f"calls: longest {seconds[-1]:.3f} s, next {seconds[-2]:.3f} s, median {1000 * median:.1f}"
        " ms"
    )
    report.expect(
        seconds[-1] - machine[-1] <= longest,
        f"a call took {seconds[-1]:.2f} s, {longest:g} allowed",
    )
    report.expect(
        added <= _THEN, f"later calls took {1000 * median:.0f} ms, {1000 * _THEN:g} allowed"
    )
    report.expect(seconds[-2] < 1, f"more than one call waited for Redis: {seconds[-2]:.2f} s")
    report.expect(not any(call.error for call in calls), "a call raised")


def _end(report: Report, site: Site, workers: Sequence[Worker]) -> None:
    site.senders[-1].stop()
    site.settle()
    report.tally = site.tally()
    report.expect(all(worker.is_running for worker in workers), "a worker ended")
    report.expect_nothing_lost()


# --- the faults ---------------------------------------------------------------------------------


@contextmanager
def refused(site: Site) -> Iterator[None]:
    site.redis.stop()
    yield
    site.redis.start()


@contextmanager
def frozen(site: Site) -> Iterator[None]:
    site.redis.pause()
    yield
    site.redis.resume()


@contextmanager
def _blocked(detour: Detour) -> Iterator[None]:
    detour.is_blocked = True
    yield
    detour.is_blocked = False


@contextmanager
def restarted(site: Site) -> Iterator[None]:
    yield
    site.redis.stop()
    site.redis.start()


@contextmanager
def flushed(site: Site) -> Iterator[None]:
    yield
    site.redis.flush()


@contextmanager
def full(site: Site) -> Iterator[None]:
    """Let Redis run out of memory, so that it refuses all writes.

    Workers have just been given rings, and can't record that they have them.
    """
    celery, rings = site.app().extensions["celery"], 6
    for _ in range(rings):
        celery.send_task("mailer.send_email", queue="elsewhere")
    with redis.Redis.from_url(site.redis.url) as client:
        with client.pipeline() as at_once:
            for _ in range(rings):
                at_once.lmove("elsewhere", celery.conf.task_default_queue)
            at_once.config_set("maxmemory", 1)
            at_once.execute()
        yield
        client.config_set("maxmemory", 0)


@contextmanager
def clients_killed(site: Site) -> Iterator[None]:
    """Kill the connections that publish and those that listen, again and again."""
    yield
    with redis.Redis.from_url(site.redis.url) as client:
        for _ in range(10):
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            time.sleep(0.2)


SCENARIOS = [
    Scenario("Redis refused", partial(outage, fault=refused, longest_call=_REFUSED)),
    Scenario("Redis frozen", partial(outage, fault=frozen, longest_call=_SILENT, calls=400)),
    Scenario("Redis drops all packets", black_hole),
    Scenario("Redis restarted", partial(outage, fault=restarted, longest_call=_SILENT)),
    Scenario("Redis FLUSHALL", partial(outage, fault=flushed, longest_call=_SILENT)),
    Scenario("Redis out of memory", partial(outage, fault=full, longest_call=_SILENT)),
    Scenario("Redis CLIENT KILL", partial(outage, fault=clients_killed, longest_call=_SILENT)),
    Scenario("Redis absent at boot", absent_at_boot),
]
