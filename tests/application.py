"""The application of the tests: an ordinary Flask app that uses Mailer."""

from collections.abc import Mapping

from flask import Flask

from mailer import Mailer


def create_app(config: Mapping[str, object]) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(config)
    Mailer(app)
    return app
