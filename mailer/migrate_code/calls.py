"""Calls that run a function elsewhere, written as calls of the function."""

from collections.abc import Iterable, Sequence
from keyword import iskeyword

import libcst as cst

from mailer.migrate_code.helpers import Does, Helper, in_method
from mailer.migrate_code.reading import File, bound_name, dotted, names_in, string


class Callees:
    """The functions that send mail, found by the expressions that name them."""

    def __init__(
        self, file: File, own: Sequence[Helper], others: Iterable[tuple[str, Helper]]
    ) -> None:
        self._file = file
        self._own = own
        #: Those of other files, by module and name.
        self._others = {(module, helper.name): helper for module, helper in others}
        #: The module of each name that is imported from one.
        self._sources = {
            bound_name(alias): _last(dotted(one.module))
            for one in file.every(cst.ImportFrom)
            if one.module is not None and not isinstance(one.names, cst.ImportStar)
            for alias in one.names
        }

    def find(self, node: cst.BaseExpression) -> Helper | None:
        """Return the function that an expression names."""
        owner, _, last = dotted(node).rpartition(".")
        same = [helper for helper in self._own if helper.name == last]
        if not owner:
            for scope in self._file.scopes(node):
                for helper in same:
                    if helper.scope is scope and not isinstance(scope, cst.ClassDef):
                        return helper
            return self._others.get((self._sources.get(last, ""), last))
        methods = [helper for helper in same if isinstance(helper.scope, cst.ClassDef)]
        return methods[0] if len(methods) == 1 else self._others.get((_last(owner), last))

    def inlined(
        self, helper: Helper, callee: cst.BaseExpression, given: Sequence[cst.Arg]
    ) -> cst.Call | None:
        """Return `mail.send(message)` for a function that does nothing else, if that works here."""
        if helper.does is not Does.SENDS or helper not in self._own:
            return None
        message = _argument(helper, given)
        others = [one.value for one in given if one.value is not message]
        if message is None or not all(map(_is_plain, others)):
            return None
        first = helper.mail.partition(".")[0]
        if in_method(helper.scope, helper.node) and first == "self":
            known = dotted(callee).startswith("self.")
        else:
            known = not self._is_hidden(first, callee)
        if not known:
            return None
        sender = cst.parse_expression(f"{helper.mail}.send")
        return cst.Call(func=sender, args=[cst.Arg(value=message)])

    def _is_hidden(self, name: str, node: cst.CSTNode) -> bool:
        """Return whether a function around a node has a name of its own that hides a global one."""
        for scope in self._file.scopes(node):
            if isinstance(scope, cst.FunctionDef):
                parameters = names_in(scope.params)
                assigned = [
                    dotted(one.target)
                    for one in self._file.every(cst.AssignTarget)
                    if self._file.function(one) is scope
                ]
                if name in {*parameters, *assigned}:
                    return True
        return False


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


def _argument(helper: Helper, given: Sequence[cst.Arg]) -> cst.BaseExpression | None:
    """Return the value of the parameter that is the message."""
    position = helper.parameters.index(helper.message)
    return argument(cst.Call(func=cst.Name("f"), args=given), position, helper.message)


def _is_plain(node: cst.BaseExpression) -> bool:
    """Return whether nothing is lost if an expression is not evaluated: `app`, for example."""
    match node:
        case cst.Name() | cst.SimpleString() | cst.Integer():
            return True
        case cst.Attribute(value=owner):
            return _is_plain(owner)
        case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value="_get_current_object"))):
            return _is_plain(owner)
        case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name(value="app_context"))):
            return _is_plain(owner)
    return False


def _is_keyword(element: cst.BaseDictElement) -> bool:
    name = string(element.key) if isinstance(element, cst.DictElement) else ""
    return name.isidentifier() and not iskeyword(name)


def _keyword(name: str, value: cst.BaseExpression) -> cst.Arg:
    tight = cst.AssignEqual(
        whitespace_before=cst.SimpleWhitespace(""), whitespace_after=cst.SimpleWhitespace("")
    )
    return cst.Arg(keyword=cst.Name(name), value=value, equal=tight)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
