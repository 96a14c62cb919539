"""Forged messages in Redis run no code, and mail flows on."""

import base64
import json
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import redis

from tests.chaos.scenario import Report, Size, named
from tests.chaos.site import Site, running_site
from tests.services.waiting import wait_until
from tests.services.worker import Worker

_REFUSED = "A message was refused"
_LONGEST_LINE = 1000


class _Bomb:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._file,))


def forged(folder: Path, size: Size, *, pool: str) -> Report:
    """Push each forgery several times while mail flows."""
    report, proof = Report(), folder / "code_has_run"
    with running_site(folder) as site:
        worker = site.start_worker(pool, 2)
        sender = site.start_sender(pause=0.01)
        forgeries = _forgeries(_genuine_ring(site), proof, size.pick(4, 64))
        _wait_for_flow(site)
        with redis.Redis.from_url(site.redis.url) as client:
            queue = site.app().extensions["celery"].conf.task_default_queue
            for forgery in [*forgeries] * size.pick(1, 3):
                client.lpush(queue, forgery)
                report.faults += 1
            wait_until(lambda: _refused(worker) >= report.faults, timeout=120)
            _wait_for_flow(site)
            sender.stop()
            site.settle()
            report.expect(not client.exists("unacked"), "a forgery was not acknowledged")
        report.tally = site.tally()
        report.expect(worker.is_running, "the worker ended")
        report.expect(not proof.exists(), "a forgery has run code")
        report.expect(
            _refused(worker) == report.faults, f"{report.faults} forged, {_refused(worker)} refused"
        )
        log = worker.log.read_text()
        report.expect("\x1b" not in log, "a forgery has put an escape sequence in the log")
        report.expect(
            max(map(len, log.splitlines())) < _LONGEST_LINE, "the log has a very long line"
        )
    report.expect_nothing_lost()
    return report


def _refused(worker: Worker) -> int:
    return worker.log.read_text().count(_REFUSED)


def _wait_for_flow(site: Site) -> None:
    before = site.sink.count()
    wait_until(lambda: site.sink.count() > before, timeout=60)


def _genuine_ring(site: Site) -> dict[str, Any]:
    celery = site.app().extensions["celery"]
    celery.send_task("mailer.send_email", queue="elsewhere")
    with redis.Redis.from_url(site.redis.url) as client:
        ring: dict[str, Any] = json.loads(client.rpop("elsewhere"))
    ring["properties"]["delivery_info"]["routing_key"] = celery.conf.task_default_queue
    return ring


def _forgeries(ring: dict[str, Any], proof: Path, megabytes: int) -> Iterator[bytes | str]:
    huge = "x" * (megabytes << 20)

    def body(*said: Any) -> str:
        return base64.b64encode(json.dumps(said).encode()).decode()

    def changed(
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        forged = {**ring, **changes}
        forged["headers"] = {**ring["headers"], **(headers or {})}
        forged["properties"] = {**ring["properties"], **(properties or {})}
        return json.dumps(forged)

    nothing: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    call: dict[str, Any] = {
        "task": "mailer.purge",
        "args": [],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
    pickled = base64.b64encode(pickle.dumps(([_Bomb(proof)], {}, nothing))).decode()
    as_pickle: dict[str, Any] = {
        "content-type": "application/x-python-serialize",
        "content-encoding": "binary",
    }
    yield changed(body=pickled, **as_pickle)  # pickle
    yield changed(body=pickled)  # pickle declared as JSON
    yield changed({"task": "os.system"}, body=body(["touch", str(proof)], {}, nothing))
    yield changed({"task": huge})  # unknown task with a long name
    yield changed({"task": "\x1b]0;owned\x07"})  # a task with escapes in its name
    yield changed({"id": "\x1b[2J"})  # an id with escapes
    yield changed({"id": huge})  # a long id
    yield changed({"shadow": "\x1b[2J"})  # a name for the log, with escapes
    yield changed(body=body(["/etc/passwd"], {"x": 1}, nothing))  # wrong arguments
    yield changed(body=body([huge], {}, nothing))  # a huge argument
    yield changed(body=body([], {}, {**nothing, "callbacks": [call]}))  # callbacks
    yield changed({"timelimit": [0.001, None]})  # a time limit that kills
    yield changed({"eta": "2100-01-01T00:00:00+00:00"})  # due in many years
    yield changed(body=body(1))  # a body with too few elements
    yield changed(body="")  # no body
    yield changed({"compression": "application/x-gzip"})  # compressed
    yield json.dumps({**ring, "headers": None})  # no headers
    yield json.dumps({**ring, "headers": ["task", "mailer.send_email"]})  # headers that are a list
    yield json.dumps({**ring, "headers": {}})  # no task
    yield json.dumps({**ring, "properties": {}})  # no properties
    yield changed(properties={"delivery_tag": [1]})  # a tag that is a list
    yield changed(body="\x00")  # not base64
    yield "[]"  # a list
    yield "1"  # a number
    yield "null"  # null
    yield "{"  # not JSON
    yield b"\xff\xfe"  # not text
    yield "[" * 100_000  # nested too deep
    yield huge  # huge nonsense


SCENARIOS = [
    *named(
        "forged messages in Redis",
        **{pool: partial(forged, pool=pool) for pool in ("prefork", "threads")},
    )
]
