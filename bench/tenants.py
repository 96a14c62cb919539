"""Tenants beside each other, and claims while something holds them up.

The relay of `bench.critical` writes when the mail of the small tenant arrives.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median

from flask import Flask
from sqlalchemy import Engine, text

from bench import mail
from bench.contenders import Calls
from bench.contenders.ours import Ours, OursOnPostgres, WorkerOptions
from bench.critical import RECIPIENT, arrivals, running_relay
from bench.figures import Figure, Section, at_least, at_most
from bench.growth import fill
from bench.plan import Plan
from bench.program import Program
from bench.programs.ours import create_app
from bench.rounds import Rounds, alternate
from mailer import Mailer
from mailer.message import Outcome, Status, Verdict
from mailer.policy import Move
from mailer.store import Result, Store

_TENANTS, _OF_EACH, _FEW = 1000, 10, 1000
_CLAIMED, _CLAIMS = 100, 10
_SMALL, _SLOTS, _PAUSE = 10, 4, 1.0
_ROUND_TRIP = 0.05
_BATCH, _BATCHES = 500, 10
_NAMED = {"tenant": "large"}


def measure(plan: Plan) -> Iterator[Section]:
    depth = max(plan.depths)
    yield _claims(plan, depth)
    yield _arrivals(plan, depth)
    yield _held_up(plan, depth)


# --- claims --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claims:
    """The seconds of a claim, with few mails and with many."""

    few: float
    many: float


def _claims(plan: Plan, depth: int) -> Section:
    measured: dict[str, Callable[[Path], Claims]] = {
        ours.key: partial(_measure_claims, ours, depth) for ours in plan.ours
    }
    done = alternate("tenants, claims", measured, repeats=1)
    return Section(
        "Claims beside scheduled mail and tenants",
        f"claim of {_CLAIMED} with {depth:,} scheduled, and {_OF_EACH} mails of each of {_TENANTS}"
        f" tenants; ratio: to that with {_FEW:,} queued",
        [_claim_figure(ours, done[ours.key]) for ours in plan.ours],
    )


def _claim_figure(ours: Ours, rounds: Rounds[Claims]) -> Figure:
    return Figure(
        key=f"tenants.claim.{ours.key.removeprefix('ours-')}",
        title=ours.title,
        value=rounds.median(lambda claims: 1000 * claims.many),
        unit="ms",
        ratio=rounds.median(lambda claims: claims.many / claims.few),
        bound=at_most(2, aim=1.1, of_ratio=True),
        why_none=rounds.why_none,
    )


def _measure_claims(ours: Ours, depth: int, folder: Path) -> Claims:
    ours.require()
    with _app(ours, folder / "few") as app:
        fill(_FEW)
        few = _claim_seconds(app)
    with _app(ours, folder / "many") as app:
        fill(depth, send_at=timedelta(days=1), tenant="later")
        for number in range(_TENANTS):
            fill(_OF_EACH, tenant=f"tenant{number}")
        many = _claim_seconds(app)
    return Claims(few, many)


def _claim_seconds(app: Flask) -> float:
    """Return the median time of a claim. The claims are given back."""
    store, times = _store(app), []
    for _ in range(_CLAIMS):
        now, began = time.time(), time.perf_counter()
        claimed = store.claim_due(_CLAIMED, token=secrets.token_hex(8), now=now, lease_until=now)
        times.append(time.perf_counter() - began)
        token = claimed[0].token
        store.release_if_in_hand(dict.fromkeys((one.id for one in claimed), None), token=token)
    return median(times)


# --- a small tenant behind a large one -----------------------------------------------------------


def _arrivals(plan: Plan, depth: int) -> Section:
    worker = WorkerOptions(plan.worker.pool, _SLOTS)
    measured: dict[str, Callable[[Path], Calls]] = {
        ours.key: partial(_measure_arrivals, type(ours)(worker), depth, plan.calls // 100)
        for ours in plan.ours
    }
    done = alternate("tenants, arrivals", measured, repeats=1)
    return Section(
        "A small tenant behind a large one",
        f"from the first call to the arrival of each of {_SMALL} mails, over a relay"
        f" {1000 * _ROUND_TRIP:.0f} ms away, one worker with {_SLOTS} slots, {depth:,} mails of"
        " another tenant wait",
        [figure for ours in plan.ours for figure in _arrival_figures(ours, done[ours.key])],
    )


def _arrival_figures(ours: Ours, rounds: Rounds[Calls]) -> Iterator[Figure]:
    for name, title, value in (
        ("p50", "median", rounds.median(lambda calls: calls.p50)),
        ("p99", "99 of 100", rounds.median(lambda calls: calls.p99)),
    ):
        yield Figure(
            key=f"tenants.small.{ours.key.removeprefix('ours-')}.{name}",
            title=f"{ours.title}: {title}",
            value=value,
            unit="s",
            bound=at_most(3, aim=1) if name == "p99" else None,
            why_none=rounds.why_none,
        )


def _measure_arrivals(ours: Ours, depth: int, times: int, folder: Path) -> Calls:
    ours.require()
    seconds: list[float] = []
    with running_relay(folder, _ROUND_TRIP) as relay, ours.services(folder, relay) as place:
        app = create_app(place.env)
        with app.app_context():
            fill(depth, **_NAMED)
            with Program(ours.worker(), folder / "worker.log", env=place.env) as worker:
                relay.wait_for(_SLOTS, check=worker.check, then_more=True)
                for _ in range(max(2, times)):
                    began = time.monotonic()
                    for _ in range(_SMALL):
                        _queue_small()
                    arrived = arrivals(place, worker, len(seconds) + _SMALL)
                    seconds += [moment - began for moment in arrived[-_SMALL:]]
                    time.sleep(_PAUSE)
    return Calls(seconds)


def _queue_small() -> None:
    Mailer().send_email(RECIPIENT, mail.SUBJECT, text=mail.TEXT, sender=mail.SENDER, tenant="small")


# --- a transaction that stays open ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rates:
    """Mails a second at the beginning, and at the end."""

    first: float
    last: float


def _held_up(plan: Plan, depth: int) -> Section:
    measured: dict[str, Callable[[Path], Rates]] = {
        ours.key: partial(_measure_held_up, ours, depth)
        for ours in plan.ours
        if isinstance(ours, OursOnPostgres)
    }
    done = alternate("tenants, a transaction that stays open", measured, repeats=1)
    return Section(
        "While a transaction stays open",
        f"claimed, marked and recorded mails a second after {depth:,}; ratio: to the first",
        [
            Figure(
                key="tenants.held-up.postgres",
                title="PostgreSQL",
                value=rounds.median(lambda rates: rates.last),
                unit="mails/s",
                ratio=rounds.median(lambda rates: rates.last / rates.first),
                bound=at_least(0.8, aim=0.95, of_ratio=True),
                why_none=rounds.why_none,
            )
            for rounds in done.values()
        ],
    )


def _measure_held_up(ours: Ours, depth: int, folder: Path) -> Rates:
    ours.require()
    with _app(ours, folder / "held") as app:
        store = _store(app)
        fill(depth + 2 * _BATCH * _BATCHES)
        with _open_transaction(store.engine):
            first = _rate(store, _BATCHES)
            _rate(store, depth // _BATCH)
            last = _rate(store, _BATCHES)
    return Rates(first, last)


@contextmanager
def _open_transaction(engine: Engine) -> Iterator[None]:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as connection, connection.begin():
        connection.execute(text("SELECT count(*) FROM mailer_version"))
        yield


def _rate(store: Store, batches: int) -> float:
    """Return the mails a second that go through the statements of a worker."""
    began = time.monotonic()
    for _ in range(batches):
        now, token = time.time(), secrets.token_hex(8)
        claimed = store.claim_due(_BATCH, token=token, now=now, lease_until=now + 60)
        ids = [one.id for one in claimed]
        store.mark_if_claimed(ids, token=token, now=now, lease_until=now + 60)
        sent = Outcome(Verdict.SENT, "250 ok")
        results = [Result(one, sent, Move(to=Status.SENT)) for one in claimed]
        store.record_if_transmitting(results, now=now, relay="main")
    return batches * _BATCH / (time.monotonic() - began)


# --- an app --------------------------------------------------------------------------------------


@contextmanager
def _app(ours: Ours, folder: Path) -> Iterator[Flask]:
    """Yield an app without a worker, in its context."""
    folder.mkdir(mode=0o755)
    with ours.running_database(folder) as url:
        database = Store(url)
        database.migrate()
        database.engine.dispose()
        app = create_app({"MAILER_DATABASE_URL": url, "MAIL_DEFAULT_SENDER": mail.SENDER})
        with app.app_context():
            yield app
        _store(app).engine.dispose()


def _store(app: Flask) -> Store:
    store: Store = app.extensions["mailer"].store
    return store
