"""The Celery app for `celery -A worker worker`, which delivers the mail."""

from app import app as flask_app  # Celery would take the name "app" for its own

celery = flask_app.extensions["celery"]
