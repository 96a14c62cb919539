"""The Celery tasks. They carry no mail, only "there is mail": the database says what is due.

So a task may come late, twice or never, and no mail does. The tasks work in each Celery app that is
the `app.extensions["celery"]` of a Flask app with Mailer.
"""

from logging import Logger
from typing import Any

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from mailer.celery.app import PURGE, SEND, TASK_SECONDS, ending_delayed, installed
from mailer.errors import StoreError
from mailer.logs import get_logger
from mailer.outbound import Outbound
from mailer.store.workers import SWEEP

log: Logger = get_logger(__name__)


@shared_task(bind=True, name=SEND, ignore_result=True)
def send_email(self: Task[Any, None]) -> None:
    """Deliver what is due, batch after batch."""
    failure: Exception | None = None
    for outbound in installed(self.app):
        try:
            _deliver(outbound, (self.request.delivery_info or {}).get("routing_key") or "")
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001 -- the other apps do not wait for it
            failure = error
    if failure is not None:
        raise failure


def _deliver(outbound: Outbound, queue: str) -> None:
    with outbound.context(), ending_delayed():
        outbound.bell.answer(queue)  # before the claim: mail that is committed later rings again
        try:
            outbound.dispatcher.deliver(at_most=TASK_SECONDS)
        except StoreError as error:
            log.warning("Delivery waits, and the sweep rings again: error=%s", error)


@shared_task(bind=True, name=SWEEP, ignore_result=True)
def sweep(self: Task[Any, None]) -> None:
    """Take back the mail of dead workers, and ring for what is due.

    Workers do this by themselves, once a second.
    """
    for outbound in installed(self.app):
        with outbound.context(), ending_delayed():
            outbound.maintenance.sweep()


@shared_task(bind=True, name=PURGE, ignore_result=True)
def purge(self: Task[Any, None]) -> None:
    """Delete finished mail that is older than MAILER_KEEP_DAYS.

    Workers do this by themselves, once an hour.
    """
    for outbound in installed(self.app):
        with outbound.context():
            outbound.maintenance.purge()
