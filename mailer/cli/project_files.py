"""The files that `flask mail init` writes: made from templates, and written if they are missing."""

import json
import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mailer.cli.app_source import AppSource
from mailer.cli.mail_database import MailDatabase
from mailer.private import create_private_file

#: The names of a compose file. A second file would hide the first.
_COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_IGNORED = (".env", "instance/")


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """A file of the user's project, with the text to write."""

    path: Path
    text: str
    is_private: bool = False

    @property
    def exists(self) -> bool:
        """Return whether there is such a file, or a link of this name."""
        return os.path.lexists(self.path)

    def write(self) -> None:
        """Write a new file. Raise FileExistsError if there is one."""
        if self.is_private:
            with os.fdopen(create_private_file(self.path), "w", encoding="utf-8") as file:
                file.write(self.text)
        else:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(self.text)


def make_files(
    folder: Path, source: AppSource, worker: str, database: MailDatabase
) -> list[ProjectFile]:
    """Return the files of a project in the order in which a reader needs them.

    An existing .dockerignore is left out: it gets lines.

    Args:
        folder: The folder of the project.
        source: The app.
        worker: The name of the worker's module.
        database: The place of the mail in the containers.
    """
    names = [name for name in ("requirements.txt", "pyproject.toml") if (folder / name).is_file()]
    values = {
        "project": re.sub("[^a-z0-9]", "", folder.name.lower()) or "app",
        "source": source,
        "flask_app": json.dumps(source.for_flask).replace("$", "$$"),  # Compose reads one $
        "server": json.dumps(source.for_gunicorn),
        "worker": worker,
        "local": _local_name(source),
        "call": "" if source.arguments is None else f"({source.arguments})",
        "database": database.kind,
        "extras": "postgres,web" if database.is_postgresql else "web",
        "password": secrets.token_urlsafe(24),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "requirements": names[0] if names else None,
    }

    templates = Environment(
        loader=PackageLoader("mailer.cli", "project"),
        autoescape=False,  # noqa: S701 -- none of them is HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )

    def rendered(template: str, name: str, *, is_private: bool = False) -> ProjectFile:
        text = templates.get_template(f"{template}.jinja").render(values)
        return ProjectFile(folder / name, text, is_private)

    files = [
        rendered("worker.py", f"{worker}.py"),
        rendered("env", ".env", is_private=True),
        rendered("docker-compose.yml", compose_file(folder)),
        rendered("Dockerfile", "Dockerfile"),
    ]
    dockerignore = rendered("dockerignore", ".dockerignore")
    return files if dockerignore.exists else [*files, dockerignore]


def compose_file(folder: Path) -> str:
    """Return the name of the compose file that Compose reads in this folder, or of a new one."""
    found = [name for name in _COMPOSE_FILES if os.path.lexists(folder / name)]
    return found[0] if found else _COMPOSE_FILES[-1]


def missing_lines(ignore: Path) -> list[str]:
    """Return the lines that a .gitignore or .dockerignore needs, to keep out secrets and mail."""
    known = dict[str, bool]()  # the last line about a path decides
    for line in _text(ignore).splitlines():
        path = line.strip()
        known[path.removeprefix("!").strip("/")] = not path.startswith("!")
    return [line for line in _IGNORED if not known.get(line.strip("/"))]


def add_lines(ignore: Path, lines: list[str]) -> None:
    """Append lines to a file, which keeps what it has."""
    text = _text(ignore)
    with ignore.open("a", encoding="utf-8") as file:
        file.write("\n" if text and not text.endswith("\n") else "")
        file.writelines(f"{line}\n" for line in lines)


def _text(file: Path) -> str:
    """Return the text of a file, in whichever encoding, or "" if there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _local_name(source: AppSource) -> str:
    """Return the name of the app or factory in the worker: Celery takes `app` and `celery`."""
    if source.name not in {"app", "celery"}:
        return source.name
    return "flask_app" if source.arguments is None else "make_app"
