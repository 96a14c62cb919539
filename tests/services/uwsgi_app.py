"""The application that uWSGI loads: it queues a mail in the master and one for each request."""

from flask import Flask

from mailer import send_email
from tests.application import create_app


def queue(name: str) -> str:
    return send_email(f"{name}@example.com", "Hello", "welcome", name=name).id


def make() -> Flask:
    app = create_app({})
    app.add_url_rule("/<name>", "queue", queue)
    with app.test_request_context():
        queue("master")
    return app


application = make()
