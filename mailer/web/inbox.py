"""The inbox pages: a blueprint that shows the mails that `mailer.smtpd` received."""

from base64 import b64encode

from flask import Blueprint, Flask, Response, abort, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from mailer.smtpd.inbox import Inbox, Received

_SHOWN = 100
#: Mails that are searched for a Message-ID.
_SEARCHED = 1000
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: For a mail in its frame: it runs nothing and loads nothing, and its links open a new tab.
_MAIL_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'; frame-ancestors 'self'"
)


def make_inbox_blueprint(inbox: Inbox, *, layout: str = "mailer/layout.html") -> Blueprint:
    """Return the pages of an inbox, which show the mails that `flask mail inbox` received.

    >>> from pathlib import Path
    >>> from mailer.smtpd.inbox import Inbox
    >>> from mailer.web.inbox import make_inbox_blueprint
    >>> inbox = Inbox(Path(app.instance_path, "inbox"))
    >>> app.register_blueprint(make_inbox_blueprint(inbox), url_prefix="/inbox")
    >>> app.test_client().get("/inbox").status_code
    200

    Args:
        inbox: The folder of the received mails.
        layout: The template that the pages extend, with the blocks `title`, `head`, `content`.
    """
    pages = Blueprint(
        "inbox",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )

    @pages.get("")
    def index() -> str:
        """Show the newest mails, or those with a Message-ID, found without parsing them all."""
        wanted = request.args.get("message_id")
        mails = inbox.latest(_SEARCHED if wanted else _SHOWN)
        if wanted:
            mails = [mail for mail in mails if wanted.encode() in mail.raw]
        found = {"mails": mails, "wanted": wanted, "count": inbox.count()}
        return render_template("mailer/inbox.html", layout=layout, **found)

    @pages.get("/<mail_id>")
    def mail(mail_id: str) -> str:
        """Show one mail."""
        return render_template("mailer/received.html", layout=layout, mail=find(mail_id))

    @pages.get("/<mail_id>/html")
    def html(mail_id: str) -> Response:
        page = "<!doctype html><base target=_blank>" + _html_with_images(find(mail_id))
        return Response(page, headers={"Content-Security-Policy": _MAIL_POLICY})

    @pages.after_request
    def add_security_headers(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
        response.headers["Referrer-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def find(mail_id: str) -> Received:
        return inbox.get(mail_id) or abort(404, "This mail is not in the inbox.")

    return pages


def create_inbox_app(inbox: Inbox, *, smtp_address: str) -> Flask:
    """Return a web application with nothing but the pages of an inbox.

    Only requests to a name of this machine are answered, so that no web site can read mails over a
    DNS name of its own.

    >>> from pathlib import Path
    >>> from mailer.smtpd.inbox import Inbox
    >>> from mailer.web.inbox import create_inbox_app
    >>> inbox = Inbox(Path(app.instance_path, "inbox"))
    >>> pages = create_inbox_app(inbox, smtp_address="127.0.0.1:1025")
    >>> "127.0.0.1:1025" in pages.test_client().get("/inbox").text
    True

    Args:
        inbox: The folder of the received mails.
        smtp_address: The host and port that the pages name as the place to send mail to.
    """
    app = Flask("mailer.web", static_folder=None)
    app.config["TRUSTED_HOSTS"] = ["127.0.0.1", "localhost"]
    app.register_blueprint(make_inbox_blueprint(inbox), url_prefix="/inbox")
    app.context_processor(lambda: {"smtp_address": smtp_address})

    @app.get("/")
    def root() -> ResponseReturnValue:
        return redirect(url_for("inbox.index"))

    @app.errorhandler(NotFound)
    def show_error(error: NotFound) -> ResponseReturnValue:
        return render_template("mailer/error.html", layout="mailer/layout.html", error=error), 404

    return app


def _html_with_images(mail: Received) -> str:
    """Return the HTML part of a mail with its inline images as data URLs."""
    part = mail.parsed.get_body(("html",)) or abort(404)
    html: str = part.get_content()
    for image in mail.parsed.walk():
        if image.get_content_maintype() == "image" and image["Content-ID"]:
            data = b64encode(image.get_content()).decode()
            name = f"cid:{image['Content-ID'].strip('<> ')}"
            html = html.replace(name, f"data:{image.get_content_type()};base64,{data}")
    return html
