"""The page "Write": a mail typed into a page, and the status of each copy."""

from datetime import UTC, datetime

from flask import Blueprint, abort, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_wtf import FlaskForm
from wtforms import StringField, TextAreaField
from wtforms.validators import InputRequired

from app import mailer
from mailer import InvalidMail, send_email

pages = Blueprint("write", __name__, template_folder="templates")


class LetterForm(FlaskForm):
    to = StringField("To", [InputRequired("Type an address.")])
    subject = StringField("Subject")
    text = TextAreaField("Text")


@pages.route("/write", methods=["GET", "POST"])
def write() -> ResponseReturnValue:
    form, refusal = LetterForm(), None
    if form.validate_on_submit():
        to = [address.strip() for address in form.to.data.split(",") if address.strip()]
        try:
            receipt = send_email(
                to, form.subject.data, "mail/letter", context={"text": form.text.data}
            )
            return redirect(url_for(".status", mail_id=receipt.id))
        except InvalidMail as error:
            refusal = str(error)
    refusal = refusal or next((errors[0] for errors in form.errors.values()), None)
    page = render_template("write.html", form=form, refusal=refusal)
    return page, 422 if refusal else 200


@pages.get("/mail/<mail_id>")
def status(mail_id: str) -> str:
    unknown = "This mail was never queued here, or it has been purged."
    mail = mailer.statuses([mail_id]).get(mail_id) or abort(404, unknown)
    return render_template("status.html", mail=mail, now=datetime.now(UTC))
