"""`flask mail bulk`: bulk sends, from a file of recipients to their end."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import click
from flask.cli import AppGroup

from mailer.bulk import Bulk
from mailer.cli.bulk_file import Recipients, open_recipients
from mailer.cli.group import LANE, SHOWN, find_mail, mail_group, operations, store
from mailer.cli.times import format_time, parse_time
from mailer.errors import BadRow, KeyReused
from mailer.intake import Options
from mailer.intake.bulk import BulkMail, BulkOptions
from mailer.message import Status
from mailer.message.bulk import BulkProgress, BulkSample, BulkState, Rehearsal
from mailer.message.calendar import Calendar
from mailer.message.text import printable, span
from mailer.wiring import state_of

_SEND = "send"


class _BulkGroup(AppGroup):
    """A group that takes a first word which is none of its commands for a file to send."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            self._check_file(ctx, args[0])
            args = [_SEND, *args]
        return super().parse_args(ctx, args)

    def _check_file(self, ctx: click.Context, word: str) -> None:
        """Refuse a misspelled command."""
        if word.startswith("-") or Path(word).exists():
            return
        near = get_close_matches(word, self.commands, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise click.UsageError(f"{word!r} is neither a file nor a command.{hint}", ctx)


@mail_group.group("bulk", cls=_BulkGroup, subcommand_metavar="FILE [OPTIONS] | COMMAND [ARGS]...")
def bulk_group() -> None:
    """Send a mail to each recipient in a file, and steer such bulk sends.

    `flask mail bulk FILE --template …` is short for `flask mail bulk send FILE --template …`. Write
    ./list for a file whose name is a command.
    """


# --- send -----------------------------------------------------------------------------------------


def _json_object(_ctx: click.Context, _param: click.Parameter, given: str | None) -> Any:
    if given is None:
        return None
    try:
        value = json.loads(given)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}.") from None
    if not isinstance(value, dict):
        raise click.BadParameter("""give a JSON object, such as '{"shop": "Ada & Co"}'.""")
    return value


