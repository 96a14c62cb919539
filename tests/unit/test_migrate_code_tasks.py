"""`mailer.migrate_code`: tasks of Celery that send mail."""

import pytest

from tests.migrating import advice, check, moved

EXTENSIONS = "from mailer import Mail\nmail = Mail()\n"
#: A task that is given the message, and one that is given the data for it.
SENDS = """\
from app import celery, mail


@celery.task
def send_async_email(msg):
    with app.app_context():
        mail.send(msg)


"""
BUILDS = """\
from celery import shared_task
from flask_mail import Message

from app import mail


@shared_task(bind=True, ignore_result=True)
def send_async_email(self, data):
    msg = Message(data["subject"], recipients=[data["to"]])
    msg.body = data.get("body", "")
    mail.send(msg)


"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("send_async_email.delay(msg)", "mail.send(msg)"),
        ("send_async_email.delay(msg=msg)", "mail.send(msg)"),
        ("send_async_email.apply_async(args=[msg])", "mail.send(msg)"),
        ("send_async_email.apply_async((msg,))", "mail.send(msg)"),
        ("send_async_email.apply_async(kwargs={'msg': msg})", "mail.send(msg)"),
        ("send_async_email.apply_async((), dict(msg=msg))", "mail.send(msg)"),
    ],
)
def test_a_task_that_only_sends(before: str, after: str) -> None:
    """A call of a task that only sends becomes `mail.send()`; the task stays for one release."""
    migration = check(f"{SENDS}{before}\n", f"{SENDS}{after}\n", extensions=EXTENSIONS)

    assert [finding.line for finding in migration.advice] == [5]
    assert "keep it for one release" in migration.advice[0].text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("send_async_email.delay(data)", "send_async_email(data)"),
        (
            "send_async_email.delay(\n    data,  # to Ada\n)",
            "send_async_email(\n    data,  # to Ada\n)",
        ),
        ("send_async_email.apply_async(args=[data])", "send_async_email(data)"),
        ("send_async_email.apply_async(kwargs=dict(data=data))", "send_async_email(data=data)"),
        ("send_async_email.apply_async(kwargs=values)", "send_async_email(**values)"),
    ],
)
def test_a_task_that_builds_the_mail(before: str, after: str) -> None:
    """A task that builds the mail is called as a function, in its own file and in others."""
    check(f"{BUILDS}{before}\n", f"{BUILDS}{after}\n", extensions=EXTENSIONS)
    begin = "from tasks import send_async_email\n\nsend_email = 1\n"
    check(f"{begin}{before}\n", f"{begin}{after}\n", tasks=BUILDS, extensions=EXTENSIONS)
    check(
        f"import tasks  # mail\ntasks.{before}\n",
        f"import tasks  # mail\ntasks.{after}\n",
        tasks=BUILDS,
        extensions=EXTENSIONS,
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("send_async_email.apply_async([data], countdown=60)", "A task with countdown"),
        ("send_async_email.apply_async([data], queue='mail', priority=3)", "queue, priority"),
        ("task = send_async_email.delay(data)", "Write `send_async_email(data)` in its place"),
        ("chain(send_async_email.s(data))", "A signature of the task send_async_email()"),
    ],
)
def test_tasks_for_a_person(call: str, words: str) -> None:
    """A time, a queue, a result and a signature of a task are left to a person."""
    found = advice(
        f"from tasks import send_async_email\n{call}\n", tasks=BUILDS, extensions=EXTENSIONS
    )

    assert [line for line, _ in found] == [2]
    assert words in found[0][1]


def test_a_task_that_does_more() -> None:
    """A task that does other work stays, with a note about retries, and so do its calls."""
    found = advice(
        """\
        from app import celery, mail

        @celery.task(autoretry_for=(OSError,))
        def send_welcome(user_id):
            user = User.query.get(user_id)
            mail.send(Message("Welcome", [user.email]))

        send_welcome.delay(5)
        """,
        extensions=EXTENSIONS,
    )

    assert [line for line, _ in found] == [4]
    assert "idempotency_key" in found[0][1]


@pytest.mark.parametrize(
    "body",
    [
        "mail.send(Message('Hello', [to]))",
        "Thread(target=send_async, args=(app, to)).start()",
    ],
)
def test_a_task_that_calls_a_function_that_sends(body: str) -> None:
    """A task that sends mail through a function of another file is pointed to."""
    post = (
        "from threading import Thread\nfrom app import mail\n\ndef send_async(app, msg):\n"
        f"    with app.app_context():\n        mail.send(msg)\n\ndef notify(to):\n    {body}\n"
    )
    found = advice(
        """\
        from app import celery
        from post import notify

        @celery.task
        def welcome(to):
            notify(to)

        @celery.task
        def clean():
            pass

        @scheduler.task("interval")
        def remind():
            notify(5)
        """,
        post=post,
        extensions=EXTENSIONS,
    )

    assert [line for line, _ in found] == [5]
    assert "The task welcome() sends mail through notify()" in found[0][1]


def test_a_task_and_another_function_of_its_name() -> None:
    """A call of something else that has the name of a task stays as it is."""
    other = "@shared_task\ndef send_async_email(data):\n    text(data)\n"
    text = "from sms import send_async_email\nsend_async_email.delay(data)\n"

    assert moved(text, tasks=BUILDS, sms=other, extensions=EXTENSIONS).text == text
    assert moved(text, tasks=BUILDS, extensions=EXTENSIONS).text == text
    called = "import sms\nsms.send_async_email.delay(data)\n"
    assert moved(called, tasks=BUILDS, extensions=EXTENSIONS).text == called


def test_two_tasks_of_the_same_name() -> None:
    """Nothing is concluded from a name that two files define."""
    text = "from tasks import send_async_email\nsend_async_email.delay(data)\n"
    migration = moved(text, tasks=BUILDS, jobs=SENDS, extensions=EXTENSIONS)

    assert migration.text == text
