"""`@mailer.background`: functions of the application that workers run."""

import datetime as dt
import decimal
import json
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis
from celery import Celery, Task, chain, group
from celery.contrib.testing.worker import start_worker
from flask import Flask, current_app, g, request, session
from flask_mail import Message
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mailer import BrokerUnavailable, ConfigurationError, InvalidArgument, Mailer, MailerError
from mailer.background import BackgroundFunction
from mailer.celery.app import installed
from tests.application import create_app, write_note
from tests.services.broker import RedisServer
from tests.services.databases import Databases, sqlite_only
from tests.services.loggers import logging_left_alone
from tests.services.ports import free_port
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker
from tests.shop import OpenShop, close

pytestmark = sqlite_only

mailer = Mailer()
calls: list[tuple[Any, ...]] = []


@mailer.background
def note(*args: Any, **kwargs: Any) -> str:
    """Note a call with its app and its thread."""
    calls.append((current_app.name, threading.current_thread().name, args, kwargs))
    return "noted"


@mailer.background
def greet(name: str, *, greeting: str = "Hello") -> str:
    """Greet somebody."""
    return f"{greeting} {name}"


@mailer.background
def fail() -> None:
    raise LookupError("no such order")


@pytest.fixture(autouse=True)
def _no_calls(databases: Databases) -> None:
    calls.clear()


# --- the function -------------------------------------------------------------------------------


def test_the_function_itself() -> None:
    """The function is reachable, and its name, docstring and signature are those of the task."""
    assert greet.run("Ada") == greet.__wrapped__("Ada") == "Hello Ada"  # type: ignore[attr-defined]
    assert (greet.__name__, greet.__doc__) == ("greet", "Greet somebody.")  # type: ignore[attr-defined]
    assert greet.name == f"{__name__}.greet"
    assert repr(greet) == f"<background function {__name__}.greet>"


