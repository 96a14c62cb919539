"""The architecture: the table of modules in docs/architecture.md, and who uses a port."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TABLE = re.compile(r"^\| module \| .*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)


def modules_of_the_table() -> list[str]:
    """Return the names in the table from top to bottom; a folder's ends with a slash."""
    found = TABLE.search((PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert found is not None
    return re.findall(r"^\| `([\w/]+)` \|", found[1], re.MULTILINE)


def test_the_table_has_every_module() -> None:
    """The table lists each module, and marks the folders."""
    package = PROJECT / "mailer"
    found = [
        *package.glob("[a-z]*.py"),
        *(file.parent for file in package.glob("[a-z]*/__init__.py")),
    ]

    assert sorted(modules_of_the_table()) == sorted(
        path.stem + "/" * path.is_dir() for path in found
    )


def test_the_table_has_the_order_of_the_contract() -> None:
    """The table has the order of the layers contract in pyproject.toml."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]

    assert [module.rstrip("/") for module in modules_of_the_table()] == layers[::-1]


# --- ports --------------------------------------------------------------------------------------

# The modules that decide by time or chance.
TIMED = [
    "attendance.py",
    "blackbox.py",
    "celery/bell.py",
    "celery/heartbeat.py",
    "celery/maintenance.py",
    "delivery",
    "extension.py",
    "intake",
    "mail.py",
    "operations.py",
    "outbound.py",
    "signals.py",
    "throttle",
    "wiring.py",
]


def trees(place: str) -> list[ast.Module]:
    """Return the code of a module, or of all modules in a folder."""
    path = PROJECT / "mailer" / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]


def imported(tree: ast.Module) -> set[str]:
    """Return the names of imported modules, without those of their submodules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def called(tree: ast.Module) -> set[str]:
    """Return the functions that are called, such as "datetime.now"."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("place", TIMED)
def test_time_and_chance_come_from_the_clock(place: str) -> None:
    """A module that decides by time or chance gets a `Clock`, so that a simulation can set it."""
    for tree in trees(place):
        assert not imported(tree) & {"time", "random"}
        assert not called(tree) & {"datetime.now", "datetime.today", "datetime.utcnow"}


def test_the_black_box_reaches_files_over_its_disk() -> None:
    """The black box reaches files over its `Disk` alone, so that a simulation can replace it."""
    [tree] = trees("blackbox.py")

    assert not imported(tree) & {"fcntl", "io", "mmap", "os", "shutil", "stat"}
    assert not [name for name in called(tree) if re.search(r"(^open|(path|folder)\.\w+)$", name)]
