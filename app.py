"""The reference integration: a small web application that sends mail, to look at and to copy from.

All that an application needs is in `create_app` and in its calls of `send_email`. The pages show what that is good for:

    members   sign up and follow: a mail as the side effect of a request
    write     a mail typed into a page, and what becomes of it
    race      the same mails in the request, with a thread each, and queued
"""

import os
import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from smtplib import SMTPException
from threading import Thread
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4
from zlib import crc32

import flask_mail
from flask import Blueprint, Flask, Response, abort, current_app, flash, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import create_engine
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from mailer import Attachment, CommitLost, InvalidMail, Mail, Mailer, MailerError, Message, StoreUnavailable, send_email
from mailer.private import make_private_file, make_private_folder

mailer = Mailer()
mail = Mail()
pages = Blueprint("pages", __name__)

#: What this application reads from the environment, and what it takes without. Mailer reads its own keys.
DEFAULTS = {
    "ADMIN_MAIL": "admin@example.com",  # hears of every new member
    "INBOX_URL": "",  # the page of the mail server that shows the mail, if there is one
    "INSTANCE_PATH": "",  # the folder of the members, if not ./instance
    "MAIL_DEFAULT_SENDER": "Mailer <mailer@example.com>",
    "SECRET_KEY": "",  # signs the cookies; without one, a key is made and kept beside the members
}
#: The pages in the navigation: label -> endpoint.
PAGES = {"Write": "pages.write", "Members": "pages.members", "Race": "pages.new_race"}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    settings = {key: os.environ.get(key) or default for key, default in DEFAULTS.items()} | dict(config or {})
    app = Flask(__name__, instance_path=str(Path(settings["INSTANCE_PATH"]).resolve()) if settings["INSTANCE_PATH"] else None)
    make_private_folder(Path(app.instance_path))
    app.config.from_mapping(settings, SESSION_COOKIE_SAMESITE="Lax", PAGES=dict(PAGES))
    app.secret_key = settings["SECRET_KEY"] or kept_secret(app)
    app.extensions["races"] = {}
    mailer.init_app(app)
    app.extensions["mail_database"] = create_engine(app.extensions["mailer"].settings.database_url)
    app.register_blueprint(pages)
    app.shell_context_processor(lambda: {"mail": mail, "Message": Message, "send_email": send_email, "mailer": mailer})
    return app


# --- members: a mail as the side effect of a request ------------------------------------------------------------------


class Member(NamedTuple):
    nickname: str
    address: str

    @property
    def avatar(self) -> str:
        return f"avatars/{crc32(self.nickname.encode()) % 8}.png"


@pages.route("/members", methods=["GET", "POST"])
def members() -> ResponseReturnValue:
    refusal = None
    if request.method == "POST":
        try:
            session["nickname"] = sign_up(request.form.get("nickname", "").strip(), request.form.get("address", "").strip())
            return redirect(url_for(".members"))
        except ValueError as error:  # ours, and Mailer's InvalidMail
            refusal = error
    with database() as db:
        everybody = [Member(*row) for row in db.execute("SELECT * FROM member ORDER BY nickname")]
    return render_template("members.html", members=everybody, refusal=refusal), 422 if refusal else 200


def sign_up(nickname: str, address: str) -> str:
    """A new name is kept and the administrator is told: both or neither, so that an unusable address is not kept."""
    if not re.fullmatch(r"[\w-]{2,30}", nickname):
        raise ValueError("A nickname has 2 to 30 letters, digits, hyphens or underscores.")
    with database() as db:
        is_new = db.execute("INSERT OR IGNORE INTO member VALUES (?, ?)", [nickname, address]).rowcount == 1
        if is_new:
            user = Member(nickname, address)
            send_email(current_app.config["ADMIN_MAIL"], "New user", "mail/new_user", reply_to=address, user=user)
    member = find_member(nickname)
    if member is None or member.address != address:
        raise ValueError(f"Somebody else is called {nickname} already.")
    flash(f"Welcome, {nickname}. The administrator gets a mail about you." if is_new else f"Welcome back, {nickname}.")
    return member.nickname


@pages.get("/members/<nickname>")
def profile(nickname: str) -> str:
    return render_template("profile.html", member=find_member(nickname) or abort(404))


