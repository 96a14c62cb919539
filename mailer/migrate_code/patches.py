"""Patches in tests of names that the changes leave unused: `patch("shop.email.Thread")`.

A person has to look at each: it fails, or changes nothing any more.
"""

from collections.abc import Iterator, Mapping

import libcst as cst

from mailer.migrate_code.findings import Finding
from mailer.migrate_code.imports import count_uses
from mailer.migrate_code.mail_objects import is_module
from mailer.migrate_code.reading import File, bound_name, dotted, last_name, string, walk, words

#: The last names of functions that replace an attribute: monkeypatch.setattr(), patch.object().
_PATCHING = frozenset({"patch", "object", "setattr", "delattr", "spy"})
_INSTEAD = " Remove it: with TESTING, mail is sent to nobody, and the fixture outbox has it."
_REMOVED = "The changes remove {name} from {file}, so that this fails." + _INSTEAD
_UNUSED = "After the changes, {file} does not call {name}, so that this has no effect." + _INSTEAD

#: The names that files lose by their changes, each with the advice for patches of it.
LostNames = Mapping[str, Mapping[str, str]]


def find_lost_names(file: str, before: cst.Module, after: cst.Module) -> dict[str, str]:
    """Return the names that a module defines or imports, and does not have or use any more."""
    had, has = _definitions(before), _definitions(after)
    uses_before, uses_after = count_uses(before), count_uses(after)
    lost = dict[str, str]()
    for name, definitions in had.items():
        if name not in has:
            lost[name] = _REMOVED.format(name=name, file=file)
        elif uses_before[name] > uses_after[name] == definitions:
            lost[name] = _UNUSED.format(name=name, file=file)
    return lost


def may_patch(text: str, lost: LostNames) -> bool:
    """Return whether a file with this text may patch one of the names."""
    found = words(text)
    names = {name for names in lost.values() for name in names}
    return not _PATCHING.isdisjoint(found) and not names.isdisjoint(found)


def advise_patches(file: File, lost: LostNames) -> Iterator[Finding]:
    """Point to the patches of names that the changes leave unused."""
    modules = _imported(file)
    for call in file.every(cst.Call):
        if last_name(call) in _PATCHING and call.args:
            for advice in _advice(_patched(call, modules), lost):
                yield Finding(file.line(call), advice)


def _patched(call: cst.Call, modules: Mapping[str, str]) -> str:
    """Return the dotted name that a call replaces, or ""."""
    first, *others = (one.value for one in call.args)
    if name := string(first):
        return name
    owner, _, rest = dotted(first).partition(".")
    parts = [modules.get(owner, owner), rest, string(others[0]) if others else ""]
    return ".".join(filter(None, parts)) if parts[-1] else ""


def _advice(patched: str, lost: LostNames) -> Iterator[str]:
    """Yield the advice for a dotted name: shop.email.Thread, or shop.email.threading.Thread."""
    parts = patched.split(".")
    for end in range(1, len(parts)):
        module, name = ".".join(parts[:end]), parts[end]
        for file, names in lost.items():
            if name in names and is_module(file, module):
                yield names[name]


def _imported(file: File) -> dict[str, str]:
    """Return the dotted names of what a file imports, by the names that it gives them."""
    found = {}
    for node in file.every(cst.ImportFrom):
        if not isinstance(node.names, cst.ImportStar):
            for alias in node.names:
                parts = (dotted(node.module), dotted(alias.name))
                found[bound_name(alias)] = ".".join(filter(None, parts))
    for plain in file.every(cst.Import):
        for alias in plain.names:
            if alias.asname:
                found[bound_name(alias)] = dotted(alias.name)
    return found


def _definitions(module: cst.Module) -> dict[str, int]:
    """Return the functions of a module, each with 1, and the names that it imports, with 0."""
    found = dict[str, int]()
    for line in module.body:
        match line:
            case cst.SimpleStatementLine():
                aliases = [one for one in walk(line) if isinstance(one, cst.ImportAlias)]
                found |= {bound_name(one).partition(".")[0]: 0 for one in aliases}
            case cst.FunctionDef(name=cst.Name(value=name)):
                found[name] = 1
    return found
