"""The page "Race": the same mails sent in the request, with a thread each, and queued."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from smtplib import SMTPException
from threading import Thread
from time import perf_counter
from typing import NamedTuple
from uuid import UUID, uuid4

import flask_mail
from flask import Blueprint, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_wtf import FlaskForm
from wtforms import IntegerField, SelectField
from wtforms.validators import NumberRange

from app import db, mailer

#: The number of races that this process remembers. Other processes do not know of them.
_KEPT = 50

pages = Blueprint(
    "race",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/race/static",
)


class Progress(NamedTuple):
    """The state of one mail."""

    state: str = "waiting"
    reply: str | None = None
    finished_at: datetime | None = None


@dataclass
class Run:
    """A number of mails, sent one way."""

    mails: list[Progress]
    receipts: list[str] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    waited: float | None = None  #: seconds until the visitor had the answer

    @property
    def took(self) -> float | None:
        """Seconds until the last mail was finished."""
        ends = [mail.finished_at for mail in self.mails if mail.finished_at]
        if len(ends) < len(self.mails):
            return None
        return (max(ends) - self.began).total_seconds()

    @property
    def is_over(self) -> bool:
        return self.waited is not None and self.took is not None


def send_in_the_request(run: Run) -> None:
    """Send all mails before the visitor gets an answer."""
    for number in range(len(run.mails)):
        deliver(run, number)


def start_threads(run: Run) -> None:
    """Start a thread for each mail. A restart of the process loses those that are not sent yet."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - Flask documents it for this

    def work(number: int) -> None:
        with app.app_context():
            deliver(run, number)

    for number in range(len(run.mails)):
        Thread(target=work, args=[number]).start()


def queue(run: Run) -> None:
    """Queue all mails in one transaction; workers deliver them."""
    with db.engine.begin() as connection:
        for number in range(len(run.mails)):
            run.receipts.append(mailer.enqueue(make_mail(number), connection=connection).id)


WAYS: dict[str, Callable[[Run], None]] = {
    "request": send_in_the_request,
    "thread": start_threads,
    "queue": queue,
}


def deliver(run: Run, number: int) -> None:
    run.mails[number] = Progress("transmitting")
    try:
        with flask_mail.Connection(current_app.extensions["mail"]) as connection:
            connection.send(make_mail(number))
        run.mails[number] = Progress("sent", None, datetime.now(UTC))
    except (OSError, SMTPException) as error:  # the server may refuse many connections at once
        run.mails[number] = Progress("failed", str(error), datetime.now(UTC))


def make_mail(number: int) -> flask_mail.Message:
    recipient = f"visitor-{number + 1}@example.com"
    return flask_mail.Message(f"Race: mail {number + 1}", [recipient], "One of many.")


def look_up(run: Run) -> None:
    """Update the progress of queued mails."""
    known = mailer.statuses(run.receipts)
    copies = [copy for receipt in run.receipts for copy in known.get(receipt, ())]
    found = [Progress(copy.status, copy.reply, copy.finished_at) for copy in copies]
    run.mails[: len(found)] = found


class RaceForm(FlaskForm):
    way = SelectField(choices=list(WAYS))
    count = IntegerField("Mails", [NumberRange(1, 200)], default=50)


def races() -> dict[UUID, dict[str, Run]]:
    known: dict[UUID, dict[str, Run]] = current_app.extensions.setdefault("races", {})
    return known


@pages.get("/race")
def new_race() -> ResponseReturnValue:
    return redirect(url_for(".race", race_id=uuid4()))


@pages.route("/race/<uuid:race_id>", methods=["GET", "POST"])
def race(race_id: UUID) -> ResponseReturnValue:
    form, runs = RaceForm(), races().get(race_id, {})
    if form.validate_on_submit():
        start(race_id, form.way.data, form.count.data)
        return redirect(url_for(".race", race_id=race_id, ran=form.way.data))
    if "queue" in runs:
        look_up(runs["queue"])
    refusal = "Choose a number of mails from 1 to 200." if form.errors else None
    ran = request.args.get("ran")
    page = render_template(
        "race.html",
        race_id=race_id,
        runs=runs,
        form=form,
        refusal=refusal,
        is_unknown=ran is not None and ran not in runs,
    )
    return page, 422 if refusal else 200


def start(race_id: UUID, way: str, count: int) -> None:
    run = races().setdefault(race_id, {})[way] = Run([Progress()] * count)
    for forgotten in list(races())[:-_KEPT]:
        races().pop(forgotten, None)
    began = perf_counter()
    WAYS[way](run)
    run.waited = perf_counter() - began
