"""The wheel and the sdist: their contents, their metadata, and the commands that they install."""

import re
import tarfile
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import mailer
from tests.services.inbox import Inbox
from tests.services.packages import Packages
from tests.services.project import Project

PROJECT = Path(__file__).parents[2]
FILES = {
    path.relative_to(PROJECT).as_posix()
    for path in (PROJECT / "mailer").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
} | {"pytest_mailer.py"}
#: The beginnings of modules that need an extra, or pytest.
OF_EXTRAS = (
    *("mailer.migrate_code", "mailer.mime.keys", "mailer.smtp.proxy", "mailer.smtpd.server"),
    *("mailer.store.postgresql", "pytest_mailer"),
)
PLAIN = "from flask import Flask\n\napp = Flask('shop')\n"
SHOP = f"{PLAIN}from mailer import Mailer\nMailer(app)\n"


@pytest.fixture(scope="module")
def metadata(packages: Packages) -> Message:
    with zipfile.ZipFile(packages.wheel) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(wheel.read(name))


def test_the_wheel_has_the_package_and_nothing_else(packages: Packages) -> None:
    """The wheel has all files of mailer/, such as migrations and templates, and our plugin."""
    with zipfile.ZipFile(packages.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert names == FILES
    assert {
        "mailer/py.typed",
        "mailer/schema/migrations/env.py",
        "mailer/web/static/inbox.js",
        "mailer/web/templates/mailer/inbox.html",
        "mailer/cli/project/docker-compose.yml.jinja",
    } <= names
    assert any(name.startswith("mailer/schema/migrations/versions/") for name in names)


def test_the_sdist_has_what_builds_the_wheel(packages: Packages) -> None:
    """The sdist has the package and the files of its build, without tests and the local stack."""
    with tarfile.open(packages.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    assert names == FILES | {
        *("pyproject.toml", "PKG-INFO", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore")
    }


def test_the_version_is_in_names_and_metadata(packages: Packages, metadata: Message) -> None:
    """Both packages have the version of `mailer.__version__`, which no Git has to tell."""
    assert metadata["Version"] == mailer.__version__
    assert f"-{mailer.__version__}-" in packages.wheel.name
    assert packages.sdist.name.endswith(f"-{mailer.__version__}.tar.gz")


def test_the_metadata_names_what_is_supported(metadata: Message) -> None:
    """Each Python that `make test-all` tries is a classifier, and none below requires-python."""
    [tried] = re.findall("for version in ([0-9. ]+);", (PROJECT / "Makefile").read_text())
    found = [
        name.rpartition(" :: ")[2]
        for name in metadata.get_all("Classifier", [])
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
    ]

    assert found == tried.split()
    assert metadata["Requires-Python"] == f">={found[0]}"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True) == (PROJECT / "README.md").read_bytes()


def test_the_documentation_names_extras_that_exist(metadata: Message) -> None:
    """Each extra in a `pip install` of docs, messages and templates is an extra of the package."""
    texts = [
        *(PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")),
        *(PROJECT / "mailer").rglob("*.py"),
    ]
    named = {
        extra
        for text in texts
        for extras in re.findall(r"flask-mailer-queue\[([\w,]+)\]", text.read_text("utf-8"))
        for extra in extras.split(",")
    }

    assert {"inbox", "postgres", "dkim"} <= named <= set(metadata.get_all("Provides-Extra", []))


# --- installed ----------------------------------------------------------------------------------


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def commands(output: str) -> Sequence[str]:
    """Return the names under "Commands:" in a text of --help."""
    return re.findall(r"^  (\w[\w-]*)", output.partition("Commands:")[2], re.MULTILINE)


def test_it_is_installed_with_what_it_imports(installed_python: Path, tmp_path: Path) -> None:
    """Each module of the package can be imported with the dependencies of the wheel alone.

    Left out are those that need an extra or pytest, and the scripts that Alembic runs.
    """
    names = sorted(module_name(file) for file in FILES if file.endswith(".py"))
    names = [n for n in names if "migrations" not in n and not n.startswith(OF_EXTRAS)]
    code = f"import {', '.join(names)}; print(mailer.__version__, mailer.__file__)"
    version, file = Project(tmp_path, installed_python, {}).output("-c", code).split()

    assert len(names) > 100
    assert version == mailer.__version__
    assert Path(file).is_relative_to(installed_python.parents[1])


def test_flask_has_the_command_once(installed_python: Path, tmp_path: Path) -> None:
    """`flask mail` is there once, in an app without Mailer as well, and can be asked for help."""
    project = Project(tmp_path, installed_python, {})
    project.write({"plain.py": PLAIN, "shop.py": SHOP})
    of_flask = commands(project.output("-m", "flask", "--app", "shop", "--help"))
    of_mail = commands(project.output("-m", "flask", "--app", "plain", "mail", "--help"))

    assert of_flask.count("mail") == 1
    assert {"init", "inbox", "migrate", "queue"} <= set(of_mail)


def test_a_command_without_mailer_says_how_to_set_it_up(
    installed_python: Path, tmp_path: Path
) -> None:
    """In an app without Mailer, a command names the lines to add, and shows no traceback."""
    project = Project(tmp_path, installed_python, {})
    project.write({"app.py": PLAIN})
    done = project.run("-m", "flask", "mail", "queue")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: The app 'shop' has no Mailer.")
    assert "Mailer(app)" in done.stderr
    assert "flask mail init" in done.stderr


def test_the_inbox_needs_its_extra(installed_python: Path, tmp_path: Path) -> None:
    """Without the extra `inbox`, `flask mail inbox` says what to install."""
    project = Project(tmp_path, installed_python, {})
    project.write({"app.py": SHOP})
    done = project.run("-m", "flask", "--debug", "mail", "inbox")

    assert done.returncode == 1
    assert "pip install 'flask-mailer-queue[inbox]'" in done.stderr


def test_the_inbox_of_an_installed_package(installed_with_inbox: Path, tmp_path: Path) -> None:
    """With the extra `inbox`, `flask mail inbox` shows the mail that it receives on its page."""
    inbox = Inbox(tmp_path, python=installed_with_inbox)
    try:
        inbox.start()
        inbox.send("ada@example.com")
        page = inbox.get("/inbox")
        [style, *_] = re.findall(r'href="(/\S+\.css)"', page)
        rules = inbox.get(style)
    finally:
        inbox.process.kill()
        inbox.process.wait()

    assert "ada@example.com" in page
    assert "{" in rules
