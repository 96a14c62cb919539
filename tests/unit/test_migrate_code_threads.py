"""`mailer.migrate_code`: threads, processes and pools that send mail."""

from textwrap import dedent

import pytest

from mailer.migrate_code import migrate
from tests.migrating import advice, check, moved

#: The function that most tutorials have.
HELPER = """\
def send_async_email(app, msg):
    with app.app_context():
        mail.send(msg)


"""


EXTENSIONS = "from mailer import Mail\nmail = Mail()\n"
THREAD = "from threading import Thread\n"
SPREAD_OUT = """t = threading.Thread(
        target=send_async_email,
        args=(app, msg),
    )
    t.daemon = True
    t.setName('mail')
    t.start()"""


@pytest.mark.parametrize(
    "start",
    [
        "Thread(target=send_async_email, args=(app, msg)).start()",
        "Thread(target=send_async_email, args=[app, msg]).start()",
        "Thread(None, send_async_email, 'mail', (app, msg)).start()",
        "Thread(target=send_async_email, kwargs={'app': app, 'msg': msg}, daemon=True).start()",
        "Thread(target=send_async_email, args=(app,), kwargs=dict(msg=msg)).start()",
        "threading.Thread(target=send_async_email, args=(app, msg)).start()",
        "Process(target=send_async_email, args=(app, msg)).start()",
        "thr = Thread(target=send_async_email, args=[app, msg])\n    thr.start()",
        "thr = Thread(target=send_async_email, args=[app, msg]); thr.start()",
        SPREAD_OUT,
        "executor.submit(send_async_email, app, msg)",
        "gevent.spawn(send_async_email, app, msg)",
        "socketio.start_background_task(send_async_email, app, msg)",
    ],
)
def test_a_thread_that_only_sends(start: str) -> None:
    """A thread that only sends becomes `mail.send()`; its function and its imports go."""
    imports = {
        "threading.": "import threading\n",
        "Thread(": THREAD,
        "Process(": "from multiprocessing import Process\n",
    }
    needed = next((line for name, line in imports.items() if name in start), "")
    check(
        f"{needed}from flask import current_app\nfrom app import mail\n\n\n{HELPER}"
        "def welcome(user):\n    app = current_app._get_current_object()\n"
        f"    msg = Message(user.email)\n    {start}\n",
        "from app import mail\n\n\n"
        "def welcome(user):\n    msg = Message(user.email)\n    mail.send(msg)\n",
        extensions=EXTENSIONS,
    )


def test_a_thread_that_is_returned() -> None:
    """`return thr` returns the receipt, comments stay, and `app` stays where it is used."""
    migration = check(
        '''\
        """Mail."""

        from threading import Thread

        from flask import current_app, render_template

        from . import mail


        # The mail is sent here.
        def send_async_email(app, msg):
            """Send a mail."""
            with app.app_context():
                mail.send(msg)


        def send_email(to, subject, template, **kwargs):
            app = current_app._get_current_object()
            msg = Message(app.config["PREFIX"] + subject, [to])
            msg.html = render_template(template + ".html", **kwargs)

            # create the thread
            thr = Thread(target=send_async_email, args=[app, msg])
            thr.start()
            return thr
        ''',
        '''\
        """Mail."""

        from flask import current_app, render_template

        from . import mail


        def send_email(to, subject, template, **kwargs):
            app = current_app._get_current_object()
            msg = Message(app.config["PREFIX"] + subject, [to])
            msg.html = render_template(template + ".html", **kwargs)

            # create the thread
            return mail.send(msg)
        ''',
        extensions=EXTENSIONS,
    )

    assert [finding.line for finding in migration.changes] == [11, 23]
    assert "queues the mail in a millisecond" in migration.changes[1].text
    assert "Nothing calls send_async_email() any more" in migration.changes[0].text


def test_an_annotation_of_the_thread() -> None:
    """A function that was annotated to return the thread is pointed to."""
    text = f"{THREAD}from app import mail\n{HELPER}" + dedent("""\
        def welcome(msg) -> Thread:
            thr = Thread(target=send_async_email, args=[app, msg])
            thr.start()
            return thr
        """)
    migration = moved(text, extensions=EXTENSIONS)

    assert "    return mail.send(msg)\n" in migration.text
    assert "import Thread" in migration.text
    assert "correct its annotation" in migration.advice[0].text


