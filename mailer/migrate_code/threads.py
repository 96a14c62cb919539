"""Threads, processes and pools that send a mail: `Thread(target=send_async_email, …).start()`."""

from collections.abc import Collection, Iterator

import libcst as cst

from mailer.migrate_code.calls import Callees, argument, literal_arguments
from mailer.migrate_code.findings import Edits, Finding
from mailer.migrate_code.helpers import HARMLESS, Does, Helper, Runs, statements_of
from mailer.migrate_code.reading import (
    File,
    dotted,
    has_comment,
    is_mail,
    is_sending,
    last_name,
    names_in,
    text_of,
    walk,
)

_POOLS = frozenset({"submit", "spawn", "spawn_n", "start_background_task"})
_SETTINGS = frozenset({"daemon", "name", "setDaemon", "setName"})
#: The positions of the function, its arguments and its keyword arguments.
_THREADS = {"Thread": (1, 3, 4), "Process": (1, 3, 4)}

_DIRECT = (
    "mail.send() queues the mail in a millisecond, so it needs no thread. If the mail can't be"
    " queued, the request gets the MailerError."
)
_CALLED = "{name}() only builds and sends a mail: mail.send() queues it, so it needs no thread."
_STAYS = (
    "{name}() does more than send a mail, so it may stay in its thread. Its mail.send() queues. If"
    " the rest is quick, call it directly; if not, a worker can run it: see @mailer.background."
)
_KEPT = "This thread is used again below. Write `{direct}` in its place, and remove those uses."
_RESULT = "The result of {verb}() is used. Write `{direct}` in its place: it returns at once."
_COMMENTED = "There are comments inside of this call. Write `{direct}` in its place."
_ANNOTATED = "{name}() returned a thread, and now returns the receipt: correct its annotation."
_LATER = (
    "This timer sends a mail later, unless the process ends. Queue it with a time instead:"
    " Mailer().enqueue(message, send_at=timedelta(seconds=…))."
)


def plan_threads(file: File, mail: Collection[str], callees: Callees, edits: Edits) -> None:
    """Replace threads that only send a mail, and the work of pools."""
    for call in file.every(cst.Call):
        match call.func:
            case cst.Name() | cst.Attribute() if last_name(call.func) in _THREADS:
                target, args, kwargs = _THREADS[last_name(call.func)]
                callee = argument(call, target, "target")
                given = literal_arguments(
                    argument(call, args, "args"), argument(call, kwargs, "kwargs")
                )
            case cst.Name() | cst.Attribute() if last_name(call.func) == "Timer":
                callee = argument(call, 1, "function")
                if callee is not None and callees.find(callee):
                    edits.advice.append(Finding(file.line(call), _LATER))
                continue
            case cst.Attribute(attr=cst.Name(value=verb)) if verb in _POOLS and call.args:
                callee, given = call.args[0].value, list(call.args[1:])
            case _:
                continue
        if callee is not None:
            _plan(file, call, _Work(callee, given, mail, callees), edits)


class _Work:
    """A function and its arguments, which are given to a thread."""

    def __init__(
        self,
        callee: cst.BaseExpression,
        given: list[cst.Arg],
        mail: Collection[str],
        callees: Callees,
    ) -> None:
        self.helper = callees.find(callee)
        #: The call that does the same here, if the function sends mail.
        self.direct: cst.Call | None = None
        self.reason = _DIRECT
        match callee:
            case cst.Call() if is_sending(callee, mail):  # Thread(target=mail.send(message))
                self.direct = callee
            case cst.Attribute(value=owner, attr=cst.Name(value="send")) if is_mail(owner, mail):
                self.direct = cst.Call(func=callee, args=given)
            case _ if self.helper:
                self.direct = callees.inlined(self.helper, callee, given)
                if self.direct is None:
                    self.direct = cst.Call(func=callee, args=given)
                    self.reason = _CALLED.format(name=self.helper.name)


def _plan(file: File, call: cst.Call, work: _Work, edits: Edits) -> None:
    line, direct = file.line(call), work.direct
    if direct is None:
        return
    if work.helper and work.helper.does is Does.MORE:
        edits.advice.append(Finding(line, _STAYS.format(name=work.helper.name)))
        return
    words = {"direct": text_of(direct), "verb": last_name(call.func)}
    if has_comment(call):
        edits.advice.append(Finding(line, _COMMENTED.format_map(words)))
    elif words["verb"] not in _THREADS:
        if file.is_statement(call):
            edits.replaced[call] = direct
            edits.note_call(file, call, work.reason)
        else:
            edits.advice.append(Finding(line, _RESULT.format_map(words)))
    elif _start_at_once(file, call, direct, edits) or _start_later(file, call, direct, edits):
        edits.note_call(file, call, work.reason)
    else:
        edits.advice.append(Finding(line, _KEPT.format_map(words)))