@pytest.mark.parametrize(
    ("spec", "name"),
    [(None, "app.work"), (ModuleSpec("shop.app", None), "shop.app.work")],
    ids=["python app.py", "python -m shop.app"],
)
def test_a_program_that_is_run(
    spec: ModuleSpec | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of the program that runs has the name by which a worker imports it."""
    program = ModuleType("__main__")
    program.__file__, program.__spec__ = "/srv/shop/app.py", spec
    monkeypatch.setitem(sys.modules, "__main__", program)
    exec("def work():\n    pass\n", vars(program))  # noqa: S102 -- as Python runs a program

    assert mailer.background(program.work).name == name


_theirs: Any = Celery("theirs", set_as_current=False)
THEIR_TASK = _theirs.task(greet.run, shared=False)


async def wait_for_it() -> None:
    pass


class Account:
    def close(self, reason: str) -> None:
        pass

    async def wait(self) -> None:
        pass

    @classmethod
    def close_all(cls, reason: str) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (5, "background: 5 is not a function. Write @mailer.background, or"),
        (greet, "is a Celery task already. Use one of the two decorators."),
        (THEIR_TASK, "is a Celery task already"),
        (wait_for_it, "is async, and workers run no event loop."),
        (lambda: None, "has no name that a worker could find. Define it with def, or give a name"),
        (partial(print), "has no name that a worker could find."),
        (Account.close, "is a method, and a worker has no object to call it with. Define a"),
        (Account.close_all.__func__, "is a method"),  # type: ignore[attr-defined]
        (staticmethod(Account.wait), "is async"),
    ],
    ids=[
        *("number", "twice", "task", "async", "lambda", "partial", "method", "classmethod"),
        "async staticmethod",
    ],
)
def test_no_background_function(function: Any, words: str) -> None:
    """An object that can't be a function for workers is refused where it is decorated."""
    with pytest.raises(InvalidArgument, match=r"^background: ") as refused:
        mailer.background(function)

    assert words in str(refused.value)
    assert isinstance(refused.value, (MailerError, TypeError))


def test_functions_of_a_class(quiet_shop: Flask) -> None:
    """A static method is a background function, in either order of the decorators."""

    class Parcel:
        @staticmethod
        @mailer.background
        def pack(number: int) -> int:
            return number

        @mailer.background
        @staticmethod
        def send(number: int) -> int:
            return number

        @mailer.background(bind=True)
        def track(self: Any, number: int) -> tuple[str, int]:
            return self.name, number

    assert (Parcel.pack(1).get(), Parcel().pack(2).get()) == (1, 2)
    assert (Parcel.send(3).get(), Parcel().send(4).get()) == (3, 4)
    name = f"{__name__}.test_functions_of_a_class.Parcel.track"
    assert Parcel().track.apply_async([5]).get() == (name, 5)


# --- in tests -----------------------------------------------------------------------------------


@pytest.fixture
def quiet_shop(open_shop: OpenShop) -> Iterator[Flask]:
    """Return an app with TESTING, whose broker is nowhere, in its context."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    shop = open_shop(TESTING=True, MAIL_SUPPRESS_SEND=True, MAILER_REDIS_URL=url)
    with shop.test_request_context():
        yield shop


def test_it_runs_at_once_in_tests(quiet_shop: Flask) -> None:
    """With TESTING, a call runs in the calling thread, and needs no broker."""
    results = [note(1), note.delay(2), note.apply_async([3], {"a": 4}, countdown=60)]

    here = (quiet_shop.name, threading.current_thread().name)
    assert calls == [(*here, (1,), {}), (*here, (2,), {}), (*here, (3,), {"a": 4})]
    assert [result.get() for result in results] == ["noted"] * 3


def test_its_errors_are_seen_in_tests(quiet_shop: Flask) -> None:
    """With TESTING, an exception of the function reaches the caller."""
    with pytest.raises(LookupError, match="no such order"):
        fail()


def test_it_has_a_context_of_its_own(quiet_shop: Flask) -> None:
    """With TESTING, the function shares no `g` with its caller, as on a worker."""
    found: list[bool] = []

    @mailer.background
    def look() -> None:
        found.append("user" in g)
        g.user = "Bob"

    g.user = "Ada"
    look()

    assert (found, g.user) == ([False], "Ada")


def test_its_arguments_are_those_of_a_worker(quiet_shop: Flask) -> None:
    """With TESTING, arguments arrive as a message would carry them."""
    carried: list[Any] = [
        *(None, True, 5, 0.5, "Ä", [1], {"a": None}, b"x"),
        *(uuid.UUID(int=5), decimal.Decimal("1.10"), dt.date(2026, 1, 2)),
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    ]

    note(*carried, (1, 2), {3: 4})

    [(_, _, args, _)] = calls
    assert args == (*carried, [1, 2], {"3": 4})


def test_retries(quiet_shop: Flask) -> None:
    """With TESTING, a task that is retried runs again at once, until it gives up."""
    tries: list[tuple[str, str, int]] = []

    @mailer.background(bind=True, name="shop.tasks.persist", max_retries=3)
    def persist(task: Any, word: str, enough: int) -> str:
        tries.append((task.name, word, task.request.retries))
        if task.request.retries < enough:
            raise task.retry(exc=OSError("again"), countdown=60)
        return word

    @mailer.background(autoretry_for=(OSError,), max_retries=1)
    def insist() -> None:
        tries.append(("insist", "", 0))
        raise OSError("never")

    assert persist.apply_async(["x", 2]).get() == "x"
    assert tries == [("shop.tasks.persist", "x", number) for number in range(3)]
    with pytest.raises(OSError, match="again"):
        persist.apply_async(["x", 4])
    tries.clear()
    with pytest.raises(OSError, match="never"):
        insist()
    assert len(tries) == 2


def test_retries_without_an_end(quiet_shop: Flask) -> None:
    """With TESTING, a function that may be retried for ever ends after a hundred retries."""
    tries: list[int] = []

    @mailer.background(bind=True, max_retries=None)
    def wait_for_ever(task: Any) -> None:
        tries.append(task.request.retries)
        raise task.retry(countdown=30)

    with pytest.raises(ConfigurationError, match=r"retried 100 times in this test.* a limit: max"):
        wait_for_ever.apply_async()
    assert tries == list(range(101))


def test_many_retries_with_an_end(quiet_shop: Flask) -> None:
    """With TESTING, a function whose limit is higher than a hundred is retried so often."""

    @mailer.background(bind=True, max_retries=101)
    def wait_long(task: Any) -> int:
        if task.request.retries < 101:
            raise task.retry(countdown=30)
        return int(task.request.retries)

    assert wait_long.apply_async().get() == 101


def test_links(quiet_shop: Flask) -> None:
    """With TESTING, the tasks that are linked to a call run at once, and so do theirs."""
    celery: Celery[Any] = quiet_shop.extensions["celery"]
    told: list[Any] = []

    @celery.task
    def tell(value: object) -> str:
        told.append(value)
        return "told"

    @celery.task(autoretry_for=(OSError,), max_retries=1)
    def insist(value: object) -> None:
        told.append(("try", value))
        raise OSError("never")

    result = note.apply_async([1], link=tell.s().set(link=[tell.s()]), task_id="first")
    assert (result.get(), result.id) == ("noted", "first")
    assert told == ["noted", "told"]
    told.clear()
    with pytest.raises(OSError, match="never"):
        note.apply_async([1], link=[dict(tell.s()), insist.s()], link_error=tell.s())
    assert told == ["noted", ("try", "noted"), ("try", "noted")]
    told.clear()
    with pytest.raises(LookupError, match="no such order"):
        fail.apply_async(link=tell.s(), link_error=tell.s(), task_id="second")
    assert told == ["second"]


@pytest.mark.parametrize("eager", [False, True], ids=["testing", "eager"])
def test_a_factory_that_is_called_for_each_test(
    config: dict[str, str], redis_url: str, eager: bool
) -> None:
    """A call runs in the calling app, also if others like it share its Celery app."""
    apps: list[Flask] = []

    class FlaskTask(Task):  # type: ignore[type-arg]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with apps[0].app_context():
                return self.run(*args, **kwargs)

    found: list[Flask] = []

    @mailer.background
    def look() -> None:
        found.append(current_app._get_current_object())  # type: ignore[attr-defined]

    celery = their_celery(redis_url, task_cls=FlaskTask)
    celery.conf.task_always_eager = eager
    settings = {"TESTING": not eager, "MAIL_SUPPRESS_SEND": not eager}
    with ExitStack() as stack:
        apps += [stack.enter_context(app_with(celery, config, **settings)) for _ in range(3)]
        for app in apps:
            with app.app_context():
                look()
    assert found == apps


def test_a_task_that_is_called_without_us(config: dict[str, str], redis_url: str) -> None:
    """A task that is called by Celery's own methods runs in the current app as well."""
    found: list[Flask] = []

    @mailer.background
    def look() -> None:
        found.append(current_app._get_current_object())  # type: ignore[attr-defined]

    celery = their_celery(redis_url)
    with app_with(celery, config) as app, app_with(celery, config) as other:
        for one in (app, other):
            with one.app_context():
                celery.tasks[look.name]()
                celery.tasks[look.name].apply(throw=True)
        stranger = Flask("stranger")
        with stranger.app_context(), pytest.raises(ConfigurationError, match="2 Flask apps share"):
            celery.tasks[look.name]()

    assert found == [app, app, other, other]


@pytest.mark.parametrize("eager", [False, True], ids=["testing", "eager"])
def test_a_function_that_is_defined_in_a_factory(
    config: dict[str, str], redis_url: str, eager: bool
) -> None:
    """A call runs the function that is called, even if a later one has taken its name."""

    def make_who(word: str) -> BackgroundFunction[[], str]:
        @mailer.background
        def who() -> str:
            return word

        return who

    celery = their_celery(redis_url)
    celery.conf.task_always_eager = eager
    settings = {"TESTING": not eager, "MAIL_SUPPRESS_SEND": not eager}
    with app_with(celery, config, **settings) as app, app.app_context():
        one, other = make_who("one"), make_who("other")
        assert [who().get() for who in (one, other, one)] == ["one", "other", "one"]


def test_suppressed_mail_moves_no_work(open_shop: OpenShop) -> None:
    """With MAIL_SUPPRESS_SEND alone, as on a staging server, calls go to the workers."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    shop = open_shop(MAIL_SUPPRESS_SEND=True, MAILER_REDIS_URL=url)

    with shop.app_context(), pytest.raises(BrokerUnavailable, match="the call is not queued"):
        note(1)

    assert calls == []


def test_eager_mode(open_shop: OpenShop) -> None:
    """In Celery's eager mode a call needs no broker, and an error is that of the function."""

    @mailer.background
    def write() -> None:
        raise OSError("disk full")

    url = f"redis://127.0.0.1:{free_port()}/0"
    shop = open_shop(MAILER_REDIS_URL=url)
    shop.extensions["celery"].conf.task_always_eager = True

    with shop.app_context():
        assert note(1).get() == "noted"
        assert isinstance(write().result, OSError)
        shop.extensions["celery"].conf.task_eager_propagates = True
        with pytest.raises(OSError, match="disk full"):
            write()


def test_a_serializer_that_is_not_there(shop: Flask) -> None:
    """A serializer that is not installed is named, and no argument is blamed."""
    with shop.app_context(), pytest.raises(InvalidArgument, match="no serializer 'yoml'"):
        note.apply_async([1], serializer="yoml")


# --- arguments ----------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    number: Mapped[int] = mapped_column("id", primary_key=True)


ANY = "Pass texts, numbers, dates, and lists and dicts of them."


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            current_app._get_current_object,  # type: ignore[attr-defined]
            "of the type Flask. Leave it out: the function runs in an app context, where current",
        ),
        (lambda: current_app, "of the type Flask. Leave it out"),
        (lambda: request, "of the type Request. The request is over when the function runs"),
        (lambda: session, "The request is over when the function runs"),
        (lambda: g, "The request is over when the function runs"),
        (
            lambda: Message("Hello", ["ada@example.com"]),
            "of the type Message. Call mailer.enqueue(message) instead",
        ),
        (
            lambda: User(number=5),
            "Pass name.number, and load the object in the function: db.session.get(User, …).",
        ),
        (lambda: {1}, f"of the type set. {ANY}"),
        (object, f"of the type object. {ANY}"),
    ],
    ids=["app", "proxy", "request", "session", "g", "message", "model", "set", "object"],
)
def test_an_argument_that_cannot_be_sent(
    shop: Flask, value: Callable[[], object], words: str
) -> None:
    """An argument that no message carries is refused at the call, with the remedy."""
    with shop.test_request_context(), pytest.raises(InvalidArgument) as refused:
        greet(value())  # type: ignore[arg-type]

    assert str(refused.value).startswith(f"{greet.name}: name can't be sent to a worker: it is")
    assert words in str(refused.value)