@pytest.mark.parametrize("module", ["from post import notify", "import post"])
def test_the_uses_of_a_thread_that_was_returned(module: str) -> None:
    """Each use of a returned thread is pointed to, also in files that do not mention mail."""
    post = (
        f"{THREAD}from app import mail\n{HELPER}def notify(msg):\n"
        "    thr = Thread(target=send_async_email, args=[app, msg])\n    thr.start()\n"
        "    return thr\n\n\ndef test():\n    notify(1).join()\n"
    )
    name = "notify" if module.startswith("from") else "post.notify"
    found = advice(
        f"{module}\n\n\ndef view(msg):\n    {name}(msg)\n    t = {name}(msg)\n    t.join()\n"
        f"    return {name}(msg)\n",
        post=post,
        extensions=EXTENSIONS,
    )

    assert [line for line, _ in found] == [6, 8]
    assert "notify() returns no thread any more" in found[0][1]
    [here] = moved(post, extensions=EXTENSIONS).advice
    assert (here.line, here.text) == (15, found[0][1])


def test_the_uses_of_a_thread_of_a_decorator() -> None:
    """The uses of the thread that a decorator returned are pointed to."""
    post = "from app import mail\n@async_\ndef notify(msg):\n    mail.send(msg)\n"
    found = advice(
        "from post import notify\nnotify(1)\nthreads = [notify(2)]\n",
        post=post,
        extensions=EXTENSIONS,
    )

    assert [line for line, _ in found] == [3]


def test_a_caller_that_is_not_python() -> None:
    """A file that calls a function that sends, but can't be read, is left alone."""
    post = "from app import mail\n@async_\ndef notify(msg):\n    mail.send(msg)\n"

    assert advice("print notify\n", post=post, extensions=EXTENSIONS) == []


@pytest.mark.parametrize(
    "block",
    [
        "with current_app.lock:",
        "with lock:",
        "with Lock():",
        "with app.app_context(), lock:",
        "with db.connect() as link:",
    ],
)
def test_a_thread_under_a_lock(block: str) -> None:
    """A function that takes a lock stays in its thread: the request may hold the same lock."""
    found = advice(
        f"{THREAD}from app import mail\ndef send_async_email(app, msg):\n    {block}\n"
        "        mail.send(msg)\n\n\ndef view(app, msg):\n    with lock:\n"
        "        Thread(target=send_async_email, args=(app, msg)).start()\n",
        extensions=EXTENSIONS,
    )

    assert [line for line, _ in found] == [10]
    assert "does more than send a mail" in found[0][1]


@pytest.mark.parametrize(
    ("block", "call"),
    [
        ("with context:\n        mail.send(msg)", "mail.send(msg)"),
        ("with app.test_request_context('/'):\n        mail.send(msg)", "f(app, msg)"),
        ("app.app_context().push()\n    mail.send(msg)", "f(app, msg)"),
    ],
)
def test_a_thread_with_a_context(block: str, call: str) -> None:
    """The contexts of Flask are no reason to stay in a thread."""
    before = (
        f"{THREAD}from app import mail\ndef f(app, msg):\n    {block}\n\n\n"
        "Thread(target=f, args=(app, msg)).start()\n"
    )

    assert moved(before, extensions=EXTENSIONS).text.endswith(f"\n\n\n{call}\n")


def test_a_push_that_is_not_of_a_context() -> None:
    """`push()` may be a method of anything: only that of a context is quick."""
    found = advice(
        f"{THREAD}from app import mail\ndef f(msg):\n    mail.send(msg)\n    relay.push(msg)\n"
        "Thread(target=f, args=(msg,)).start()\n",
        extensions=EXTENSIONS,
    )

    assert "does more than send a mail" in found[0][1]


