"""The edits of a file, made in its tree. Comments and the layout of all else stay."""

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import libcst as cst

from mailer.migrate_code.findings import Edits
from mailer.migrate_code.imports import add_imports, move_import, unused_imports
from mailer.migrate_code.reading import last_name, names_in, walk

_Block = TypeVar("_Block", cst.Module, cst.IndentedBlock)


def rewrite(module: cst.Module, edits: Edits) -> cst.Module:
    """Return the module with all edits, and without the imports that nothing uses any more."""
    written = move_import(module, module.visit(_Rewriter(edits)))
    written = add_imports(written, edits.imported)
    written = written.visit(_Rewriter(Edits(removed=_idle_apps(written, edits.maybe_unused))))
    decorators = {
        last_name(one.decorator) for one in edits.removed if isinstance(one, cst.Decorator)
    }
    return written.visit(_Rewriter(Edits(removed=unused_imports(module, written, decorators))))


def _idle_apps(module: cst.Module, maybe_unused: Collection[str]) -> set[cst.CSTNode]:
    """Return the statements `app = current_app._get_current_object()` that nothing needs."""
    found = set[cst.CSTNode]()
    for function in walk(module):
        if not isinstance(function, cst.FunctionDef):
            continue
        names = names_in(function)
        for node in walk(function.body):
            match node:
                case cst.Assign(
                    targets=[cst.AssignTarget(target=cst.Name(value=name))], value=cst.Call()
                ) if last_name(node.value) == "_get_current_object":
                    if name in maybe_unused and names.count(name) == 1:
                        found.add(node)
    return found


class _Rewriter(cst.CSTTransformer):
    """Make edits in a tree."""

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self._edits = edits
        #: Statements that are to go: their block drops them, and keeps their comments.
        self._gone = set[cst.CSTNode]()

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        if original_node in self._edits.replaced:
            return self._edits.replaced[original_node]
        left: Any = super().on_leave(original_node, updated_node)
        if original_node not in self._edits.removed:
            return left
        if isinstance(original_node, cst.FunctionDef):
            self._gone.add(left)
            return left
        return cst.RemoveFromParent()

    def leave_SimpleStatementLine(  # noqa: N802 -- named by libcst
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        if not updated_node.body:
            gone = updated_node.with_changes(body=[cst.Pass()])  # libcst would lose its comments
            self._gone.add(gone)
            return gone
        if len(updated_node.body) < len(original_node.body):
            last = updated_node.body[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
            return updated_node.with_changes(body=[*updated_node.body[:-1], last])
        return updated_node

    def leave_Import(  # noqa: N802
        self, original_node: cst.Import, updated_node: cst.Import
    ) -> cst.Import:
        return updated_node.with_changes(names=_ended(updated_node.names))

    def leave_ImportFrom(  # noqa: N802
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom:
        names = updated_node.names
        if isinstance(names, cst.ImportStar) or updated_node.lpar is not None:
            return updated_node
        return updated_node.with_changes(names=_ended(names))

    def leave_Tuple(  # noqa: N802
        self, original_node: cst.Tuple, updated_node: cst.Tuple
    ) -> cst.Tuple:
        elements = updated_node.elements
        if 1 < len(elements) < len(original_node.elements):
            return updated_node.with_changes(elements=_ended(elements))
        return updated_node

    def leave_Module(  # noqa: N802
        self, original_node: cst.Module, updated_node: cst.Module
    ) -> cst.Module:
        return self._swept(updated_node)

    def leave_IndentedBlock(  # noqa: N802
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        return self._swept(updated_node)

    def _swept(self, block: _Block) -> _Block:
        """Drop the statements that are gone. The comments above a line move to the next one."""
        if not self._gone & set(block.body):
            return block
        kept, carried = list[Any](), list[cst.EmptyLine]()
        for statement in block.body:
            above = _joined(carried, getattr(statement, "leading_lines", ()))
            if statement in self._gone:
                is_line = isinstance(statement, cst.SimpleStatementLine)
                carried = above if is_line else _joined(carried, ())
                continue
            if not kept:  # a block does not begin with empty lines
                while above and above[0].comment is None:
                    del above[0]
            kept.append(statement.with_changes(leading_lines=above))
            carried = []
        footer: list[cst.EmptyLine] = [one for one in carried if one.comment]
        return block.with_changes(body=kept, footer=[*footer, *block.footer])


def _joined(
    carried: Sequence[cst.EmptyLine], above: Sequence[cst.EmptyLine]
) -> list[cst.EmptyLine]:
    """Return the comments of statements that are gone, and the lines above the next one."""
    return [*(one for one in carried if one.comment), *above] if above else [*carried]


def _ended(parts: Sequence[Any]) -> list[Any]:
    """Return parts of a list without the comma after the last one."""
    return [*parts[:-1], parts[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]
