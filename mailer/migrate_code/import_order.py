"""The order of imports: that of isort and ruff, in sections that empty lines or comments divide."""

from collections.abc import Iterator, Sequence

import libcst as cst

from mailer.migrate_code.reading import dotted

_COMMA = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))

#: Lines of imports, one below the other.
Section = Sequence[cst.SimpleStatementLine]


def is_import(line: cst.CSTNode) -> bool:
    return isinstance(line, cst.SimpleStatementLine) and all(
        isinstance(one, cst.Import | cst.ImportFrom) for one in line.body
    )


def section_around(module: cst.Module, line: cst.CSTNode) -> Section:
    """Return the section that has a line of imports."""
    return next(section for section in _sections(module) if line in section)


def section_of_flask(module: cst.Module) -> Section | None:
    """Return the section that has Flask, or an extension of it: that of third-party packages."""
    for section in _sections(module):
        packages = {_module(line).partition(".")[0] for line in section}
        if any(package == "flask" or package.startswith("flask_") for package in packages):
            return section
    return None


def is_sorted(section: Section) -> bool:
    """Return whether an import sorter would leave the lines in their order."""
    keys = [_key(line) for line in section]
    return keys == sorted(keys)


def place(module: cst.Module, section: Section, line: cst.SimpleStatementLine) -> cst.Module:
    """Put a line into a sorted section, or to its place there if it is in it already."""
    others = [one for one in section if one is not line]
    before = sum(_key(one) <= _key(line) for one in others)
    ordered = [
        one.with_changes(leading_lines=[]) for one in (*others[:before], line, *others[before:])
    ]
    ordered[0] = ordered[0].with_changes(leading_lines=section[0].leading_lines)
    body = [*module.body]
    start = body.index(section[0])
    body[start : start + len(section)] = ordered
    return module.with_changes(body=body)


def join_names(
    names: Sequence[cst.ImportAlias], added: Sequence[cst.ImportAlias]
) -> list[cst.ImportAlias]:
    """Return the names of an import with more of them, sorted if they were."""
    every = [*names, *added]
    if [*names] == sorted(names, key=_name_key):
        every.sort(key=_name_key)
    return [
        *(_with_comma(one) for one in every[:-1]),
        every[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT),
    ]


def _with_comma(alias: cst.ImportAlias) -> cst.ImportAlias:
    return alias if isinstance(alias.comma, cst.Comma) else alias.with_changes(comma=_COMMA)


def _sections(module: cst.Module) -> Iterator[list[cst.SimpleStatementLine]]:
    section = list[cst.SimpleStatementLine]()
    for line in module.body:
        is_next = isinstance(line, cst.SimpleStatementLine) and is_import(line)
        if section and (not is_next or line.leading_lines):
            yield section
            section = []
        if isinstance(line, cst.SimpleStatementLine) and is_next:
            section.append(line)
    if section:
        yield section


def _key(line: cst.SimpleStatementLine) -> tuple[bool, str]:
    """Return the key to sort by: `import …` comes before `from … import …`."""
    return isinstance(line.body[0], cst.ImportFrom), _module(line).lower()


def _module(line: cst.SimpleStatementLine) -> str:
    match line.body[0]:
        case cst.ImportFrom(module=module, relative=dots):
            return "." * len(dots) + dotted(module)
        case cst.Import(names=[first, *_]):
            return dotted(first.name)
    return ""


def _name_key(alias: cst.ImportAlias) -> tuple[int, str]:
    """Return the key to sort by: constants come before classes, and classes before the rest."""
    name = dotted(alias.name)
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name
