"""The result of a search: the changes of a file, and the decisions left to a person."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import libcst as cst

from mailer.migrate_code.reading import names_in


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A place in a file, and the reason for a change of it, or advice."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Migration:
    """The result for one file of a project: its new text, the changes and the advice."""

    text: str  #: the file after all changes
    changes: tuple[Finding, ...] = ()
    advice: tuple[Finding, ...] = ()
    #: Why the file could not be read. Then nothing is changed.
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A change of a file, with its reason."""

    reason: Finding
    replaced: Mapping[cst.CSTNode, cst.CSTNode] = field(default_factory=dict)
    #: Statements, functions and decorators, and names of imports.
    removed: frozenset[cst.CSTNode] = frozenset()
    #: Names to import from `mailer`, each with the name it gets here, or "" for the same.
    imported: frozenset[tuple[str, str]] = frozenset()
    #: The consequences that a person has to look at.
    advice: tuple[Finding, ...] = ()


#: A change, or else advice.
Decision = Replacement | Finding


@dataclass(slots=True)
class Edits:
    """The decisions about one file, collected before the first change is made."""

    replaced: dict[cst.CSTNode, cst.CSTNode] = field(default_factory=dict)
    removed: set[cst.CSTNode] = field(default_factory=set)
    imported: set[tuple[str, str]] = field(default_factory=set)
    changes: list[Finding] = field(default_factory=list)
    advice: list[Finding] = field(default_factory=list)

    def apply(self, decision: Decision) -> None:
        """Add a change, or advice."""
        if isinstance(decision, Finding):
            self.advice.append(decision)
            return
        self.replaced.update(decision.replaced)
        self.removed.update(decision.removed)
        self.imported.update(decision.imported)
        self.changes.append(decision.reason)
        self.advice.extend(decision.advice)

    @property
    def maybe_unused(self) -> set[str]:
        """Return the names in removed code: imports that nothing else uses are removed with it."""
        return {name for node in (*self.replaced, *self.removed) for name in names_in(node)}
