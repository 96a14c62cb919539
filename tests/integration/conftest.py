"""What the integration tests share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask

from mailer import delivery
from mailer.delivery import Courier
from mailer.smtp import Relay
from mailer.store import Store
from tests.services.couriers import Clock, CountingBell, MakeCourier
from tests.services.relay import RawServer, make_relay
from tests.services.sink import Sink
from tests.shop import OpenShop, create_shop, store_of


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The test runs once on SQLite and once on PostgreSQL."""
    store = Store(database_url)
    yield store
    store.engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """One for a file of many small tests, which empty it: making a database takes longer than any of them."""
    databases = request.getfixturevalue({"sqlite": "sqlite_databases", "postgresql": "postgres_databases"}[request.param])
    with databases.migrated() as url:
        store = Store(url)
        yield store
        store.engine.dispose()


@pytest.fixture
def relay_to() -> Iterator[Callable[..., Relay]]:
    """`relay_to(server, **config)`: the client of a server; its connections are closed after the test."""
    with ExitStack() as stack:

        def relay_to(server: Sink | RawServer, **config: Any) -> Relay:
            relay = make_relay(server.host, server.port, **config)
            stack.callback(relay.close_idle)
            return relay

        yield relay_to


@pytest.fixture
def answering() -> Iterator[Callable[..., RawServer]]:
    """`answering(MAIL=b"…")`: a server that replies so, byte for byte."""
    with ExitStack() as stack:
        yield lambda **replies: stack.enter_context(RawServer(**replies))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(delivery, "time", clock)
    return clock


@pytest.fixture
def bell() -> CountingBell:
    return CountingBell()


@pytest.fixture
def make_courier(store: Store, relay_to: Callable[..., Relay], sink: Sink, bell: CountingBell, clock: Clock) -> MakeCourier:
    """`make_courier(windows_of=20, **config)`: one that delivers to the sink, and thinks that so many mails make a window."""

    def make_courier(*, windows_of: int = 20, **config: Any) -> Courier:
        relay = relay_to(sink, **config)
        courier = Courier(relay._settings, store, relay, bell)
        courier._seconds_per_mail = 0.05 / windows_of
        return courier

    return make_courier


@pytest.fixture
def open_shop(config: Mapping[str, object]) -> Iterator[OpenShop]:
    """`open_shop(**config)`: one more application that queues mail."""
    with ExitStack() as stack:

        def open_shop(**changes: object) -> Flask:
            app = create_shop({**config, **changes})
            stack.callback(store_of(app).engine.dispose)
            return app

        yield open_shop


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Flask]:
    """The application, in a context of its own: as in `flask shell` and in a script."""
    app = open_shop()
    with app.app_context():
        yield app