@pages.post("/follow/<nickname>")
def follow(nickname: str) -> ResponseReturnValue:
    followed, follower = find_member(nickname) or abort(404), signed_in()
    if follower is None:
        flash(f"Sign up first, so that {followed.nickname} learns who follows.")
        return redirect(url_for(".members"))
    with database() as db:
        is_new = db.execute("INSERT OR IGNORE INTO follow VALUES (?, ?)", [follower.nickname, followed.nickname]).rowcount == 1
        if is_new:
            picture = Path(current_app.root_path, "static", follower.avatar).read_bytes()
            avatar = Attachment("avatar.png", picture, content_id="avatar")
            subject = f"{follower.nickname} follows you"
            send_email(followed.address, subject, "mail/follower", attachments=[avatar], user=followed, follower=follower)
    flash(f"You follow {followed.nickname} now, who gets a mail." if is_new else f"You follow {followed.nickname} already.")
    return redirect(url_for(".profile", nickname=followed.nickname))


# --- write: a mail typed into a page, and what becomes of it ----------------------------------------------------------


@pages.route("/write", methods=["GET", "POST"])
def write() -> ResponseReturnValue:
    if request.method == "GET":
        return render_template("write.html")
    to = [address.strip() for address in request.form.get("to", "").split(",") if address.strip()]
    try:
        receipt = send_email(to, request.form.get("subject", ""), "mail/letter", text=request.form.get("text", ""))
    except InvalidMail as error:
        return render_template("write.html", refusal=error), 422
    return redirect(url_for(".status", mail_id=receipt.id))


@pages.get("/mail/<mail_id>")
def status(mail_id: str) -> str:
    mail = mailer.statuses([mail_id]).get(mail_id) or abort(404, "This mail was never queued here, or it has been purged.")
    return render_template("status.html", mail=mail, now=datetime.now(UTC))


# --- race: the same mails in the request, with a thread each, and queued ----------------------------------------------


class Progress(NamedTuple):
    """How far one mail is."""

    state: str = "waiting"
    reply: str | None = None
    finished_at: datetime | None = None


@dataclass
class Run:
    """N mails sent one way."""

    mails: list[Progress]
    receipts: list[str] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    waited: float | None = None  # seconds, the visitor

    @property
    def took(self) -> float | None:
        """Seconds until the last mail was through."""
        ends = [mail.finished_at for mail in self.mails if mail.finished_at]
        return (max(ends) - self.began).total_seconds() if len(ends) == len(self.mails) else None

    @property
    def is_over(self) -> bool:
        return self.waited is not None and self.took is not None


def in_the_request(run: Run) -> None:
    """The visitor waits until the mail server has them all."""
    for number in range(len(run.mails)):
        deliver(run, number)


