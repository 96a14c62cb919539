"""A shop with a factory: an order and the mail about it are one transaction."""

import os

from flask import Flask

from shop.extensions import db, mailer, migrate
from shop.orders import orders

#: A relative path starts in the instance folder, for Flask-SQLAlchemy and for Mailer.
DATABASE = "sqlite:///shop.sqlite3"


def create_app() -> Flask:
    app = Flask(__name__)
    database = os.environ.get("DATABASE_URL", DATABASE)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=database,
        MAILER_DATABASE_URL=database,  # the same one, so that a transaction can have both
        MAIL_DEFAULT_SENDER="Shop <shop@example.com>",
    )
    db.init_app(app)
    migrate.init_app(app, db)
    mailer.init_app(app)
    app.register_blueprint(orders)
    return app
