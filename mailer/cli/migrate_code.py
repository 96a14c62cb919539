"""`flask mail migrate-code`: the code of a project, moved over from Flask-Mail."""

import difflib
import io
import os
import shutil
import tokenize
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import click

from mailer.cli.group import mail_group
from mailer.errors import ConfigurationError

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

    texts, encodings, unreadable = dict[str, str](), dict[str, str](), dict[str, str]()
    for path in _python_files(paths or (Path(),)):
        name = str(path)
        try:
            texts[name], encodings[name] = _read(path)
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            unreadable[name] = str(error)
    changed = 0
    advice = [f"{name}:1: {_HIDDEN}" for name in texts if _hides_mailer(Path(name))]
    for name, migration in migrate(texts):
        if migration.unreadable:
            unreadable[name] = migration.unreadable
        if migration.changes:
            changed += 1
            for change in migration.changes:
                click.echo(f"{name}:{change.line}: {change.text}")
            click.echo(_diff(name, texts[name], migration.text))
        if write and migration.text != texts[name]:
            _write(Path(name), migration.text, encodings[name])
        advice += [f"{name}:{finding.line}: {finding.text}" for finding in migration.advice]
    _list("To look at yourself:", advice)
    _list("Could not be read, and left as they are:", [f"{n}: {r}" for n, r in unreadable.items()])
    click.echo(_summary(changed, len(advice), written=write))


_HIDDEN = (
    "This module hides the package mailer, so that `from mailer import Mail` finds this file."
    " Rename it first."
)


def _summary(changed: int, looks: int, *, written: bool) -> str:
    if not changed:
        files = "Nothing to change."
    elif written:
        files = f"Files changed: {changed}."
    else:
        files = f"Files to change: {changed}. Nothing is written yet: --write makes the changes."
    return f"{files} To look at yourself: {looks}."


def _list(heading: str, lines: Iterable[str]) -> None:
    if lines := list(lines):
        click.echo("\n".join([heading, *(f"  {line}" for line in lines), ""]))


def _python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the Python files of a project, without those of other projects inside it."""
    for path in paths:
        if path.is_file():
            yield path
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not _is_skipped(Path(folder, name)))
            yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _is_skipped(folder: Path) -> bool:
    is_known = folder.name in _SKIPPED or folder.name.startswith(".")
    return is_known or (folder / "pyvenv.cfg").exists()


def _hides_mailer(path: Path) -> bool:
    """Return whether a file is a module `mailer` at the top of a project."""
    module = path.parent if path.name == "__init__.py" else path.with_suffix("")
    return module.name == "mailer" and not (module.parent / "__init__.py").exists()


def _read(path: Path) -> tuple[str, str]:
    """Return the text of a file with its own line ends, and its encoding."""
    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding), encoding


def _write(path: Path, text: str, encoding: str) -> None:
    """Replace a file at once, so that it is never half written."""
    target = path.resolve()
    whole = target.with_name(f".{target.name}.new")
    whole.write_bytes(text.encode(encoding))
    shutil.copymode(target, whole)
    whole.replace(target)


def _diff(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, name
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
