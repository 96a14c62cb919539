"""Recipients a second of one personalised mailing, from the call to the last arrival."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.contenders import Once, Place, Queue, producing, python, run_once
from bench.contenders.celery_flask_mail import CeleryFlaskMail
from bench.contenders.ours import Ours, program
from bench.contenders.post_office import PostOfficeTuned
from bench.figures import Figure, Section, ratio
from bench.plan import Plan
from bench.program import Program
from bench.rounds import Rounds, alternate
from bench.sink import Flow, Sink, running_sink

#: All have the same number of mails, also the slow ones.
_SHARE = 0.1
_OURS = "ours-sqlite"
_CELERY = "bench.programs.celery_bulk"

Way = tuple[str, Callable[[Path, int], Flow]]


def measure(plan: Plan) -> Iterator[Section]:
    mails = int(plan.mails * _SHARE)
    ways = dict(_ways(plan))
    rounds = {key: _round(send, mails) for key, (_title, send) in ways.items()}
    done = alternate("recipients", rounds, plan.repeats)
    ours = done[_OURS].median(_speed) if _OURS in done else None
    yield Section(
        "A mailing, from the call to the last arrival",
        f"{mails:,} personalised mails; ratio: send_bulk() on SQLite / this line",
        [_figure(key, ways[key][0], rounds, ours) for key, rounds in done.items()],
    )


def _figure(key: str, title: str, rounds: Rounds[Flow], ours: float | None) -> Figure:
    value = rounds.median(_speed)
    return Figure(
        key=f"recipients.{key}",
        title=title,
        value=value,
        unit="mails/s",
        ratio=ratio(ours, value) if key != _OURS else None,
        why_none=rounds.why_none,
        samples=rounds.samples(_speed),
    )


def _speed(flow: Flow) -> float:
    return flow.per_second


def _round(send: Callable[[Path, int], Flow], mails: int) -> Callable[[Path], Flow]:
    return lambda folder: send(folder, mails)


# --- the ways to send it ------------------------------------------------------------------------


def _ways(plan: Plan) -> Iterator[tuple[str, Way]]:
    for one in plan.contenders:
        if isinstance(one, Ours):
            title = f"send_bulk(): {one.title}"
            yield one.key, (title, _with_running_worker(one, program("send_bulk")))
        elif isinstance(one, CeleryFlaskMail):
            for method, title in _CELERY_METHODS.items():
                celery = CeleryMailing()
                yield (
                    f"celery.{method}",
                    (title, _with_running_worker(celery, python(_CELERY, method))),
                )
        elif isinstance(one, PostOfficeTuned):
            yield one.key, (f"send_many(): {one.title}", _post_office(one))


_CELERY_METHODS = {
    "delay": "Celery + Flask-Mail: a task per recipient",
    "group": "Celery + Flask-Mail: a group",
    "chunks": "Celery + Flask-Mail: chunks of 100",
    "connection": "Celery + Flask-Mail: 100 per task and connection",
}


class CeleryMailing(CeleryFlaskMail):
    """Celery whose tasks render the mail of a recipient."""

    program = _CELERY


def _with_running_worker(queue: Queue, command: Sequence[str]) -> Callable[[Path, int], Flow]:
    def send(folder: Path, mails: int) -> Flow:
        queue.require()
        with (
            running_sink(folder) as sink,
            queue.services(folder, sink) as place,
            Program(queue.worker(), folder / "worker.log", env=place.env) as worker,
        ):
            run_once(command, place, 1)  # wait for the start of the worker
            sink.wait_for(1, check=worker.check)
            return _from_call_to_arrival(command, place, worker, mails)

    return send


def _from_call_to_arrival(
    command: Sequence[str], place: Place, worker: Program, mails: int
) -> Flow:
    with producing(command, place, mails) as (producer, result):

        def check() -> None:
            producer.check()
            worker.check()

        place.sink.wait_for(1 + mails, check=check)
        arrived = time.perf_counter()
        return Flow(mails, arrived - Once(**result()).began)


def _post_office(one: PostOfficeTuned) -> Callable[[Path, int], Flow]:
    """Its worker is a command that ends with the queue, so its start does not count."""

    def send(folder: Path, mails: int) -> Flow:
        one.require()
        with running_sink(folder) as sink, one.services(folder, sink) as place:
            called = run_once(one.mailing(), place, mails)
            with Program(one.worker(), folder / "worker.log", env=place.env) as worker:
                return Flow(mails, called.seconds + _delivered(sink, worker, mails).seconds)

    return send


def _delivered(sink: Sink, worker: Program, mails: int) -> Flow:
    return sink.wait_for(mails, check=worker.check)
