"""The table of modules in docs/architecture.md lists the modules that there are."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]
TABLE = re.compile(r"^\| module \| .*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)


def modules_of_the_table() -> list[str]:
    """Return the names from the top to the bottom. That of a folder ends with a slash."""
    found = TABLE.search((PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert found is not None
    return re.findall(r"^\| `([\w/]+)` \|", found[1], re.MULTILINE)


def test_the_table_has_every_module() -> None:
    """Each is there, and is a folder where it says so."""
    package = PROJECT / "mailer"
    found = [
        *package.glob("[a-z]*.py"),
        *(file.parent for file in package.glob("[a-z]*/__init__.py")),
    ]

    assert sorted(modules_of_the_table()) == sorted(
        path.stem + "/" * path.is_dir() for path in found
    )


def test_the_table_has_the_order_of_the_contract() -> None:
    """Who may import whom is checked by the contract, and read in the table."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]

    assert [module.rstrip("/") for module in modules_of_the_table()] == layers[::-1]