@pytest.mark.parametrize(
    ("start", "direct"),
    [
        ("Thread(target=mail.send, args=(msg,)).start()", "mail.send(msg)"),
        ("Thread(target=mail.send(msg)).start()", "mail.send(msg)"),
        ("Thread(target=current_app.mail.send, args=[msg]).start()", "current_app.mail.send(msg)"),
    ],
)
def test_a_thread_of_send_itself(start: str, direct: str) -> None:
    """`Thread(target=mail.send)` becomes the call, also where the call was made by mistake."""
    begin = "from flask import current_app\nfrom mailer import Mail\nmail = Mail()\ncurrent_app.x\n"
    check(f"{THREAD}{begin}{start}\n", f"{begin}{direct}\n")


@pytest.mark.parametrize(
    "body",
    [
        """try:
            mail.send(msg)
        except Exception as error:
            app.logger.error('no mail: %s', error)""",
        """mail.send(msg)
        print('sent', msg.recipients)""",
        "app.extensions['mail'].send(msg)",
        """with mail.connect() as link:
            link.send(msg)""",
        """from app import mail
        mail.send(msg)""",
        """mail = app.extensions.get('mail')
        mail.send(Message('Hello', [msg], render_template('hello.txt')))""",
    ],
)
def test_a_thread_that_builds_and_sends(body: str) -> None:
    """A function that also builds the mail, or reports an error, is called without a thread."""
    begin = (
        "from app import mail\n\n\ndef send_async_email(app, msg):\n    with app.app_context():\n"
        f"        {body}\n\n\ndef welcome(app, msg):\n    "
    )
    check(
        f"{THREAD}\n{begin}Thread(target=send_async_email, args=(app, msg)).start()\n",
        f"{begin}send_async_email(app, msg)\n",
        extensions=EXTENSIONS,
    )


@pytest.mark.parametrize(
    ("args", "call"),
    [
        ("args=values", "*values"),
        ("args=(app, *rest)", "app, *rest"),
        ("args=[app], kwargs=values", "app, **values"),
        ("args=[app], kwargs={'from': 1}", "app, **{'from': 1}"),
        ("args=(create_app(), msg)", "create_app(), msg"),
    ],
)
def test_arguments_that_are_not_written_out(args: str, call: str) -> None:
    """Arguments that are computed are passed on to the function, which stays."""
    begin = f"from app import mail\n{HELPER}"
    check(
        f"{THREAD}{begin}Thread(target=send_async_email, {args}).start()\n",
        f"{begin}send_async_email({call})\n",
        extensions=EXTENSIONS,
    )


def test_a_name_that_is_hidden() -> None:
    """Where `mail` is another object, the function is called instead."""
    begin = f"from app import mail\n{HELPER}def welcome(mail, msg):\n"
    check(
        f"{THREAD}{begin}    Thread(target=send_async_email, args=(app, msg)).start()\n",
        f"{begin}    send_async_email(app, msg)\n",
        extensions=EXTENSIONS,
    )


def test_a_loop_over_mail() -> None:
    """A variable `mail` of a loop is not the `Mail` that sends."""
    begin = f"from app import mail\n{HELPER}def welcome(mails):\n    for mail in mails:\n        "
    check(
        f"{THREAD}{begin}Thread(target=send_async_email, args=(app, mail)).start()\n",
        f"{begin}send_async_email(app, mail)\n",
        extensions=EXTENSIONS,
    )


def test_methods() -> None:
    """A thread of a method becomes a call of `self.mail`, or of the method."""
    check(
        """\
        from threading import Thread
        from flask_mail import Mail

        class Post:
            def __init__(self, app):
                self.app = app
                self.mail = Mail(app)

            def _send(self, message):
                with self.app.app_context():
                    self.mail.send(message)

            @staticmethod
            def _report(app, message):
                with app.app_context():
                    app.mail.send(message)
                    print("sent")

            def send(self, message):
                Thread(target=self._send, args=(message,)).start()
                Thread(target=Post._report, args=(self.app, message)).start()
        """,
        """\
        from mailer import Mail

        class Post:
            def __init__(self, app):
                self.app = app
                self.mail = Mail(app)

            @staticmethod
            def _report(app, message):
                with app.app_context():
                    app.mail.send(message)
                    print("sent")

            def send(self, message):
                self.mail.send(message)
                Post._report(self.app, message)
        """,
    )


