"""A web application that queues mail with Mailer.

`COUNT enqueue`, `COUNT enqueue_many`, `COUNT send_email`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from flask import Flask
from flask_mail import Message

from bench import mail, producer
from bench.programs.message import make_message
from mailer import Mailer

#: Recipients of each mail of `enqueue_many`.
RECIPIENTS = 1000
ITEMS = ["One teapot of blue china, wrapped with care"] * 11


def create_app(config: Mapping[str, str] | None = None) -> Flask:
    """Create an application; Mailer reads other keys from the environment."""
    app = Flask(__name__, template_folder=str(Path(__file__).parents[1] / "templates"))
    app.config.from_mapping(config)
    Mailer(app)
    return app


def _with_many_recipients() -> Message:
    message = make_message()
    message.recipients = [f"reader{number}@example.com" for number in range(RECIPIENTS)]
    return message


def main() -> None:
    mailer = Mailer()

    def send_email(context: Mapping[str, object]) -> None:
        mailer.send_email(
            mail.RECIPIENT, mail.SUBJECT, "mail/order", sender=mail.SENDER, context=context
        )

    with create_app().app_context():
        match sys.argv[2]:
            case "enqueue":
                producer.run(make_message, mailer.enqueue)
            case "enqueue_many":
                producer.run(_with_many_recipients, mailer.enqueue)
            case "send_email":
                producer.run(lambda: {"name": "Ada", "items": ITEMS}, send_email)


if __name__ == "__main__":
    main()
