"""One suite for the parts of production and for those that stand in for them in tests.

The in-memory store, the inline delivery, `drain()` and the fake relay keep the same promises as
SQLite files, PostgreSQL, a worker that the bell calls over Redis, and a mail server of others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from mailer import KeyReused, Mailer, Receipt, Status, UnknownMail
from mailer.smtpd.faults import ACCEPT_AND_DROP, Fault, Stage
from mailer.testing import FakeRelay, Outbox
from tests.services.broker import RedisServer
from tests.services.databases import Databases
from tests.services.mail_servers import MailServer, running_postfix
from tests.services.relay import LONG
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import Fleet
from tests.shop import close, create_shop

HOUR = timedelta(hours=1)
NO_BROKER = "redis://127.0.0.1:1/0"
#: A deferred mail is due again at once, for a worker, whose clock nobody puts forward.
SOON = {"MAILER_RETRY_FIRST": "0.01", "MAILER_RETRY_JITTER": "0"}
#: Seconds after which a test fails that waits for a delivery.
PATIENCE = 30.0

_numbers = count(1)

mailer = Mailer()


@dataclass(frozen=True)
class World:
    """An application with its store, its bell and its relay."""

    app: Flask
    engine: Engine  #: the application's own
    relay: "FakeRelay | Sink | MailServer"
    #: Waits until the mail of these receipts has been tried.
    deliver: Callable[[Sequence[Receipt]], object]

    def script(self, recipient: str, action: str) -> None:
        """Let the relay answer in this way, once."""
        if isinstance(self.relay, MailServer):
            pytest.skip("A mail server of others has no script")
        if isinstance(self.relay, Sink):
            stage: Stage = "dot" if action == ACCEPT_AND_DROP else "rcpt"
            self.relay.faults.add(Fault(stage, action, recipient=recipient))
        elif action == ACCEPT_AND_DROP:
            self.relay.lose_reply(recipient)
        else:
            code, _, text = action.partition(" ")
            answer = self.relay.refuse if code[0] == "5" else self.relay.defer
            answer(recipient, int(code), text, times=1)

    def received(self, recipient: str) -> int:
        """Return how many mails to a recipient the relay has accepted."""
        if isinstance(self.relay, MailServer):
            relay = self.relay
            wait_until(lambda: recipient in relay.recipients(), PATIENCE)
            return relay.recipients().count(recipient)
        mails = self.relay.messages if isinstance(self.relay, Sink) else self.relay.mails
        return sum(recipient in mail.recipients for mail in mails)


# --- worlds -------------------------------------------------------------------------------------


@contextmanager
def database(request: pytest.FixtureRequest, kind: str) -> Iterator[str]:
    if kind == "memory":
        yield "sqlite://"
        return
    databases: Databases = request.getfixturevalue(f"{kind}_databases")
    with databases.migrated() as url:
        yield url


def make_app(stack: ExitStack, url: str, relay: Any = None, **config: object) -> Flask:
    """Make an application whose mail goes to this relay."""
    place = {} if relay is None else {"MAIL_SERVER": relay.host, "MAIL_PORT": relay.port}
    given = {
        "MAILER_DATABASE_URL": url,
        "MAIL_DEFAULT_SENDER": "shop@example.com",
        "MAILER_REDIS_URL": NO_BROKER,
        "MAILER_BLACK_BOX": stack.enter_context(TemporaryDirectory()),
    }
    app = create_shop({**given, **place, **config})
    stack.callback(close, app)
    stack.callback(app.extensions["mailer"].outbound.dispatcher.hang_up)
    return app


def engine_for(stack: ExitStack, url: str) -> Engine:
    """Return the application's own engine, for the same database unless that is in memory."""
    folder = stack.enter_context(TemporaryDirectory())
    own = f"sqlite:///{folder}/shop.sqlite3" if url == "sqlite://" else url
    engine = create_engine(own.replace("postgresql:", "postgresql+psycopg:"))
    stack.callback(engine.dispose)
    return engine


def kit(stack: ExitStack, url: str, request: pytest.FixtureRequest) -> World:
    """The test kit: `drain()` and a fake relay."""
    app = make_app(stack, url, TESTING=True)
    outbox = stack.enter_context(Outbox(app))
    relay = stack.enter_context(FakeRelay(app, timeout=LONG))
    return World(app, engine_for(stack, url), relay, lambda _receipts: outbox.drain(after=HOUR))