def test_where_it_is(shop: Flask) -> None:
    """The error names the place of the argument, also in lists and dicts."""
    places: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "args[1]": ([1, object()], {}),
        "kwargs['a'][0]": ([], {"a": [object()]}),
        "args[0]['x'][1]": ([{"x": [1, object()]}], {}),
    }
    for place, (args, kwargs) in places.items():
        with pytest.raises(InvalidArgument, match=rf": {re.escape(place)} can't be sent"):
            note(*args, **kwargs)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="can't be sent to a worker: it is of the type list"):
        note(endless)


def test_arguments_that_do_not_fit(shop: Flask) -> None:
    """A call with too few or unknown arguments fails as that of a plain function."""
    with pytest.raises(TypeError, match="missing a required argument: 'name'"):
        greet()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'language'"):
        greet("Ada", language="en")  # type: ignore[call-arg]


def test_without_an_app_context() -> None:
    """A call outside an app context says so, as those of Flask do."""
    with pytest.raises(RuntimeError, match="application context"):
        greet("Ada")


# --- the way to a worker ------------------------------------------------------------------------


def broker_of(redis_url: str) -> str:
    return redis_url.replace("unix://", "redis+socket://")


@contextmanager
def app_with(celery: Celery[Any], config: dict[str, str], **changes: object) -> Iterator[Flask]:
    """Yield an app with a Celery app of the application's own."""
    app = Flask("theirs")
    app.config.from_mapping({**config, **changes})
    app.extensions["celery"] = celery
    Mailer(app)
    yield app
    app.extensions["mailer"].outbound.dispatcher.hang_up()
    close(app)


