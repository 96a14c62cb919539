"""`mailer.migrate_code`: imports, errors, results and the files themselves."""

from textwrap import dedent

import pytest

from mailer.migrate_code import migrate
from tests.migrating import advice, check, moved

# --- imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from flask_mail import Mail", "from mailer import Mail"),
        ("from flask_mail import Mail, Message", "from mailer import Mail, Message"),
        (
            "from flask_mail import Message, Mail  # both",
            "from mailer import Message, Mail  # both",
        ),
        (
            "from flask_mail import (\n    Mail,\n    Message,\n)",
            "from mailer import (\n    Mail,\n    Message,\n)",
        ),
        ("from flask_mail import Mail as FlaskMail", "from mailer import Mail as FlaskMail"),
        ("from flask.ext.mail import Mail", "from mailer import Mail"),
        ("from flask.ext.mail import Message", "from flask_mail import Message"),
        (
            "from flask_mail import Attachment, Mail",
            "from flask_mail import Attachment\nfrom mailer import Mail",
        ),
        (
            "from flask_mail import Mail as M, BadHeaderError, Message",
            "from flask_mail import BadHeaderError, Message\nfrom mailer import Mail as M",
        ),
        (
            "import flask_mail\n\nmail = flask_mail.Mail()",
            "from mailer import Mail\n\nmail = Mail()",
        ),
        (
            "import flask_mail\n\nmail, x = flask_mail.Mail(), flask_mail.Message()",
            "import flask_mail\nfrom mailer import Mail\n\nmail, x = Mail(), flask_mail.Message()",
        ),
        (
            "try:\n    from flask_mail import Mail\nexcept ImportError:\n    Mail = None",
            "try:\n    from mailer import Mail\nexcept ImportError:\n    Mail = None",
        ),
    ],
)
def test_the_import_of_mail(before: str, after: str) -> None:
    """`Mail` comes from mailer, `Message` from either, and all else from Flask-Mail."""
    check(before + "\n", after + "\n")


@pytest.mark.parametrize(
    "text",
    [
        "from flask_mail import Message\n",
        "from mailer import Mail\n\nmail = Mail()\n",
        "from sendgrid.helpers.mail import Mail\n\nmail = Mail()\nmail.send(1)\n",
        "from django.core.mail import send_mail\n",
        "from .flask_mail import Mail\n",
    ],
)
def test_what_needs_no_change(text: str) -> None:
    """`Message` may stay, and so does the mail of other libraries."""
    check(text, text)


def test_an_import_of_everything() -> None:
    """`from flask_mail import *` is left to a person."""
    [(line, text)] = advice("from flask_mail import *\n")

    assert line == 1
    assert "`import *`" in text


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("smtplib.SMTPException", "MailerError"),
        ("smtplib.SMTPException as error", "MailerError as error"),
        ("(smtplib.SMTPException)", "(MailerError)"),
        ("(smtplib.SMTPException, AssertionError)", "(MailerError, AssertionError)"),
        ("(smtplib.SMTPException, smtplib.SMTPDataError)", "(MailerError)"),
        ("(KeyError, smtplib.SMTPException, smtplib.SMTPDataError)", "(KeyError, MailerError)"),
    ],
)
def test_an_error_of_a_relay(before: str, after: str) -> None:
    """`except SMTPException` around `mail.send()` never fires any more: it catches MailerError."""
    text = (
        "from app import mail\n{added}\n\ndef welcome(message):\n    try:\n"
        "        mail.send(message)\n    except {caught}:\n        return 'later'\n"
    )
    added = "from mailer import MailerError\n"
    check(
        "import smtplib\n" + text.format(added="", caught=before),
        text.format(added=added, caught=after),
        extensions="from mailer import Mail\n\nmail = Mail()\n",
    )


@pytest.mark.parametrize(
    "call",
    [
        "client.sendmail('a', [to], 'text')",
        "LegacyRelay().push(to)",
        "send_receipt(to)",
        "receipt = build(to)",
    ],
)
def test_an_error_that_another_call_may_raise(call: str) -> None:
    """`except SMTPException` stays where a call beside `mail.send()` may raise that error."""
    [(line, words)] = advice(
        f"""\
        from smtplib import SMTPException
        from app import mail

        def welcome(to, message):
            try:
                mail.send(message)
                {call}
            except SMTPException:
                return "later"
        """,
        extensions="from mailer import Mail\n\nmail = Mail()\n",
    )

    assert line == 8
    assert "another call in this block may" in words


