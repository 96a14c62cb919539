"""The code of a project, moved over from Flask-Mail, threads and Celery tasks to a queue.

Pure functions: the texts of the files in, the changed texts out. `flask mail migrate-code` reads
and writes the files.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import NamedTuple

import libcst as cst

from mailer.migrate_code.calls import Callees
from mailer.migrate_code.excepts import plan_excepts, plan_results
from mailer.migrate_code.findings import Edits, Finding, Migration
from mailer.migrate_code.helpers import (
    THREAD_DECORATORS,
    Helper,
    find_helpers,
    thread_decorators,
)
from mailer.migrate_code.imports import plan_imports
from mailer.migrate_code.loggers import plan_loggers
from mailer.migrate_code.reading import FLASK_MAIL, File, mail_names, words
from mailer.migrate_code.rewriting import rewrite
from mailer.migrate_code.tasks import plan_tasks
from mailer.migrate_code.threads import drop_helpers, plan_decorators, plan_threads

__all__ = ["Finding", "Migration", "migrate"]

_DEFINITION = re.compile(r"\bdef\s+(\w+)")
_SENDING = re.compile(
    r"flask_mail|flask\.ext\.mail|SMTP|\bMail\(|\.(?:send\w*|delay|apply_async|si?|submit)\("
    r"|Thread|Process|Timer|\.spawn|start_background_task"
)
_UNSAFE = "The changes that were planned here would break the file, so it is left as it is."


class _Project(NamedTuple):
    """The knowledge of the files of a project about each other."""

    files: dict[str, File]
    #: The names of its `Mail`; none if it does not use Flask-Mail.
    mail: set[str]
    helpers: dict[str, list[Helper]]
    #: In how many files a word is.
    words: Counter[str]
    #: How many functions have a name.
    defined: Counter[str]


def migrate(sources: Mapping[str, str]) -> Iterator[tuple[str, Migration]]:
    """Yield the changes and the advice for each file of a project that has to do with mail.

    Args:
        sources: The texts of all its Python files, by name.
    """
    files = dict[str, File]()
    for name, text in sources.items():
        if not _matters(text):
            continue
        parsed = _parsed(text)
        if isinstance(parsed, File):
            files[name] = parsed
        else:
            yield name, Migration(text, unreadable=parsed)
    project = _look(files, sources)
    for name in files:
        migration = _migrate(name, project)
        if migration.changes or migration.advice:
            yield name, migration


def _matters(text: str) -> bool:
    """Return whether a file may have to do with sending mail, or with a decorator for threads."""
    lowered = text.lower()
    mentions = "mail" in lowered or "smtp" in lowered or "Thread(" in text
    return mentions and _SENDING.search(text) is not None


def _parsed(text: str) -> File | str:
    """Return the file, or the reason why its text can't be read."""
    try:
        _compile(text)
        return File(text)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (cst.ParserSyntaxError, ValueError, RecursionError) as error:
        return str(error).partition("\n")[0]


def _compile(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(text, "<file>", "exec", dont_inherit=True)


def _look(files: dict[str, File], sources: Mapping[str, str]) -> _Project:
    mail, decorators = set[str](), set(THREAD_DECORATORS)
    for file in files.values():
        mail |= mail_names(file)
        decorators |= thread_decorators(file)
    if mail or any(module in text for text in sources.values() for module in FLASK_MAIL):
        mail.add("mail")
    helpers = {name: find_helpers(file, mail, decorators) for name, file in files.items()}
    counts, defined = Counter[str](), Counter[str]()
    for text in sources.values():
        counts.update(words(text))
        defined.update(_DEFINITION.findall(text))
    return _Project(files, mail, helpers, counts, defined)


def _migrate(name: str, project: _Project) -> Migration:
    file, own, edits = project.files[name], project.helpers[name], Edits()
    callees = Callees(file, own, _others(name, project))
    plan_loggers(file, edits)
    if project.mail:
        senders = {one.name for helpers in project.helpers.values() for one in helpers}
        plan_imports(file, edits)
        plan_threads(file, project.mail, callees, edits)
        plan_decorators(file, own, callees, edits)
        plan_tasks(file, own, callees, edits)
        plan_excepts(file, project.mail, senders, edits)
        plan_results(file, project.mail, edits)
        drop_helpers(file, [one for one in own if project.words[one.name] == 1], edits)
    return _written(file, edits)


def _others(name: str, project: _Project) -> Iterator[tuple[str, Helper]]:
    """Yield the functions that this file could import, with their modules.

    A name that is defined twice in the project says nothing, whatever the other function does.
    """
    for other, helpers in project.helpers.items():
        for helper in helpers:
            is_only = project.defined[helper.name] == 1
            if other != name and is_only and isinstance(helper.scope, cst.Module):
                yield _module(other), helper


def _module(name: str) -> str:
    """Return the last part of the name of a file's module."""
    path = PurePath(name)
    return path.parent.name if path.stem == "__init__" else path.stem


def _written(file: File, edits: Edits) -> Migration:
    changes, advice = tuple(sorted(edits.changes)), tuple(sorted(edits.advice))
    if not changes:
        return Migration(file.text, advice=advice)
    try:
        text = rewrite(file.module, edits).code
        _compile(text)
        cst.parse_module(text)
    except (SyntaxError, RecursionError, cst.ParserSyntaxError, cst.CSTValidationError):
        unsafe = Finding(changes[0].line, _UNSAFE)
        return Migration(
            file.text, advice=(unsafe, *(Finding(o.line, o.text) for o in changes), *advice)
        )
    return Migration(text, changes, advice)