def their_celery(redis_url: str, **options: Any) -> Celery[Any]:
    return Celery("theirs", broker=broker_of(redis_url), set_as_current=False, **options)


def queued(redis_url: str, queue: str) -> list[str]:
    """Return the names of the tasks in a queue."""
    with redis.Redis.from_url(redis_url) as client:
        messages: Any = client.lrange(queue, 0, -1)
    return [json.loads(message)["headers"]["task"] for message in messages]


def test_the_queue(shop: Flask, redis_url: str) -> None:
    """A call goes to the default queue of our Celery app, or to the one that is named."""
    greet("Ada")
    greet.apply_async(["Ada"], queue="slow")
    mailer.background(queue="slower", name="greet_slowly")(greet.run)("Ada")

    own = shop.extensions["mailer"].settings.queue_name
    assert queued(redis_url, own) == queued(redis_url, "slow") == [greet.name]
    assert queued(redis_url, "slower") == ["greet_slowly"]


def test_the_queue_of_their_celery_app(config: dict[str, str], redis_url: str) -> None:
    """A call goes to the default queue of the application's own Celery app, as its routes say."""
    celery = their_celery(redis_url)
    celery.conf.task_default_queue = "theirs"
    celery.conf.task_routes = {"greet_slowly": {"queue": "slow"}}
    slowly = mailer.background(name="greet_slowly")(greet.run)

    with app_with(celery, config) as app, app.app_context():
        greet("Ada")
        slowly("Ada")

    assert queued(redis_url, "theirs") == [greet.name]
    assert queued(redis_url, "slow") == ["greet_slowly"]


