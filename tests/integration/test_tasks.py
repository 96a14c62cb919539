"""The Celery tasks: which Celery apps have them, and whose mail they deliver."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from celery import Celery
from flask import Flask

from mailer import ConfigurationError, Mailer, Status, tasks
from mailer.celery.app import TASKS
from mailer.celery.consumer import _objection
from mailer.celery.maintenance import MailerStep
from tests.services.databases import Databases, sqlite_only
from tests.shop import TEMPLATES, OpenShop, close, create_shop

pytestmark = sqlite_only

MakeShop = Callable[..., Flask]  # `make_shop(celery, **config)`, a fixture


@pytest.fixture
def celery() -> Celery[Any]:
    """The application's own one."""
    return Celery("theirs", broker="memory://", set_as_current=False)


@pytest.fixture
def other_database_url(sqlite_databases: Databases) -> Iterator[str]:
    with sqlite_databases.migrated() as url:
        yield url


@pytest.fixture
def make_shop(config: dict[str, str]) -> Iterator[MakeShop]:
    """Make a shop with a Celery app of its own application."""
    made = []

    def make_shop(celery: Celery[Any], **changes: str) -> Flask:
        made.append(create_shop({**config, **changes}, TEMPLATES, celery=celery))
        return made[-1]

    yield make_shop
    for app in made:
        app.extensions["mailer"].outbound.dispatcher.hang_up()
        close(app)


def queue(app: Flask) -> str:
    with app.app_context():
        return Mailer().send_email("ada@example.com", "Hello", "only_text", name="Ada").id


def status_of(app: Flask, mail_id: str) -> Status:
    with app.app_context():
        [delivery] = Mailer().status(mail_id)
        return delivery.status


def run(celery: Celery[Any], name: str = "mailer.send_email") -> None:
    """Call a task of this Celery app here, as a worker does."""
    celery.tasks[name]()


def test_they_are_tasks_of_the_current_celery_app(open_shop: OpenShop) -> None:
    """An import gives a task that belongs to whichever Celery app is current."""
    for shop in (open_shop(), open_shop()):
        celery = shop.extensions["celery"]
        celery.set_current()
        for task in (tasks.send_email, tasks.sweep, tasks.purge):
            assert task.app is celery
            assert task.name in TASKS


def test_a_task_delivers_the_mail_of_its_celery_app(
    open_shop: OpenShop, other_database_url: str
) -> None:
    """Whichever Celery app is current, and no other app's mail."""
    one, other = open_shop(), open_shop(MAILER_DATABASE_URL=other_database_url)
    mine, yours = queue(one), queue(other)

    run(one.extensions["celery"])

    assert (status_of(one, mine), status_of(other, yours)) == (Status.SENT, Status.QUEUED)


def test_flask_apps_that_share_a_celery_app(
    make_shop: MakeShop, celery: Celery[Any], other_database_url: str
) -> None:
    """Each task serves them all, and so does a worker's maintenance."""
    shops = make_shop(celery), make_shop(celery, MAILER_DATABASE_URL=other_database_url)
    mails = [queue(shop) for shop in shops]

    run(celery)

    assert [status_of(*pair) for pair in zip(shops, mails, strict=True)] == [Status.SENT] * 2
    assert celery.steps["worker"] == {"mailer.celery.maintenance:MailerStep"}


def test_a_celery_app_that_no_mailer_knows(open_shop: OpenShop, celery: Celery[Any]) -> None:
    """It has the tasks, as each Celery app in the process, and they say what is missing."""
    open_shop()

    with pytest.raises(ConfigurationError, match=r"'theirs' delivers no mail.* Set app.extensions"):
        run(celery)


def test_a_celery_app_is_finalized_when_it_wants_to(
    make_shop: MakeShop, celery: Celery[Any]
) -> None:
    """Early, so that the tasks are added to it, or late: they have their own options either way."""
    make_shop(celery)
    assert not vars(celery)["finalized"]
    early: Celery[Any] = Celery("early", broker="memory://", set_as_current=False)
    early.finalize()
    make_shop(early)

    for one in (celery, early):
        assert all(one.tasks[name].soft_time_limit == 86400 for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_call_by_hand(open_shop: OpenShop, name: str) -> None:
    """A worker takes `delay()`, which sends the limits of the task, and refuses other limits."""
    app = open_shop()
    celery = app.extensions["celery"]
    celery.tasks[name].delay()
    with celery.connection() as connection:
        message = connection.SimpleQueue(celery.conf.task_default_queue).get(timeout=10)
    assert _objection(message, celery.tasks) == ""

    message.headers["timelimit"] = [1, 1]
    assert "is called with nothing" in _objection(message, celery.tasks)


# --- what is built ------------------------------------------------------------------------------


def test_a_process_that_queues_builds_nothing_that_delivers(open_shop: OpenShop) -> None:
    """Relays, keys and shared memory are for workers."""
    app = open_shop()
    queue(app)

    assert "_built" not in vars(app.extensions["mailer"].outbound)


def test_threads_that_need_it_at_once(open_shop: OpenShop) -> None:
    """They share what is built."""
    outbound, barrier = open_shop().extensions["mailer"].outbound, Barrier(8)

    def build(_number: int) -> object:
        barrier.wait()
        return outbound.dispatcher

    with ThreadPoolExecutor(8) as threads:
        assert len({id(built) for built in threads.map(build, range(8))}) == 1


def test_a_worker_builds_it_before_its_pool_forks(open_shop: OpenShop) -> None:
    """The processes of a pool share the flags of the worker, and the memory."""
    app = open_shop()

    class Worker:
        app: Any
        hostname = "worker"

    worker = Worker()
    worker.app = app.extensions["celery"]
    MailerStep(worker).create(worker)

    assert "_built" in vars(app.extensions["mailer"].outbound)
