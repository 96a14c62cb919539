"""A contact form: its mail is queued in the request and delivered by the worker."""

from flask import Flask, render_template, request

from mailer import Mailer

app = Flask(__name__)
app.config["MAIL_DEFAULT_SENDER"] = "Contact form <form@example.com>"
mailer = Mailer(app)


@app.route("/", methods=["GET", "POST"])
def contact() -> str:
    receipt = None
    if request.method == "POST":
        receipt = mailer.send_email(
            "owner@example.com",
            "A question",
            "mail/question",
            reply_to=request.form["address"],
            question=request.form["question"],
        )
    return render_template("contact.html", receipt=receipt)