def test_functions_inside_of_functions() -> None:
    """A function with `copy_current_request_context` inside of a view is found."""
    check(
        """\
        from threading import Thread
        from flask import copy_current_request_context
        from flask_mail import Mail, Message

        mail = Mail()

        def send_email(to):
            msg = Message("Hello", [to])

            @copy_current_request_context
            def send_message(message):
                mail.send(message)

            sender = Thread(name="mail", target=send_message, args=(msg,))
            sender.start()
        """,
        """\
        from mailer import Mail, Message

        mail = Mail()

        def send_email(to):
            msg = Message("Hello", [to])

            mail.send(msg)
        """,
    )


def test_a_decorator() -> None:
    """A decorator that runs a function in a thread is found in the project, and goes."""
    check(
        """\
        from app import mail
        from decorators import in_background


        @in_background
        def send_async_email(app, msg):
            with app.app_context():
                mail.send(msg)


        @in_background
        def send_news(app, to):
            with app.app_context():
                mail.send(Message("News", [to]))


        def welcome(app, msg):
            send_async_email(app, msg)
            send_news(app, "ada@example.com")
        """,
        """\
        from app import mail


        def send_news(app, to):
            with app.app_context():
                mail.send(Message("News", [to]))


        def welcome(app, msg):
            mail.send(msg)
            send_news(app, "ada@example.com")
        """,
        extensions=EXTENSIONS,
        decorators="""\
        from threading import Thread
        def in_background(function):
            def run(*args):
                Thread(target=function, args=args).start()
            return run
        """,
    )


def test_a_function_that_others_use() -> None:
    """A function that another file or a string mentions stays, and is called from elsewhere."""
    post = f"from app import mail\n\n\n{HELPER}"
    extensions = "from mailer import Mail\nmail = Mail()\n"
    thread = "Thread(target=send_async_email, args=(app, msg)).start()\n"
    before = f"from threading import Thread\n\nfrom post import send_async_email\n\n{thread}"
    after = "from post import send_async_email\n\nsend_async_email(app, msg)\n"
    check(before, after, post=post, extensions=extensions)
    check(post, post, tests="import send_async_email\n", extensions=extensions)
    named = f"{THREAD}from app import mail\n__all__ = ['send_async_email']\n{HELPER}"
    assert "def send_async_email" in moved(named + thread, extensions=extensions).text


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("thr = Thread(target=f, args=(app, msg))\nthr.start()\nthr.join()\n", "used again below"),
        ("threads.append(Thread(target=f, args=(app, msg)))\n", "used again below"),
        (
            "thr = Thread(target=f, args=(app, msg))\nif late:\n    thr.start()\n",
            "used again below",
        ),
        ("done = executor.submit(f, app, msg)\n", "`mail.send(msg)`"),
        ("Thread(target=f, args=(app,  # this app\n msg)).start()\n", "comments inside"),
        ("Timer(60, f, (app, msg)).start()\n", "send_at=timedelta"),
        ("Thread(target=archive, args=(app, msg)).start()\n", "does more than send a mail"),
    ],
)
def test_threads_for_a_person(use: str, words: str) -> None:
    """A thread that is waited for, or whose function does other work, is left to a person."""
    begin = (
        "from threading import Thread, Timer\nfrom mailer import Mail\nmail = Mail()\n"
        "def f(app, msg):\n    with app.app_context():\n        mail.send(msg)\n"
        "def archive(app, msg):\n    db.session.add(msg)\n    mail.send(msg)\n"
    )
    [(line, text)] = advice(begin + use)

    assert line == 10
    assert words in text


