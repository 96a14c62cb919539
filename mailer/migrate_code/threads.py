"""Threads, processes and pools that send a mail: `Thread(target=send_async_email, …).start()`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import libcst as cst

from mailer.migrate_code.calls import (
    Callees,
    DirectCall,
    argument,
    is_plain,
    literal_arguments,
    warn_in_a_loop,
)
from mailer.migrate_code.findings import Decision, Finding, Replacement
from mailer.migrate_code.mail_functions import Does
from mailer.migrate_code.reading import (
    File,
    dotted,
    has_comment,
    last_name,
    names_in,
    statements_of,
    targets,
    text_of,
    walk,
)

_POOLS = frozenset({"submit", "spawn", "spawn_n", "start_background_task"})
_SETTINGS = frozenset({"daemon", "name", "setDaemon", "setName"})
#: The position and name of the function, and the positions of args and kwargs.
_THREADS = {
    "Thread": (1, "target", 3, 4),
    "Process": (1, "target", 3, 4),
    "Timer": (1, "function", 2, 3),
}

SENT_AT_ONCE = (
    "mail.send() queues the mail in a millisecond, so it needs no thread. If the mail can't be"
    " queued, the request gets the MailerError."
)
SENT_BY = "{name}() only builds and sends a mail: mail.send() queues it, so it needs no thread."
STAYS = (
    "{name}() does more than send a mail, so it may stay in its thread. Its mail.send() queues. If"
    " the rest is quick, call it directly; if not, a worker can run it: see @mailer.background."
)
_KEPT = "This thread is used again below. Write `{direct}` in its place, and remove those uses."
_CHANGED = (
    "The arguments of this thread may change before its start() below. Write `{direct}` in place"
    " of this line, and remove start()."
)
_RESULT = "The result of {verb}() is used. Write `{direct}` in its place: it returns at once."
_COMMENTED = "There are comments inside of this call. Write `{direct}` in its place."
_ANNOTATED = "{name}() returned a thread, and now returns the receipt: correct its annotation."
_LATER = (
    "This timer sends a mail later, unless the process ends. Queue it with a time instead:"
    " Mailer().enqueue(message, send_at=timedelta(seconds=…))."
)


def plan_threads(file: File, callees: Callees) -> Iterator[Decision]:
    """Replace threads that only send a mail, and the work of pools."""
    for call in file.every(cst.Call):
        launch = find_launch(call)
        direct = callees.direct(launch.callee, launch.given) if launch else None
        if launch and direct:
            yield _plan_launch(file, launch, direct)


@dataclass(frozen=True, slots=True)
class Launch:
    """A call that hands a function to a thread, a process or a pool."""

    call: cst.Call
    verb: str  #: `Thread`, for example, or `submit`
    callee: cst.BaseExpression
    given: Sequence[cst.Arg]  #: the arguments of the function


def find_launch(call: cst.Call) -> Launch | None:
    """Return what a call launches, if it does."""
    match call.func:
        case cst.Name(value=verb) | cst.Attribute(attr=cst.Name(value=verb)) if verb in _THREADS:
            position, name, args, kwargs = _THREADS[verb]
            callee = argument(call, position, name)
            given = literal_arguments(
                argument(call, args, "args"), argument(call, kwargs, "kwargs")
            )
            return Launch(call, verb, callee, given) if callee is not None else None
        case cst.Attribute(attr=cst.Name(value=verb)) if verb in _POOLS and call.args:
            return Launch(call, verb, call.args[0].value, call.args[1:])
    return None


def _plan_launch(file: File, launch: Launch, direct: DirectCall) -> Decision:
    line, name = file.line(launch.call), direct.function.name if direct.function else ""
    start = _why_left(launch, direct) or start_of(file, launch)
    if isinstance(start, Kept):
        words = {"direct": text_of(direct.call), "verb": launch.verb, "name": name}
        return Finding(line, start.advice.format_map(words))
    return Replacement(
        Finding(line, SENT_BY.format(name=name) if name else SENT_AT_ONCE),
        {start.place: direct.call},
        start.removed,
        advice=(*_check_annotation(file, start.place), *warn_in_a_loop(file, launch.call)),
    )


def _why_left(launch: Launch, direct: DirectCall) -> "Kept | None":
    """Return why a call is left to a person, however the thread is started."""
    if launch.verb == "Timer":
        return Kept(_LATER)
    if direct.function and direct.function.does is Does.DOES_MORE:
        return Kept(STAYS)
    return Kept(_COMMENTED) if has_comment(launch.call) else None


def _check_annotation(file: File, place: cst.CSTNode) -> Iterator[Finding]:
    """Point to a function that was annotated to return the thread."""
    match file.parent(place), file.function(place):
        case cst.Return(), cst.FunctionDef(name=name, returns=cst.Annotation()):
            yield Finding(file.line(name), _ANNOTATED.format(name=name.value))


# --- the start of a thread -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """The expression that starts a thread, which a direct call can replace."""

    place: cst.CSTNode
    removed: frozenset[cst.CSTNode] = frozenset()  #: the other statements about the thread


@dataclass(frozen=True, slots=True)
class Kept:
    """The reason why a thread is left to a person."""

    advice: str


def start_of(file: File, launch: Launch) -> Start | Kept:
    """Return where a thread is started, or why its start can't be replaced."""
    call = launch.call
    if launch.verb in _POOLS:
        return Start(call) if file.is_statement(call) else Kept(_RESULT)
    match file.parent(call):
        case cst.Attribute(attr=cst.Name(value="start")) as attribute:  # Thread(…).start()
            started = file.parent(attribute)
            is_alone = isinstance(started, cst.Call) and file.is_statement(started)
            return Start(started) if is_alone else Kept(_KEPT)
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))]) as assignment:
            return _start_of_variable(file, launch, assignment, name)
    return Kept(_KEPT)


