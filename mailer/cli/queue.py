"""`flask mail queue` and `due`: how much mail there is, and who delivers it."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import itemgetter

import click
from flask import current_app

from mailer.attendance import BEAT_SECONDS, SILENT_SECONDS, absence, silence
from mailer.cli.group import SHOWN, mail_group, operations, store
from mailer.cli.pauses import show_pauses
from mailer.cli.times import format_time
from mailer.message import Lane, Status
from mailer.message.text import printable
from mailer.settings import database
from mailer.store import Outlook
from mailer.store.workers import Worker
from mailer.wiring import state_of

#: The ages of due mail, by the number that the store has for each.
_AGES = ("not due yet", "less than an hour", "less than a day", "less than a week", "longer")


@mail_group.command()
def queue() -> None:
    """Count the deliveries in each state, lane by lane, and name the database."""
    show_pauses()
    _show_workers()
    counts = operations().counts()
    if not counts:
        click.echo("No mail yet.")
    for status, lane, count, oldest in counts:
        waits = (
            f"  the first due at {format_time(datetime.fromtimestamp(oldest, UTC))}"
            if status is Status.QUEUED and oldest
            else ""
        )
        click.echo(f"{lane.name.lower():10}{status:14}{count:>9}{waits}")
    url = state_of().settings.database_url
    click.echo(f"Mail is kept in {database.described(url, current_app.config, os.environ)}.")


@mail_group.command()
def due() -> None:
    """Show the mail that would go out, by lane, age and domain, and the first of it."""
    show_pauses()
    outlook = operations().outlook(most=SHOWN)
    click.echo("\n".join(_outlook(outlook)) if outlook.lanes else "Nothing would go out.")


def _show_workers() -> None:
    """Print the workers that are there, or a warning if mail waits and there is none."""
    mailer, now = state_of(), time.time()
    if mailer.settings.mail_suppress_send:
        return
    if present := store().present_workers(now, silent=SILENT_SECONDS):
        names = ", ".join(_described(worker, now) for worker in present[:SHOWN])
        more = ", …" if len(present) > SHOWN else ""
        seen = max(0.0, now - present[0].seen_at)
        click.echo(
            f"{len(present)} worker{'s' * (len(present) > 1)} seen, the last {seen:.0f} s ago:"
            f" {names}{more}"
        )
        if delivered := [
            (worker.delivered_at, worker) for worker in present if worker.delivered_at
        ]:
            at, by = max(delivered, key=itemgetter(0))
            click.echo(
                f"Last delivery at {format_time(datetime.fromtimestamp(at, UTC))} by"
                f" {printable(by.machine)} pid {by.pid}"
            )
    if absent := absence(store(), now):
        click.echo(absent)
    elif (seen_at := store().worker_seen_at(now)) is not None and now - seen_at > SILENT_SECONDS:
        click.echo(f"{silence(seen_at, now).capitalize()}.")
    if objection := mailer.celery_check.objection():
        click.echo(objection)


def _described(worker: Worker, now: float) -> str:
    """Return the place of a worker, the lanes of a dedicated one, and a silence that is long."""
    silent = now - worker.seen_at
    late = f" (silent for {silent:.0f} s)" if silent > 2 * BEAT_SECONDS else ""
    is_dedicated = any(lane.name.lower() not in worker.lanes.split(",") for lane in Lane)
    lanes = f" ({printable(worker.lanes.replace(',', ', '))})" if is_dedicated else ""
    return f"{printable(worker.machine)} pid {worker.pid}{lanes}{late}"


def _outlook(outlook: Outlook) -> Iterator[str]:
    for lane, status, count, first, last in outlook.lanes:
        again = " (once more)" if status is Status.DOUBTFUL else ""
        yield (
            f"{lane.name.lower():10}{status:14}{count:>9}"
            f"  due from {format_time(first)} to {format_time(last)}{again}"
        )
    yield ""
    yield "Due for:"
    yield from (f"{_AGES[age]:24}{count:>9}" for age, count in outlook.ages)
    yield ""
    yield "Domains with the most:"
    yield from (f"{domain:24}{count:>9}" for domain, count in outlook.domains)
    yield ""
    yield "The first:"
    for mail_id, recipient, lane, due_at, subject in outlook.first:
        due = f"{lane.name.lower()}  {format_time(due_at)}"
        yield f"{mail_id}  {due}  {recipient}  {printable(subject)}"