@pytest.mark.parametrize(
    ("args", "between", "changes"),
    [
        ("app, msg", "msg = Message('two')", True),
        ("app, msg", "if late:\n    msg = None", True),
        ("app, msg", "for msg in others:\n    print(msg)", True),
        ("app, msg", "msg.subject = 'two'", True),
        ("app, msg", "app, n = other, 1", True),
        ("app, msg", "with make() as msg:\n    pass", True),
        ("app, msg", "del msg", True),
        ("app, msg", "print(msg := 1)", True),
        ("app, self.msg", "self.msg = None", True),
        ("app, queue.pop()", "queue.pop()", True),
        ("app, msgs[0]", "msgs.pop()", True),
        ("app, msg", "thr.name = 'two'", False),
        ("app, msg", "n = len(msg.recipients)", False),
        ("current_app._get_current_object(), msg", "print(msg)", False),
        ("app, self.msg", "print(msg)", False),
    ],
)
def test_arguments_that_change_before_the_start(args: str, between: str, changes: bool) -> None:
    """The arguments are those where the thread was made, not those where it is started."""
    begin = f"{THREAD}from app import mail\n{HELPER}"
    text = f"{begin}thr = Thread(target=send_async_email, args=({args}))\n{between}\nthr.start()\n"
    if changes:
        [(line, words)] = advice(text, extensions=EXTENSIONS)
        assert line == 8
        assert "may change before its start()" in words
    else:
        left = "" if between.startswith("thr.") else f"{between}\n"
        sent = f"mail.send({args.rpartition(', ')[2]})\n"
        check(text, f"from app import mail\n\n\n{left}{sent}", extensions=EXTENSIONS)


def test_two_threads_of_one_variable() -> None:
    """Mail one is sent once, and so is mail two, as before."""
    [(line, _)] = [
        (finding.line, finding.text)
        for finding in moved(
            f"{THREAD}from app import mail\n{HELPER}"
            "msg = Message('one')\nfirst = Thread(target=send_async_email, args=(app, msg))\n"
            "msg = Message('two')\nsecond = Thread(target=send_async_email, args=(app, msg))\n"
            "first.start()\nsecond.start()\n",
            extensions=EXTENSIONS,
        ).advice
    ]

    assert line == 9


def test_a_thread_that_is_started_before() -> None:
    """A thread that the next round of a loop starts stays."""
    found = advice(
        f"{THREAD}from app import mail\n{HELPER}for msg in messages:\n"
        "    thr.start()\n    thr = Thread(target=send_async_email, args=(app, msg))\n",
        extensions=EXTENSIONS,
    )

    assert "used again below" in found[0][1]


@pytest.mark.parametrize(
    ("begin", "is_warned"),
    [
        ("for msg in messages:\n    ", True),
        ("while msg := next(messages):\n    ", True),
        ("for send in senders:\n    def later():\n        ", False),
        ("if late:\n    ", False),
    ],
)
def test_a_thread_in_a_loop(begin: str, is_warned: bool) -> None:
    """A loop of threads becomes one that an error ends, and the advice says so."""
    start = "Thread(target=send_async_email, args=(app, msg)).start()\n"
    before = f"from threading import Thread\nfrom mailer import Mail\nmail = Mail()\n{HELPER}"
    found = moved(f"{before}{begin}{start}").advice

    assert ["raises a MailerError here and ends the loop" in one.text for one in found] == (
        [True] if is_warned else []
    )


def test_other_threads() -> None:
    """Threads of a function that sends no mail are not mentioned."""
    assert advice("from mailer import Mail\ndef f(): pass\nThread(target=f).start()\n") == []


@pytest.mark.parametrize(
    ("made", "after"),
    [
        ("import flask_mail as fm\nmail = fm.Mail(app)\n", "from mailer import Mail\n"),
        ("import flask_mail\nmail = flask_mail.Mail(app)\n", "from mailer import Mail\n"),
        ("import mailer as m\nmail = m.Mail(app)\n", "import mailer as m\n"),
        (
            "from flask_mail import Mail\nclass Post(Mail):\n    x = 1\nmail = Post(app)\n",
            "from mailer import Mail\nclass Post(Mail):\n    x = 1\n",
        ),
    ],
)
def test_a_mail_that_queues(made: str, after: str) -> None:
    """The class Mail is found under each name that an import gives it."""
    thread = "Thread(target=send_async_email, args=(app, msg)).start()\n"
    assigned = made.splitlines()[-1].replace("flask_mail.", "").replace("fm.", "")
    check(f"{THREAD}{made}{HELPER}{thread}", f"{after}{assigned}\n\n\nmail.send(msg)\n")


MAIL_THREAD = f"{HELPER}Thread(target=send_async_email, args=(app, msg)).start()\n"
OF_MODELS = "import flask_mail\nfrom shop.models import Mail\nmail = flask_mail.Mail(app)\n"


