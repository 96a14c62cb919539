"""A web application that queues mail with Mailer.

`COUNT enqueue`, `COUNT enqueue_many`, `COUNT send_email`; `COUNT send_bulk` (or
`send_bulk_later`), and the same mails one by one: `COUNT personal`.
"""

import sys
from collections.abc import Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path

from flask import Flask
from flask_mail import Message

from bench import mail, producer
from bench.programs.message import make_message
from mailer import Bulk, Mailer
from mailer.store import Store

#: Recipients of each mail of `enqueue_many`.
RECIPIENTS = 1000
#: Mails of `personal` in one transaction, only to be queued sooner.
_TOGETHER = 100


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


def send_bulk(count: int, send_at: timedelta | None = None) -> Bulk:
    """Queue a bulk send."""
    return Mailer().send_bulk(
        mail.SUBJECT,
        mail.TEMPLATE,
        mail.recipients(count),
        shared={"items": mail.ITEMS},
        sender=mail.SENDER,
        send_at=send_at,
    )


def _send_one_by_one(store: Store, count: int) -> None:
    """Queue the mails of a bulk send as mails of their own, rendered by the call."""
    recipients = mail.recipients(count)
    while together := list(islice(recipients, _TOGETHER)):
        with store.together():
            for address, context in together:
                _send_email(address, context)


def _send_email(address: str, context: Mapping[str, object]) -> None:
    values = {**context, "items": mail.ITEMS}
    Mailer().send_email(address, mail.SUBJECT, mail.TEMPLATE, sender=mail.SENDER, context=values)


def main() -> None:
    app, mailer, count = create_app(), Mailer(), int(sys.argv[1])

    def send_email(context: Mapping[str, object]) -> None:
        _send_email(mail.RECIPIENT, context)

    with app.app_context():
        match sys.argv[2]:
            case "send_bulk":
                producer.run_once(lambda: send_bulk(count))
            case "send_bulk_later":
                producer.run_once(lambda: send_bulk(count, send_at=timedelta(days=1)))
            case "personal":
                store = app.extensions["mailer"].store
                producer.run_once(lambda: _send_one_by_one(store, count))
            case "enqueue":
                producer.run(make_message, mailer.enqueue)
            case "enqueue_many":
                producer.run(_with_many_recipients, mailer.enqueue)
            case "send_email":
                producer.run(lambda: {"name": "Ada"}, send_email)


if __name__ == "__main__":
    main()
