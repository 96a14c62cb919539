"""Imports: `Mail` comes from `mailer`, and what nothing uses any more goes."""

from collections import Counter
from collections.abc import Collection, Iterator

import libcst as cst

from mailer.migrate_code.findings import Decision, Finding, Replacement
from mailer.migrate_code.import_order import (
    is_import,
    is_sorted,
    join_names,
    place,
    section_around,
    section_of_flask,
)
from mailer.migrate_code.mail_objects import FLASK_MAIL, flask_mail_classes, is_mail_taken
from mailer.migrate_code.reading import File, bound_name, dotted, module_of, names_in, walk

_DROP_IN = "The Mail of mailer is a drop-in for that of Flask-Mail: its send() queues."
_GONE = "Flask has no flask.ext since version 1.0: the module is flask_mail."
_STAR = (
    "`import *` hides where Mail comes from. Import Mail from mailer, and the other names from"
    " flask_mail."
)
_TAKEN = (
    "Mail has another meaning in this file, so this Mail of Flask-Mail stays, and with it the"
    " threads and tasks that use it. Write QueuedMail in its place (from mailer import Mail as"
    " QueuedMail), and call this command again."
)


def plan_imports(file: File) -> Iterator[Decision]:
    """Take `Mail` from `mailer`."""
    for statement in file.every(cst.ImportFrom):
        if module_of(statement) in FLASK_MAIL:
            yield from _plan_import(file, statement)
    used = flask_mail_classes(file)
    if used and is_mail_taken(file):
        yield Finding(min(map(file.line, used)), _TAKEN)
        return
    for node in used:
        reason = Finding(file.line(node), _DROP_IN)
        yield Replacement(reason, {node: cst.Name("Mail")}, imported=frozenset({("Mail", "")}))


def _plan_import(file: File, statement: cst.ImportFrom) -> Iterator[Decision]:
    line, is_gone = file.line(statement), module_of(statement) != "flask_mail"
    if isinstance(statement.names, cst.ImportStar):
        yield Finding(line, _STAR)
        return
    assert statement.module is not None
    aliases = {dotted(one.name): one for one in statement.names}
    replaced: dict[cst.CSTNode, cst.CSTNode] = {}
    if is_gone:
        replaced[statement.module] = cst.Name("flask_mail")
    if "Mail" not in aliases:
        if is_gone:
            yield Replacement(Finding(line, _GONE), replaced)
    elif aliases.keys() <= {"Mail", "Message"}:
        replaced[statement.module] = cst.Name("mailer")
        yield Replacement(Finding(line, _DROP_IN), replaced)
    else:
        mail = aliases["Mail"]
        alias = bound_name(mail) if mail.asname else ""
        yield Replacement(
            Finding(line, _DROP_IN), replaced, frozenset([mail]), frozenset({("Mail", alias)})
        )


# --- the import from mailer ----------------------------------------------------------------------


def add_imports(module: cst.Module, names: Collection[tuple[str, str]]) -> cst.Module:
    """Import names from `mailer`: beside those of mailer, or where sorted imports have it."""
    missing = sorted(pair for pair in names if not _has(module, *pair))
    if not missing:
        return module
    aliases = [
        cst.ImportAlias(
            name=cst.Name(name), asname=cst.AsName(name=cst.Name(alias)) if alias else None
        )
        for name, alias in missing
    ]
    first = last = _place(module)
    while last < len(module.body) and is_import(module.body[last]):
        last += 1
    for position, line in enumerate(module.body[first:last], first):
        assert isinstance(line, cst.SimpleStatementLine)
        for statement in line.body:
            if isinstance(statement, cst.ImportFrom) and _is_mailer(statement):
                assert not isinstance(statement.names, cst.ImportStar)
                together = statement.with_changes(names=join_names(statement.names, aliases))
                body = [*module.body]
                body[position] = line.deep_replace(statement, together)  # type: ignore[arg-type]
                return module.with_changes(body=body)
    added = cst.SimpleStatementLine(
        [cst.ImportFrom(module=cst.Name("mailer"), names=join_names([], aliases))]
    )
    if last == first == 1:  # below the docstring
        added = added.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
    section = section_of_flask(module)
    if section is not None and is_sorted(section):
        return place(module, section, added)
    return module.with_changes(body=[*module.body[:last], added, *module.body[last:]])


