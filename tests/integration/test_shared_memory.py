"""What a worker and the children of its prefork pool share."""

import gc
from collections.abc import Callable

from celery import signals
from flask import Flask

import mailer.celery.maintenance  # noqa: F401 -- each worker imports it
from tests.services.databases import sqlite_only


@sqlite_only
def test_what_was_there_before_the_fork_is_left_alone(make_app: Callable[..., Flask]) -> None:
    """By the garbage collector: it would write to each object, and so copy it for every child."""
    _app = make_app()
    gc.unfreeze()
    try:
        signals.worker_before_create_process.send(sender=None)

        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
