"""`mailer.migrate_code`: patches in tests of what the changes leave unused."""

from textwrap import dedent

import pytest

from mailer.migrate_code import migrate

EMAIL = """
from threading import Thread
{more}
from flask import current_app

from shop import mail


def send_async_email(app, message):
    with app.app_context():
        mail.send(message)


def send_email(message):
    app = current_app._get_current_object()
    {thread}(target=send_async_email, args=(app, message)).start()
"""
SHOP = "from flask_mail import Mail\n\nmail = Mail()\n"


def advice_for(test: str, more: str = "", thread: str = "Thread") -> list[tuple[int, str]]:
    """Return the advice for a test of the project, which is not changed."""
    email = EMAIL.format(more=more, thread=thread)
    sources = {"src/shop/__init__.py": SHOP, "src/shop/email.py": email, "tests/t.py": dedent(test)}
    migrations = dict(migrate(sources))
    assert migrations["src/shop/email.py"].changes
    if "tests/t.py" not in migrations:
        return []
    migration = migrations["tests/t.py"]
    assert (migration.changes, migration.text) == ((), dedent(test))
    return [(one.line, one.text) for one in migration.advice]


@pytest.mark.parametrize(
    "patch",
    [
        'monkeypatch.setattr("shop.email.Thread", fake)',
        'mock.patch("shop.email.Thread")',
        'mocker.patch("src.shop.email.Thread", autospec=True)',
        'patch.object(email, "Thread")',
        'monkeypatch.setattr(shop.email, "Thread", fake)',
        'monkeypatch.setattr(emails, "Thread", fake)',
        'patch("shop.email.Thread.start")',
        'patch.object(email.Thread, "start")',
    ],
)
def test_a_patch_of_an_import_that_is_removed(patch: str) -> None:
    """It fails after the changes, so it is pointed to, with the remedy."""
    [(line, text)] = advice_for(f"""\
        import shop.email
        import shop.email as emails
        from shop import email

        def test_it(monkeypatch, mocker):
            {patch}
    """)

    assert line == 6
    assert "The changes remove Thread from src/shop/email.py, so that this fails." in text


def test_a_patch_of_a_module_that_is_not_imported_any_more() -> None:
    """A patch through the module `threading` of another module is pointed to as well."""
    test = '@patch("shop.email.threading.Thread")\ndef test_it(thread):\n    pass\n'
    [(line, text)] = advice_for(test, more="import threading", thread="threading.Thread")

    assert line == 1
    assert "remove threading from" in text


def test_a_patch_of_a_function_that_is_not_called_any_more() -> None:
    """The function stays, since the test mentions it, and the patch has no effect any more."""
    [(line, text)] = advice_for("""\
        from unittest.mock import patch

        def test_it():
            with patch("shop.email.send_async_email") as send:
                send.assert_called_once()
    """)

    assert line == 4
    assert "src/shop/email.py does not call send_async_email, so that this has no effect" in text


@pytest.mark.parametrize(
    "test",
    [
        'monkeypatch.setattr("shop.email.mail.send", fake)',
        'monkeypatch.setattr("shop.email.send_email", fake)',
        'monkeypatch.setattr("shop.jobs.Thread", fake)',
        'monkeypatch.setattr("threading.Thread", fake)',
        'print("shop.email.Thread")',
        'setattr(self, "Thread", Thread)',
        "patch(Thread)",
        "patch()",
    ],
)
def test_what_the_changes_do_not_touch(test: str) -> None:
    """Patches of what is used after the changes, or is in other modules, go on working."""
    assert advice_for(f"def test_it():\n    {test}\n") == []


def test_a_patch_in_a_file_that_is_not_python() -> None:
    """A test that can't be read stops nothing."""
    assert advice_for('patch("shop.email.Thread"\n') == []
