"""Fixtures of the integration tests."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mailer.blackbox import BlackBox
from mailer.clock import SystemClock
from mailer.delivery import Dispatcher, Services
from mailer.delivery.personal import PersonalMail
from mailer.disk import SystemDisk
from mailer.dropin import flask_mail_state
from mailer.settings import Settings
from mailer.smtp import Relay
from mailer.store import Store
from mailer.throttle import Throttle
from tests.services.dispatchers import Clock, CountingBell, MakeDispatcher, OpenDispatcher
from tests.services.relay import LONG, TIMEOUTS, RawServer, make_relay
from tests.services.sink import Sink
from tests.shop import OpenShop, close, create_shop


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Run the test once on SQLite and once on PostgreSQL."""
    store = Store(database_url)
    yield store
    store.engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "memory"])
def shared_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Share a database between the small tests of a file, which empty it themselves.

    One of them is in memory, as in the tests of applications: it keeps the same promises.
    """
    with ExitStack() as stack:
        url = "sqlite://"
        if request.param != "memory":
            databases = request.getfixturevalue(
                {"sqlite": "sqlite_databases", "postgresql": "postgres_databases"}[request.param]
            )
            url = stack.enter_context(databases.migrated())
        store = Store(url)
        stack.callback(store.engine.dispose)
        store.check_schema()
        yield store


@pytest.fixture
def relay_to() -> Iterator[Callable[..., Relay]]:
    """Return `relay_to(server, **config)`, which makes the client of a server."""
    with ExitStack() as stack:

        def relay_to(server: Sink | RawServer, **config: Any) -> Relay:
            relay = make_relay(server.host, server.port, **config)
            stack.callback(relay.hang_up)
            return relay

        yield relay_to


@pytest.fixture
def answering() -> Iterator[Callable[..., RawServer]]:
    """Return `answering(MAIL=b"…")`, which starts a server with these replies."""
    with ExitStack() as stack:
        yield lambda **replies: stack.enter_context(RawServer(**replies))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bell() -> CountingBell:
    return CountingBell()


@pytest.fixture
def black_box(tmp_path: Path) -> BlackBox:
    return BlackBox(tmp_path / "black-box", SystemDisk(), SystemClock())


@pytest.fixture
def make_dispatcher(
    store: Store,
    relay_to: Callable[..., Relay],
    sink: Sink,
    bell: CountingBell,
    clock: Clock,
    black_box: BlackBox,
) -> MakeDispatcher:
    """Return `make_dispatcher(windows_of=20, **config)`, which delivers to the sink.

    `windows_of` is the number of mails that its pace allows in a window.
    """

    def make_dispatcher(*, windows_of: int = 20, **config: Any) -> Dispatcher:
        relay = relay_to(sink, **config)
        settings = relay.settings
        assert isinstance(settings, Settings)  # a relay made from the app's MAIL_* keys
        throttle = Throttle(settings, None, SystemClock())
        personal = PersonalMail(Flask("tests"), settings, store)
        services = Services(settings, store, None, throttle, black_box, clock, personal)
        dispatcher = Dispatcher(services, [relay], bell)
        for pace in (dispatcher._pace, *(state.pace for state in dispatcher._states)):
            pace.seconds_per_mail = 0.05 / windows_of
        return dispatcher

    return make_dispatcher


@pytest.fixture
def backup() -> Iterator[Sink]:
    """Start a second relay; `sink` is the first."""
    with Sink() as server:
        yield server


@pytest.fixture
def open_dispatcher(
    store: Store, database_url: str, bell: CountingBell, clock: Clock, black_box: BlackBox
) -> Iterator[OpenDispatcher]:
    """Return `open_dispatcher({"name": …}, …, redis_url=, **config)`.

    It makes the dispatcher of one more process, with these relays, which shares only the database
    and Redis.
    """
    with ExitStack() as stack:

        def open_dispatcher(
            *entries: Mapping[str, object], redis_url: str | None = None, **config: object
        ) -> Dispatcher:
            given = {"MAILER_RELAYS": list(entries), **dict.fromkeys(TIMEOUTS, LONG), **config}
            settings = Settings.load(given, {}, default_database_url=database_url)
            own_store = Store(database_url)
            stack.callback(own_store.engine.dispose)
            relays = [
                Relay(one, Flask("tests"), flask_mail_state(settings)) for one in settings.relays
            ]
            throttle = Throttle(settings, redis_url, SystemClock())
            personal = PersonalMail(Flask("tests"), settings, own_store)
            services = Services(settings, own_store, None, throttle, black_box, clock, personal)
            dispatcher = Dispatcher(services, relays, bell)
            stack.callback(dispatcher.hang_up)
            return dispatcher

        yield open_dispatcher


@pytest.fixture
def open_shop(config: Mapping[str, object]) -> Iterator[OpenShop]:
    """Return `open_shop(**config)`, which makes one more application that queues mail."""
    with ExitStack() as stack:

        def open_shop(**changes: object) -> Flask:
            app = create_shop({**config, **changes})
            stack.callback(close, app)
            return app

        yield open_shop


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Flask]:
    """Make the application and enter its context, as `flask shell` or a script does."""
    app = open_shop()
    with app.app_context():
        yield app
