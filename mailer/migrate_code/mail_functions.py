"""The functions of a project that send mail, and what else they do."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

import libcst as cst

from mailer.migrate_code.mail_objects import MailObjects
from mailer.migrate_code.reading import (
    File,
    Scope,
    dotted,
    last_name,
    own_nodes,
    statements_of,
    text_of,
    walk,
)

#: Decorators of tutorials that run a function in a thread.
THREAD_DECORATORS = frozenset({"async_", "asynch", "run_async"})
THREADS = frozenset({"Thread", "Process", "Timer"})
#: Of Celery, and of RQ, whose functions are called with delay() as well.
TASKS = frozenset({"task", "shared_task", "job"})
#: The contexts of Flask, by their functions and as variables. Any other `with` may be a lock.
_CONTEXTS = frozenset({"app_context", "test_request_context", "request_context", "context", "ctx"})
HARMLESS = frozenset({"copy_current_request_context", "staticmethod", "classmethod"})
#: What a function may call that does no more than build a mail, send it, and say so.
_BUILDING = frozenset(
    """
    Message Attachment attach add_recipient render_template render_template_string url_for
    app_context test_request_context request_context _get_current_object create_app
    _ gettext lazy_gettext ngettext
    format join strip getenv str repr len list tuple dict isinstance getattr
    format_exc print_exc print flash debug info warning error exception critical
