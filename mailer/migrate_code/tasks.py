"""Tasks of Celery that send a mail: `send_async_email.delay(…)`."""

from collections.abc import Collection

import libcst as cst

from mailer.migrate_code.calls import Callees, argument, literal_arguments
from mailer.migrate_code.findings import Edits, Finding
from mailer.migrate_code.helpers import Does, Helper, Runs
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


def plan_tasks(file: File, own: Collection[Helper], callees: Callees, edits: Edits) -> None:
    """Replace calls of tasks that only send a mail."""
    for helper in own:
        if helper.runs is Runs.TASK:
            text = _STAYS if helper.does is Does.MORE else _KEEP
            line = file.line(helper.node.name)
            edits.advice.append(Finding(line, text.format(name=helper.name)))
    for call in file.every(cst.Call):
        match call.func:
            case cst.Attribute(value=callee, attr=cst.Name(value=verb)):
                task = callees.find(callee)
                if task and task.runs is Runs.TASK and task.does is not Does.MORE:
                    _plan(file, call, callee, task, verb, callees, edits)


def _plan(
    file: File,
    call: cst.Call,
    callee: cst.BaseExpression,
    helper: Helper,
    verb: str,
    callees: Callees,
    edits: Edits,
) -> None:
    line = file.line(call)
    match verb:
        case "delay":
            given, options = list(call.args), list[str]()
        case "apply_async":
            args, kwargs = argument(call, 0, "args"), argument(call, 1, "kwargs")
            given = literal_arguments(args, kwargs)
            options = [
                one.keyword.value if one.keyword else "*"
                for one in call.args
                if one.value not in (args, kwargs)
            ]
        case "s" | "si" | "signature" | "subtask":
            edits.advice.append(Finding(line, _SIGNATURE.format(name=helper.name)))
            return
        case _:
            return
    if options:
        text = _OPTIONS.format(options=", ".join(options))
        edits.advice.append(Finding(line, text))
        return
    direct = callees.inlined(helper, callee, given)
    called = direct or call.with_changes(func=callee, args=given)
    if not file.is_statement(call) or (has_comment(call) and (direct or verb != "delay")):
        edits.advice.append(Finding(line, _RESULT.format(direct=text_of(called).strip())))
        return
    edits.replaced[call] = called
    edits.note_call(file, call, _DIRECT if direct else _CALLED.format(name=helper.name))