def test_the_connection_of_the_caller(config: dict[str, str], redis_server: RedisServer) -> None:
    """A call goes through the connection or the producer that it brings, or None of them."""
    broker, other = f"{broker_of(redis_server.url)}?virtual_host=1", f"{redis_server.url}?db=1"
    with app_with(their_celery(redis_server.url), config) as app, app.app_context():
        greet.apply_async(["Ada"], connection=None, producer=None)
        assert queued(redis_server.url, "celery") == [greet.name]

        celery: Celery[Any] = app.extensions["celery"]
        with celery.connection_for_write(broker) as connection:
            greet.apply_async(["Ada"], connection=connection)
            greet.apply_async(["Ada"], producer=celery.amqp.Producer(connection))

    assert queued(redis_server.url, "celery") == [greet.name]
    assert queued(other, "celery") == [greet.name] * 2


def test_no_broker(open_shop: OpenShop, config: dict[str, str]) -> None:
    """Without a broker the call raises, in our Celery app and in that of the application."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    shop = open_shop(MAILER_REDIS_URL=url)
    with shop.test_request_context(), pytest.raises(BrokerUnavailable) as raised:
        greet("Ada")
    assert str(raised.value).startswith(
        f"{greet.name}: the call is not queued, since the broker does not answer:"
    )
    assert isinstance(raised.value, ConnectionError)

    with (
        app_with(Celery("theirs", broker=url, set_as_current=False), config) as app,
        app.app_context(),
        pytest.raises(BrokerUnavailable),
    ):
        greet("Ada")


def test_a_broker_that_hangs(
    open_shop: OpenShop, config: dict[str, str], redis_server: RedisServer
) -> None:
    """A call does not wait for a frozen Redis without an end, whatever the application has set."""
    config["MAILER_REDIS_URL"] = redis_server.url
    shop = open_shop()
    with app_with(their_celery(redis_server.url), config) as app:
        redis_server.pause()
        for one in (shop, app):
            with one.app_context(), pytest.raises(BrokerUnavailable):
                greet("Ada")
        redis_server.resume()
        with app.app_context():
            greet("Ada")

    assert queued(redis_server.url, "celery") == [greet.name]


def test_a_celery_app_that_came_too_late(shop: Flask, redis_url: str) -> None:
    """A call says that app.extensions['celery'] was set after Mailer(app)."""
    shop.extensions["celery"] = their_celery(redis_url)

    with pytest.raises(ConfigurationError, match="was set after Mailer"):
        greet("Ada")


# --- on a worker --------------------------------------------------------------------------------


def test_a_real_worker(
    make_app: Callable[..., Flask], start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker runs the function in an app context, and goes on after one that fails."""
    start_worker(pool="prefork", concurrency=1)
    first, second = tmp_path / "first", tmp_path / "second"

    with make_app().test_request_context():
        write_note(str(tmp_path / "no" / "such" / "folder"), "lost")
        write_note(str(first), "Hello")
        write_note.delay(str(second), text="Bye")

    wait_until(lambda: second.exists() and second.read_text(), timeout=30)
    assert first.read_text() == "tests.application: Hello"
    assert second.read_text() == "tests.application: Bye"