def a_thread_each(run: Run) -> None:
    """The visitor does not wait, and nobody looks after the threads: what they have not sent at a restart is lost."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - Flask documents it for this

    def work(number: int) -> None:
        with app.app_context():
            deliver(run, number)

    for number in range(len(run.mails)):
        Thread(target=work, args=[number]).start()


def queued(run: Run) -> None:
    """The visitor waits until the mails are kept, all in one transaction; workers deliver them."""
    with current_app.extensions["mail_database"].begin() as connection:
        for number in range(len(run.mails)):
            run.receipts.append(mailer.enqueue(race_mail(number), connection=connection).id)


def deliver(run: Run, number: int) -> None:
    run.mails[number] = Progress("transmitting")
    try:
        flask_mail.Mail().send(race_mail(number))
        run.mails[number] = Progress("sent", None, datetime.now(UTC))
    except (OSError, SMTPException) as error:  # one by one in the request, all at once in threads: servers turn some away
        run.mails[number] = Progress("failed", str(error), datetime.now(UTC))


def race_mail(number: int) -> flask_mail.Message:
    return flask_mail.Message(f"Race: mail {number + 1}", [f"visitor-{number + 1}@example.com"], "One of many.")


def look_up(run: Run) -> None:
    known = mailer.statuses(run.receipts)
    found = [Progress(it.status, it.reply, it.finished_at) for receipt in run.receipts for it in known.get(receipt, ())]
    run.mails[: len(found)] = found


WAYS = {"request": in_the_request, "thread": a_thread_each, "queue": queued}


def races() -> dict[UUID, dict[str, Run]]:
    """The last races. They live in this process: beside several web processes, the others know nothing of them."""
    known: dict[UUID, dict[str, Run]] = current_app.extensions["races"]
    return known


@pages.get("/race")
def new_race() -> ResponseReturnValue:
    return redirect(url_for(".race", race_id=uuid4()))


@pages.route("/race/<uuid:race_id>", methods=["GET", "POST"])
def race(race_id: UUID) -> ResponseReturnValue:
    runs, way, count = races().get(race_id, {}), request.form.get("way"), request.form.get("count", "")
    if request.method == "GET":
        if "queue" in runs:
            look_up(runs["queue"])
        return render_template("race.html", race_id=race_id, runs=runs)
    if way not in WAYS or not re.fullmatch("[0-9]{1,3}", count) or not 1 <= int(count) <= 200:
        return render_template("race.html", race_id=race_id, runs=runs, refusal="Choose a number of mails from 1 to 200."), 422
    run = races().setdefault(race_id, {})[way] = Run([Progress()] * int(count))
    for forgotten in list(races())[:-50]:
        races().pop(forgotten, None)
    start = perf_counter()
    WAYS[way](run)
    run.waited = perf_counter() - start
    return redirect(url_for(".race", race_id=race_id, ran=way))


# --- what every page needs --------------------------------------------------------------------------------------------


@pages.get("/")
def home() -> str:
    return render_template("home.html")


@pages.get("/healthz")
def healthz() -> str:
    """Say that the process is up, and whether anybody delivers: a restart of this process would not help there."""
    try:
        return mailer.absence() or "ok"
    except MailerError:
        return "No mail can be queued: the database of Mailer is away, or its tables do not fit."


@pages.before_app_request
def refuse_other_sites() -> None:
    """A form on another site must not act in a visitor's name. Browsers say where a form was."""
    origin = request.headers.get("Origin")
    if origin and urlsplit(origin).netloc != request.host:
        abort(403, "This form was sent from another site.")


@pages.after_app_request
def add_security_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@pages.app_errorhandler(HTTPException)
def show_error(error: HTTPException) -> ResponseReturnValue:
    return render_template("error.html", error=error), error.code or 500


@pages.app_errorhandler(StoreUnavailable)
def ask_to_come_back(error: StoreUnavailable) -> ResponseReturnValue:
    """Nobody is told that a mail is queued which is not. The database's own words are for the log."""
    current_app.logger.error("%s", error)
    state = "It is not known yet whether your mail is queued" if isinstance(error, CommitLost) else "Your mail is not queued"
    said = ServiceUnavailable(f"{state}: the database is away. Try again in a moment.")
    return render_template("error.html", error=said), 503, {"Retry-After": "10"}


@pages.app_template_global()
def signed_in() -> Member | None:
    """There are no passwords here: the cookie of the sign-up is all."""
    return find_member(session.get("nickname", ""))


def find_member(nickname: str) -> Member | None:
    with database() as db:
        row = db.execute("SELECT nickname, address FROM member WHERE nickname = ?", [nickname]).fetchone()
    return Member(*row) if row else None


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """One short transaction: kept at the end of the block, undone by an error."""
    file = Path(current_app.instance_path, "members.sqlite3")
    make_private_file(file)  # it holds a secret
    with closing(sqlite3.connect(file)) as db, db:
        db.executescript("""
            CREATE TABLE IF NOT EXISTS member (nickname TEXT PRIMARY KEY COLLATE NOCASE, address TEXT NOT NULL);
            CREATE TABLE IF NOT EXISTS follow (follower TEXT, followed TEXT, PRIMARY KEY (follower, followed));
            CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY, key TEXT NOT NULL);
        """)
        yield db


def kept_secret(app: Flask) -> str:
    """The same in every process and after every restart."""
    with app.app_context(), database() as db:
        db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", [secrets.token_hex()])
        return str(db.execute("SELECT key FROM secret").fetchone()[0])
