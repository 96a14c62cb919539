"""The code of a project, moved over from Flask-Mail, threads and Celery tasks to a queue.

Pure functions: the texts of the files in, the changed texts out. `flask mail migrate-code` reads
and writes the files.
"""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple

import libcst as cst

from mailer.migrate_code.callers import Senders, advise_callers, find_senders
from mailer.migrate_code.calls import Callees
from mailer.migrate_code.celery_order import (
    SETS_CELERY,
    SetUps,
    find_set_ups,
    plan_celery_order,
)
from mailer.migrate_code.definitions import plan_decorators, plan_unused
from mailer.migrate_code.excepts import plan_excepts, plan_results
from mailer.migrate_code.findings import Decision, Edits, Finding, Migration
from mailer.migrate_code.imports import plan_imports
from mailer.migrate_code.loggers import plan_loggers
from mailer.migrate_code.mail_functions import (
    THREAD_DECORATORS,
    MailFunction,
    find_mail_functions,
    thread_decorators,
)
from mailer.migrate_code.mail_objects import (
    MailObjects,
    advise_unknown,
    find_mail_objects,
)
from mailer.migrate_code.patches import advise_patches, find_lost_names, may_patch
from mailer.migrate_code.reading import File, words
from mailer.migrate_code.rewriting import rewrite
from mailer.migrate_code.tasks import plan_tasks
from mailer.migrate_code.threads import plan_threads

__all__ = ["Finding", "Migration", "migrate"]

_DEFINITION = re.compile(r"\bdef\s+(\w+)")
_SENDING = re.compile(
    r"flask_mail|flask\.ext\.mail|SMTP|\bMail\(|\.(?:send\w*|delay|apply_async|si?|submit)\("
    r"|Thread|Process|Timer|\.spawn|start_background_task|\.init_app\("
)
_UNSAFE = "The changes that were planned here would break the file, so it is left as it is."


class _Project(NamedTuple):
    """The knowledge of the files of a project about each other."""

    files: dict[str, File]
    mail: dict[str, MailObjects]
    functions: dict[str, list[MailFunction]]
    callees: dict[str, Callees]
    senders: Senders
    set_ups: SetUps
    #: In how many files a word is.
    words: Counter[str]


def migrate(sources: Mapping[str, str]) -> Iterator[tuple[str, Migration]]:
    """Yield the changes and the advice for each file of a project that has to do with mail.

    Args:
        sources: The texts of all its Python files, by name.
    """
    files, migrations = dict[str, File](), dict[str, Migration]()
    for name, text in sources.items():
        if not _matters(text):
            continue
        parsed = _parsed(text)
        if isinstance(parsed, File):
            files[name] = parsed
        else:
            migrations[name] = Migration(text, unreadable=parsed)
    project = _look(files, sources)
    migrations |= {name: _migrate(name, project) for name in files}
    for name, text in sources.items():
        if not _matters(text):
            migrations[name] = Migration(text, advice=_advise_caller(text, project))
    _advise_patches(sources, files, migrations)
    for name, migration in migrations.items():
        if migration.changes or migration.advice or migration.unreadable:
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
    mail = find_mail_objects(files)
    decorators = THREAD_DECORATORS.union(*map(thread_decorators, files.values()))
    functions = {
        name: find_mail_functions(file, mail[name], decorators) for name, file in files.items()
    }
    counts, defined = Counter[str](), Counter[str]()
    for text in sources.values():
        counts.update(words(text))
        defined.update(_DEFINITION.findall(text))
    callees = {
        name: Callees(file, mail[name], functions[name], _others(name, functions, defined))
        for name, file in files.items()
    }
    senders = find_senders(files, functions, callees)
    set_ups = find_set_ups(files, mail, _files_with_celery(sources, files))
    return _Project(files, mail, functions, callees, senders, set_ups, counts)


def _files_with_celery(sources: Mapping[str, str], known: Collection[str]) -> Iterator[File]:
    """Yield the files that may set up Celery, and have nothing to do with mail."""
    for name, text in sources.items():
        if name not in known and SETS_CELERY.search(text):
            parsed = _parsed(text)
            if isinstance(parsed, File):
                yield parsed


def _advise_caller(text: str, project: _Project) -> tuple[Finding, ...]:
    """Return the advice for a file that sends no mail, but may call functions that do."""
    senders, set_ups = project.senders, project.set_ups
    if not (senders.may_be_in(text) or set_ups.may_be_in(text)):
        return ()
    parsed = _parsed(text)
    if not isinstance(parsed, File):
        return ()
    order = plan_celery_order(parsed, MailObjects(frozenset()), set_ups)
    found = [*advise_callers(parsed, (), senders), *order]
    return tuple(sorted(one for one in found if isinstance(one, Finding)))


def _advise_patches(
    sources: Mapping[str, str], files: Mapping[str, File], migrations: dict[str, Migration]
) -> None:
    """Add the advice for patches, in tests, of what the changes leave unused."""
    lost = {
        name: find_lost_names(name, file.module, cst.parse_module(migrations[name].text))
        for name, file in files.items()
        if migrations[name].changes
    }
    for name, migration in migrations.items():
        if not migration.unreadable and may_patch(sources[name], lost):
            file = files.get(name) or _parsed(sources[name])
            if isinstance(file, File):
                advice = sorted({*migration.advice, *advise_patches(file, lost)})
                migrations[name] = replace(migration, advice=tuple(advice))


def _migrate(name: str, project: _Project) -> Migration:
    file, edits = project.files[name], Edits()
    for decision in _decisions(name, project):
        edits.apply(decision)
    unshared = [one for one in project.functions[name] if project.words[one.name] == 1]
    for removal in plan_unused(file, unshared, edits):
        edits.apply(removal)
    return _written(file, edits)


def _decisions(name: str, project: _Project) -> Iterator[Decision]:
    file, mail, functions = project.files[name], project.mail[name], project.functions[name]
    callees, senders = project.callees[name], project.senders
    yield from plan_loggers(file)
    yield from plan_imports(file)
    yield from advise_unknown(file, mail)
    yield from plan_threads(file, callees)
    yield from plan_decorators(file, functions, callees)
    yield from plan_tasks(file, functions, callees)
    yield from plan_excepts(file, mail, senders.names)
    yield from plan_results(file, mail)
    yield from plan_celery_order(file, mail, project.set_ups)
    yield from advise_callers(file, functions, senders)


def _others(
    name: str, functions: Mapping[str, list[MailFunction]], defined: Counter[str]
) -> Iterator[tuple[str, MailFunction]]:
    """Yield the functions that this file could import, with their modules.

    A name that is defined twice in the project says nothing, whatever the other function does.
    """
    for other, found in functions.items():
        for function in found:
            is_only = defined[function.name] == 1
            if other != name and is_only and isinstance(function.scope, cst.Module):
                yield _module(other), function


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
