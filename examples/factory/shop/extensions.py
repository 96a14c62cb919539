"""The extensions, in a module of their own, so that no two modules import each other."""

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from mailer import Mailer

db = SQLAlchemy()
migrate = Migrate()
mailer = Mailer()
