"""`flask mail …`: the operator's command."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from mailer.attendance import SILENT_SECONDS, absence, silence
from mailer.errors import MailerError
from mailer.message import DeliveryStatus, Lane, MailStatus, Pause, Status
from mailer.message.text import printable
from mailer.operations import Operations
from mailer.settings import INBOX_PORT, RelaySettings
from mailer.store import Outlook, Store

_LANES = [lane.name.lower() for lane in Lane]
#: The ages of due mail, by the number that the store has for each.
_AGES = ("not due yet", "less than an hour", "less than a day", "less than a week", "longer")
_SHOWN = 10


def _moment(given: str) -> datetime:
    """Read a time as these commands print it, in UTC unless it has an offset."""
    try:
        moment = datetime.fromisoformat(given.removesuffix(" UTC"))
    except ValueError:
        raise click.BadParameter(
            f"{given!r} is no time: give one such as '2026-11-25 10:00' (UTC)."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class _MailGroup(AppGroup):
    """A group whose commands print the text of an error of Mailer, and no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MailerError as error:
            raise click.ClickException(str(error)) from error


mail_group = _MailGroup("mail", help="The email queue.")


def _store() -> Store:
    store: Store = current_app.extensions["mailer"].store
    return store


def _operations() -> Operations:
    operations: Operations = current_app.extensions["mailer"].operations
    return operations


@mail_group.command()
@click.option("--to", default="head", show_default=True, help="The revision to go to.")
@click.option("--new-tables", is_flag=True, help="Create tables that were dropped, empty.")
def migrate(to: str, *, new_tables: bool) -> None:
    """Create or upgrade the tables."""
    _store().migrate(to, new_tables=new_tables)
    click.echo(
        "The tables of Mailer are up to date."
        if to == "head"
        else f"The tables of Mailer are at {to}."
    )


@mail_group.command()
def queue() -> None:
    """Count the deliveries in each state, lane by lane."""
    _show_stops()
    _show_workers()
    counts = _operations().counts()
    if not counts:
        click.echo("No mail yet.")
    for status, lane, count, oldest in counts:
        waits = (
            f"  the first due at {_clock(datetime.fromtimestamp(oldest, UTC))}"
            if status is Status.QUEUED and oldest
            else ""
        )
        click.echo(f"{lane.name.lower():10}{status:14}{count:>9}{waits}")


@mail_group.command()
@click.argument("mail_id")
def status(mail_id: str) -> None:
    """Show the status of a mail, recipient by recipient.

    MAIL_ID is the id of a mail, eight or more characters of its beginning, or the number of one of
    its deliveries.
    """
    mail = _operations().status(_find(mail_id))
    gone = f"  what it said was erased at {_clock(mail.erased_at)}" if mail.erased_at else ""
    click.echo(f"{mail.id}  {_clock(mail.created_at)}  {_subject(mail)}{gone}")
    for delivery in mail.deliveries:
        click.echo(_line(delivery))
        for attempt in delivery.history:
            what = (
                f"{attempt.verdict} at {attempt.phase}, {attempt.relay}: {printable(attempt.reply)}"
            )
            click.echo(f"    {_clock(attempt.at)}  {what}")