WAITING = [
    OF_MODELS,
    "from flask_mail import *\nmail = Mail(app)\n",
    "import flask_mail\nfrom flask_mailman import Mail\nmail = Mail(app)\n",
    "from flask_mail_sendgrid import MailSendGrid\nmail = MailSendGrid(app)\n",
    "from flask_mail import Message\nfrom flask_mailman import Mail\nmail = Mail(app)\n",
    "from flask_mail import Mail\nclass P(Mail):\n    def send(self, m): 1\nmail = P(app)\n",
]
MIXED = "from flask_mail import Mail\nfrom a import Post\nmail = Post(app)\nx = Mail(app)\n"


@pytest.mark.parametrize("made", [*WAITING, MIXED])
def test_a_mail_that_still_waits(made: str) -> None:
    """Mail that is not sent by a Mail of mailer keeps its threads, in its own file and others."""
    assert MAIL_THREAD in moved(f"{THREAD}{made}{MAIL_THREAD}").text
    text = f"{THREAD}from shop.made import mail\n{MAIL_THREAD}"
    assert moved(text, made=made).text == text


@pytest.mark.parametrize("made", WAITING)
def test_an_extension_that_still_waits(made: str) -> None:
    """The mail of `app.extensions` keeps its threads if it is not a Mail of mailer."""
    thread = MAIL_THREAD.replace("mail.send", "app.extensions['mail'].send")
    assert thread in moved(f"{THREAD}{made}{thread}").text


def test_advice_about_a_mail_that_still_waits() -> None:
    """The reason why threads stay is told, once for each file."""
    found = advice(f"{THREAD}{OF_MODELS}{MAIL_THREAD}")

    assert [line for line, _ in found] == [4, 7]
    assert "Mail has another meaning in this file" in found[0][1]
    assert "not known to be a Mail that queues" in found[1][1]


@pytest.mark.parametrize(
    "use",
    [
        "engine = current_app.extensions.get('mail')\nengine.send(1)\n",
        "engine = current_app.extensions['mail'] or None\nengine.send(1)\n",
        "if engine := current_app.extensions.get('mail'):\n    engine.send(1)\n",
        "# mail\ncurrent_app.extensions['mail'].send(1)\n",
    ],
)
def test_an_extension_that_nothing_makes(use: str) -> None:
    """The mail of `app.extensions` is pointed to if its class is not known."""
    [(line, text)] = advice(use)

    assert line == 2
    assert "not known to be a Mail that queues" in text


def test_a_mail_of_another_file() -> None:
    """An imported `mail` is that of the file it comes from, also where that imports it as well."""
    queues = "from mailer import Mail\nmail = Mail()\n"
    waits = "from flask_mailman import Mail\nmail = Mail()\n"
    others = {
        "shop/extensions.py": queues,
        "shop/__init__.py": "from .extensions import mail\nmail.send_message(1)\n",
        "news/extensions.py": waits,
        "news/__init__.py": "from flask_mailman import Mail\nmail = Mail()\n",
    }
    for module, name, is_changed in [
        ("from shop import mail", "other.py", True),
        ("from . import mail", "shop/post.py", True),
        ("from .. import mail", "shop/post/send.py", True),
        ("from news import mail", "other.py", False),
        ("from . import mail", "news/post.py", False),
        ("from shop import mail as post", "other.py", True),
        ("from news import mail as post", "other.py", False),
    ]:
        text = f"{THREAD}{module}\n{MAIL_THREAD}"
        if " as " in module:
            text = text.replace("mail.send(", "post.send(")
        found = dict(migrate({**others, name: text}))
        assert (name in found and "Thread" not in found[name].text) is is_changed, module


def test_a_part_of_a_project() -> None:
    """A file whose Mail was not read stays, and the advice is to read the whole project."""
    [(line, text)] = advice(
        f"{THREAD}from flask_mail import Message\nfrom app import mail\n{MAIL_THREAD}"
    )

    assert line == 6
    assert "give this command the whole project" in text


def test_a_project_without_flask_mail() -> None:
    """Without Flask-Mail in the project, `mail.send()` is something else."""
    text = f"{THREAD}{HELPER}Thread(target=send_async_email, args=(a, b)).start()\n"

    assert dict(migrate({"app.py": text})) == {}
