"""The reference integration: a small web application that sends mail, to copy from.

`create_app` connects the extensions. `sign_up` and `follow` queue a mail in their own transaction:
the mail is sent after the commit, and never after a rollback.
"""

import os
from pathlib import Path
from typing import Any
from zlib import crc32

import flask
from flask import Blueprint, Flask, abort, flash, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect, FlaskForm
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.exceptions import Conflict, HTTPException, ServiceUnavailable
from wtforms import EmailField, StringField
from wtforms.validators import InputRequired, Regexp

from mailer import Attachment, Mail, Mailer, MailerError, Message, StoreUnavailable, send_email

#: Read from the environment, with these defaults. Mailer reads its own keys, such as MAIL_SERVER.
DEFAULTS = {
    "ADMIN_MAIL": "admin@example.com",  # gets a mail about every new member
    "INBOX_URL": "",  # the page of a mail server that shows received mail
    "INSTANCE_PATH": "",  # the folder of the database; if empty, ./instance
    "MAIL_DEFAULT_SENDER": "Mailer <mailer@example.com>",
    "MAILER_DATABASE_URL": "sqlite:///mailer.sqlite3",  # also has the members
    "SECRET_KEY": "",  # signs cookies and forms
}
#: The navigation: label -> endpoint.
PAGES = {"Members": "pages.members"}
NICKNAME = "A nickname has 2 to 30 letters, digits, hyphens or underscores."
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

db = SQLAlchemy()
mailer = Mailer()
pages = Blueprint("pages", __name__)


def create_app(config: dict[str, Any] | None = None) -> Flask:
    settings = {key: os.environ.get(key) or value for key, value in DEFAULTS.items()}
    settings |= config or {}
    folder = Path(settings["INSTANCE_PATH"] or Path(__file__).with_name("instance")).resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    app = Flask(__name__, instance_path=str(folder))
    app.config.from_mapping(
        settings,
        PAGES=dict(PAGES),
        SESSION_COOKIE_SAMESITE="Lax",
        SQLALCHEMY_DATABASE_URI=settings["MAILER_DATABASE_URL"],
        SQLALCHEMY_ENGINE_OPTIONS={"hide_parameters": True},  # no addresses in the log
    )
    for extension in (db, mailer, CSRFProtect()):
        extension.init_app(app)
    app.register_blueprint(pages)
    app.cli.command("create-tables", help="Create the tables of the members.")(db.create_all)
    names = {"mail": Mail(), "mailer": mailer, "Message": Message, "send_email": send_email}
    app.shell_context_processor(lambda: names)
    return app


class Member(db.Model):  # type: ignore[name-defined]
    key: Mapped[str] = mapped_column(primary_key=True)  #: the nickname in lower case
    nickname: Mapped[str]
    address: Mapped[str]

    @property
    def avatar(self) -> str:
        return f"avatars/{crc32(self.nickname.encode()) % 8}.png"


class Follow(db.Model):  # type: ignore[name-defined]
    follower: Mapped[str] = mapped_column(primary_key=True)
    followed: Mapped[str] = mapped_column(primary_key=True)


class MemberForm(FlaskForm):
    nickname = StringField("Nickname", [Regexp(r"[\w-]{2,30}\Z", message=NICKNAME)])
    address = EmailField("Email address", [InputRequired()])


@pages.route("/members", methods=["GET", "POST"])
def members() -> ResponseReturnValue:
    form, refusal = MemberForm(), None
    if form.validate_on_submit():
        try:
            session["nickname"] = sign_up(form.nickname.data, form.address.data)
            return redirect(url_for(".members"))
        except ValueError as error:  # ours, or InvalidMail of Mailer
            db.session.rollback()
            refusal = error
    refusal = refusal or next((errors[0] for errors in form.errors.values()), None)
    everybody = db.session.scalars(db.select(Member).order_by(Member.key)).all()
    page = render_template("members.html", form=form, refusal=refusal, members=everybody)
    return page, 422 if refusal else 200


def sign_up(nickname: str, address: str) -> str:
    """Store a new member and queue a mail to the administrator, or neither."""
    member = find_member(nickname)
    if member is None:
        member = Member(key=nickname.casefold(), nickname=nickname, address=address)
        db.session.add(member)
        admin, kind = flask.current_app.config["ADMIN_MAIL"], "mail/new_user"
        send_email(admin, "New user", kind, reply_to=address, connection=db.session, user=member)
        db.session.commit()
        flash(f"Welcome, {nickname}. The administrator gets a mail about you.")
    elif member.address == address:
        flash(f"Welcome back, {nickname}.")
    else:
        raise ValueError(f"Somebody else is called {nickname} already.")
    return member.nickname


def find_member(nickname: str) -> Member | None:
    return db.session.get(Member, nickname.casefold())


@pages.app_template_global()
def signed_in() -> Member | None:
    """Return the member of this session. The example has no passwords."""
    return find_member(session["nickname"]) if "nickname" in session else None


@pages.get("/members/<nickname>")
def profile(nickname: str) -> str:
    return render_template("profile.html", member=find_member(nickname) or abort(404))


@pages.post("/follow/<nickname>")
def follow(nickname: str) -> ResponseReturnValue:
    followed, follower = find_member(nickname) or abort(404), signed_in()
    if follower is None:
        flash(f"Sign up first, so that {followed.nickname} learns who follows.")
        return redirect(url_for(".members"))
    if db.session.get(Follow, (follower.key, followed.key)):
        flash(f"You follow {followed.nickname} already.")
    else:
        db.session.add(Follow(follower=follower.key, followed=followed.key))
        file = Path(flask.current_app.root_path, "static", follower.avatar)
        picture = Attachment("avatar.png", file.read_bytes(), content_id="avatar")
        to, subject = followed.address, f"{follower.nickname} follows you"
        people = {"user": followed, "follower": follower}
        send_email(
            to, subject, "mail/follower", attachments=[picture], connection=db.session, **people
        )
        db.session.commit()
        flash(f"You follow {followed.nickname} now and will be told by mail.")
    return redirect(url_for(".profile", nickname=followed.nickname))


@pages.get("/")
def home() -> str:
    return render_template("home.html")


@pages.get("/healthz")
def healthz() -> str:
    """Report that the process runs, and whether a worker does, which no restart would change."""
    try:
        return mailer.absence() or "ok"
    except MailerError:
        return "No mail can be queued: its database is down, or has tables of another version."


@pages.after_app_request
def add_security_headers(response: flask.Response) -> flask.Response:
    response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@pages.app_errorhandler(HTTPException)
def show_error(error: HTTPException) -> ResponseReturnValue:
    return render_template("error.html", error=error), error.code or 500


@pages.app_errorhandler(IntegrityError)  # of a double click, or of two visitors at once
def ask_to_look_again(_error: IntegrityError) -> ResponseReturnValue:
    db.session.rollback()
    return show_error(Conflict("This was done at the same moment. No mail is queued. Look again."))


@pages.app_errorhandler(DBAPIError)
@pages.app_errorhandler(StoreUnavailable)
def ask_to_come_back(error: Exception) -> ResponseReturnValue:
    """Never claim that a mail is queued if it is not. Only the log has the details."""
    flask.current_app.logger.error("%s", error)
    state = "is not queued" if type(error) is StoreUnavailable else "may be queued or not"
    error = ServiceUnavailable(f"Your mail {state}: the database is down. Try again in a moment.")
    return render_template("error.html", error=error), 503, {"Retry-After": "10"}
