"""A mailing with Celery and Flask-Mail: the tasks render the mails and send them.

`python -m bench.programs.celery_bulk COUNT METHOD` queues, with a task for each recipient (`delay`,
or all in one `group`), with Celery's `chunks` of a hundred, or with tasks that send a hundred over
one `connection`. `celery -A bench.programs.celery_bulk worker` delivers.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from celery import Celery, group
from flask import Flask, render_template
from flask_mail import Mail, Message

from bench import mail, producer

_CHUNK = 100

app = Flask(__name__, template_folder=str(Path(__file__).parents[1] / "templates"))
app.config.update(MAIL_SERVER=os.environ["MAIL_SERVER"], MAIL_PORT=int(os.environ["MAIL_PORT"]))
flask_mail = Mail(app)
celery: Celery[Any] = Celery(app.name, broker=os.environ["BROKER_URL"])
celery.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)

Recipient = tuple[str, Mapping[str, object]]


def _message(address: str, context: Mapping[str, object]) -> Message:
    values = {**context, "items": mail.ITEMS}
    return Message(
        mail.SUBJECT,
        [address],
        render_template(f"{mail.TEMPLATE}.txt", **values),
        render_template(f"{mail.TEMPLATE}.html", **values),
        sender=mail.SENDER,
    )


@celery.task(name="send_one")  # as a program, the module has another name
def send_one(address: str, context: Mapping[str, object]) -> None:
    with app.app_context():
        flask_mail.send(_message(address, context))


@celery.task(name="send_hundred")
def send_hundred(recipients: Sequence[Recipient]) -> None:
    with app.app_context(), flask_mail.connect() as connection:
        for address, context in recipients:
            connection.send(_message(address, context))


def queue(method: str, count: int) -> None:
    recipients = mail.recipients(count)
    match method:
        case "delay":
            for address, context in recipients:
                send_one.delay(address, context)
        case "group":
            group(send_one.s(address, context) for address, context in recipients).apply_async()
        case "chunks":
            send_one.chunks(recipients, _CHUNK).apply_async()
        case "connection":
            while together := list(islice(recipients, _CHUNK)):
                send_hundred.delay(together)


if __name__ == "__main__":
    producer.run_once(lambda: queue(sys.argv[2], int(sys.argv[1])))
