"""The Celery app for `celery -A worker worker`, which delivers the mail."""

from shop import create_app

celery = create_app().extensions["celery"]
