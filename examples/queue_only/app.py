"""A service that only queues: workers elsewhere deliver its mail.

It renders its templates itself, and the rendered mail is in the database. So the workers need
neither its code nor its templates, and it needs no settings of a relay.
"""

from flask import Flask, request

from mailer import Mailer

app = Flask(__name__)
# The environment has MAILER_DATABASE_URL and MAILER_REDIS_URL, the same as those of the workers.
app.config["MAIL_DEFAULT_SENDER"] = "Sensors <sensors@example.com>"
mailer = Mailer(app)


@app.post("/alarms")
def alarm() -> tuple[dict[str, str], int]:
    receipt = mailer.send_email(
        "duty@example.com",
        f"Alarm: {request.form['place']}",
        "mail/alarm",
        lane="critical",
        place=request.form["place"],
    )
    return {"mail": receipt.id}, 202


@app.get("/alarms/<mail_id>")
def status(mail_id: str) -> dict[str, str]:
    return {delivery.recipient: delivery.status for delivery in mailer.status(mail_id)}