@contextmanager
def working(app: Flask) -> Iterator[None]:
    """Run a worker of this app's Celery app in a thread."""
    celery = app.extensions["celery"]
    worker = start_worker(celery, perform_ping_check=False, shutdown_timeout=60)
    with logging_left_alone(), worker:
        yield


def test_a_function_that_is_defined_late(config: dict[str, str]) -> None:
    """A function reaches Celery apps that exist already, and the last definition counts."""
    app = create_app(config)
    app.extensions["celery"].finalize()

    def define(word: str) -> BackgroundFunction[[], None]:
        @mailer.background
        def say() -> None:
            calls.append((word,))

        return say

    define("first")
    say = define("last")
    with app.app_context(), working(app):
        say()
        wait_until(lambda: calls)
    close(app)

    assert calls == [("last",)]


def test_the_context_of_their_task_class(config: dict[str, str], redis_url: str) -> None:
    """If the task class of the application enters its context, the function runs in that one."""

    class FlaskTask(Task):  # type: ignore[type-arg]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                g.tenant = "example.com"
                return self.run(*args, **kwargs)

    found = []

    @mailer.background
    def look() -> None:
        found.append((current_app.name, g.get("tenant")))

    celery = their_celery(redis_url, task_cls=FlaskTask)
    with app_with(celery, config) as app, app.app_context(), working(app):
        look()
        wait_until(lambda: found)

    assert found == [("theirs", "example.com")]


def test_several_apps_of_one_celery_app(
    config: dict[str, str], redis_url: str, sqlite_databases: Databases
) -> None:
    """A worker runs a call in the app that queued it."""
    celery = their_celery(redis_url)
    with (
        sqlite_databases.migrated() as other_url,
        app_with(celery, config) as app,
        app_with(celery, config, MAILER_DATABASE_URL=other_url) as other,
    ):
        other.name = "other"
        apps = [outbound.app for outbound in installed(celery)]
        with working(app):
            for one in (other, app):
                with one.app_context():
                    note()
            wait_until(lambda: len(calls) == 2)

    assert apps == [app, other]
    assert sorted(call[0] for call in calls) == ["other", "theirs"]


@mailer.background
def plus(number: int, more: int) -> int:
    assert current_app.name == "other"
    return number + more


@mailer.background(queue="celery")
def hear(number: int, *, of: str) -> None:
    calls.append((of, number, current_app.name))


def test_calls_that_celery_sends(config: dict[str, str], redis_url: str) -> None:
    """Of several apps of a Celery app, linked tasks, chains and groups run in that of the call."""
    celery = their_celery(redis_url)

    @celery.task(name="theirs", shared=False)
    def return_it(number: int) -> int:
        return number

    with app_with(celery, config) as app, app_with(celery, config) as other, working(app):
        app.name, other.name = "app", "other"
        with other.app_context():
            plus.apply_async([3, 4], link=hear.s(of="link"))
            chain(plus.s(3, 4), plus.s(5), hear.s(of="chain")).apply_async()
            chain(celery.tasks["theirs"].s(1), hear.s(of="a task of theirs")).apply_async()
            group(hear.si(one, of="group") for one in (1, 2)).apply_async()
            hear.signature((1,), {"of": "signature"}, countdown=0).delay()
            # Signatures of Celery name no app.
            theirs = celery.tasks[hear.name].s
            plus.apply_async([3, 4], link=theirs(of="their link"))
            chain(celery.tasks[plus.name].s(3, 4), theirs(of="their chain")).apply_async()
            group(theirs(one, of="their group") for one in (1, 2)).apply_async()
        wait_until(lambda: len(calls) == 10)

    assert sorted(calls) == [
        ("a task of theirs", 1, "other"),
        ("chain", 12, "other"),
        ("group", 1, "other"),
        ("group", 2, "other"),
        ("link", 7, "other"),
        ("signature", 1, "other"),
        ("their chain", 7, "other"),
        ("their group", 1, "other"),
        ("their group", 2, "other"),
        ("their link", 7, "other"),
    ]
