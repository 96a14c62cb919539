"""What a machine runs that delivers mail: `celery -A worker worker`."""

from app import create_app

celery = create_app().extensions["celery"]
