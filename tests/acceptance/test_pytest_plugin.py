"""The pytest plugin, as an application's own tests use it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.services.worker import PROJECT

pytest_plugins = "pytester"

APP = """
from flask import Flask
from jinja2 import DictLoader
from mailer import Mailer

mailer = Mailer()


def create_app():
    app = Flask("shop")
    app.config.update(TESTING=True, MAIL_DEFAULT_SENDER="shop@example.com")
    app.jinja_loader = DictLoader({"welcome.txt": "Welcome, {{ name }}!"})
    mailer.init_app(app)

    @app.post("/users/<name>")
    def sign_up(name):
        mailer.send_email(f"{name}@example.com", "Welcome", "welcome", name=name)
        return "", 201

    return app
"""
CONFTEST = """
import pytest
from shop import create_app


@pytest.fixture
def app():
    return create_app()
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Make a project with an application and its fixture `app`."""
    pytester.makepyfile(shop=APP)
    pytester.makeconftest(CONFTEST)
    pytester.syspathinsert()
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "pytest_mailer", "-p", "no:cacheprovider", *options)


def test_the_fixtures(project: pytest.Pytester) -> None:
    """`outbox`, `drain` and `fake_relay` work with the application's fixture `app`."""
    project.makepyfile("""
        from datetime import timedelta
        from shop import mailer

        def test_outbox(app, outbox):
            app.test_client().post("/users/ada")
            assert outbox[0].to == ["ada@example.com"]
            outbox.assert_sent(to="ada@example.com", context={"name": "ada"}, times=1)

        def test_each_test_has_its_own(outbox):
            outbox.assert_nothing_sent()

        def test_drain(app, outbox, drain):
            with app.app_context():
                mailer.send_email("ada@example.com", "Hi", "welcome", name="Ada",
                    send_at=timedelta(hours=1))
            assert drain() == []
            assert [one.status for one in drain(after=timedelta(hours=1))] == ["sent"]

        def test_fake_relay(app, outbox, drain, fake_relay):
            fake_relay.refuse("ada@example.com", 550, "no such user")
            app.test_client().post("/users/ada")
            [delivery] = drain()
            assert (delivery.status, delivery.reply) == ("failed", "550 no such user")
            outbox.assert_nothing_sent()
    """)

    run(project).assert_outcomes(passed=4)


def test_a_failure_shows_what_was_sent(project: pytest.Pytester) -> None:
    """A failed assertion shows the mails, and no line of the test kit itself."""
    project.makepyfile("""
        def test_mail(app, outbox):
            app.test_client().post("/users/ada")
            outbox.assert_sent(to="bob@example.com")
    """)

    result = run(project)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*No mail was sent with to='bob@example.com'.",
            "*1 mail was sent:",
            "*outbox[[]0[]] to ada@example.com 'Welcome' template='welcome' context=*",
            "*The nearest is *ada@example.com*: to is *",
        ]
    )
    assert "def assert_sent" not in result.stdout.str()


def test_snapshots(project: pytest.Pytester) -> None:
    """The option writes snapshots beside the test, which later runs compare with."""
    file = project.makepyfile("""
        def test_mail(app, outbox):
            app.test_client().post("/users/ada")
            outbox[0].assert_matches_snapshot("welcome")
    """)
    snapshot = file.parent / "snapshots" / file.stem / "welcome.txt"

    run(project).assert_outcomes(failed=1)
    assert not snapshot.exists()
    run(project, "--mailer-update-snapshots").assert_outcomes(passed=1)
    assert snapshot.read_text().endswith("--- text\nWelcome, ada!\n")
    run(project).assert_outcomes(passed=1)
    snapshot.write_text(snapshot.read_text().replace("ada!", "Ada!"))
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*-Welcome, Ada!", "*+Welcome, ada!"])


def test_a_project_without_the_fixture_app(pytester: pytest.Pytester) -> None:
    """The error says which fixture is missing."""
    pytester.makepyfile("def test_mail(outbox): pass")

    result = run(pytester)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture named app that returns*"])


def test_an_error_of_the_fixture_app_itself(pytester: pytest.Pytester) -> None:
    """An error of the application's fixtures is shown as it is."""
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def app(missing):
            pass

        def test_mail(outbox):
            pass
    """)

    result = run(pytester)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'missing' not found*"])


def test_the_plugin_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    """pytest loads the plugin without importing Mailer, Flask or Celery."""
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('pytest_mailer')\n"
        "    heavy = {'mailer', 'flask', 'celery', 'sqlalchemy'}\n"
        "    assert not heavy & sys.modules.keys()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_mailer", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stdout


def test_the_package_has_the_plugin() -> None:
    """The package tells pytest of the plugin, and contains it."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    targets = settings["tool"]["hatch"]["build"]["targets"]

    assert settings["project"]["entry-points"]["pytest11"] == {"mailer": "pytest_mailer"}
    assert "pytest_mailer.py" in targets["wheel"]["only-include"]
    assert "/pytest_mailer.py" in targets["sdist"]["include"]
