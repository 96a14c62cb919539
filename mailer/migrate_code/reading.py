"""Questions about a file: the nodes of libcst, their lines and their surroundings."""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

Scope = cst.Module | cst.ClassDef | cst.FunctionDef | cst.Lambda
_Node = TypeVar("_Node", bound=cst.CSTNode)


class File:
    """A parsed file."""

    def __init__(self, text: str) -> None:
        wrapper = MetadataWrapper(cst.parse_module(text))
        self.text = text
        self.module: cst.Module = wrapper.module
        self.nodes: list[cst.CSTNode] = list(walk(self.module))
        self._parents = {child: node for node in self.nodes for child in children(node)}
        self._positions = wrapper.resolve(PositionProvider)
        self._by_kind = defaultdict[type, list[Any]](list)
        for node in self.nodes:
            self._by_kind[type(node)].append(node)

    def every(self, kind: type[_Node]) -> Sequence[_Node]:
        """Return the nodes of a class, without those of its subclasses."""
        return self._by_kind.get(kind, [])

    def line(self, node: cst.CSTNode) -> int:
        return self._positions[node].start.line

    def parent(self, node: cst.CSTNode) -> cst.CSTNode:
        return self._parents[node]

    def parents(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        while node in self._parents:
            node = self._parents[node]
            yield node

    def scopes(self, node: cst.CSTNode) -> Iterator[Scope]:
        """Yield the functions and classes around a node, from the inside, and the module."""
        return (parent for parent in self.parents(node) if isinstance(parent, Scope))

    def function(self, node: cst.CSTNode) -> cst.FunctionDef | cst.Module:
        """Return the function around a node, or else the module."""
        around = (one for one in self.parents(node) if isinstance(one, cst.FunctionDef))
        return next(around, self.module)

    def block(self, node: cst.CSTNode) -> cst.CSTNode:
        """Return the block of a statement."""
        found = (one for one in self.parents(node) if isinstance(one, cst.BaseSuite | cst.Module))
        return next(found)

    def is_in_a_loop(self, node: cst.CSTNode) -> bool:
        """Return whether a node runs again and again, in one call of its function."""
        inside = itertools.takewhile(
            lambda one: not isinstance(one, cst.FunctionDef | cst.Lambda), self.parents(node)
        )
        return any(isinstance(one, cst.For | cst.While | cst.CompFor) for one in inside)

    def is_statement(self, expression: cst.CSTNode) -> bool:
        """Return whether nothing uses the value of an expression."""
        return isinstance(self.parent(expression), cst.Expr)


def walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield a node and all below it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(children(node))


def children(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield the nodes right below a node: as node.children of libcst, which is slow."""
    for name in node.__dataclass_fields__:
        value = getattr(node, name)
        below = value if isinstance(value, list | tuple) else (value,)
        yield from (one for one in below if isinstance(one, cst.CSTNode))


def own_nodes(block: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield the nodes of a block, without those of functions in it."""
    waiting = [block]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(
            one for one in children(node) if not isinstance(one, cst.FunctionDef | cst.Lambda)
        )


def names_in(node: cst.CSTNode) -> list[str]:
    return [one.value for one in walk(node) if isinstance(one, cst.Name)]


def dotted(node: cst.CSTNode | None) -> str:
    """Return `threading.Thread` for the node of it, or "" for all but names and attributes."""
    match node:
        case cst.Name(value=name):
            return name
        case cst.Attribute(value=owner, attr=cst.Name(value=name)):
            before = dotted(owner)
            return f"{before}.{name}" if before else ""
    return ""


def last_name(node: cst.CSTNode | None) -> str:
    """Return the name of a variable or attribute, or that of what a call calls."""
    match node:
        case cst.Name(value=name) | cst.Attribute(attr=cst.Name(value=name)):
            return name
        case cst.Call(func=function):
            return last_name(function)
    return ""


def text_of(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def string(node: cst.CSTNode | None) -> str:
    """Return the value of a literal string, or "" for all else."""
    value = node.evaluated_value if isinstance(node, cst.SimpleString) else ""
    return value if isinstance(value, str) else ""


def is_extension(node: cst.CSTNode, key: str) -> bool:
    """Return whether a node is `app.extensions[key]`, or the same with get()."""
    match node:
        case cst.Subscript(value=owner, slice=[cst.SubscriptElement(slice=cst.Index(value=given))]):
            return last_name(owner) == "extensions" and string(given) == key
        case cst.Call(func=cst.Attribute(value=owner, attr=cst.Name("get")), args=[first, *_]):
            return last_name(owner) == "extensions" and string(first.value) == key
    return False


def has_comment(node: cst.CSTNode) -> bool:
    return any(isinstance(one, cst.Comment) for one in walk(node))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


# --- statements and imports ----------------------------------------------------------------------


def statements_of(block: cst.CSTNode) -> list[cst.CSTNode]:
    """Return the statements of a block, also those that share a line."""
    found = list[cst.CSTNode]()
    for one in children(block):
        if isinstance(one, cst.SimpleStatementLine):
            found += one.body
        elif isinstance(one, cst.BaseStatement | cst.BaseSmallStatement):
            found.append(one)
    return found


def targets(nodes: Iterable[cst.CSTNode]) -> Iterator[cst.CSTNode]:
    """Yield the expressions that nodes bind, change or delete. Imports bind names as well."""
    for node in nodes:
        match node:
            case (
                cst.AssignTarget(target=target)
                | cst.AnnAssign(target=target)
                | cst.AugAssign(target=target)
                | cst.NamedExpr(target=target)
                | cst.For(target=target)
                | cst.Del(target=target)
            ):
                yield target
            case (
                cst.AsName(name=name)
                | cst.FunctionDef(name=name)
                | cst.ClassDef(name=name)
                | cst.MatchAs(name=name)
                | cst.MatchStar(name=name)
            ) if name is not None:
                yield name


def module_of(statement: cst.ImportFrom) -> str:
    """Return the name of the module, or "" for one that is relative to the file."""
    return "" if statement.relative else dotted(statement.module)


def bound_name(alias: cst.ImportAlias) -> str:
    """Return the name that an import gives to a file."""
    return dotted(alias.asname.name if alias.asname else alias.name)


def imported_modules(file: File, wanted: Collection[str]) -> set[str]:
    """Return the names under which a file imports modules: `fm` for `import flask_mail as fm`."""
    return {
        bound_name(alias)
        for statement in file.every(cst.Import)
        for alias in statement.names
        if dotted(alias.name) in wanted
    }