def _start_at_once(file: File, call: cst.Call, direct: cst.Call, edits: Edits) -> bool:
    """Replace `Thread(…).start()`."""
    attribute = file.parent(call)
    if not isinstance(attribute, cst.Attribute) or attribute.attr.value != "start":
        return False
    started = file.parent(attribute)
    if not isinstance(started, cst.Call) or not file.is_statement(started):
        return False
    edits.replaced[started] = direct
    return True


def _start_later(file: File, call: cst.Call, direct: cst.Call, edits: Edits) -> bool:
    """Replace `thread = Thread(…)`, `thread.start()` and `return thread`."""
    assignment = file.parent(call)
    match assignment:
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name) as target)]):
            block = file.block(assignment)
        case _:
            return False
    uses = list(_uses(file, name, block, target))
    started = [one for one in uses if isinstance(one, cst.Expr) and _verb(one, name) == "start"]
    returned = [one for one in uses if isinstance(one, cst.Return) and dotted(one.value) == name]
    settings = [one for one in uses if _verb(one, name) in _SETTINGS]
    known = len(started) + len(returned) + len(settings) == len(uses)
    if not known or len(started) != 1 or _is_used_elsewhere(file, name, block):
        return False
    statements = statements_of(block)
    position = next((i for i, one in enumerate(statements) if one is started[0]), None)
    if position is None:
        return False
    if returned:
        if statements[position + 1 : position + 2] != returned:
            return False
        edits.removed.add(started[0])
        assert returned[0].value is not None
        edits.replaced[returned[0].value] = direct
        _check_annotation(file, call, edits)
    else:
        edits.replaced[started[0].value] = direct
    edits.removed.update([assignment, *settings])
    return True


def _uses(file: File, name: str, block: cst.CSTNode, target: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield the statements of a block that use a variable, once for each use."""
    for node in walk(block):
        if isinstance(node, cst.Name) and node.value == name and node is not target:
            yield next(
                one
                for one in file.parents(node)
                if isinstance(one, cst.BaseSmallStatement | cst.BaseCompoundStatement)
            )


def _verb(statement: cst.CSTNode, name: str) -> str:
    """Return `start` for `thread.start()`, and `daemon` for `thread.daemon = True`."""
    match statement:
        case cst.Expr(
            value=cst.Call(
                func=cst.Attribute(value=cst.Name(value=owner), attr=cst.Name(value=verb))
            )
        ) if owner == name:
            return verb
        case cst.Assign(
            targets=[
                cst.AssignTarget(
                    target=cst.Attribute(value=cst.Name(value=owner), attr=cst.Name(value=verb))
                )
            ]
        ) if owner == name:
            return verb
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


def _check_annotation(file: File, call: cst.Call, edits: Edits) -> None:
    function = file.function(call)
    if isinstance(function, cst.FunctionDef) and function.returns is not None:
        line, name = file.line(function.name), function.name.value
        edits.advice.append(Finding(line, _ANNOTATED.format(name=name)))


# --- helpers -------------------------------------------------------------------------------------


def plan_decorators(file: File, own: Collection[Helper], callees: Callees, edits: Edits) -> None:
    """Take mail out of the threads of a decorator: `@async_`."""
    for helper in own:
        if helper.runs is not Runs.THREAD:
            continue
        line = file.line(helper.node.name)
        if helper.does is Does.MORE:
            edits.advice.append(Finding(line, _STAYS.format(name=helper.name)))
            continue
        for call in file.every(cst.Call):
            if callees.find(call.func) is helper and file.is_statement(call):
                direct = callees.inlined(helper, call.func, call.args)
                if direct and not has_comment(call):
                    edits.replaced[call] = direct
                    edits.note_call(file, call, _DIRECT)
        gone = [one for one in helper.node.decorators if last_name(one.decorator) not in HARMLESS]
        edits.removed.update(gone)
        edits.decorators.update(last_name(one.decorator) for one in gone)
        edits.changes.append(Finding(line, _CALLED.format(name=helper.name)))


def drop_helpers(file: File, own: Collection[Helper], edits: Edits) -> None:
    """Remove the functions whose calls are all replaced by `mail.send(message)`.

    Args:
        own: The functions of the file that no other file mentions.
    """
    gone = {below for node in (*edits.replaced, *edits.removed) for below in walk(node)}
    added = {below for node in edits.replaced.values() for below in walk(node)}
    strings = "".join(one.value for one in file.every(cst.SimpleString))
    for helper in own:
        if helper.does is not Does.SENDS or helper.runs is Runs.TASK:
            continue
        mentions = {node for node in file.every(cst.Name) if node.value == helper.name}
        mentions.remove(helper.node.name)
        if mentions and mentions <= gone - added and helper.name not in strings:
            edits.removed.add(helper.node)
            edits.released.update(names_in(helper.node))
            line = file.line(helper.node.name)
            edits.changes.append(Finding(line, f"Nothing calls {helper.name}() any more."))
