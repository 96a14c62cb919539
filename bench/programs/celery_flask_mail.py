"""Celery with Flask-Mail as tutorials show it: a task for each mail, which sends the mail.

`python -m bench.programs.celery_flask_mail COUNT` queues, `celery -A
bench.programs.celery_flask_mail worker` delivers.
"""

import os
from typing import Any

from celery import Celery
from flask import Flask
from flask_mail import Mail, Message

from bench import mail, producer

app = Flask(__name__)
app.config.update(MAIL_SERVER=os.environ["MAIL_SERVER"], MAIL_PORT=int(os.environ["MAIL_PORT"]))
flask_mail = Mail(app)
# No result backend: tutorials have one, which makes them slower.
celery: Celery[Any] = Celery(app.name, broker=os.environ["BROKER_URL"])
celery.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)

EMAIL = {
    "subject": mail.SUBJECT,
    "recipients": [mail.RECIPIENT],
    "body": mail.TEXT,
    "html": mail.HTML,
    "sender": mail.SENDER,
}


@celery.task(name="send_async_email")  # as a program, the module has another name
def send_async_email(email: dict[str, Any]) -> None:
    with app.app_context():
        flask_mail.send(Message(**email))


if __name__ == "__main__":
    producer.run(lambda: EMAIL, send_async_email.delay)
