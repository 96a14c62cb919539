"""The order in a factory: the application's own Celery app has to be set before its mail."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import libcst as cst

from mailer.migrate_code.findings import Decision, Finding, Replacement
from mailer.migrate_code.mail_objects import MailObjects, mail_classes
from mailer.migrate_code.reading import (
    File,
    dotted,
    has_comment,
    is_extension,
    last_name,
    names_in,
    targets,
    walk,
    words,
)

#: A text that may set `app.extensions["celery"]`.
SETS_CELERY = re.compile(r"""extensions\[\s*["']celery["']\s*\]\s*=""")

_MOVED = (
    "The mail of an app takes the Celery app that is in app.extensions by then, whose workers"
    " deliver it. So this comes before the mail, in line {line}, now."
)
_LEFT = (
    "The mail of line {line} is set up before this Celery app is in app.extensions, so that its"
    " workers would deliver no mail. Set it before that line. It is left to you, since {reason}."
)
_INSIDE = "{name}() sets up the mail, and perhaps more that this Celery app needs"
_BETWEEN = "the lines between the two may be needed first"
#: Names of methods that many extensions have: a call of one says little.
_COMMON = frozenset({"init_app", "__init__"})


@dataclass(frozen=True, slots=True)
class SetUps:
    """The names of the functions of a project that set up its mail, or its Celery app."""

    mail: frozenset[str]
    celery: frozenset[str]

    def may_be_in(self, text: str) -> bool:
        """Return whether a file with this text may call a function of each."""
        found = words(text)
        return not self.mail.isdisjoint(found) and not self.celery.isdisjoint(found)


def find_set_ups(
    files: Mapping[str, File], mail: Mapping[str, MailObjects], others: Iterable[File]
) -> SetUps:
    """Return the functions that set up mail or Celery.

    Args:
        files: The files of the project that have to do with mail.
        mail: The mail objects of these files.
        others: Other files that may set up Celery.
    """
    of_mail, of_celery = set[str](), set[str]()
    for name, file in files.items():
        of_mail |= _names_of_functions(file, _mail_calls(file, mail[name]))
    for file in (*files.values(), *others):
        of_celery |= _names_of_functions(file, _celery_assignments(file))
    return SetUps(frozenset(of_mail - _COMMON), frozenset(of_celery - _COMMON))


def plan_celery_order(file: File, mail: MailObjects, set_ups: SetUps) -> Iterator[Decision]:
    """Set the Celery app before the mail, or point to the place."""
    calls = file.every(cst.Call)
    direct = _mail_calls(file, mail)
    mails = [*direct, *(one for one in calls if last_name(one) in set_ups.mail)]
    celeries = [
        *_celery_assignments(file),
        *(one for one in calls if last_name(one) in set_ups.celery),
    ]
    for function in {file.function(one): None for one in celeries}:
        first_mail = _first(file, function, mails)
        first_celery = _first(file, function, celeries)
        if first_mail is None or first_celery is None:
            continue
        line = file.line(first_mail)
        if line < file.line(first_celery):
            if first_mail not in direct:
                reason = _INSIDE.format(name=last_name(first_mail))
                yield Finding(file.line(first_celery), _LEFT.format(line=line, reason=reason))
            else:
                yield _plan_move(file, first_mail, first_celery)


def _plan_move(file: File, mail: cst.CSTNode, celery: cst.CSTNode) -> Decision:
    at, line = file.line(celery), file.line(mail)
    lines = _lines_between(file, mail, celery)
    if not _may_move(lines):
        return Finding(at, _LEFT.format(line=line, reason=_BETWEEN))
    moved = [lines[-1], *lines[:-1]]
    if not any(has_comment(blank) for one in lines for blank in one.leading_lines):
        moved = [
            new.with_changes(leading_lines=old.leading_lines)
            for old, new in zip(lines, moved, strict=True)
        ]
    replaced: dict[cst.CSTNode, cst.CSTNode] = dict(zip(lines, moved, strict=True))
    return Replacement(Finding(at, _MOVED.format(line=line)), replaced)


def _lines_between(
    file: File, mail: cst.CSTNode, celery: cst.CSTNode
) -> list[cst.SimpleStatementLine]:
    """Return the lines from the mail to the Celery app, or none if other statements are there."""
    first = next(one for one in file.parents(mail) if isinstance(one, cst.BaseStatement))
    last = next(one for one in file.parents(celery) if isinstance(one, cst.BaseStatement))
    block = file.block(first)
    if file.block(last) is not block or not isinstance(block, cst.IndentedBlock | cst.Module):
        return []
    body = [*block.body]
    lines = body[body.index(first) : body.index(last) + 1]
    simple = [one for one in lines if isinstance(one, cst.SimpleStatementLine)]
    return simple if len(simple) == len(lines) else []


def _may_move(lines: Sequence[cst.SimpleStatementLine]) -> bool:
    """Return whether the last line may be the first, with only `db.init_app(app)` between them."""
    if not lines or any(len(line.body) != 1 for line in lines):
        return False
    first, *between, last = lines
    is_class = not any(isinstance(one, cst.Attribute) for one in walk(first))  # Mail(app)
    bound = {name for target in targets(walk(first)) for name in names_in(target)}
    return (
        (is_class or _is_init(first))
        and all(map(_is_init, between))
        and bound.isdisjoint(names_in(last))
    )


def _is_init(line: cst.SimpleStatementLine) -> bool:
    """Return whether a line is like `db.init_app(app)`, with names as arguments."""
    match line.body[0]:
        case cst.Expr(value=cst.Call(func=cst.Attribute(attr=cst.Name("init_app")), args=args)):
            return all(isinstance(one.value, cst.Name) for one in args)
    return False


def _mail_calls(file: File, mail: MailObjects) -> list[cst.Call]:
    """Return the calls `mail.init_app(app)` and `Mail(app)`."""
    classes = mail_classes(file)
    found = []
    for call in file.every(cst.Call):
        match call.func:
            case cst.Attribute(value=owner, attr=cst.Name("init_app")) if mail.has(owner):
                found.append(call)
            case function if call.args and dotted(function) in classes:
                found.append(call)
    return found


def _celery_assignments(file: File) -> list[cst.Assign]:
    """Return the statements `app.extensions["celery"] = …`."""
    return [
        one
        for one in file.every(cst.Assign)
        if any(is_extension(target.target, "celery") for target in one.targets)
    ]


def _names_of_functions(file: File, nodes: Iterable[cst.CSTNode]) -> set[str]:
    """Return the names of the functions around some nodes."""
    around = map(file.function, nodes)
    return {one.name.value for one in around if isinstance(one, cst.FunctionDef)}


def _first(file: File, function: cst.CSTNode, nodes: Collection[cst.CSTNode]) -> cst.CSTNode | None:
    """Return the first of the nodes that are in a function itself."""
    inside = [one for one in nodes if file.function(one) is function]
    return min(inside, key=file.line, default=None)
