"""The objects of a project that send mail: those whose send() queues after the changes."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import libcst as cst

from mailer.migrate_code.findings import Finding
from mailer.migrate_code.reading import (
    File,
    bound_name,
    dotted,
    imported_modules,
    is_extension,
    last_name,
    module_of,
    walk,
)

FLASK_MAIL = ("flask_mail", "flask.ext.mail")

_UNKNOWN = (
    "The mail of this file is not known to be a Mail that queues, so its threads, tasks and errors"
    " stay as they are. If another file makes it, give this command the whole project."
)


@dataclass(frozen=True, slots=True)
class MailObjects:
    """The objects whose send() queues, as one file names them."""

    names: frozenset[str]
    in_extensions: bool = False  #: whether `app.extensions["mail"]` is one

    def has(self, node: cst.CSTNode) -> bool:
        """Return whether an expression is one of them."""
        match node:
            case cst.Name() | cst.Attribute():
                return last_name(node) in self.names
        return self.in_extensions and is_extension(node, "mail")

    def is_sending(self, node: cst.CSTNode) -> bool:
        """Return whether a node is a call such as `mail.send(message)`."""
        match node:
            case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value=verb)), args=[_, *_]):
                return verb in {"send", "send_message"} and self.has(owner)
        return False

    def sending_in(self, file: File) -> set[cst.CSTNode]:
        """Return the calls of a file that send, also those of `mail.connect()` as connection."""
        connected = set[str]()
        for item in file.every(cst.WithItem):
            match item:
                case cst.WithItem(
                    item=cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value="connect"))),
                    asname=cst.AsName(name=cst.Name(value=name)),
                ) if self.has(owner):
                    connected.add(f"{name}.send")
        calls = file.every(cst.Call)
        return {one for one in calls if self.is_sending(one) or dotted(one.func) in connected}


def find_mail_objects(files: Mapping[str, File]) -> dict[str, MailObjects]:
    """Return the mail objects of each file."""
    every = files.values()
    in_extensions = any(map(_makes_mail, every)) and not any(map(_keeps_flask_mail, every))
    project = _Names({name: _bindings(name, files[name], in_extensions) for name in files})
    return {name: MailObjects(project.queueing_in(name), in_extensions) for name in files}


def advise_unknown(file: File, mail: MailObjects) -> Iterator[Finding]:
    """Point to the use of a `mail` that may be one of Flask-Mail, but is not known to queue."""
    modules = {
        *(module_of(one) for one in file.every(cst.ImportFrom)),
        *(dotted(alias.name) for one in file.every(cst.Import) for alias in one.names),
    }
    names = {"mail"} if modules & {*FLASK_MAIL} else set[str]()
    for target, value in _assignments(file):  # engine = app.extensions.get("mail")
        if value is not None and any(is_extension(one, "mail") for one in walk(value)):
            names.add(last_name(target))
    unknown = MailObjects(frozenset(names - mail.names), not mail.in_extensions)
    if lines := [file.line(one) for one in file.every(cst.Call) if unknown.is_sending(one)]:
        yield Finding(min(lines), _UNKNOWN)


# --- the class -----------------------------------------------------------------------------------


def flask_mail_classes(file: File) -> list[cst.Attribute]:
    """Return the places of `flask_mail.Mail`, whatever name the module has."""
    known = {f"{module}.Mail" for module in imported_modules(file, FLASK_MAIL)}
    return [one for one in file.every(cst.Attribute) if dotted(one) in known]


def is_mail_taken(file: File) -> bool:
    """Return whether `Mail` is something else in a file, so that no import can use this name."""
    return "Mail" not in imported_as(file, "Mail") and any(
        one.value == "Mail" and not isinstance(file.parent(one), cst.Attribute)
        for one in file.every(cst.Name)
    )


def imported_as(file: File, wanted: str) -> set[str]:
    """Return the names under which a file imports a name of Flask-Mail, or of Mailer."""
    return {
        bound_name(alias)
        for statement in file.every(cst.ImportFrom)
        if module_of(statement) in {*FLASK_MAIL, "mailer"}
        and not isinstance(statement.names, cst.ImportStar)
        for alias in statement.names
        if alias.name.value == wanted
    }


def mail_classes(file: File) -> set[str]:
    """Return the expressions that are the class of mailer after the changes, or a subclass."""
    modules = ("mailer",) if is_mail_taken(file) else ("mailer", *FLASK_MAIL)
    found = imported_as(file, "Mail")
    found |= {f"{module}.Mail" for module in imported_modules(file, modules)}
    for node in file.every(cst.ClassDef):
        sends = any(
            isinstance(one, cst.FunctionDef) and one.name.value == "send" for one in node.body.body
        )
        if not sends and any(dotted(base.value) in found for base in node.bases):
            found.add(node.name.value)
    return found


def _makes_mail(file: File) -> bool:
    makers = mail_classes(file)
    return any(dotted(call.func) in makers for call in file.every(cst.Call))


def _keeps_flask_mail(file: File) -> bool:
    """Return whether a file goes on with the class of Flask-Mail."""
    return (is_mail_taken(file) and bool(flask_mail_classes(file))) or any(
        isinstance(one.names, cst.ImportStar) and module_of(one) in FLASK_MAIL
        for one in file.every(cst.ImportFrom)
    )


# --- the names -----------------------------------------------------------------------------------


class _Bindings(NamedTuple):
    """The names of a file that may be a mail object."""

    queueing: frozenset[str]  #: assigned a new mail object
    others: frozenset[str]  #: assigned the result of another call
    shared: frozenset[str]  #: those of the others that are not local to a function
    imported: dict[str, tuple[str, str]]  #: with the module, and the name in it

    def binds(self, name: str) -> bool:
        return name in self.queueing or name in self.others or name in self.imported


class _Names:
    """The names of a project."""

    def __init__(self, files: dict[str, _Bindings]) -> None:
        self._files = files
        #: Those that are a mail object in each file that makes them.
        self._everywhere = {name for one in files.values() for name in one.queueing}
        self._everywhere -= {name for one in files.values() for name in one.shared}

    def queueing_in(self, file: str) -> frozenset[str]:
        """Return the names of a file that are a mail object."""
        here = self._files[file]
        known = {*self._everywhere, *here.queueing, *here.imported}
        return frozenset(name for name in known if self._queues(file, name))

    def _queues(self, file: str, name: str, seen: Collection[str] = ()) -> bool:
        """Return whether a name of a file is a mail object."""
        here = self._files[file]
        if name in here.queueing:
            return name not in here.shared
        if name in here.imported:
            module, original = here.imported[name]
            sources = [
                other
                for other, there in self._files.items()
                if other not in {file, *seen} and there.binds(original)
                if is_module(other, module)
            ]
            if sources:
                return all(self._queues(other, original, {file, *seen}) for other in sources)
            return original in self._everywhere
        return name in self._everywhere and name not in here.others


def _bindings(name: str, file: File, in_extensions: bool) -> _Bindings:
    makers = mail_classes(file)
    queueing, others, shared = set[str](), set[str](), set[str]()
    for target, value in _assignments(file):
        bound = last_name(target)
        match value:
            case _ if value is not None and is_extension(value, "mail"):
                queues = in_extensions
            case cst.Call(func=function):
                queues = dotted(function) in makers
            case _:
                continue
        if queues:
            queueing.add(bound)
        else:
            others.add(bound)
            if isinstance(target, cst.Attribute) or file.function(target) is file.module:
                shared.add(bound)
    imported = {
        bound_name(alias): (_source(name, statement), dotted(alias.name))
        for statement in file.every(cst.ImportFrom)
        if not isinstance(statement.names, cst.ImportStar)
        for alias in statement.names
    }
    return _Bindings(frozenset(queueing), frozenset(others), frozenset(shared), imported)


def _assignments(file: File) -> Iterator[tuple[cst.BaseExpression, cst.BaseExpression | None]]:
    for annotated in file.every(cst.AnnAssign):
        yield annotated.target, annotated.value
    for named in file.every(cst.NamedExpr):
        yield named.target, named.value
    for assignment in file.every(cst.Assign):
        for one in assignment.targets:
            yield one.target, assignment.value


def _source(name: str, statement: cst.ImportFrom) -> str:
    """Return the name of the module that a file imports from."""
    module = dotted(statement.module)
    if not statement.relative:
        return module
    parts = PurePath(name).parts[: -len(statement.relative)]
    return ".".join([*parts, module] if module else parts)


def is_module(name: str, module: str) -> bool:
    """Return whether a file may be a module, wherever the project begins."""
    path = PurePath(name)
    parts = path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
    return f".{'.'.join(parts)}".endswith(f".{module}")
