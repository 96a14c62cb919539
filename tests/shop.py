"""An application that queues mail, and what it has in its database."""

import threading
from collections.abc import Callable, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from celery import Celery
from flask import Flask
from jinja2 import DictLoader
from sqlalchemy import func, select

from mailer import Mailer, Receipt
from mailer.celery.bell import CeleryBell
from mailer.message import Message
from mailer.mime import compose
from mailer.schema import home, metadata
from mailer.store import Store

OpenShop = Callable[..., Flask]  # `open_shop(**config)`, a fixture

TEMPLATES = {
    "welcome.txt": "Welcome, {{ name }}!",
    "welcome.html": "<style>p { color: red }</style><p>Welcome, {{ name }}!</p>",
    "only_text.txt": "Hello {{ name }}",
    "only_html.html": "<p>Hello <a href='https://example.com/{{ name }}'>there</a></p>",
    "logo.html": "<p>Hello <img src='cid:logo'></p>",
    "link.txt": "{{ url_for('order', number=7, _external=True) }}",
    "broken.txt": "{% if %}",
}


def create_shop(
    config: Mapping[str, object],
    templates: Mapping[str, str] = TEMPLATES,
    celery: Celery[Any] | None = None,
) -> Flask:
    """The factory pattern: an app for each call."""
    app = Flask("shop")
    if celery is not None:
        app.extensions["celery"] = celery
    app.jinja_loader = DictLoader(templates)
    app.config.from_mapping(config)
    app.add_url_rule("/orders/<int:number>", "order", str)
    Mailer(app)
    return app


def store_of(app: Flask) -> Store:
    store: Store = app.extensions["mailer"].store
    return store


def close(app: Flask) -> None:
    """Close its connections, once the thread that looks for workers has given its own back.

    Those that Flask-SQLAlchemy has for the application are closed as well. A thread that tries a
    broker which is gone ends.
    """
    if isinstance(bell := app.extensions["mailer"].outbound.bell, CeleryBell):
        vars(bell)["_ring"] = lambda *_lanes, **_options: True
    for thread in threading.enumerate():
        if thread.name == "mailer-watch":
            thread.join(30)
    store_of(app).engine.dispose()
    if own := app.extensions.get("sqlalchemy"):
        with app.app_context():
            for engine in own.engines.values():
                engine.dispose()


def rows(app: Flask) -> dict[str, int]:
    """How many rows each table has that holds any, but for the mark of this machine."""
    tables = [table for table in metadata.sorted_tables if table is not home]
    with store_of(app).engine.connect().execution_options(reads_only=True) as connection:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table))
            for table in tables
        }
    return {name: count for name, count in counts.items() if count}


def stored(app: Flask, receipt: Receipt) -> Message:
    """What a worker will load."""
    return store_of(app).load_messages([receipt.id])[receipt.id]


def on_the_wire(app: Flask, receipt: Receipt) -> EmailMessage:
    """What a worker will send, as the standard library reads it."""
    return message_from_bytes(compose(stored(app, receipt)).as_bytes(), policy=policy.default)
