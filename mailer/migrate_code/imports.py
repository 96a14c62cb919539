"""Imports: `Mail` comes from `mailer`, and what nothing uses any more goes."""

from collections import Counter
from collections.abc import Collection

import libcst as cst

from mailer.migrate_code.findings import Edits, Finding
from mailer.migrate_code.reading import (
    FLASK_MAIL,
    File,
    bound_name,
    dotted,
    module_of,
    names_in,
    walk,
)

_DROP_IN = "The Mail of mailer is a drop-in for that of Flask-Mail: its send() queues."
_GONE = "Flask has no flask.ext since version 1.0: the module is flask_mail."
_STAR = (
    "`import *` hides where Mail comes from. Import Mail from mailer, and the other names from"
    " flask_mail."
)


def plan_imports(file: File, edits: Edits) -> None:
    """Take `Mail` from `mailer`."""
    for statement in file.every(cst.ImportFrom):
        if module_of(statement) in FLASK_MAIL:
            _plan(file, statement, edits)
    used = [one for one in file.every(cst.Attribute) if dotted(one) == "flask_mail.Mail"]
    if used and "Mail" not in map(bound_name, file.every(cst.ImportAlias)):
        for one in used:
            edits.replaced[one] = cst.Name("Mail")
            edits.changes.append(Finding(file.line(one), _DROP_IN))
        edits.imported["Mail"] = None
        edits.released.add("flask_mail")


def _plan(file: File, statement: cst.ImportFrom, edits: Edits) -> None:
    line = file.line(statement)
    if isinstance(statement.names, cst.ImportStar):
        edits.advice.append(Finding(line, _STAR))
        return
    aliases = {dotted(one.name): one for one in statement.names}
    module: cst.BaseExpression | None = None
    if "Mail" in aliases and aliases.keys() <= {"Mail", "Message"}:
        module, reason = cst.Name("mailer"), _DROP_IN
    elif "Mail" in aliases:
        alias = aliases.pop("Mail")
        edits.imported["Mail"] = dotted(alias.asname.name) if alias.asname else None
        edits.removed.add(alias)
        reason = _DROP_IN
    else:
        reason = _GONE
    if module is None and dotted(statement.module) != "flask_mail":
        module = cst.Name("flask_mail")
    if module is not None:
        assert statement.module is not None
        edits.replaced[statement.module] = module
    if module is not None or reason is _DROP_IN:
        edits.changes.append(Finding(line, reason))


def add_imports(module: cst.Module, names: dict[str, str | None]) -> cst.Module:
    """Import names from `mailer`, after the imports that need them, or beside those of mailer."""
    missing = {name: alias for name, alias in names.items() if not _has(module, name, alias)}
    if not missing:
        return module
    aliases = [
        cst.ImportAlias(
            name=cst.Name(name), asname=cst.AsName(name=cst.Name(alias)) if alias else None
        )
        for name, alias in sorted(missing.items())
    ]
    first = last = _place(module)
    while last < len(module.body) and _is_import(module.body[last]):
        last += 1
    for position, line in enumerate(module.body[first:last], first):
        assert isinstance(line, cst.SimpleStatementLine)
        for statement in line.body:
            if isinstance(statement, cst.ImportFrom) and _is_mailer(statement):
                assert not isinstance(statement.names, cst.ImportStar)
                ends = [*statement.names[:-1], statement.names[-1].with_changes(comma=_COMMA)]
                together = statement.with_changes(names=[*ends, *_separated(aliases)])
                body = [*module.body]
                body[position] = line.deep_replace(statement, together)  # type: ignore[arg-type]
                return module.with_changes(body=body)
    added = cst.SimpleStatementLine(
        [cst.ImportFrom(module=cst.Name("mailer"), names=_separated(aliases))]
    )
    if last == first == 1:  # below the docstring
        added = added.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
    return module.with_changes(body=[*module.body[:last], added, *module.body[last:]])


def _place(module: cst.Module) -> int:
    """Return the position of the first import of mail, or else of any, or that after a docstring.

    Not every program may import mailer above the others: a call of `monkey_patch()` comes first.
    """
    imports = [i for i, line in enumerate(module.body) if _is_import(line)]
    of_mail = [i for i in imports if _MAIL & set(names_in(module.body[i]))]
    return next(iter(of_mail or imports), int(module.get_docstring() is not None))


_MAIL = frozenset({"flask_mail", "mailer", "smtplib"})
_COMMA = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))


def _separated(aliases: list[cst.ImportAlias]) -> list[cst.ImportAlias]:
    return [*(one.with_changes(comma=_COMMA) for one in aliases[:-1]), aliases[-1]]


def _is_import(line: cst.CSTNode) -> bool:
    return isinstance(line, cst.SimpleStatementLine) and all(
        isinstance(one, cst.Import | cst.ImportFrom) for one in line.body
    )


def _is_mailer(statement: cst.ImportFrom) -> bool:
    return module_of(statement) == "mailer" and not isinstance(statement.names, cst.ImportStar)


def _has(module: cst.Module, name: str, alias: str | None) -> bool:
    """Return whether a module imports a name from `mailer` for all of its code."""
    return any(
        dotted(one.name) == name and (dotted(one.asname.name) if one.asname else None) == alias
        for line in module.body
        if isinstance(line, cst.SimpleStatementLine)
        for statement in line.body
        if isinstance(statement, cst.ImportFrom) and _is_mailer(statement)
        for one in walk(statement)
        if isinstance(one, cst.ImportAlias)
    )


# --- what nothing uses any more ------------------------------------------------------------------


def unused(before: cst.Module, after: cst.Module, released: Collection[str]) -> set[str]:
    """Return those of the names that were used, and are not any more."""
    used, left = _uses(before), _uses(after)
    strings = " ".join(one.value for one in walk(after) if isinstance(one, cst.SimpleString))
    return {name for name in released if used[name] and not left[name] and name not in strings}


def imports_of(module: cst.Module, names: Collection[str]) -> set[cst.CSTNode]:
    """Return the statements that import these names and no others, and else the parts of them."""
    found = set[cst.CSTNode]()
    for node in walk(module):
        if isinstance(node, cst.Import | cst.ImportFrom):
            every = [one for one in walk(node) if isinstance(one, cst.ImportAlias)]
            unneeded = [one for one in every if bound_name(one) in names]
            found.update([node] if every and len(unneeded) == len(every) else unneeded)
    return found


def _uses(module: cst.Module) -> Counter[str]:
    found = Counter(names_in(module))
    for node in walk(module):
        if isinstance(node, cst.Import | cst.ImportFrom):
            found -= Counter(names_in(node))
    return found
