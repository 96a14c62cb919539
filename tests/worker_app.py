"""The application of the tests, as `celery -A tests.worker_app` loads it."""

import os

from tests.application import create_app
from tests.chaos import poison

if poison.TAKEN_IF in os.environ:
    poison.take()

celery = create_app({}).extensions["celery"]
if master := os.environ.get("SENTINEL_MASTER"):
    celery.conf.broker_transport_options["master_name"] = master