@pytest.mark.parametrize(
    "call",
    [
        "note = Message(_('Hello'), [to])",
        "message.html = render_template('hello.html', link=url_for('index'))",
        "message.attach_picture('a.png')",
        "note = Message(current_app.config.get('SUBJECT'), [data.get('to')])",
        "current_app.logger.info('sent')",
    ],
)
def test_an_error_beside_calls_that_build_the_mail(call: str) -> None:
    """`except SMTPException` is replaced where all other calls only build the mail."""
    text = (
        "from app import mail\n{added}\n\ndef welcome(data, message):\n    try:\n"
        f"        {call}\n"
        "        mail.send(message)\n    except {caught}:\n        return 'later'\n"
    )
    check(
        "from smtplib import SMTPException\n" + text.format(added="", caught="SMTPException"),
        text.format(added="from mailer import MailerError\n", caught="MailerError"),
        extensions="from mailer import Mail\n\nmail = Mail()\n",
    )


@pytest.mark.parametrize(
    "caught",
    [
        "SMTPRecipientsRefused",
        "smtplib.SMTPSenderRefused",
        "(SMTPRecipientsRefused, SMTPSenderRefused)",
        "smtplib.SMTPAuthenticationError as error",
    ],
)
def test_an_error_with_one_cause(caught: str) -> None:
    """MailerError has many causes, so it does not replace an error that has one: a bad address."""
    [(line, words)] = advice(
        "from mailer import Mail\nmail = Mail()\ntry:\n    mail.send(note)\n"
        f"except {caught}:\n    print('bad address')\n"
    )

    assert line == 5
    assert "for a bad address an InvalidAddress" in words


def test_an_error_is_imported_beside_what_is() -> None:
    """MailerError joins an import from mailer, and what is used elsewhere stays imported."""
    check(
        """\
        from smtplib import SMTP, SMTPException

        from flask_mail import Mail, Message

        mail = Mail()


        def send(message):
            try:
                with mail.connect() as connection:
                    connection.send(message)
            except SMTPException:
                print(SMTP)
        """,
        """\
        from smtplib import SMTP

        from mailer import Mail, MailerError, Message

        mail = Mail()


        def send(message):
            try:
                with mail.connect() as connection:
                    connection.send(message)
            except MailerError:
                print(SMTP)
        """,
    )


def test_a_module_of_the_project_that_is_named_mailer() -> None:
    """MailerError is imported from the package mailer, not from a module beside the file."""
    text = dedent("""\
        from .mailer import send_welcome
        {added}from .extensions import mail

        def welcome(message):
            try:
                mail.send(message)
            except {caught}:
                send_welcome(message)
        """)
    check(
        "from smtplib import SMTPException\n" + text.format(added="", caught="SMTPException"),
        text.format(added="", caught="MailerError").replace(
            "import mail\n", "import mail\nfrom mailer import MailerError\n"
        ),
        extensions="from mailer import Mail\n\nmail = Mail()\n",
    )
    check(
        "from .mailer import Mail\n\nmessenger = Mail()\nmessenger.send(1) or 2\n",
        "from .mailer import Mail\n\nmessenger = Mail()\nmessenger.send(1) or 2\n",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '"""Mail."""\n\ndef make():\n    import flask_mail\n    return flask_mail.Mail()',
            '"""Mail."""\n\nfrom mailer import Mail\n\ndef make():\n    return Mail()',
        ),
        (
            "# mail\ndef make():\n    import flask_mail\n    return flask_mail.Mail()",
            "# mail\nfrom mailer import Mail\ndef make():\n    return Mail()",
        ),
        (
            "import eventlet\neventlet.monkey_patch()\nimport flask_mail\nx = flask_mail.Mail()",
            "import eventlet\neventlet.monkey_patch()\nfrom mailer import Mail\nx = Mail()",
        ),
    ],
)
def test_the_place_of_a_new_import(before: str, after: str) -> None:
    """A new import comes below the docstring, and not above the other imports of mail."""
    check(before + "\n", after + "\n")


FLASK = "from flask import Flask\n"
LOCAL = "\nfrom shop.models import User\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            f"import os\n\n{FLASK}from flask_mail import Mail\nfrom flask_wtf import Form\n{LOCAL}",
            f"import os\n\n{FLASK}from flask_wtf import Form\nfrom mailer import Mail\n{LOCAL}",
        ),
        (
            f"import os\n\nfrom flask_mail import Mail\nfrom flask_wtf import Form\n{LOCAL}",
            f"import os\n\nfrom flask_wtf import Form\nfrom mailer import Mail\n{LOCAL}",
        ),
        (
            f"from flask_mail import Attachment, Mail\nfrom wtforms import Form\n{LOCAL}",
            "from flask_mail import Attachment\nfrom mailer import Mail\nfrom wtforms import Form\n"
            + LOCAL,
        ),
        (
            f"import flask_mail\n{FLASK}{LOCAL}\nx = flask_mail.Mail(flask_mail)\n",
            f"import flask_mail\n{FLASK}from mailer import Mail\n{LOCAL}\nx = Mail(flask_mail)\n",
        ),
        (
            f"# first\nfrom flask_mail import Mail\n{FLASK}",
            f"# first\nfrom mailer import Mail\n{FLASK}",
        ),
        (  # unsorted before
            f"from flask_wtf import Form\nfrom flask_mail import Mail\n{FLASK}",
            f"from flask_wtf import Form\nfrom mailer import Mail\n{FLASK}",
        ),
    ],
)
def test_the_order_of_sorted_imports(before: str, after: str) -> None:
    """Among sorted imports, that of mailer is where an import sorter puts it."""
    check(before, after)


