"""The memory that a worker shares with the children of its prefork pool."""

import gc
from collections.abc import Callable

from celery import signals
from flask import Flask

import mailer.celery.maintenance  # noqa: F401 -- each worker imports it
from tests.services.databases import sqlite_only


@sqlite_only
def test_what_was_there_before_the_fork_is_left_alone(make_app: Callable[..., Flask]) -> None:
    """A worker freezes its objects before it forks, so that children share their memory."""
    _app = make_app()
    gc.unfreeze()
    try:
        signals.worker_before_create_process.send(sender=None)

        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
