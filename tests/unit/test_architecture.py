"""The table of modules in docs/architecture.md matches the code."""

import re
import tomllib
from pathlib import Path

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