def move_import(before: cst.Module, after: cst.Module) -> cst.Module:
    """Move an import of Flask-Mail that is one of `mailer` now, if its section was sorted."""
    old, new = _imports_from(before, FLASK_MAIL), _imports_from(after, ("mailer",))
    was_one = len(old) == 1 and not _imports_from(before, ("mailer",))
    if was_one and new and is_sorted(section_around(before, old[0])):
        return place(after, section_around(after, new[0]), new[0])
    return after


def _place(module: cst.Module) -> int:
    """Return the position of the first import of mail, or else of any, or that after a docstring.

    Not every program may import mailer above the others: a call of `monkey_patch()` comes first.
    """
    imports = [i for i, line in enumerate(module.body) if is_import(line)]
    of_mail = [i for i in imports if _MAIL & set(names_in(module.body[i]))]
    return next(iter(of_mail or imports), int(module.get_docstring() is not None))


_MAIL = frozenset({"flask_mail", "mailer", "smtplib"})


def _imports_from(module: cst.Module, packages: Collection[str]) -> list[cst.SimpleStatementLine]:
    """Return the lines for all code of a module that import names from one of some packages."""
    return [
        line
        for line in module.body
        if isinstance(line, cst.SimpleStatementLine)
        and isinstance(line.body[0], cst.ImportFrom)
        and module_of(line.body[0]) in packages
    ]


def _is_mailer(statement: cst.ImportFrom) -> bool:
    return module_of(statement) == "mailer" and not isinstance(statement.names, cst.ImportStar)


def _has(module: cst.Module, name: str, alias: str) -> bool:
    """Return whether a module imports a name from `mailer` for all of its code."""
    return any(
        dotted(one.name) == name and bound_name(one) == (alias or name)
        for line in module.body
        if isinstance(line, cst.SimpleStatementLine)
        for statement in line.body
        if isinstance(statement, cst.ImportFrom) and _is_mailer(statement)
        for one in walk(statement)
        if isinstance(one, cst.ImportAlias)
    )


# --- what nothing uses any more ------------------------------------------------------------------

#: The modules whose import does nothing else, by the form of the import. Others stay.
_MODULES = frozenset({"threading", "multiprocessing", "smtplib", "flask_mail"})
_NAMES = frozenset({"threading", "multiprocessing", "smtplib"})
_OF_FLASK = frozenset({"copy_current_request_context", "current_app"})


def unused_imports(
    before: cst.Module, after: cst.Module, decorators: Collection[str]
) -> set[cst.CSTNode]:
    """Return the imports, or the parts of them, that were used before and are not any more.

    Args:
        decorators: Those that are removed. Their imports go as well, whatever their module.
    """
    used, left = count_uses(before), count_uses(after)
    strings = " ".join(one.value for one in walk(after) if isinstance(one, cst.SimpleString))
    found = set[cst.CSTNode]()
    for statement in walk(after):
        if not isinstance(statement, cst.Import | cst.ImportFrom):
            continue
        every = [one for one in walk(statement) if isinstance(one, cst.ImportAlias)]
        unneeded = [
            one
            for one in every
            if used[name := bound_name(one)] and not left[name] and name not in strings
            if name in decorators or _does_nothing_else(statement, one)
        ]
        found.update([statement] if every and len(unneeded) == len(every) else unneeded)
    return found


def _does_nothing_else(statement: cst.Import | cst.ImportFrom, alias: cst.ImportAlias) -> bool:
    if isinstance(statement, cst.Import):
        return dotted(alias.name) in _MODULES
    module = module_of(statement)
    return module in _NAMES or (module == "flask" and dotted(alias.name) in _OF_FLASK)


def count_uses(module: cst.Module) -> Counter[str]:
    """Return how often each name is used, or defined, without the imports of it."""
    found = Counter(names_in(module))
    for node in walk(module):
        if isinstance(node, cst.Import | cst.ImportFrom):
            found -= Counter(names_in(node))
    return found
