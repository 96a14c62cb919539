"""`mailer.migrate_code`: the application's own Celery app comes before its mail."""

import pytest

from tests.migrating import advice, check

EXTENSIONS = "from mailer import Mail\n\nmail = Mail()\n"
#: As in Flask's documentation, in a file that has nothing to do with mail.
TASKS = """
from celery import Celery

def celery_init_app(app):
    celery_app = Celery(app.name)
    app.extensions["celery"] = celery_app
    return celery_app
"""


REGISTER = "from shop.extensions import mail\ndef register(app):\n    mail.init_app(app)\n"


def factory(*lines: str) -> str:
    start = "from shop.extensions import db, mail\n\n\ndef create_app():\n    app = Flask('shop')\n"
    return start + "".join(f"    {line}\n" if line else "\n" for line in (*lines, "return app"))


@pytest.mark.parametrize(
    "celery",
    [
        "celery_init_app(app)",
        "tasks.celery_init_app(app)",
        "celery = celery_init_app(app)",
        "app.extensions['celery'] = make_celery(app)",
        "app.extensions['celery'] = celery",
    ],
)
@pytest.mark.parametrize("between", [[], ["db.init_app(app)", "login.init_app(app, db=db)"]])
def test_a_celery_app_that_comes_after_the_mail(celery: str, between: list[str]) -> None:
    """It moves before the mail, past other extensions, and is no finding there."""
    migration = check(
        factory("mail.init_app(app)", *between, celery),
        factory(celery, "mail.init_app(app)", *between),
        extensions=EXTENSIONS,
        tasks=TASKS,
    )

    [change] = migration.changes
    assert change.line == 7 + len(between)
    assert "in line 6" in change.text


def test_the_layout_of_lines_that_move() -> None:
    """Empty lines stay where they are. Comments move with their lines."""
    check(
        factory("mail.init_app(app)", "", "celery_init_app(app)  # tasks"),
        factory("celery_init_app(app)  # tasks", "", "mail.init_app(app)"),
        extensions=EXTENSIONS,
        tasks=TASKS,
    )
    check(
        factory("mail.init_app(app)", "# tasks", "celery_init_app(app)"),
        factory("# tasks", "celery_init_app(app)", "mail.init_app(app)"),
        extensions=EXTENSIONS,
        tasks=TASKS,
    )


def test_an_app_without_a_factory() -> None:
    """`Mail(app)` gets its Celery app first as well, together with the import."""
    check(
        "from flask_mail import Mail\nmail = Mail(app)\napp.extensions['celery'] = celery\n",
        "from mailer import Mail\napp.extensions['celery'] = celery\nmail = Mail(app)\n",
    )


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        (
            ["mail.init_app(app)", "app.config.from_prefixed_env()", "celery_init_app(app)"],
            8,
            "the lines between the two may be needed first",
        ),
        (
            ["with app.app_context():", "    mail.init_app(app)", "celery_init_app(app)"],
            8,
            "the lines between the two may be needed first",
        ),
        (["mail.init_app(app)", "if tasks:", "    celery_init_app(app)"], 8, "may be needed first"),
        (["mail.init_app(app); x = 1", "celery_init_app(x)"], 7, "may be needed first"),
        (["register(app)", "celery_init_app(app)"], 7, "since register() sets up the mail"),
    ],
)
def test_a_celery_app_that_is_left_to_a_person(lines: list[str], line: int, words: str) -> None:
    """Where other lines may need the order, the place is pointed to, with the reason."""
    found = advice(
        factory(*lines),
        extensions=EXTENSIONS,
        tasks=TASKS,
        registering=REGISTER,
    )

    assert [(at, words in text) for at, text in found] == [(line, True)]
    assert "workers would deliver no mail" in found[0][1]


def test_a_factory_that_mentions_no_mail() -> None:
    """The place is found although only another file mentions mail."""
    found = advice(
        "def create_app():\n    register(app)\n    celery_init_app(app)\n",
        extensions=EXTENSIONS,
        tasks=TASKS,
        registering=REGISTER,
    )

    assert [at for at, _ in found] == [3]


@pytest.mark.parametrize(
    "lines",
    [
        ["celery_init_app(app)", "mail.init_app(app)"],
        ["celery_init_app(app)", "mail.init_app(app)", "app.extensions['celery'].finalize()"],
        ["mail.init_app(app)", "db.init_app(app)"],
        ["mail.init_app(app)", "celery = app.extensions['celery']"],
        ["db.init_app(app)", "celery_init_app(app)"],
    ],
)
def test_an_order_that_is_right(lines: list[str]) -> None:
    """Nothing changes where the Celery app comes first, or where there is none."""
    assert advice(factory(*lines), extensions=EXTENSIONS, tasks=TASKS) == []


def test_a_mail_that_does_not_queue() -> None:
    """The order of a mail of another library is its own affair."""
    text = factory("mail.init_app(app)", "celery_init_app(app)")

    assert advice(text, tasks=TASKS) == []