def inline(stack: ExitStack, url: str, request: pytest.FixtureRequest) -> World:
    """Delivery in the calling thread, as with Celery's eager mode, to the server of the tests."""
    sink = stack.enter_context(Sink())
    app = make_app(stack, url, sink, **SOON)
    app.extensions["celery"].conf.task_always_eager = True
    task = app.extensions["celery"].tasks["mailer.send_email"]

    def try_again(receipts: Sequence[Receipt]) -> None:
        wait_until(lambda: task.delay() and are_tried(receipts), PATIENCE)

    return World(app, engine_for(stack, url), sink, try_again)


def celery(stack: ExitStack, url: str, request: pytest.FixtureRequest) -> World:
    """A worker, which the bell calls over Redis."""
    sink = stack.enter_context(Sink())
    redis: RedisServer = request.getfixturevalue("shared_redis")
    app = make_app(stack, url, sink, MAILER_REDIS_URL=redis.url, **SOON)
    folder = Path(stack.enter_context(TemporaryDirectory()))
    config = {key: str(value) for key, value in app.config.items() if key.startswith("MAIL")}
    fleet = Fleet(config, folder, forked=True)
    stack.callback(fleet.end)
    fleet.start(1, pool="threads")
    return World(
        app,
        engine_for(stack, url),
        sink,
        lambda receipts: wait_until(lambda: are_tried(receipts), PATIENCE),
    )


def postfix(stack: ExitStack, url: str, request: pytest.FixtureRequest) -> World:
    """Postfix, and `drain()`."""
    folder = stack.enter_context(TemporaryDirectory(prefix="mailer-server-"))
    server = stack.enter_context(running_postfix(Path(folder)))
    app = make_app(stack, url, server)
    outbox = stack.enter_context(Outbox(app))
    return World(app, engine_for(stack, url), server, lambda _receipts: outbox.drain())


def are_tried(receipts: Sequence[Receipt]) -> bool:
    """Return whether each delivery is settled, or in doubt, or paused, or due later."""
    return all(
        one.status.is_final or one.status is Status.DOUBTFUL
        for receipt in receipts
        for one in mailer.status(receipt)
    )


WORLDS = [
    *((kit, kind) for kind in ("memory", "sqlite", "postgres")),
    *((inline, kind) for kind in ("memory", "sqlite", "postgres")),
    *((celery, kind) for kind in ("sqlite", "postgres")),
    (postfix, "memory"),
]


@pytest.fixture(scope="module", params=WORLDS, ids=lambda one: f"{one[0].__name__}-{one[1]}")
def shared_world(request: pytest.FixtureRequest) -> Iterator[World]:
    make, kind = request.param
    with ExitStack() as stack:
        url = stack.enter_context(database(request, kind))
        yield make(stack, url, request)


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """Enter the context of the application. Tests share it, each with its own recipients."""
    with shared_world.app.app_context():
        yield shared_world


@pytest.fixture
def ada() -> str:
    return f"ada{next(_numbers)}@example.com"


def send(*to: str, **options: Any) -> Receipt:
    return mailer.send_email([*to], "Hello", "only_text", name="Ada", **options)


def states(receipt: Receipt) -> list[Status]:
    return [one.status for one in mailer.status(receipt)]


# --- promises -----------------------------------------------------------------------------------


def test_a_mail_is_delivered_once(world: World, ada: str) -> None:
    """A mail reaches each of its recipients once, and its status has the relay's words."""
    bob = ada.replace("ada", "bob")
    receipt = send(ada, bob)

    world.deliver([receipt])
    world.deliver([receipt])

    assert states(receipt) == [Status.SENT, Status.SENT]
    assert all((one.reply or "").startswith("250 2.0.0 Ok") for one in mailer.status(receipt))
    assert {world.received(ada), world.received(bob)} == {1}


