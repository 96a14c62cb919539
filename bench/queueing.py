"""Time of a call that hands over a mail, call by call."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.contenders import Calls, Contender
from bench.contenders.ours import Ours
from bench.figures import Bound, Figure, Section, at_most, ratio
from bench.plan import Plan
from bench.rounds import Rounds, alternate

_ENQUEUE, _DELAY = "enqueue.ours-sqlite", "enqueue.celery-flask-mail"
_TITLES = {
    _ENQUEUE: "enqueue() of a ready message, SQLite",
    "enqueue.ours-postgres": "enqueue() of a ready message, PostgreSQL",
    "render.ours-sqlite": "send_email(): 2 templates, CSS inlined, SQLite",
    "render.ours-postgres": "send_email(): the same, PostgreSQL",
    "raw.ours-sqlite": "raw INSERT of the two rows of enqueue(), SQLite",
    "raw.ours-postgres": "raw INSERT of the two rows of enqueue(), PostgreSQL",
    _DELAY: "Celery + Flask-Mail: task.delay(), not on disk",
    "enqueue.flask-mail": "Flask-Mail: mail.send(), the whole delivery",
    "enqueue.flask-mail-threads": "Flask-Mail: start of a thread, not on disk",
    "enqueue.post-office": "django-post_office: mail.send()",
    "enqueue.postfix-delivery": "Postfix: sendmail() over an open connection",
}
_BOUNDS = {"render.ours-sqlite": at_most(3, aim=1), "render.ours-postgres": at_most(3, aim=1)}
_ENQUEUE_TO_DELAY = at_most(1, aim=0.5, of_ratio=True)
_ENQUEUE_TO_RAW = at_most(2, aim=1.5, of_ratio=True)


def measure(plan: Plan) -> Iterator[Section]:
    calls = {f"enqueue.{one.key}": _enqueue(one, plan.calls) for one in plan.contenders}
    calls |= {f"render.{one.key}": _render(one, plan.calls) for one in plan.ours}
    calls |= {f"raw.{one.key}": _insert(one, plan.calls) for one in plan.ours}
    done = alternate("queueing", {key: calls[key] for key in _TITLES if key in calls}, plan.repeats)
    ours, delay = _p50(done.get(_ENQUEUE)), _p50(done.get(_DELAY))
    figures = [_figure(key, rounds, ours) for key, rounds in done.items()]
    figures.append(
        _ratio(
            "enqueue-to-delay",
            "enqueue() on SQLite / task.delay()",
            ratio(ours, delay),
            _ENQUEUE_TO_DELAY,
        )
    )
    figures += [_to_raw(one, done) for one in plan.ours]
    yield Section(
        "Time of a call in a request", "median; ratio: this line / enqueue() on SQLite", figures
    )


def _enqueue(contender: Contender, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: contender.queue(folder, mails)


def _render(ours: Ours, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: ours.call("send_email", folder, mails)


def _insert(ours: Ours, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: ours.insert(folder, mails)


def _to_raw(ours: Ours, done: Mapping[str, Rounds[Calls]]) -> Figure:
    database = ours.key.removeprefix("ours-")
    enqueue, raw = _p50(done[f"enqueue.{ours.key}"]), _p50(done[f"raw.{ours.key}"])
    return _ratio(
        f"enqueue-to-raw.{database}",
        f"enqueue() / raw INSERT of the same two rows, {ours.database}",
        ratio(enqueue, raw),
        _ENQUEUE_TO_RAW,
    )


def _p50(rounds: Rounds[Calls] | None) -> float | None:
    return rounds.median(lambda calls: 1000 * calls.p50) if rounds else None


def _figure(key: str, rounds: Rounds[Calls], ours: float | None) -> Figure:
    p50 = _p50(rounds)
    return Figure(
        key=f"queueing.{key}",
        title=_TITLES[key],
        value=p50,
        p99=rounds.median(lambda calls: 1000 * calls.p99),
        unit="ms",
        ratio=ratio(p50, ours) if key != _ENQUEUE else None,
        bound=_BOUNDS.get(key),
        why_none=rounds.why_none,
        samples=rounds.samples(lambda calls: 1000 * calls.p50),
    )


def _ratio(key: str, title: str, value: float | None, bound: Bound) -> Figure:
    return Figure(key=f"queueing.{key}", title=title, value=None, unit="", ratio=value, bound=bound)
