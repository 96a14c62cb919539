"""What `celery -A tests.worker_app` loads: the application of the tests, configured by the environment."""

from tests.application import create_app

celery = create_app({}).extensions["celery"]
