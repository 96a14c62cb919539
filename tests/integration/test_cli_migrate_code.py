"""`flask mail migrate-code`: the files that it reads, what it prints and what it writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailer.cli.group import mail_group
from tests.services.users import WITHOUT_PRIVILEGES

PROJECT = Path(__file__).parents[2]
POST = """\
from threading import Thread

from flask_mail import Mail

mail = Mail()


def send_async_email(app, msg):
    with app.app_context():
        mail.send(msg)


def send(app, msg):
    Thread(target=send_async_email, args=(app, msg)).start()
"""
ADMIN = "from flask_mail import Mail, Message\n"
MOVED = """\
from mailer import Mail

mail = Mail()


def send(app, msg):
    mail.send(msg)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file to change, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "post.py").write_text(POST, encoding="utf-8")
    return tmp_path


def migrate_code(*arguments: str) -> Result:
    """Run the command, which has no app here."""
    return CliRunner().invoke(mail_group, ["migrate-code", *arguments])


def test_it_only_prints(project: Path) -> None:
    """Without --write, the changes are printed with their lines and reasons, and nothing else."""
    result = migrate_code()

    assert result.exit_code == 0
    assert (project / "post.py").read_text(encoding="utf-8") == POST
    assert "post.py:3: The Mail of mailer is a drop-in" in result.output
    assert "post.py:14: mail.send() queues the mail in a millisecond" in result.output
    assert "-from flask_mail import Mail\n+from mailer import Mail\n" in result.output
    assert result.output.endswith(
        "Files to change: 1. Nothing is written yet: --write makes the changes."
        " To look at yourself: 0.\n"
    )


def test_the_output_is_a_patch(project: Path) -> None:
    """What it prints can be given to `git apply`."""
    command = ["git", "apply", "-p0", "-"]
    subprocess.run(command, cwd=project, input=migrate_code().output, text=True, check=True)

    assert (project / "post.py").read_text(encoding="utf-8") == MOVED


def test_it_writes(project: Path) -> None:
    """With --write, the file is changed and keeps its mode. A second run finds nothing."""
    (project / "post.py").chmod(0o640)
    result = migrate_code("--write")

    assert result.output.endswith("Files changed: 1. To look at yourself: 0.\n")
    assert (project / "post.py").read_text(encoding="utf-8") == MOVED
    assert (project / "post.py").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in project.iterdir()] == ["post.py"]
    assert migrate_code("--write").output == "Nothing to change. To look at yourself: 0.\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"# -*- coding: latin-1 -*-\nfrom flask_mail import Mail\nname = 'Zo\xeb'\n",
        b"\xef\xbb\xbffrom flask_mail import Mail\nname = 'Zo\xc3\xab'\n",
        b"from flask_mail import Mail\r\nname = 'Zo\xc3\xab'\r\n",
        b"from flask_mail import Mail  # no line end",
    ],
)
def test_encodings_and_line_ends(project: Path, raw: bytes) -> None:
    """The encoding, a byte order mark and the line ends of a file stay."""
    (project / "post.py").write_bytes(raw)
    migrate_code("--write")

    assert (project / "post.py").read_bytes() == raw.replace(b"flask_mail", b"mailer")


def test_a_link(project: Path) -> None:
    """A symbolic link stays one, and its target is changed."""
    (project / "post.py").rename(project / "real.txt")
    (project / "post.py").symlink_to("real.txt")
    migrate_code("--write")

    assert (project / "post.py").is_symlink()
    assert (project / "real.txt").read_text(encoding="utf-8") == MOVED


