"""The callers of a project's functions that send mail: places that a person has to look at."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import libcst as cst

from mailer.migrate_code.calls import Callees
from mailer.migrate_code.findings import Finding, Replacement
from mailer.migrate_code.mail_functions import TASKS, Does, MailFunction, Runs, is_task
from mailer.migrate_code.reading import File, last_name, own_nodes, words
from mailer.migrate_code.threads import plan_threads

_THREADLESS = (
    "{name}() returns no thread any more, so its result has no join(). Remove this use of it: the"
    " mail is queued when {name}() returns."
)
_TASK = (
    "The task {task}() sends mail through {name}(), whose mail.send() queues. If the task can be"
    " retried, queue its mail with an idempotency_key: Mailer().enqueue(message,"
    " idempotency_key=…)."
)


@dataclass(frozen=True, slots=True)
class Senders:
    """The names of the functions of a project that send mail."""

    names: frozenset[str]
    threadless: frozenset[str]  #: those that returned a thread, and no longer do

    def may_be_in(self, text: str) -> bool:
        """Return whether there may be advice for a file with this text."""
        found = words(text)
        has_task = not self.names.isdisjoint(found) and not TASKS.isdisjoint(found)
        return has_task or not self.threadless.isdisjoint(found)


def find_senders(
    files: Mapping[str, File],
    functions: Mapping[str, Sequence[MailFunction]],
    callees: Mapping[str, Callees],
) -> Senders:
    """Return the functions that send mail, also those that start a thread for it."""
    names, threadless = set[str](), set[str]()
    for name, file in files.items():
        for function in functions[name]:
            names.add(function.name)
            if function.runs is Runs.THREAD and function.does is not Does.DOES_MORE:
                threadless.add(function.name)
        for starter, returns_it in _starters(file, callees[name]):
            names.add(starter)
            if returns_it:
                threadless.add(starter)
    return Senders(frozenset(names), frozenset(threadless))


def advise_callers(
    file: File, functions: Iterable[MailFunction], senders: Senders
) -> Iterator[Finding]:
    """Point to the uses of a thread that is gone, and to tasks that call a function that sends.

    Args:
        functions: Those of the file that send mail themselves.
    """
    for call in file.every(cst.Call):
        name = last_name(call.func)
        if name in senders.threadless and not file.is_statement(call):
            yield Finding(file.line(call), _THREADLESS.format(name=name))
    known = {one.node for one in functions}
    for node in file.every(cst.FunctionDef):
        is_other_task = node not in known and any(map(is_task, node.decorators))
        if is_other_task and (name := _called(node, senders.names)):
            yield Finding(file.line(node.name), _TASK.format(task=node.name.value, name=name))


def _starters(file: File, callees: Callees) -> Iterator[tuple[str, bool]]:
    """Yield the functions whose thread is replaced, and whether they return that."""
    for decision in plan_threads(file, callees):
        if isinstance(decision, Replacement):
            for place in decision.replaced:
                function = file.function(place)
                if isinstance(function, cst.FunctionDef):
                    yield function.name.value, isinstance(file.parent(place), cst.Return)


def _called(node: cst.FunctionDef, names: Collection[str]) -> str:
    """Return the first of some functions that a function calls, or ""."""
    called = {last_name(one.func) for one in own_nodes(node.body) if isinstance(one, cst.Call)}
    return min(called & {*names}, default="")