@pytest.mark.parametrize(
    ("handlers", "words"),
    [
        ("except SMTPDataError as e:\n    print(e.smtp_code)", "MailerError has no smtp_code"),
        (
            "except SMTPDataError:\n    pass\nexcept SMTPException:\n    pass",
            "SMTPDataError, SMTPException",
        ),
        ("except ConnectionRefusedError:\n    pass", "ConnectionRefusedError is not raised"),
        ("except (socket.timeout, OSError):\n    pass", "socket.timeout, OSError"),
    ],
)
def test_errors_for_a_person(handlers: str, words: str) -> None:
    """Details of a reply, several handlers, and errors of the network are left to a person."""
    start = "from mailer import Mail\nmail = Mail()\ntry:\n    mail.send(note)\n"

    assert [words in text for _, text in advice(start + handlers + "\n")] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    mail.send(note)\nexcept Exception:\n    pass\n",
        "try:\n    mail.send(note)\nexcept MailerError:\n    pass\n",
        "try:\n    mail.send(note)\nfinally:\n    pass\n",
        "try:\n    SMTP(host).quit()\n    mail.send(note)\nexcept SMTPException:\n    pass\n",
        "try:\n    other.run(note)\nexcept SMTPException:\n    pass\n",
    ],
)
def test_errors_that_still_fire(text: str) -> None:
    """`except Exception` still works, and `smtplib` of one's own still raises its errors."""
    assert advice("from mailer import Mail\nmail = Mail()\n" + text) == []


def test_an_error_around_a_function_that_sends() -> None:
    """`except SMTPException` around a function of the project that sends is pointed to."""
    [(line, text)] = advice(
        """\
        from smtplib import SMTPException
        from shop import send_welcome

        def register(user):
            try:
                send_welcome(user)
            except SMTPException:
                return "later"
        """,
        shop="""\
        from mailer import Mail, Message
        mail = Mail()

        def send_welcome(user):
            mail.send(Message("Welcome", [user.email]))
        """,
    )

    assert line == 7
    assert "SMTPException is not raised any more" in text


def test_the_result_of_send() -> None:
    """`mail.send()` returned None: a use of its result is pointed to."""
    found = advice(
        """\
        from mailer import Mail
        mail = Mail()

        def view(message):
            mail.send(message)
            if mail.send(message):
                pass
            sent = mail.send(message)
        """
    )

    assert [line for line, _ in found] == [6, 8]
    assert "returns a receipt now" in found[0][1]


# --- logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "from logging.handlers import SMTPHandler\nh = SMTPHandler(('a', 25), 'b', ['c'], 'd')\n",
        "import logging.handlers\nh = logging.handlers.SMTPHandler('a', 'b', ['c'], 'd')\n",
        "import logging.handlers\nclass Handler(logging.handlers.SMTPHandler):\n    pass\n",
        "HANDLERS = {\n'mail': {'class': 'logging.handlers.SMTPHandler'}}\n",
    ],
)
def test_error_mails_of_a_log(text: str) -> None:
    """SMTPHandler is pointed to, in a project without Flask-Mail as well."""
    [(line, words)] = advice(text)

    assert line == 2
    assert "QueuedMailHandler" in words


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from .decorators import async\nfrom flask_mail import Mail\n", "line 1: invalid syntax"),
        ("from flask_mail import Mail\nprint 'mail'\n", "line 2: Missing parentheses"),
        ("import flask_mail\x00\n", "null bytes"),
        ("def mail():\nreturn Mail()\n", "line 2: expected an indented block"),
        ("return Mail()\n", "line 1: 'return' outside function"),
        (f"mail.send({'1 + ' * 400}1)\n", "recursion"),
        (f"mail.send({'1 + ' * 4000}1)\n", "recursion"),
    ],
)
def test_what_is_not_python(text: str, words: str) -> None:
    """A file that is not Python, or too deep to read, is named with the reason, and left alone."""
    migration = moved(text)

    assert words in migration.unreadable
    assert migration.text == text


def test_the_layout_of_a_file_stays() -> None:
    """Line ends, tabs, comments and the missing end of the last line stay as they are."""
    before = (
        "# first\r\nfrom flask_mail import Mail # second\r\n\r\nmail=Mail( )\r\n"
        "if mail :\r\n\tname = 'Zo\xeb'  # third"
    )

    assert moved(before).text == before.replace("flask_mail", "mailer")


def test_files_that_do_not_mention_mail() -> None:
    """A file without mail is not even parsed."""
    assert dict(migrate({"old.py": "print 'hello'\n"})) == {}
