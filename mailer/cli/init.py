"""`flask mail init`: worker, compose file and settings for the project of a user."""

import keyword
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path

import click
from flask import Flask
from flask.cli import ScriptInfo, pass_script_info

from mailer.cli.app_source import AppSource, find_source
from mailer.cli.group import mail_group
from mailer.cli.mail_database import find_mail_database
from mailer.cli.next_steps import next_steps
from mailer.cli.project_files import (
    ProjectFile,
    add_lines,
    make_files,
    missing_lines,
)


@mail_group.command(with_appcontext=False)
@click.option(
    "--worker",
    default="worker",
    show_default=True,
    metavar="MODULE",
    help="The module to write for the workers.",
)
@click.option(
    "--postgres", is_flag=True, help="Keep the mail in a PostgreSQL, in the compose file as well."
)
@click.option("--dry-run", is_flag=True, help="Show the files, and write none.")
@pass_script_info
def init(info: ScriptInfo, *, worker: str, postgres: bool, dry_run: bool) -> None:
    """Write a worker, a compose file and settings for this app into the current folder.

    An existing file is not changed: the text for it is shown instead. Only .gitignore and
    .dockerignore get the lines that they lack. The app is that of `flask --app`.
    """
    folder = Path.cwd()
    _check_name(worker, folder)
    source = find_source(info.app_import_path, worker)
    app = _load(info, source)
    database = find_mail_database(app, folder, postgres=postgres)
    files = make_files(folder, source, worker, database)
    for file in files:
        _write_or_show(file, dry_run=dry_run)
    _ignore(folder / ".gitignore", dry_run=dry_run)
    if (folder / ".dockerignore").exists():  # also one that was just written, and lacks nothing
        _ignore(folder / ".dockerignore", dry_run=dry_run)
    click.echo(
        "\nNothing is written." if dry_run else f"\n{next_steps(source, app, worker, database)}"
    )


def _check_name(worker: str, folder: Path) -> None:
    """Refuse a name that no module can have, or that would hide a package."""
    if not worker.isidentifier() or keyword.iskeyword(worker):
        raise click.BadParameter(f"{worker!r} is not a module name: give one such as worker.")
    if worker in [path.name for path in folder.iterdir() if path.is_dir()]:
        raise click.BadParameter(
            f"There is a folder {worker}/ already, which Python may import instead of {worker}.py:"
            " give another name with --worker."
        )
    if worker in sys.stdlib_module_names or worker in {"mailer", *packages_distributions()}:
        raise click.BadParameter(
            f"{worker}.py would hide the package {worker!r}, which is installed: give another name."
        )


def _load(info: ScriptInfo, source: AppSource) -> Flask | None:
    """Return the app, or None if it can't be made here, as without a variable of production."""
    try:
        return info.load_app()
    except Exception as error:  # noqa: BLE001 -- whatever the code of the application raises
        click.echo(
            f"{source.expression} failed here, so that the files are written without a look at the"
            f" app: {type(error).__name__}: {error}\n",
            err=True,
        )
        return None


def _write_or_show(file: ProjectFile, *, dry_run: bool) -> None:
    name = f"{file.path.name:20}"
    if file.exists:
        click.echo(
            f"{name}exists, and stays as it is. The text for it is:\n\n{_indented(file.text)}"
        )
    elif dry_run:
        click.echo(f"{name}would be written:\n\n{_indented(file.text)}")
    else:
        with _explained(file.path):
            file.write()
        click.echo(f"{name}written")


def _ignore(file: Path, *, dry_run: bool) -> None:
    """Add the lines that keep secrets and mail out of Git, or out of an image."""
    lines = missing_lines(file)
    if lines and not dry_run:
        with _explained(file):
            add_lines(file, lines)
    if lines:
        gets = "would get" if dry_run else "got"
        click.echo(f"{file.name:20}{gets} {' and '.join(lines)}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Explain a file that can't be written."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(
            f"{path} can't be written: {error.strerror}. Make it writable, or call this command"
            " with --dry-run and copy what it shows."
        ) from error


def _indented(text: str) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())