def test_a_link_to_elsewhere(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link that leads out of the project is left alone."""
    elsewhere = tmp_path_factory.mktemp("other") / "post.py"
    (project / "post.py").rename(elsewhere)
    (project / "post.py").symlink_to(elsewhere)

    assert migrate_code("--write").output.startswith("Nothing to change.")
    assert elsewhere.read_text(encoding="utf-8") == POST


def test_a_file_that_cannot_be_written(project: Path) -> None:
    """A file that can't be written is named with the reason, and the others are changed."""
    closed = project / "closed"
    closed.mkdir()
    (closed / "admin.py").write_text(ADMIN, encoding="utf-8")
    closed.chmod(0o500)
    command = "from mailer.cli.group import mail_group; mail_group()"
    done = subprocess.run(
        [*WITHOUT_PRIVILEGES, sys.executable, "-c", command, "migrate-code", "--write"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "and left as they are:\n  closed/admin.py: Permission denied\n" in done.stdout
    assert "Files changed: 1." in done.stdout
    assert done.returncode == 1
    assert (project / "post.py").read_text(encoding="utf-8") == MOVED
    assert [path.name for path in closed.iterdir()] == ["admin.py"]


@pytest.mark.parametrize(
    "folder", [".git", ".tox", "migrations", "node_modules", "lib/site-packages", "venv"]
)
def test_folders_of_others(project: Path, folder: str) -> None:
    """Virtual environments, migrations and hidden folders are left alone."""
    there = project / folder
    there.mkdir(parents=True)
    (project / "post.py").rename(there / "post.py")
    if folder == "venv":
        (there / "pyvenv.cfg").touch()

    assert migrate_code().output == "Nothing to change. To look at yourself: 0.\n"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"from flask_mail import Mail\nprint 'mail'\n", "line 2: Missing parentheses"),
        (b"from flask_mail import Mail\nname = 'Zo\xeb'\n", "'utf-8'"),
        (b"# coding: klingon\nfrom flask_mail import Mail\n", "unknown encoding"),
    ],
)
def test_what_is_not_python(project: Path, raw: bytes, words: str) -> None:
    """A file that can't be read is named with the reason, and the others are changed."""
    (project / "old.py").write_bytes(raw)
    result = migrate_code("--write")

    assert "Could not be read, and left as they are:\n  old.py: " in result.output
    assert words in result.output
    assert (project / "old.py").read_bytes() == raw
    assert (project / "post.py").read_text(encoding="utf-8") == MOVED


def test_what_a_person_looks_at(project: Path) -> None:
    """Advice is listed with file and line, after the changes."""
    (project / "logs.py").write_text(
        "from logging.handlers import SMTPHandler\n\nmails = SMTPHandler('a', 'b', ['c'], 'd')\n",
        encoding="utf-8",
    )
    result = migrate_code()

    assert "\nTo look at yourself:\n  logs.py:3: SMTPHandler makes" in result.output
    assert result.output.endswith("To look at yourself: 1.\n")


@pytest.mark.parametrize(
    ("name", "hides"),
    [("mailer.py", True), ("mailer/__init__.py", True), ("shop/mailer.py", False)],
)
def test_a_module_of_the_same_name(project: Path, name: str, hides: bool) -> None:
    """A module `mailer` of the project, which would hide the package, is pointed to."""
    (project / name).parent.mkdir(exist_ok=True)
    (project / "shop").mkdir(exist_ok=True)
    (project / "shop" / "__init__.py").touch()
    (project / name).write_text("def send(): pass\n", encoding="utf-8")

    assert ("hides the package mailer" in migrate_code().output) is hides


def test_paths(project: Path) -> None:
    """Files and folders can be named. One that does not exist is an error."""
    other = project / "other"
    other.mkdir()
    (other / "app.py").write_text("from flask_mail import Mail\n", encoding="utf-8")
    result = migrate_code("other", "--write")

    assert (other / "app.py").read_text(encoding="utf-8") == "from mailer import Mail\n"
    assert (project / "post.py").read_text(encoding="utf-8") == POST
    assert result.output.startswith("other/app.py:1: ")
    assert "'missing' does not exist" in migrate_code("missing").output


WITHOUT_LIBCST = """
import sys
sys.modules["libcst"] = None
from mailer.cli.group import mail_group
from tests.services.users import WITHOUT_PRIVILEGES
mail_group(["migrate-code"])
"""


def test_without_libcst() -> None:
    """Without libcst, the error names the extra. Only this command loads it."""
    command = [sys.executable, "-c", WITHOUT_LIBCST]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr == (
        "Error: migrate-code needs libcst, which is not installed. Install it with: pip install"
        " 'flask-mailer-queue[migrate]'\n"
    )
