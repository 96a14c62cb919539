"""The functions that send mail: out of the threads of their decorators, and removed if unused."""

from collections.abc import Iterable, Iterator, Sequence

import libcst as cst

from mailer.migrate_code.calls import Callees, warn_in_a_loop
from mailer.migrate_code.findings import Decision, Edits, Finding, Replacement
from mailer.migrate_code.mail_functions import HARMLESS, Does, MailFunction, Runs
from mailer.migrate_code.reading import File, has_comment, last_name, walk
from mailer.migrate_code.threads import SENT_AT_ONCE, SENT_BY, STAYS

_UNUSED = "Nothing calls {name}() any more."


def plan_decorators(
    file: File, functions: Iterable[MailFunction], callees: Callees
) -> Iterator[Decision]:
    """Take mail out of the threads of a decorator: `@async_`."""
    for function in functions:
        if function.runs is not Runs.THREAD:
            continue
        line = file.line(function.node.name)
        if function.does is Does.DOES_MORE:
            yield Finding(line, STAYS.format(name=function.name))
            continue
        yield from _plan_calls(file, function, callees)
        decorators = function.node.decorators
        yield Replacement(
            Finding(line, SENT_BY.format(name=function.name)),
            removed=frozenset(
                one for one in decorators if last_name(one.decorator) not in HARMLESS
            ),
        )


def _plan_calls(file: File, function: MailFunction, callees: Callees) -> Iterator[Replacement]:
    """Replace the calls of a function by `mail.send(message)`."""
    for call in file.every(cst.Call):
        if callees.find(call.func) is function and file.is_statement(call):
            sending = callees.inlined(function, call.func, call.args)
            if sending is not None and not has_comment(call):
                yield Replacement(
                    Finding(file.line(call), SENT_AT_ONCE),
                    {call: sending},
                    advice=warn_in_a_loop(file, call),
                )


def plan_unused(
    file: File, functions: Sequence[MailFunction], edits: Edits
) -> Iterator[Replacement]:
    """Remove the functions whose calls are all replaced by `mail.send(message)`.

    Args:
        functions: Those of the file that no other file mentions.
    """
    gone = {below for node in (*edits.replaced, *edits.removed) for below in walk(node)}
    added = {below for node in edits.replaced.values() for below in walk(node)}
    strings = "".join(one.value for one in file.every(cst.SimpleString))
    for function in functions:
        if function.does is not Does.SENDS_ITS_ARGUMENT or function.runs is Runs.TASK:
            continue
        mentions = {node for node in file.every(cst.Name) if node.value == function.name}
        mentions.remove(function.node.name)
        if mentions and mentions <= gone - added and function.name not in strings:
            line = file.line(function.node.name)
            reason = Finding(line, _UNUSED.format(name=function.name))
            yield Replacement(reason, removed=frozenset([function.node]))