@mail_group.command("list")
@click.option(
    "--state",
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    help="Only mail with a delivery in this state.",
)
@click.option(
    "--to", metavar="ADDRESS", help="Only mail to an address, or to a domain such as @example.com."
)
@click.option("--tag", help="Only mail with this tag.")
@click.option("--subject", metavar="PART", help="Only mail with this in its subject.")
@click.option("--relay", metavar="NAME", help="Only mail that this relay took or refused.")
@click.option(
    "--since",
    type=_moment,
    metavar="TIME",
    help="Only mail that was queued since '2026-11-25 10:00' (UTC).",
)
@click.option(
    "--until", type=_moment, metavar="TIME", help="Only mail that was queued before a time."
)
@click.option(
    "--before", metavar="MAIL_ID", help="The next page: mail that was queued before this one."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_mails(**conditions: Any) -> None:
    """List mail, the newest first."""
    if conditions["before"]:
        conditions["before"] = _find(conditions["before"])
    mails = _operations().mails(**conditions)
    for mail in mails:
        states = ", ".join(sorted({delivery.status for delivery in mail}))
        recipients = ", ".join(delivery.recipient for delivery in mail.deliveries[:_SHOWN])
        more = ", …" if len(mail.deliveries) > _SHOWN else ""
        click.echo(
            f"{mail.id}  {_clock(mail.created_at)}  {states}  {recipients}{more}  {_subject(mail)}"
        )
    if not mails:
        click.echo("No such mail.")
    elif len(mails) == conditions["limit"]:
        last = mails[-1].id
        if _operations().mails(**{**conditions, "before": last, "limit": 1}):
            click.echo(f"More: --before {last}")


@mail_group.command()
def due() -> None:
    """Show the mail that would go out, by lane, age and domain, and the first of it."""
    _show_stops()
    outlook = _operations().outlook(most=_SHOWN)
    click.echo("\n".join(_outlook(outlook)) if outlook.lanes else "Nothing would go out.")


@mail_group.command()
@click.option("--lane", type=click.Choice(_LANES), help="Only this lane; the others go on.")
@click.option("--reason", default="by hand", show_default=True, help="Shown by `flask mail queue`.")
def pause(lane: str | None, reason: str) -> None:
    """Send nothing any more, until `flask mail resume`. Mail is queued as ever."""
    held = _operations().pause(lane, reason=reason)
    ends = f" {held} are in the hands of workers, and may still go out." if held else ""
    click.echo(f"{_what(_lane(lane))} is paused.{ends}")


@mail_group.command()
@click.argument("mail_id", required=False)
@click.option(
    "--due-before",
    type=_moment,
    metavar="TIME",
    help="All that was due before, such as '2026-11-25 10:00' (UTC).",
)
@click.option("--lane", type=click.Choice(_LANES), help="With --due-before: only of this lane.")
def cancel(mail_id: str | None, due_before: datetime | None, lane: str | None) -> None:
    """Cancel the queued deliveries of a mail, or all that were due before a time."""
    if (mail_id is None) == (due_before is None):
        raise click.UsageError("Give the id of a mail, or --due-before.")
    if mail_id is not None:
        _settle(mail_id, Status.CANCELLED)
    elif due_before is not None:
        _cancel_all(due_before, [Lane[lane.upper()]] if lane else [*Lane])


@mail_group.command()
@click.argument("mail_id")
def retry(mail_id: str) -> None:
    """Queue the failed and doubtful deliveries of a mail again."""
    _settle(mail_id, Status.QUEUED)


@mail_group.command()
@click.argument("mail_id")
@click.argument("verdict", type=click.Choice([Status.SENT.value, Status.FAILED.value]))
def resolve(mail_id: str, verdict: str) -> None:
    """Decide about the doubtful deliveries of a mail: they were sent, or they have failed."""
    _settle(mail_id, Status(verdict))


@mail_group.command()
def relays() -> None:
    """List the relays, the mail that each is for, and the pauses with their reasons."""
    pauses = _operations().relay_pauses()
    for name, relay in _operations().relays().items():
        pause = pauses.get(name)
        click.echo(f"{name}  {_place(relay)}  {_rules(relay)}")
        click.echo(f"  {_pause(pause)}" if pause else "  open")


@mail_group.command()
@click.argument("relay", required=False)
@click.option("--lane", type=click.Choice(_LANES), help="End the pause of this lane.")
def resume(relay: str | None, lane: str | None) -> None:
    """End a pause: that of a relay, of a lane, or, with neither, that of everything."""
    if relay is None:
        is_over = _operations().resume(lane)
        what = _what(_lane(lane))
        none = "Nothing is paused as a whole." if lane is None else f"{what} is not paused."
        click.echo(f"The pause of {what.lower()} is over." if is_over else none)
        return
    is_over = _operations().resume(relay=relay)
    click.echo(f"The pause of {relay} is over." if is_over else f"{relay} is not paused.")


@mail_group.command()
@click.option(
    "--smtp-port", default=INBOX_PORT, show_default=True, help="The port that receives mail."
)
@click.option(
    "--web-port", default=8025, show_default=True, help="The port of the page that shows the mail."
)
def inbox(smtp_port: int, web_port: int) -> None:
    """Receive mail on this machine and show it on a page, until Ctrl-C.

    In debug mode an app sends its mail there, unless MAIL_SERVER or MAIL_PORT say otherwise.
    Nothing is passed on.
    """
    from mailer.web.serving import serve_inbox  # noqa: PLC0415 -- of all commands, only this one is a server

    relays = _operations().relays().values()
    if not any(relay.is_local and relay.mail_port == smtp_port for relay in relays):
        places = ", ".join(map(_place, relays))
        click.echo(
            f"This app sends its mail to {places}, not here. Start it in debug mode (`flask run"
            f" --debug`, FLASK_DEBUG=1), or set MAIL_SERVER=127.0.0.1 and MAIL_PORT={smtp_port}."
        )
    serve_inbox(Path(current_app.instance_path, "inbox"), smtp_port, web_port, click.echo)


def _lane(name: str | None) -> Lane | None:
    return None if name is None else Lane[name.upper()]


def _what(lane: Lane | None) -> str:
    return "Everything" if lane is None else f"The lane {lane.name.lower()}"


def _show_stops() -> None:
    for lane, one in _operations().pauses().items():
        click.echo(f"{_what(lane)} is paused since {_clock(one.since)}: {printable(one.reason)}")


def _show_workers() -> None:
    """Print the workers that are there, or a warning if mail waits and there is none."""
    state, now = current_app.extensions["mailer"], time.time()
    if state.settings.mail_suppress_send:
        return
    if present := _store().present_workers(now, silent=SILENT_SECONDS):
        names = ", ".join(
            f"{printable(worker.machine)} pid {worker.pid}" for worker in present[:_SHOWN]
        )
        more = ", …" if len(present) > _SHOWN else ""
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
                f"Last delivery at {_clock(datetime.fromtimestamp(at, UTC))} by"
                f" {printable(by.machine)} pid {by.pid}"
            )
    elif said := absence(_store(), now):
        click.echo(said)
    elif (seen_at := _store().worker_seen_at(now)) is not None and now - seen_at > SILENT_SECONDS:
        click.echo(f"{silence(seen_at, now).capitalize()}.")
    if objection := state.celery_check.objection():
        click.echo(objection)


