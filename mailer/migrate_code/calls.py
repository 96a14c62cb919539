"""Calls that run a function elsewhere, written as calls of the function."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from keyword import iskeyword

import libcst as cst

from mailer.migrate_code.findings import Finding
from mailer.migrate_code.mail_functions import Does, MailFunction, in_method
from mailer.migrate_code.mail_objects import MailObjects
from mailer.migrate_code.reading import (
    File,
    bound_name,
    dotted,
    last_name,
    names_in,
    own_nodes,
    string,
    targets,
)

_IN_A_LOOP = (
    "A mail that can't be queued, for example to an invalid address, now raises a MailerError here"
    " and ends the loop. Catch it if the loop should go on with the others."
)


@dataclass(frozen=True, slots=True)
class DirectCall:
    """A call that sends the same mail, without a thread or a task."""

    call: cst.Call
    #: The function that it calls, or None if that is `mail.send()` itself.
    function: MailFunction | None = None


class Callees:
    """The functions that send mail, found by the expressions that name them."""

    def __init__(
        self,
        file: File,
        mail: MailObjects,
        functions: Sequence[MailFunction],
        others: Iterable[tuple[str, MailFunction]],
    ) -> None:
        self._file = file
        self._mail = mail
        self._functions = functions
        #: Those of other files, by module and name.
        self._others = {(module, function.name): function for module, function in others}
        #: The module of each name that is imported from one.
        self._sources = {
            bound_name(alias): last_name(one.module)
            for one in file.every(cst.ImportFrom)
            if one.module is not None and not isinstance(one.names, cst.ImportStar)
            for alias in one.names
        }

    def find(self, node: cst.BaseExpression) -> MailFunction | None:
        """Return the function that an expression names."""
        owner, _, last = dotted(node).rpartition(".")
        same = [function for function in self._functions if function.name == last]
        if not owner:
            for scope in self._file.scopes(node):
                for function in same:
                    if function.scope is scope and not isinstance(scope, cst.ClassDef):
                        return function
            return self._others.get((self._sources.get(last, ""), last))
        methods = [function for function in same if isinstance(function.scope, cst.ClassDef)]
        module = owner.rpartition(".")[2]
        return methods[0] if len(methods) == 1 else self._others.get((module, last))

    def direct(self, callee: cst.BaseExpression, given: Sequence[cst.Arg]) -> DirectCall | None:
        """Return a call of an expression that sends mail, with these arguments."""
        match callee:
            case cst.Call() if self._mail.is_sending(callee):  # Thread(target=mail.send(message))
                return DirectCall(callee)
            case cst.Attribute(value=owner, attr=cst.Name(value="send")) if self._mail.has(owner):
                return DirectCall(cst.Call(func=callee, args=given))
        function = self.find(callee)
        if function is None:
            return None
        sending = self.inlined(function, callee, given)
        if sending is not None:
            return DirectCall(sending)
        return DirectCall(cst.Call(func=callee, args=given), function)

    def inlined(
        self, function: MailFunction, callee: cst.BaseExpression, given: Sequence[cst.Arg]
    ) -> cst.Call | None:
        """Return `mail.send(message)` for a function that does nothing else, if that works here."""
        if function.does is not Does.SENDS_ITS_ARGUMENT or function not in self._functions:
            return None
        message = _message_of(function, given)
        others = [one.value for one in given if one.value is not message]
        if message is None or not all(map(is_plain, others)):
            return None
        first = function.mail.partition(".")[0]
        if in_method(function.scope, function.node) and first == "self":
            known = dotted(callee).startswith("self.")
        else:
            known = not self._is_hidden(first, callee)
        if not known:
            return None
        sender = cst.parse_expression(f"{function.mail}.send")
        return cst.Call(func=sender, args=[cst.Arg(value=message)])

    def _is_hidden(self, name: str, node: cst.CSTNode) -> bool:
        """Return whether a function around a node has a name of its own that hides a global one."""
        for scope in self._file.scopes(node):
            if isinstance(scope, cst.FunctionDef):
                bound = names_in(scope.params)
                for target in targets(own_nodes(scope.body)):
                    if not isinstance(target, cst.Attribute | cst.Subscript):
                        bound += names_in(target)
                if name in bound:
                    return True
        return False


def warn_in_a_loop(file: File, call: cst.Call) -> tuple[Finding, ...]:
    """Return advice for a call that leaves its thread or task, if an error would end a loop."""
    return (Finding(file.line(call), _IN_A_LOOP),) if file.is_in_a_loop(call) else ()


def literal_arguments(
    positional: cst.BaseExpression | None, named: cst.BaseExpression | None
) -> list[cst.Arg]:
    """Return the arguments of `f(…)` for those of `Thread(target=f, args=…, kwargs=…)`."""
    given = []
    match positional:
        case None:
            pass
        case cst.Tuple() | cst.List():
            for element in positional.elements:
                starred = isinstance(element, cst.StarredElement)
                given.append(cst.Arg(value=element.value, star="*" if starred else ""))
        case _:
            given.append(cst.Arg(value=positional, star="*"))
    match named:
        case None:
            pass
        case cst.Dict() if all(_is_keyword(element) for element in named.elements):
            for pair in named.elements:
                assert isinstance(pair, cst.DictElement)
                given.append(_keyword(string(pair.key), pair.value))
        case cst.Call(func=cst.Name(value="dict")) if not any(a.star for a in named.args):
            given += [_keyword(one.keyword.value, one.value) for one in named.args if one.keyword]
        case _:
            given.append(cst.Arg(value=named, star="**"))
    return given


def argument(call: cst.Call, position: int, name: str) -> cst.BaseExpression | None:
    """Return an argument of a call, by its position or its name."""
    for index, one in enumerate(call.args):
        if one.star:
            return None
        if one.keyword is None and index == position:
            return one.value
        if one.keyword is not None and one.keyword.value == name:
            return one.value
    return None


def _message_of(function: MailFunction, given: Sequence[cst.Arg]) -> cst.BaseExpression | None:
    """Return the value of the parameter that is the message."""
    position = function.parameters.index(function.message)
    return argument(cst.Call(func=cst.Name("f"), args=given), position, function.message)


def is_plain(node: cst.BaseExpression) -> bool:
    """Return whether nothing is lost if an expression is not evaluated: `app`, for example."""
    match node:
        case cst.Name() | cst.SimpleString() | cst.Integer():
            return True
        case cst.Attribute(value=owner):
            return is_plain(owner)
        case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value="_get_current_object"))):
            return is_plain(owner)
        case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value="app_context"))):
            return is_plain(owner)
    return False


def _is_keyword(element: cst.BaseDictElement) -> bool:
    name = string(element.key) if isinstance(element, cst.DictElement) else ""
    return name.isidentifier() and not iskeyword(name)


def _keyword(name: str, value: cst.BaseExpression) -> cst.Arg:
    tight = cst.AssignEqual(
        whitespace_before=cst.SimpleWhitespace(""), whitespace_after=cst.SimpleWhitespace("")
    )
    return cst.Arg(keyword=cst.Name(name), value=value, equal=tight)
