"""The application for `celery -A worker worker`, which delivers mail."""

from app import create_app

celery = create_app().extensions["celery"]
