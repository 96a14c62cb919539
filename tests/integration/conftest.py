"""What the integration tests share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mailer import delivery
from mailer.blackbox import BlackBox
from mailer.delivery import Courier, Office
from mailer.extension import _flask_mail_state
from mailer.settings import Settings
from mailer.smtp import Relay
from mailer.store import Store
from mailer.throttle import Throttle
from tests.services.couriers import Clock, CountingBell, MakeCourier, OpenCourier
from tests.services.relay import LONG, TIMEOUTS, RawServer, make_relay
from tests.services.sink import Sink
from tests.shop import OpenShop, close, create_shop


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
            stack.callback(relay.hang_up)
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
    monkeypatch.setattr(delivery.round, "time", clock)
    monkeypatch.setattr(delivery.settling, "time", clock)
    return clock


@pytest.fixture
def bell() -> CountingBell:
    return CountingBell()


@pytest.fixture
def black_box(tmp_path: Path) -> BlackBox:
    return BlackBox(tmp_path / "black-box")


@pytest.fixture
def make_courier(
    store: Store, relay_to: Callable[..., Relay], sink: Sink, bell: CountingBell, clock: Clock, black_box: BlackBox
) -> MakeCourier:
    """`make_courier(windows_of=20, **config)`: one that delivers to the sink, and thinks that so many mails make a window."""

    def make_courier(*, windows_of: int = 20, **config: Any) -> Courier:
        relay = relay_to(sink, **config)
        settings = relay.settings
        assert isinstance(settings, Settings)  # of the app's own keys
        courier = Courier(Office(settings, store, None, Throttle(settings, None), black_box), [relay], bell)
        for pace in (courier._pace, *courier._paces.values()):
            pace.seconds_per_mail = 0.05 / windows_of
        return courier

    return make_courier


@pytest.fixture
def backup() -> Iterator[Sink]:
    """A second relay; `sink` is the first."""
    with Sink() as server:
        yield server


@pytest.fixture
def open_courier(store: Store, database_url: str, bell: CountingBell, clock: Clock, black_box: BlackBox) -> Iterator[OpenCourier]:
    """`open_courier({"name": …}, …, redis_url=, **config)`: one more process, with the relays of these entries of MAILER_RELAYS.

    Of what the others know, it sees what is in the database and in Redis.
    """
    with ExitStack() as stack:

        def open_courier(*entries: Mapping[str, object], redis_url: str | None = None, **config: object) -> Courier:
            given = {"MAILER_RELAYS": list(entries), **dict.fromkeys(TIMEOUTS, LONG), **config}
            settings = Settings.load(given, {}, default_database_url=database_url)
            own_store = Store(database_url)
            stack.callback(own_store.engine.dispose)
            relays = [Relay(one, Flask("tests"), _flask_mail_state(settings)) for one in settings.relays]
            courier = Courier(Office(settings, own_store, None, Throttle(settings, redis_url), black_box), relays, bell)
            stack.callback(courier.hang_up)
            return courier

        yield open_courier


@pytest.fixture
def open_shop(config: Mapping[str, object]) -> Iterator[OpenShop]:
    """`open_shop(**config)`: one more application that queues mail."""
    with ExitStack() as stack:

        def open_shop(**changes: object) -> Flask:
            app = create_shop({**config, **changes})
            stack.callback(close, app)
            return app

        yield open_shop


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Flask]:
    """The application, in a context of its own: as in `flask shell` and in a script."""
    app = open_shop()
    with app.app_context():
        yield app
