"""The examples in docstrings of the public API run, in an app like that of the guide."""

import doctest
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from jinja2 import DictLoader

import mailer
import mailer.logging
from mailer import (
    Bulk,
    Mail,
    Mailer,
    Status,
    background,
    errors,
    extension,
    mail,
    mail_operations,
    signals,
    testing,
)
from mailer.background import BackgroundFunction
from mailer.message import addresses, attachments, calendar, events, new_id, states, statuses
from mailer.schema import foreign
from mailer.testing import mails, matching, outbox, relay, snapshots
from mailer.web import inbox
from tests.mails import a_message, bring
from tests.services.loggers import error_mails_ended
from tests.shop import close, store_of

MODULES: list[ModuleType] = [
    *(
        mailer,
        background,
        errors,
        extension,
        mail_operations,
        mail,
        mailer.logging,
        signals,
        foreign,
        inbox,
    ),
    *(addresses, attachments, calendar, events, states, statuses),
    *(mailer.bulk, mailer.message.bulk),
    *(testing, mails, matching, outbox, relay, snapshots),
]
TEMPLATES = {
    "mail/welcome.txt": "Welcome, {{ name }}!",
    "mail/welcome.html": "<p>Welcome, {{ name }}!</p>",
    "mail/order.txt": "Thank you! Your order has the number {{ number }}.",
    "mail/code.txt": "{{ code }}",
    "mail/news.txt": "News for {{ name }}.",
}
#: The public names without an example, and the reason.
WITHOUT_EXAMPLE = {
    "mailer.Message": "it is Flask-Mail's",
    "mailer.StoreError": "an application catches its subclasses",
    "mailer.CommitLost": "the database has to go away",
    "mailer.KeyInUse": "another transaction has to be open",
    "mailer.SchemaMismatch": "the tables have to be old",
    "mailer.InUseElsewhere": "it takes two machines",
    "mailer.SigningFailed": "only a worker raises it",
    "mailer.BrokerUnavailable": "the broker has to be down",
}


def public_names() -> dict[str, object]:
    """Return what an application imports or calls, by name."""
    found: dict[str, object] = {f"mailer.{name}": getattr(mailer, name) for name in mailer.__all__}
    found |= {f"mailer.signals.{name}": getattr(signals, name) for name in signals.__all__}
    found |= {f"mailer.testing.{name}": getattr(testing, name) for name in testing.__all__}
    found["mailer.logging.QueuedMailHandler"] = mailer.logging.QueuedMailHandler
    found["mailer.background.BackgroundFunction"] = BackgroundFunction
    for kind in (
        *(Mailer, mail_operations.MailOperations, BackgroundFunction, Mail, Bulk),
        *(testing.Outbox, testing.FakeRelay, testing.RecordedMail),
    ):
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                found[f"{kind.__module__}.{kind.__name__}.{name}"] = method
    for function in (
        *(foreign.include_name, foreign.include_object),
        *(inbox.create_inbox_app, inbox.make_inbox_blueprint),
    ):
        found[f"{function.__module__}.{function.__name__}"] = function
    return found


PUBLIC = public_names()


def examples() -> dict[str, doctest.DocTest]:
    """Return the docstrings that have examples, by name, with those of the signals."""
    finder, parser = doctest.DocTestFinder(), doctest.DocTestParser()
    found = [one for module in MODULES for one in finder.find(module)]
    for name, value in PUBLIC.items():
        if name.startswith("mailer.signals.mail_"):
            found.append(parser.get_doctest(value.__doc__ or "", {}, name, None, None))
    return {one.name: one for one in found if one.examples}


EXAMPLES = examples()


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[dict[str, object]]:
    """The names that examples need not import: those of `mailer`, and an app with its objects."""
    app = Flask("shop", instance_path=str(tmp_path))
    app.jinja_loader = DictLoader(TEMPLATES)
    app.config.update(
        TESTING=True,
        MAILER_DATABASE_URL="sqlite://",
        MAIL_DEFAULT_SENDER="Shop <shop@example.com>",
        SQLALCHEMY_DATABASE_URI="sqlite://",
    )
    names = {name: getattr(mailer, name) for name in mailer.__all__}
    names |= {name: getattr(testing, name) for name in testing.__all__}
    names |= {"app": app, "db": SQLAlchemy(app), "mailer": Mailer(app), "mail": Mail(app)}
    with app.app_context(), error_mails_ended():
        store = store_of(app)
        for status, tag in [(Status.FAILED, "invoice"), (Status.DOUBTFUL, "code")]:
            now, subject = time.time(), f"Your {tag}"
            message = a_message(id=new_id(now), created_at=now, subject=subject, tags=(tag,))
            bring(store, status, message=message, recipients=("eve@example.com",))
        yield names
        names["db"].engine.dispose()
    close(app)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, namespace: dict[str, object]) -> None:
    """An example prints what it says, with nothing but the names of the fixture."""
    example, said = EXAMPLES[name], list[str]()
    example.globs = namespace.copy()  # cleared at the end

    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)

    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name: str) -> None:
    """Each public class, method, function and signal has one, unless a reason is listed here."""
    has_example = bool(doctest.DocTestParser().get_examples(PUBLIC[name].__doc__ or ""))

    assert has_example is (name not in WITHOUT_EXAMPLE)


def test_no_example_is_overlooked() -> None:
    """The modules listed here are those that have examples."""
    package = Path(mailer.__file__).parent
    found = [path for path in package.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]

    assert sorted(found) == sorted(Path(str(module.__file__)) for module in MODULES)


def test_a_reason_has_its_name() -> None:
    """The list of exceptions shrinks with the API."""
    assert WITHOUT_EXAMPLE.keys() <= PUBLIC.keys()