""".split()
)
_STATEMENTS = (
    *(cst.Expr, cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Return, cst.Pass, cst.Raise),
    *(cst.Import, cst.ImportFrom, cst.SimpleStatementLine),
    *(cst.With, cst.If, cst.Else, cst.For, cst.Try, cst.ExceptHandler, cst.Finally),
)


class Does(Enum):
    """The use that a function makes of mail."""

    SENDS_ITS_ARGUMENT = "sends the message that it is given"
    BUILDS_AND_SENDS = "builds a message and sends it"
    DOES_MORE = "sends mail, among other things"


class Runs(Enum):
    """The way in which a function is run."""

    CALLED = "by who calls it"
    THREAD = "in a thread, by its decorator"
    TASK = "by a worker of Celery"


@dataclass(frozen=True, slots=True, eq=False)
class MailFunction:
    """A function of the project that sends mail."""

    node: cst.FunctionDef
    scope: Scope
    does: Does
    runs: Runs
    parameters: tuple[str, ...]
    #: The name of its `Mail`, and its parameter that is the message, if it SENDS_ITS_ARGUMENT.
    mail: str = ""
    message: str = ""

    @property
    def name(self) -> str:
        return self.node.name.value


def find_mail_functions(
    file: File, mail: MailObjects, in_threads: Collection[str]
) -> list[MailFunction]:
    """Return the functions of a file that send mail and could be run by threads or by Celery."""
    sending = mail.sending_in(file)
    found = []
    for node in file.every(cst.FunctionDef):
        runs = _runs(node, in_threads)
        if runs is None or node.asynchronous or sending.isdisjoint(own_nodes(node.body)):
            continue
        scope, parameters = next(file.scopes(node)), _parameters(node)
        if in_method(scope, node) or _is_bound(node):
            parameters = parameters[1:]
        if sent := _only_sends(node, mail, parameters):
            does = Does.SENDS_ITS_ARGUMENT
            found.append(MailFunction(node, scope, does, runs, parameters, *sent))
        else:
            only_builds = _only_builds(node, mail, sending)
            does = Does.BUILDS_AND_SENDS if only_builds else Does.DOES_MORE
            found.append(MailFunction(node, scope, does, runs, parameters))
    return found


def thread_decorators(file: File) -> set[str]:
    """Return the decorators of a file that run a function in a thread."""
    found = set[str]()
    for node in file.every(cst.FunctionDef):
        names, inner = _parameters(node), list(walk(node.body))
        targets = {
            last_name(argument.value)
            for one in inner
            if isinstance(one, cst.Call) and last_name(one.func) in {*THREADS, "submit", "spawn"}
            for argument in one.args
        }
        if names[:1] and names[0] in targets and any(isinstance(x, cst.FunctionDef) for x in inner):
            found.add(node.name.value)
    return found


def in_method(scope: Scope, node: cst.FunctionDef) -> bool:
    decorators = {last_name(one.decorator) for one in node.decorators}
    return isinstance(scope, cst.ClassDef) and "staticmethod" not in decorators


def _runs(node: cst.FunctionDef, in_threads: Collection[str]) -> Runs | None:
    """Return how a function is run, or None if a decorator has another use for it: a view."""
    runs = Runs.CALLED
    for decorator in node.decorators:
        name = last_name(decorator.decorator)
        if name in HARMLESS:
            continue
        if runs is not Runs.CALLED:
            return None  # a task in a thread
        if is_task(decorator):
            runs = Runs.TASK
        elif name in in_threads:
            runs = Runs.THREAD
        else:
            return None
    return runs


def is_task(decorator: cst.Decorator) -> bool:
    """Return whether a decorator makes a task of Celery, and not one of a scheduler."""
    is_scheduled = "sched" in text_of(decorator.decorator).lower()
    return last_name(decorator.decorator) in TASKS and not is_scheduled


def is_building(
    call: cst.Call,
    mail: MailObjects,
    sending: Collection[cst.CSTNode],
    function: cst.FunctionDef | cst.Module,
) -> bool:
    """Return whether a call in a function only builds a mail, sends it, or reports that."""
    return (
        call in sending
        or last_name(call.func) in _BUILDING
        or _is_push(call)
        or _is_connect(call, mail)
        or _is_look_up(call, function)
        or _is_of_message(call, sending)
    )


def _parameters(node: cst.FunctionDef) -> tuple[str, ...]:
    parameters = node.params
    return tuple(one.name.value for one in [*parameters.posonly_params, *parameters.params])


def _is_bound(node: cst.FunctionDef) -> bool:
    """Return whether a task is given itself: `@celery.task(bind=True)`."""
    return any(
        argument.keyword is not None
        and argument.keyword.value == "bind"
        and dotted(argument.value) == "True"
        for decorator in node.decorators
        if isinstance(decorator.decorator, cst.Call)
        for argument in decorator.decorator.args
    )


def _only_sends(
    node: cst.FunctionDef, mail: MailObjects, parameters: tuple[str, ...]
) -> tuple[str, str] | None:
    """Return the `Mail` and the message of a function that does nothing but send it."""
    statements = statements_of(node.body)
    if statements and _is_docstring(statements[0]):
        del statements[0]
    while len(statements) == 1 and isinstance(statements[0], cst.With):
        if not _is_context(statements[0]):
            return None
        statements = statements_of(statements[0].body)
    match statements:
        case [cst.Expr(value=call) | cst.Return(value=call)]:
            match call:
                case cst.Call(
                    func=cst.Attribute(value=owner, attr=cst.Name(value="send")),
                    args=[cst.Arg(value=cst.Name(value=message), star="")],
                ) if mail.has(owner) and message in parameters:
                    name = dotted(owner)
                    by_name = name.partition(".")[0] not in parameters
                    return (name, message) if name and by_name else None
    return None


def _is_docstring(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Expr) and isinstance(
        node.value, cst.SimpleString | cst.ConcatenatedString
    )


def _is_context(node: cst.With) -> bool:
    """Return whether a block is `with app.app_context():`, or `with context:` of that."""
    return all(
        item.asname is None and last_name(item.item) in {"app_context", "context", "ctx"}
        for item in node.items
    )


def _only_builds(
    node: cst.FunctionDef, mail: MailObjects, sending: Collection[cst.CSTNode]
) -> bool:
    """Return whether a function builds and sends a mail, and at most reports that."""
    for one in walk(node.body):
        match one:
            case cst.With(items=items):
                known = all(
                    last_name(item.item) in _CONTEXTS or _is_connect(item.item, mail)
                    for item in items
                )
            case cst.BaseStatement() | cst.BaseSmallStatement():
                known = isinstance(one, _STATEMENTS)
            case cst.Call():
                known = is_building(one, mail, sending, node)
            case cst.Lambda() | cst.Await() | cst.Yield():
                known = False
            case _:
                known = True
        if not known:
            return False
    return True


def _is_connect(node: cst.BaseExpression, mail: MailObjects) -> bool:
    match node:
        case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value="connect"))):
            return mail.has(owner)
    return False


def _is_push(node: cst.Call) -> bool:
    match node.func:
        case cst.Attribute(value=owner, attr=cst.Name(value="push")):
            return last_name(owner) in _CONTEXTS
    return False


def _is_look_up(node: cst.Call, function: cst.FunctionDef | cst.Module) -> bool:
    """Return whether a call looks into settings, or into data that the function is given."""
    given = _parameters(function) if isinstance(function, cst.FunctionDef) else ()
    match node.func:
        case cst.Attribute(value=owner, attr=cst.Name(value="get")):
            return last_name(owner) in {"config", "extensions", "environ", *given}
    return False


def _is_of_message(node: cst.Call, sending: Collection[cst.CSTNode]) -> bool:
    """Return whether a call is one of a method of a message that is sent."""
    match node.func:
        case cst.Attribute(value=cst.Name(value=name)):
            sent = (one.args[0].value for one in sending if isinstance(one, cst.Call) and one.args)
            return any(isinstance(one, cst.Name) and one.value == name for one in sent)
    return False
