"""An application whose mail goes over two relays: MAILER_RELAYS is in docker-compose.yml."""

from flask import Flask

from mailer import Mailer

app = Flask(__name__)
app.config["MAIL_DEFAULT_SENDER"] = "Shop <shop@example.com>"
mailer = Mailer(app)


@app.post("/orders")
def order() -> tuple[dict[str, str], int]:
    receipt = mailer.send_email("ada@example.com", "Your order", "mail/order", number=42)
    return {"mail": receipt.id}, 202


@app.get("/mails/<mail_id>")
def status(mail_id: str) -> dict[str, str | None]:
    """Show the relay that took the mail."""
    [delivery] = mailer.status(mail_id)
    return {"status": delivery.status, "relay": delivery.relay}
