"""`flask mail migrate-code`: the code of a project, moved over from Flask-Mail."""

import difflib
import io
import os
import shutil
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from mailer.cli.group import mail_group
from mailer.errors import ConfigurationError

if TYPE_CHECKING:
    from mailer.migrate_code import Migration

#: Folders that are not looked into, besides hidden ones and virtual environments.
_SKIPPED = frozenset({"migrations", "node_modules", "site-packages", "__pycache__"})


@mail_group.command("migrate-code", with_appcontext=False)
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--write", is_flag=True, help="Make the changes, instead of only printing them.")
def migrate_code(paths: tuple[Path, ...], *, write: bool) -> None:
    """Move the code of a project over: from Flask-Mail, threads and Celery tasks to the queue.

    PATHS are the files and folders of the project, by default the current folder. Each change is
    printed as a diff with its reason. Then come the places that a person has to look at.
    """
    if find_spec("libcst") is None:
        raise ConfigurationError(
            "migrate-code needs libcst, which is not installed. Install it with: pip install"
            " 'flask-mailer-queue[migrate]'"
        )
    from mailer.migrate_code import migrate  # noqa: PLC0415 -- libcst is an extra

    project = _read_all(paths or (Path(),))
    migrations = dict(migrate(project.texts))
    unwritten = _write_all(project, migrations) if write else {}
    _report(project, migrations, unwritten, written=write)
    if unwritten:
        raise SystemExit(1)


# --- read ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Project:
    """The Python files of a project, by name."""

    texts: dict[str, str] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  #: the reasons


def _read_all(paths: Iterable[Path]) -> _Project:
    project = _Project()
    for path in _python_files(paths):
        name = str(path)
        try:
            project.texts[name], project.encodings[name] = _read(path)
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            project.unreadable[name] = str(error)
    return project


def _read(path: Path) -> tuple[str, str]:
    """Return the text of a file with its own line ends, and its encoding."""
    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding), encoding


def _python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the Python files of a project, without those of other projects.

    These may be in folders inside it, or behind links.
    """
    for path in paths:
        if path.is_file():
            yield path
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not _is_skipped(Path(folder, name)))
            found = (Path(folder, name) for name in sorted(files) if name.endswith(".py"))
            yield from (file for file in found if file.resolve().is_relative_to(path.resolve()))


def _is_skipped(folder: Path) -> bool:
    is_known = folder.name in _SKIPPED or folder.name.startswith(".")
    return is_known or (folder / "pyvenv.cfg").exists()


# --- write ---------------------------------------------------------------------------------------


def _write_all(project: _Project, migrations: Mapping[str, "Migration"]) -> dict[str, str]:
    """Write the files that change. Return the reasons of those that can't be written."""
    failed = dict[str, str]()
    for name, migration in migrations.items():
        if migration.changes:
            try:
                _write(Path(name), migration.text, project.encodings[name])
            except OSError as error:
                failed[name] = error.strerror or str(error)
    return failed


def _write(path: Path, text: str, encoding: str) -> None:
    """Replace a file at once, so that it is never half written."""
    target = path.resolve()
    with TemporaryDirectory(dir=target.parent, prefix=".migrate-code-") as folder:
        whole = Path(folder, target.name)
        whole.write_bytes(text.encode(encoding))
        shutil.copymode(target, whole)
        whole.replace(target)


# --- report --------------------------------------------------------------------------------------

_HIDDEN = (
    "This module hides the package mailer, so that `from mailer import Mail` finds this file."
    " Rename it first."
)


def _report(
    project: _Project,
    migrations: Mapping[str, "Migration"],
    unwritten: Mapping[str, str],
    *,
    written: bool,
) -> None:
    """Print the changes, then the files and places that a person has to look at."""
    changed = [name for name, migration in migrations.items() if migration.changes]
    for name in changed:
        _show(name, project.texts[name], migrations[name])
    advice = [f"{name}:1: {_HIDDEN}" for name in project.texts if _hides_mailer(Path(name))]
    unreadable = [f"{name}: {reason}" for name, reason in project.unreadable.items()]
    for name, migration in migrations.items():
        advice += [f"{name}:{finding.line}: {finding.text}" for finding in migration.advice]
        if migration.unreadable:
            unreadable.append(f"{name}: {migration.unreadable}")
    failed = [f"{name}: {reason}" for name, reason in unwritten.items()]
    _list("To look at yourself:", advice)
    _list("Could not be read, and left as they are:", unreadable)
    _list("Could not be written, and left as they are:", failed)
    click.echo(_summary(len(changed) - len(failed), len(advice), written=written))


def _hides_mailer(path: Path) -> bool:
    """Return whether a file is a module `mailer` at the top of a project."""
    module = path.parent if path.name == "__init__.py" else path.with_suffix("")
    return module.name == "mailer" and not (module.parent / "__init__.py").exists()


def _show(name: str, before: str, migration: "Migration") -> None:
    """Print the changes of a file with their reasons, and as a diff."""
    for change in migration.changes:
        click.echo(f"{name}:{change.line}: {change.text}")
    click.echo(_diff(name, before, migration.text))


def _diff(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, name
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _list(heading: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo("\n".join([heading, *(f"  {line}" for line in lines), ""]))


def _summary(changed: int, looks: int, *, written: bool) -> str:
    if not changed:
        files = "Nothing to change."
    elif written:
        files = f"Files changed: {changed}."
    else:
        files = f"Files to change: {changed}. Nothing is written yet: --write makes the changes."
    return f"{files} To look at yourself: {looks}."