def _headers(
    _ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    headers = {}
    for one in given:
        name, colon, value = one.partition(":")
        if not colon:
            raise click.BadParameter(f"{one!r}: write the name, a colon, and the value.")
        headers[name.strip()] = value.strip()
    return headers


@bulk_group.command(_SEND)
@click.argument("file", type=click.File("rb"))
@click.option("--template", required=True, help="The name of the templates, without .txt or .html.")
@click.option("--subject", required=True, help="The subject, which is a template, too.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "ndjson"]),
    help="The format of the file, if its name does not end with .csv, .ndjson or .jsonl.",
)
@click.option("--shared", callback=_json_object, metavar="JSON", help="Variables of all mails.")
@click.option("--locale", "locales", multiple=True, help="A locale that has templates of its own.")
@click.option("--sender", help="The address in From, instead of MAIL_DEFAULT_SENDER.")
@click.option("--reply-to", multiple=True, help="An address that replies go to.")
@click.option("--header", "headers", multiple=True, callback=_headers, metavar="'NAME: VALUE'")
@click.option("--tag", "tags", multiple=True, help="A word to find the send by.")
@click.option("--lane", type=LANE, default="bulk", show_default=True)
@click.option("--tenant", metavar="NAME", help="Whose mail it is, if you send for several.")
@click.option(
    "--send-at",
    type=parse_time,
    metavar="TIME",
    help="Deliver from '2026-11-25 10:00' (UTC) on.",
)
@click.option("--expires-at", type=parse_time, metavar="TIME", help="Send nothing after a time.")
@click.option(
    "--undo",
    type=float,
    metavar="SECONDS",
    help="Send nothing for so long once all recipients are stored.  [default: MAILER_UNDO_SECONDS]",
)
@click.option("--days", metavar="DAYS", help="Send on these days only, such as mon-fri.")
@click.option("--hours", metavar="HOURS", help="Send in these hours only, such as 09:00-18:00.")
@click.option(
    "--time-zone",
    metavar="ZONE",
    help="The zone of --days and --hours for recipients who have none in the column time_zone, such"
    " as Europe/Berlin.",
)
@click.option(
    "--idempotency-key",
    metavar="NAME",
    help="A name for this send: the same command goes on after an interruption.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "abort"]),
    default="skip",
    show_default=True,
    help="skip: leave rows out that can't be used. abort: send nothing if there is one.",
)
@click.option(
    "--confirm-above",
    type=click.IntRange(min=0),
    metavar="N",
    help="Wait for `flask mail bulk confirm` if there are more recipients.",
)
@click.option(
    "--max-failed-share",
    type=float,
    default=0.5,
    show_default=True,
    help="Pause if a larger share of the mail fails.",
)
@click.option("--dry-run", is_flag=True, help="Render each mail, and store and send nothing.")
def send(file: IO[bytes], kind: str | None, *, dry_run: bool, **given: Any) -> None:
    """Send a mail to each recipient in FILE: CSV with a header, or NDJSON; - is stdin.

    The column email, address or recipient has the address. The others are variables of the
    templates.
    """
    intake, key = state_of().intake, given["idempotency_key"]
    mail, options, bulk = _split(given)
    with open_recipients(file, kind, max_size=state_of().settings.max_size) as recipients:
        if dry_run:
            _show_rehearsal(intake.rehearse_bulk(mail, recipients, options, bulk))
            return
        try:
            bulk_id = intake.send_bulk(mail, recipients, options, bulk)
        except (BadRow, KeyReused):
            raise
        except BaseException:
            _say_how_to_go_on(recipients, key)
            raise
    _show_result(operations().bulk(bulk_id))


def _split(given: dict[str, Any]) -> tuple[BulkMail, Options, BulkOptions]:
    mail = ("subject", "template", "shared", "locales", "sender", "reply_to", "headers")
    options = ("lane", "tenant", "send_at", "undo", "expires_at", "tags", "idempotency_key")
    return (
        BulkMail(**{name: given[name] for name in mail}),
        Options(**{name: given[name] for name in options}),
        BulkOptions(
            on_error=given["on_error"],
            require_confirmation_above=given["confirm_above"],
            max_failed_share=given["max_failed_share"],
            calendar=_calendar(given["days"], given["hours"], given["time_zone"]),
        ),
    )


def _calendar(days: str | None, hours: str | None, time_zone: str | None) -> Calendar | None:
    limits = {name: text for name, text in (("days", days), ("hours", hours)) if text is not None}
    if bool(limits) != (time_zone is not None):
        raise click.UsageError(
            "--days and --hours go with --time-zone, such as --hours 09:00-18:00 --time-zone"
            " Europe/Berlin."
        )
    return None if time_zone is None else Calendar(time_zone=time_zone, **limits)


def _say_how_to_go_on(recipients: Recipients, key: str | None) -> None:
    if not recipients.rows_read:
        return
    hint = (
        "Call the same command again: it goes on after the rows that are stored."
        if key
        else "Nothing is sent. With --idempotency-key NAME, the same command goes on after an"
        " interruption."
    )
    click.echo(f"Interrupted after {recipients.rows_read:,} rows. {hint}", err=True)


def _show_result(bulk: Bulk) -> None:
    progress = bulk.progress()
    click.echo(
        f"Bulk send {bulk.id}: {progress.accepted:,} accepted, {progress.duplicates:,} duplicates,"
        f" {progress.refused:,} refused."
    )
    if progress.refused:
        for error, _number in zip(bulk.errors(), range(SHOWN), strict=False):
            click.echo(f"  row {error.row}  {error.address}  {error.reason}")
        click.echo(f"All of them: flask mail bulk errors {bulk.id}")
    if progress.state is BulkState.READY:
        click.echo(f"{printable(progress.reason or '')}: flask mail bulk confirm {bulk.id}")
    else:
        click.echo(f"Its progress: flask mail bulk status --watch {bulk.id}")


# --- a rehearsal ----------------------------------------------------------------------------------


def _show_rehearsal(rehearsal: Rehearsal) -> None:
    click.echo(
        f"Nothing is stored or sent. {rehearsal.accepted:,} recipients would be accepted,"
        f" {rehearsal.duplicates:,} rows are duplicates, {rehearsal.refused:,} refused, and"
        f" {rehearsal.failed:,} mails can't be rendered."
    )
    for error in rehearsal.errors:
        click.echo(f"  row {error.row}  {error.address}  {error.reason}")
    if (more := rehearsal.refused + rehearsal.failed - len(rehearsal.errors)) > 0:
        click.echo(f"  and {more:,} more")
    for sample in rehearsal.samples:
        _show_sample(sample)
    if rehearsal.samples:
        click.echo(
            f"\nA mail has {rehearsal.median_size:,} bytes (median), the largest"
            f" {rehearsal.largest_size:,}, all {rehearsal.total_size:,}."
        )
        click.echo(f"The delivery takes about {span(rehearsal.seconds)}: {rehearsal.limit}.")


def _show_sample(sample: BulkSample) -> None:
    click.echo(f"\n--- row {sample.row}, {sample.address}: {sample.size:,} bytes")
    click.echo(f"Subject: {printable(sample.subject)}")
    for name, body in (("text", sample.text), ("html", sample.html)):
        if body is not None:
            click.echo(f"--- {name}\n{_without_controls(body)}")


def _without_controls(body: str) -> str:
    return "".join(one if one.isprintable() or one in "\n\t" else " " for one in body).strip()


# --- progress -------------------------------------------------------------------------------------


@bulk_group.command("list")
@click.option("--before", metavar="ID", help="The next page: sends before this one.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_bulks(before: str | None, limit: int) -> None:
    """List bulk sends, the newest first."""
    bulks = operations().bulks(before=None if before is None else _find(before).id, limit=limit)
    subjects = store().load_subjects([bulk.id for bulk in bulks])
    for bulk in bulks:
        progress, subject = bulk.progress(), printable(subjects.get(bulk.id, ""))
        numbers = f"{progress.accepted:,} recipients, {progress.sent:,} sent"
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        click.echo(f"{bulk.id}  {progress.state}  {numbers}{failed}  {subject}")
    if not bulks:
        click.echo("No bulk send.")
    elif len(bulks) == limit and operations().bulks(before=bulks[-1].id, limit=1):
        click.echo(f"More: --before {bulks[-1].id}")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.option("--watch", is_flag=True, help="Show it each second, until the send is over.")
def status(bulk_id: str, *, watch: bool) -> None:
    """Show the progress of a bulk send."""
    bulk = _find(bulk_id)
    subject = printable(store().load_subjects([bulk.id]).get(bulk.id, ""))
    click.echo(f"{bulk.id}  {subject}")
    printed, progress = "", bulk.progress()
    while True:
        words = "\n".join(_in_words(progress))
        if printed and sys.stdout.isatty():
            click.echo(f"\x1b[{printed.count(chr(10)) + 1}A\x1b[J{words}")
        elif words != printed:
            click.echo(words)
        if not watch or progress.state.is_over:
            return
        printed = words
        time.sleep(1)
        progress = bulk.progress()


def _in_words(progress: BulkProgress) -> Iterator[str]:
    why = f": {printable(progress.reason)}" if progress.reason else ""
    until = f", until {format_time(progress.resumes_at)}" if progress.resumes_at else ""
    yield f"{progress.state}{why}{until}"
    counted = ("sent", "failed", "queued", "held", "doubtful", "expired", "cancelled", "suppressed")
    found = [f"{getattr(progress, name):,} {name}" for name in counted if getattr(progress, name)]
    share = progress.accepted and (progress.accepted - progress.unfinished) / progress.accepted
    done = f", {share:.0%} done" if progress.accepted else ""
    yield f"{progress.accepted:,} recipients{done}: {', '.join(found) or 'none'}"
    yield (
        f"{progress.imported:,} rows: {progress.duplicates:,} duplicates,"
        f" {progress.refused:,} refused"
    )
    if progress.rate is not None:
        ends = f", until about {format_time(progress.ends_at)}" if progress.ends_at else ""
        yield f"{progress.rate:,.1f} mails a second{ends}"


# --- decisions ------------------------------------------------------------------------------------


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.option("--reason", default="by hand", show_default=True, help="Shown by `status`.")
def pause(bulk_id: str, reason: str) -> None:
    """Stop the delivery of a bulk send, until `resume`."""
    _decide(bulk_id, lambda bulk: bulk.pause(reason), "paused")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
def resume(bulk_id: str) -> None:
    """Go on after a pause."""
    _decide(bulk_id, Bulk.resume, "resumed")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
def confirm(bulk_id: str) -> None:
    """Let a bulk send begin that waits to be confirmed."""
    _decide(bulk_id, Bulk.confirm, "confirmed")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.option("--reason", default="by hand", show_default=True, help="Shown by `status`.")
def cancel(bulk_id: str, reason: str) -> None:
    """Send nothing more. What workers are sending already still goes out."""
    _decide(bulk_id, lambda bulk: bulk.cancel(reason), "cancelled")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.argument("send_at", metavar="TIME", type=parse_time)
def reschedule(bulk_id: str, send_at: datetime) -> None:
    """Begin a send that has not begun at another time, such as '2026-11-25 10:00' (UTC)."""
    bulk = _find(bulk_id)
    if not bulk.reschedule(send_at):
        raise click.ClickException("It can't be rescheduled: it has begun, or it is over.")
    click.echo(f"Bulk send {bulk.id} is rescheduled to {format_time(send_at)}.")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.option("--to", metavar="ADDRESS", help="Only the mail to this recipient.")
def retry(bulk_id: str, to: str | None) -> None:
    """Queue the failed and doubtful mails again."""
    click.echo(f"{_find(bulk_id).retry(to=to):,} moved to queued.")


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.argument("verdict", type=click.Choice([Status.SENT.value, Status.FAILED.value]))
@click.option("--to", metavar="ADDRESS", help="Only the mail to this recipient.")
def resolve(bulk_id: str, verdict: str, to: str | None) -> None:
    """Decide about the doubtful mails: they were sent, or they have failed."""
    click.echo(f"{_find(bulk_id).resolve(verdict, to=to):,} moved to {verdict}.")


def _decide(given: str, decide: Callable[[Bulk], bool], done: str) -> None:
    bulk = _find(given)
    if not decide(bulk):
        state = bulk.progress().state
        raise click.ClickException(f"It can't be {done}: it is {state}.")
    click.echo(f"Bulk send {bulk.id} is {done}.")


# --- rows -----------------------------------------------------------------------------------------


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
def errors(bulk_id: str) -> None:
    """Print, as CSV, the rows that were refused and the mails that failed."""
    _write_csv(
        ("row", "address", "reason"),
        ((error.row, error.address, printable(error.reason)) for error in _find(bulk_id).errors()),
    )


@bulk_group.command()
@click.argument("bulk_id", metavar="ID")
@click.option(
    "--state",
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    help="Only those whose delivery is in this state.",
)
def recipients(bulk_id: str, state: str | None) -> None:
    """Print the recipients as CSV, in the order of their rows."""
    _write_csv(
        ("row", "address", "state", "reply"),
        (
            (one.row, one.address, str(one.status), printable(one.reply or ""))
            for one in _find(bulk_id).recipients(state=state)
        ),
    )


def _write_csv(header: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(map(_in_cells, rows))


def _in_cells(row: tuple[object, ...]) -> tuple[object, ...]:
    """Quote what a spreadsheet would run as a formula: strangers can choose some of the words."""
    return tuple(
        f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell
        for cell in row
    )


def _find(given: str) -> Bulk:
    """Return the bulk send that an operator means, by the beginning of its id."""
    return operations().bulk(find_mail(given))
