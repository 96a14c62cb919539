"""What `celery -A tests.worker_app` loads: the application of the tests, configured by the environment."""

import os

from tests.application import create_app
from tests.chaos import poison

if poison.TAKEN_IF in os.environ:
    poison.take()

celery = create_app({}).extensions["celery"]
