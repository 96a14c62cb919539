"""Mails a second: all queued first, then timed as they arrive, from the first to the last."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.contenders import Contender, Round
from bench.figures import Figure, Section, at_least, at_most, ratio
from bench.plan import Plan
from bench.rounds import Rounds, alternate

OURS, OURS_ON_POSTGRES, CELERY = "ours-sqlite", "ours-postgres", "celery-flask-mail"

#: Bounds on the speed of Mailer on SQLite, as a multiple of theirs.
_BOUNDS = {
    CELERY: at_least(15, aim=25, of_ratio=True),
    "post-office": at_least(6, aim=12, of_ratio=True),
    "postfix": at_least(6, aim=12, of_ratio=True),
    "smtp-source": at_least(None, aim=0.3, of_ratio=True),
}
_POSTGRES_BOUND = at_least(10, aim=18, of_ratio=True)
_MEMORY_BOUND = at_most(150, aim=90)
_FEWEST = 20

Done = Mapping[str, Rounds[Round]]


def measure(plan: Plan) -> Iterator[Section]:
    contenders = {contender.key: contender for contender in plan.contenders}
    done = alternate(
        "delivery", {key: _round(one, plan.mails) for key, one in contenders.items()}, plan.repeats
    )
    yield _delivered(contenders, done)
    yield _handed_over(contenders, done)
    yield _memory(contenders, done)


def _round(contender: Contender, mails: int) -> Callable[[Path], Round]:
    return lambda folder: contender.deliver(folder, max(_FEWEST, int(mails * contender.share)))


# --- delivered ----------------------------------------------------------------------------------


def _delivered(contenders: Mapping[str, Contender], done: Done) -> Section:
    ours = _speed(done, OURS)
    figures = [
        Figure(
            key=f"delivered.{key}",
            title=contender.title,
            value=_speed(done, key),
            unit="mails/s",
            ratio=ratio(ours, _speed(done, key)) if key != OURS else None,
            bound=_BOUNDS.get(key),
            why_none=done[key].why_none,
            samples=done[key].samples(_mails_per_second),
        )
        for key, contender in contenders.items()
    ]
    return Section(
        "Delivered", "ratio: Mailer on SQLite / this line", [*figures, *_postgres_to_celery(done)]
    )


def _postgres_to_celery(done: Done) -> Iterator[Figure]:
    if OURS_ON_POSTGRES in done and CELERY in done:
        yield Figure(
            key="delivered.postgres-to-celery",
            title="Mailer on PostgreSQL / Celery + Flask-Mail",
            value=None,
            unit="",
            ratio=ratio(_speed(done, OURS_ON_POSTGRES), _speed(done, CELERY)),
            bound=_POSTGRES_BOUND,
        )


def _speed(done: Done, key: str) -> float | None:
    return done[key].median(_mails_per_second) if key in done else None


def _mails_per_second(one: Round) -> float:
    return one.flow.per_second


# --- handed over, and memory --------------------------------------------------------------------


def _handed_over(contenders: Mapping[str, Contender], done: Done) -> Section:
    def per_second(one: Round) -> float | None:
        return one.calls.per_second if one.calls else None

    figures = [
        Figure(
            key=f"handed-over.{key}",
            title=contender.title,
            value=value,
            unit="mails/s",
            samples=done[key].samples(per_second),
        )
        for key, contender in contenders.items()
        if (value := done[key].median(per_second))
    ]
    return Section("Handed over", "by one process that only queues", figures)


def _memory(contenders: Mapping[str, Contender], done: Done) -> Section:
    def workers(one: Round) -> float | None:
        return one.memory.largest_process / 1e6 if one.memory else None

    def redis_a_mail(one: Round) -> float | None:
        return one.redis_bytes / one.mails / 1e3 if one.redis_bytes else None

    figures = []
    for key, contender in contenders.items():
        if value := done[key].median(workers):
            bound = _MEMORY_BOUND if key in (OURS, OURS_ON_POSTGRES) else None
            title = f"{contender.title}: process"
            figures.append(
                Figure(key=f"memory.{key}", title=title, value=value, unit="MB", bound=bound)
            )
        if value := done[key].median(redis_a_mail):
            title = f"{contender.title}: Redis, per mail"
            figures.append(Figure(key=f"redis.{key}", title=title, value=value, unit="KB"))
    return Section(
        "Memory during delivery", "peak of the largest process; Redis per queued mail", figures
    )