def test_a_recipient_who_is_refused(world: World, ada: str) -> None:
    """A refusal fails one delivery, and does no harm to the others."""
    nobody = ada.replace("ada", "nobody")  # whom Postfix refuses by itself
    if not isinstance(world.relay, MailServer):
        world.script(nobody, "550 5.1.1 no such user")
    receipt = send(nobody, ada)

    world.deliver([receipt])

    refused, taken = mailer.status(receipt)
    assert (refused.status, taken.status) == (Status.FAILED, Status.SENT)
    assert (refused.reply or "").startswith("550 5.1.1")
    assert refused.history[0].verdict == "refused"


def test_a_recipient_who_is_deferred(world: World, ada: str) -> None:
    """A mail that is refused for now is sent at the next try, and keeps the first reply."""
    world.script(ada, "451 4.3.0 not now")
    receipt = send(ada)

    world.deliver([receipt])
    world.deliver([receipt])

    [delivery] = mailer.status(receipt)
    assert (delivery.status, delivery.attempts) == (Status.SENT, 2)
    assert [attempt.reply for attempt in delivery.history] == ["451 4.3.0 not now"]
    assert world.received(ada) == 1


def test_a_lost_reply(world: World, ada: str) -> None:
    """A mail whose reply is lost is in doubt, and with `hold` it is not sent again."""
    world.script(ada, ACCEPT_AND_DROP)
    receipt = send(ada, on_doubt="hold")

    world.deliver([receipt])
    world.deliver([receipt])

    assert states(receipt) == [Status.DOUBTFUL]
    assert world.received(ada) == 1
    assert mailer.resolve(receipt, "sent")
    assert states(receipt) == [Status.SENT]


def test_mail_for_later(world: World, ada: str) -> None:
    """A mail that is not due stays queued while others are delivered, and can be cancelled."""
    receipt, other = send(ada, send_at=timedelta(days=30)), send(ada)

    world.deliver([other])

    assert (states(receipt), states(other)) == ([Status.QUEUED], [Status.SENT])
    assert mailer.cancel(receipt)
    assert states(receipt) == [Status.CANCELLED]
    assert world.received(ada) == 1


def test_a_lane_that_is_paused(world: World, ada: str) -> None:
    """Mail of a paused lane waits, while mail of other lanes is delivered."""
    mailer.pause("bulk")
    held, other = send(ada, lane="bulk"), send(ada)

    world.deliver([other])

    assert (states(held), states(other)) == ([Status.QUEUED], [Status.SENT])
    assert mailer.resume("bulk")
    world.deliver([held])
    assert states(held) == [Status.SENT]


def test_a_key(world: World, ada: str) -> None:
    """Calls with one idempotency key make one mail; another mail with it is refused."""
    first = send(ada, idempotency_key=ada)
    again = send(ada, idempotency_key=ada)
    with pytest.raises(KeyReused):
        send("bob@example.com", idempotency_key=ada)
    world.deliver([first])

    assert (again, first.is_new, again.is_new) == (first, True, False)
    assert send(ada, idempotency_key=ada) == first
    assert world.received(ada) == 1


def test_a_transaction(world: World, ada: str) -> None:
    """Mail in the application's transaction is delivered after its commit; rolled back, never."""
    with Session(world.engine) as session:
        lost = send(ada, connection=session)
        session.rollback()
        receipt = send(ada, connection=session)
        session.commit()
    world.deliver([receipt])

    assert states(receipt) == [Status.SENT]
    with pytest.raises(UnknownMail):
        mailer.status(lost)
    assert world.received(ada) == 1


def test_rings_without_need(world: World, ada: str) -> None:
    """A ring for nothing, for mail that is gone or unknown, and an answer to none do no harm."""
    bell = world.app.extensions["mailer"].intake.bell
    receipt = send(ada)
    world.deliver([receipt])

    bell.answer()
    rings = [bell.ring([receipt.id, "unknown"]), bell.ring(), bell.ring(urge=True)]
    bell.answer()

    assert {type(heard) for heard in rings} == {bool}
    world.deliver([receipt])
    assert world.received(ada) == 1


def test_sensitive_mail(world: World, ada: str) -> None:
    """The content of a sensitive mail is erased once it is delivered."""
    receipt = send(ada, sensitive=True)

    world.deliver([receipt])

    assert mailer.status(receipt).erased_at is not None
    assert not mailer.retry(receipt)