def _cancel_all(before: datetime, lanes: list[Lane]) -> None:
    """Cancel queued deliveries. Doubtful ones may have been sent, so they wait for a person."""
    cancelled, held = _operations().cancel_due_before(before, lanes)
    doubts = f" {held} are in doubt, and are not sent again by themselves." if held else ""
    click.echo(f"{cancelled} cancelled.{doubts}")


def _outlook(outlook: Outlook) -> Iterator[str]:
    for lane, status, count, first, last in outlook.lanes:
        again = " (once more)" if status is Status.DOUBTFUL else ""
        yield (
            f"{lane.name.lower():10}{status:14}{count:>9}"
            f"  due from {_clock(first)} to {_clock(last)}{again}"
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
        yield f"{mail_id}  {lane.name.lower()}  {_clock(due_at)}  {recipient}  {printable(subject)}"


def _place(relay: RelaySettings) -> str:
    return relay.mail_server if relay.is_unix else f"{relay.mail_server}:{relay.mail_port}"


def _rules(relay: RelaySettings) -> str:
    """Return the rules of a relay, in the words of MAILER_RELAYS."""
    rules = {
        "senders": relay.senders,
        "domains": relay.domains,
        "lanes": [lane.name.lower() for lane in relay.lanes],
    }
    said = [f"{kind} {', '.join(values)}" for kind, values in rules.items() if values]
    return "; ".join(
        [*(said or ["all mail"]), f"preference {relay.preference}", f"weight {relay.weight:g}"]
    )


def _pause(pause: Pause) -> str:
    if pause.until is None:
        until = "until it is resumed"
    elif pause.until > time.time():
        until = f"until {_clock(datetime.fromtimestamp(pause.until, UTC))}"
    else:
        until = "to be tried with the next mail"
    times = "once" if pause.failures == 1 else f"{pause.failures} times"
    return f"paused since {_clock(pause.since)}, {until}, failed {times}: {printable(pause.reason)}"


def _find(given: str) -> str:
    """Return the id of the mail that an operator means."""
    return _operations().find(given)


def _settle(mail_id: str, to: Status) -> None:
    mail_id = _find(mail_id)  # an unknown one is an error, not "0 moved"
    before, operations = _operations().status(mail_id), _operations()
    match to:
        case Status.CANCELLED:
            moved = operations.cancel(mail_id)
        case Status.QUEUED:
            moved = operations.retry(mail_id)
        case _:
            moved = operations.resolve(mail_id, to)
    if not moved and to is Status.QUEUED and before.erased_at:
        raise click.ClickException(
            "This mail can't be sent again: what it said was erased at"
            f" {_clock(before.erased_at)}. Queue it anew."
        )
    if not moved:
        states = ", ".join(sorted({delivery.status for delivery in before.deliveries}))
        raise click.ClickException(
            f"Nothing was moved to {to}: the deliveries of this mail are {states}."
        )
    click.echo(f"{moved} moved to {to}.")


def _subject(mail: MailStatus) -> str:
    return "(sensitive)" if mail.sensitive else printable(mail.subject)


def _line(delivery: DeliveryStatus) -> str:
    said = f"  {delivery.relay}: {printable(delivery.reply)}" if delivery.reply else ""
    return (
        f"  {delivery.recipient}  {delivery.status}  {_when(delivery)}"
        f"  attempts {delivery.attempts}{said}"
    )


def _when(delivery: DeliveryStatus) -> str:
    """Return the time of a delivery's end, or else that of its next try, in words."""
    if delivery.is_being_tried:
        return "being tried now"
    if (
        delivery.finished_at is None
        and delivery.due_at
        and delivery.due_at.timestamp() <= time.time()
    ):
        return "due now"
    return _clock(delivery.finished_at or delivery.due_at)


def _clock(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S UTC") if when else "-"
