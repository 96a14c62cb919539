"""The result of a search: the changes of a file, and the decisions left to a person."""

from dataclasses import dataclass, field

import libcst as cst

from mailer.migrate_code.reading import File, names_in

_IN_A_LOOP = (
    "A mail that can't be queued, for example to an invalid address, now raises a MailerError"
    " here and ends the loop. Catch it if the loop should go on with the others."
)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A place in a file, and the reason for a change of it, or advice."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of a project, moved over."""

    text: str  #: the file after all changes
    changes: tuple[Finding, ...] = ()
    advice: tuple[Finding, ...] = ()
    #: Why the file could not be read. Then nothing is changed.
    unreadable: str = ""


@dataclass(slots=True)
class Edits:
    """The changes of one file, collected before the first is made."""

    replaced: dict[cst.CSTNode, cst.CSTNode] = field(default_factory=dict)
    #: Statements, functions and decorators.
    removed: set[cst.CSTNode] = field(default_factory=set)
    #: Names to import from `mailer`, with the name they get here, or None.
    imported: dict[str, str | None] = field(default_factory=dict)
    #: Names that are used less. Their imports go if nothing uses them any more.
    released: set[str] = field(default_factory=set)
    #: Names of the project that are used less, and whose imports go as well.
    decorators: set[str] = field(default_factory=set)
    changes: list[Finding] = field(default_factory=list)
    advice: list[Finding] = field(default_factory=list)

    def note_call(self, file: File, call: cst.Call, reason: str) -> None:
        """Note that a call leaves its thread or task, and why."""
        line = file.line(call)
        self.changes.append(Finding(line, reason))
        self.released.update(names_in(call))
        if file.is_in_a_loop(call):
            self.advice.append(Finding(line, _IN_A_LOOP))