def _start_of_variable(
    file: File, launch: Launch, assignment: cst.Assign, name: str
) -> Start | Kept:
    """Return the start of `thread = Thread(…)`: `thread.start()`, maybe before `return thread`."""
    block = file.block(assignment)
    every = list(_uses(file, name, block))
    settings = [one for one in every if _verb(one, name) in _SETTINGS]
    uses = [one for one in every if one not in settings]
    statements = [one for one in statements_of(block) if one not in settings]
    in_order = [one for one in statements if one in uses]
    removed = frozenset([assignment, *settings])
    match in_order:
        case [first, cst.Expr(value=call) as started]:
            start = Start(call, removed)
        case [first, cst.Expr() as started, cst.Return(value=cst.Name() as place) as returned] if (
            statements.index(returned) == statements.index(started) + 1
        ):
            start = Start(place, removed | {started})
        case _:
            return Kept(_KEPT)
    is_known = len(in_order) == len(uses) and not _is_used_elsewhere(file, name, block)
    if not is_known or first is not assignment or _verb(started, name) != "start":
        return Kept(_KEPT)
    between = statements[statements.index(assignment) + 1 : statements.index(started)]
    return Kept(_CHANGED) if _may_change(launch, between) else start


def _may_change(launch: Launch, between: Sequence[cst.CSTNode]) -> bool:
    """Return whether the arguments of a thread may be others where it is started."""
    given = [one.value for one in launch.given]
    if not all(map(is_plain, given)):
        return bool(between)
    used = {name for one in [launch.callee, *given] for name in names_in(one)}
    nodes = (node for one in between for node in walk(one))
    return any(used & {*names_in(target)} for target in targets(nodes))


def _uses(file: File, name: str, block: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield the statements of a block that use a variable, once for each use."""
    for node in walk(block):
        if isinstance(node, cst.Name) and node.value == name:
            yield next(
                one
                for one in file.parents(node)
                if isinstance(one, cst.BaseSmallStatement | cst.BaseCompoundStatement)
            )


def _verb(statement: cst.CSTNode, name: str) -> str:
    """Return `start` for `thread.start()`, and `daemon` for `thread.daemon = True`."""
    match statement:
        case (
            cst.Expr(value=cst.Call(func=cst.Attribute() as attribute))
            | cst.Assign(targets=[cst.AssignTarget(target=cst.Attribute() as attribute)])
        ) if dotted(attribute.value) == name:
            return attribute.attr.value
    return ""


def _is_used_elsewhere(file: File, name: str, block: cst.CSTNode) -> bool:
    """Return whether other blocks of the function use a variable without setting it first."""
    outer = {block, *file.parents(block)}
    for node in walk(file.function(block)):
        if isinstance(node, cst.Name) and node.value == name:
            around = list(file.parents(node))
            if block not in around and not any(
                _sets(one, name) for one in around if one not in outer
            ):
                return True
    return False


def _sets(block: cst.CSTNode, name: str) -> bool:
    return isinstance(block, cst.BaseSuite) and any(
        isinstance(one, cst.Assign) and last_name(one.targets[0].target) == name
        for one in statements_of(block)
    )
