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
    """Return the Celery app of an application."""
    return Celery("theirs", broker="memory://", set_as_current=False)


@pytest.fixture
def other_database_url(sqlite_databases: Databases) -> Iterator[str]:
    with sqlite_databases.migrated() as url:
        yield url


@pytest.fixture
def make_shop(config: dict[str, str]) -> Iterator[MakeShop]:
    """Yield a function that makes a shop with the application's own Celery app."""
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
    """Call a task of this Celery app in this process, as a worker does."""
    celery.tasks[name]()


def test_they_are_tasks_of_the_current_celery_app(open_shop: OpenShop) -> None:
    """`from mailer.tasks import send_email` gives a task of the current Celery app."""
    for shop in (open_shop(), open_shop()):
        celery = shop.extensions["celery"]
        celery.set_current()
        for task in (tasks.send_email, tasks.sweep, tasks.purge):
            assert task.app is celery
            assert task.name in TASKS


def test_a_task_delivers_the_mail_of_its_celery_app(
    open_shop: OpenShop, other_database_url: str
) -> None:
    """A task delivers the mail of its own Celery app, whichever app is current."""
    one, other = open_shop(), open_shop(MAILER_DATABASE_URL=other_database_url)
    mine, yours = queue(one), queue(other)

    run(one.extensions["celery"])

    assert (status_of(one, mine), status_of(other, yours)) == (Status.SENT, Status.QUEUED)


def test_flask_apps_that_share_a_celery_app(
    make_shop: MakeShop, celery: Celery[Any], other_database_url: str
) -> None:
    """The tasks of a shared Celery app deliver the mail of all its Flask apps."""
    shops = make_shop(celery), make_shop(celery, MAILER_DATABASE_URL=other_database_url)
    mails = [queue(shop) for shop in shops]

    run(celery)

    assert [status_of(*pair) for pair in zip(shops, mails, strict=True)] == [Status.SENT] * 2
    assert celery.steps["worker"] == {"mailer.celery.maintenance:MailerStep"}


def test_one_flask_app_that_fails_delays_no_other(
    make_shop: MakeShop,
    celery: Celery[Any],
    other_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error in the delivery of one Flask app is raised after the others have delivered."""
    broken, sound = make_shop(celery), make_shop(celery, MAILER_DATABASE_URL=other_database_url)
    mail = queue(sound)

    def fail(**_limits: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(broken.extensions["mailer"].outbound.dispatcher, "deliver", fail)

    with pytest.raises(RuntimeError, match="out of order"):
        run(celery)

    assert status_of(sound, mail) is Status.SENT


def test_a_celery_app_that_no_mailer_knows(open_shop: OpenShop, celery: Celery[Any]) -> None:
    """A task of a Celery app without a Mailer raises an error that tells how to connect them."""
    open_shop()

    with pytest.raises(ConfigurationError, match=r"'theirs' delivers no mail.* Set app.extensions"):
        run(celery)


def test_a_celery_app_is_finalized_when_it_wants_to(
    make_shop: MakeShop, celery: Celery[Any]
) -> None:
    """The tasks keep their own options whether the Celery app is finalized early or late."""
    make_shop(celery)
    assert not vars(celery)["finalized"]
    early: Celery[Any] = Celery("early", broker="memory://", set_as_current=False)
    early.finalize()
    make_shop(early)

    for one in (celery, early):
        assert all(one.tasks[name].soft_time_limit == 86400 for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_call_by_hand(open_shop: OpenShop, name: str) -> None:
    """A worker takes a task called with `delay()`, and refuses one with other time limits."""
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
    """A process that only queues mail builds no relays, signers or shared memory."""
    app = open_shop()
    queue(app)

    assert "_built" not in vars(app.extensions["mailer"].outbound)


def test_threads_that_need_it_at_once(open_shop: OpenShop) -> None:
    """Threads that need the dispatcher at the same moment share one."""
    outbound, barrier = open_shop().extensions["mailer"].outbound, Barrier(8)

    def build(_number: int) -> object:
        barrier.wait()
        return outbound.dispatcher

    with ThreadPoolExecutor(8) as threads:
        assert len({id(built) for built in threads.map(build, range(8))}) == 1


def test_a_worker_builds_it_before_its_pool_forks(open_shop: OpenShop) -> None:
    """A worker builds the dispatcher before its pool forks, so that children share its memory."""
    app = open_shop()

    class Worker:
        app: Any
        hostname = "worker"

    worker = Worker()
    worker.app = app.extensions["celery"]
    MailerStep(worker).create(worker)

    assert "_built" in vars(app.extensions["mailer"].outbound)
