"""Tasks of Celery that send a mail: `send_async_email.delay(…)`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import libcst as cst

from mailer.migrate_code.calls import Callees, argument, literal_arguments, warn_in_a_loop
from mailer.migrate_code.findings import Decision, Finding, Replacement
from mailer.migrate_code.mail_functions import Does, MailFunction, Runs
from mailer.migrate_code.reading import File, has_comment, text_of

_DIRECT = (
    "mail.send() queues the mail, so it needs no task. If the mail can't be queued, the request"
    " gets the MailerError."
)
_CALLED = "{name}() only builds and sends a mail: mail.send() queues it, so it needs no task."
_KEEP = (
    "Calls of the task {name}() may still wait in the broker: keep it for one release, then remove"
    " it if nothing else calls it."
)
_STAYS = (
    "The task {name}() does more than send a mail, so it stays. Its mail.send() queues. If the task"
    " can be retried, queue its mail with an idempotency_key: Mailer().enqueue(message,"
    " idempotency_key=…)."
)
_OPTIONS = (
    "A task with {options}. Queue the mail with options of its own: Mailer().enqueue(message,"
    " send_at=timedelta(…), expires_at=…, lane=…)."
)
_RESULT = (
    "The result of the task is used. Write `{direct}` in its place. mail.send() returns a receipt:"
    " receipt.id takes the place of the id of the task, and Mailer().status(receipt) that of its"
    " state."
)
_SIGNATURE = "A signature of the task {name}(). mail.send() needs no task: call it instead."


#: Those of a task that make a signature, and all that are looked at.
_SIGNATURES = frozenset({"s", "si", "signature", "subtask"})
_VERBS = _SIGNATURES | {"delay", "apply_async"}


def plan_tasks(
    file: File, functions: Iterable[MailFunction], callees: Callees
) -> Iterator[Decision]:
    """Replace calls of tasks that only send a mail."""
    for function in functions:
        if function.runs is Runs.TASK:
            text = _STAYS if function.does is Does.DOES_MORE else _KEEP
            line = file.line(function.node.name)
            yield Finding(line, text.format(name=function.name))
    for call in file.every(cst.Call):
        task_call = find_task_call(call, callees)
        if task_call:
            yield _plan_task_call(file, task_call, callees)


@dataclass(frozen=True, slots=True)
class TaskCall:
    """A call that queues a task, or makes a signature of one."""

    call: cst.Call
    verb: str  #: `delay`, for example
    callee: cst.BaseExpression
    task: MailFunction


def find_task_call(call: cst.Call, callees: Callees) -> TaskCall | None:
    """Return the task that a call queues, if it does no more than send a mail."""
    match call.func:
        case cst.Attribute(value=callee, attr=cst.Name(value=verb)) if verb in _VERBS:
            task = callees.find(callee)
            if task and task.runs is Runs.TASK and task.does is not Does.DOES_MORE:
                return TaskCall(call, verb, callee, task)
    return None


def _plan_task_call(file: File, found: TaskCall, callees: Callees) -> Decision:
    call, line, name = found.call, file.line(found.call), found.task.name
    given, options = _arguments(found)
    if found.verb in _SIGNATURES:
        return Finding(line, _SIGNATURE.format(name=name))
    if options:
        return Finding(line, _OPTIONS.format(options=", ".join(options)))
    sending = callees.inlined(found.task, found.callee, given)
    direct = sending or call.with_changes(func=found.callee, args=given)
    loses_comments = has_comment(call) and (sending or found.verb != "delay")
    if loses_comments or not file.is_statement(call):
        return Finding(line, _RESULT.format(direct=text_of(direct).strip()))
    reason = _DIRECT if sending else _CALLED.format(name=name)
    return Replacement(Finding(line, reason), {call: direct}, advice=warn_in_a_loop(file, call))


def _arguments(found: TaskCall) -> tuple[list[cst.Arg], list[str]]:
    """Return the arguments of the task, and the names of the options beside them."""
    call = found.call
    if found.verb != "apply_async":
        return [*call.args], []
    args, kwargs = argument(call, 0, "args"), argument(call, 1, "kwargs")
    options = [
        one.keyword.value if one.keyword else "*"
        for one in call.args
        if one.value not in (args, kwargs)
    ]
    return literal_arguments(args, kwargs), options
