"""The supply chain: locked packages, linter rules and the promises of SECURITY.md."""

import re
import tomllib
from pathlib import Path

import pytest

from requirements.audit import LOCKS, LOWEST
from tests.sources import python_files

PROJECT = Path(__file__).parents[2]
SECURITY = (PROJECT / "SECURITY.md").read_text()
#: Files that may contain commands to install packages.
INSTALLERS = [
    *(PROJECT / name for name in ("Dockerfile", "Makefile", "docker-compose.yml", ".ci/run")),
    *python_files("bench", "devstack", "mailer"),
]
_INSTALLS = re.compile(r'(?:-m pip |"pip", ).*\binstall\b')
_PINNED = re.compile(r"^\S+==\S+.*(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+", re.MULTILINE)
_LINT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]


def test_each_promise_has_a_test() -> None:
    """Each promise in SECURITY.md names an existing test."""
    promises = [
        line
        for line in SECURITY.partition("## What stops the rest")[2].splitlines()
        if re.match(r"\| (?!promise)\w", line)
    ]
    guards = re.findall(r"`(tests/[^`]+)`", SECURITY)

    assert len(promises) > 20
    assert [
        promise for promise in promises if not re.search(r"\| `tests/[^|]+` \|$", promise)
    ] == []
    assert [guard for guard in guards if not (PROJECT / guard).is_file()] == []


def test_the_readme_leads_there() -> None:
    """The README links to SECURITY.md, whose own links lead to existing files."""
    assert "(SECURITY.md)" in (PROJECT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)", SECURITY):
        assert (PROJECT / link).is_file(), link


def test_what_is_installed_has_a_hash() -> None:
    """Each command that installs packages requires hashes, or downloads nothing."""
    # A list of arguments may be spread over several lines.
    texts = [re.sub(r'",\s+"', '", "', file.read_text()) for file in INSTALLERS]
    lines = [line for text in texts for line in text.splitlines()]
    commands = [
        line for line in lines if _INSTALLS.search(line) and "--no-index --no-deps" not in line
    ]

    assert len(commands) == 4  # the image, two kinds of virtual environments, and that of the bench
    assert [command for command in commands if "--require-hashes" not in command] == []


@pytest.mark.parametrize("lock", [*LOCKS, LOWEST], ids=lambda lock: lock.name)
def test_each_package_of_a_lock_has_hashes(lock: Path) -> None:
    """Each package in a lock file has hashes."""
    text = lock.read_text().replace(" \\\n", "\n")

    assert len(_PINNED.findall(text)) == len(re.findall("^[^ #\n]", text, re.MULTILINE)) > 0


def test_the_lowest_versions_are_tested() -> None:
    """`make test-min` has the lowest version of each dependency, of the extras as well."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    required = [text for group in groups for text in group]
    bounds = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", text) for text in required]
    locked = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==([\d.]+)", LOWEST.read_text(), re.MULTILINE))

    assert len(bounds) > 15
    for bound in bounds:
        assert bound is not None
        assert f"{locked[bound[1]]}.".startswith(f"{bound[2]}."), bound[0]


def test_all_rules_of_the_linter_are_on() -> None:
    """All rules of the linter are on, and each ignored one has a reason on its line."""
    ignored = re.search(
        r"^ignore = \[\n(.*?)^\]",
        (PROJECT / "pyproject.toml").read_text(),
        re.MULTILINE | re.DOTALL,
    )

    assert _LINT["select"] == ["ALL"]
    assert ignored
    assert [
        line for line in ignored[1].splitlines() if not re.fullmatch(r'    "\w+", +# .+', line)
    ] == []


def test_an_exception_has_its_reason() -> None:
    """Each exception from a security rule has a reason on its line."""
    files = [
        *PROJECT.glob("*.py"),
        *python_files("mailer", "devstack", "tests", "bench", "docs", "examples", "requirements"),
    ]
    exceptions = [
        line
        for file in files
        for line in file.read_text().splitlines()
        if re.search(r"# noqa: [\w, ]*\bS\d+", line)
    ]

    assert exceptions
    assert [line for line in exceptions if not re.search(r"# noqa: [A-Z0-9, ]+ --? \S", line)] == []


@pytest.mark.parametrize("environment", [".peers", "peers"])
def test_only_our_own_files_are_read(tmp_path: Path, environment: str) -> None:
    """Virtual environments inside the checkout are not checked."""
    ours = tmp_path / "bench" / "parts" / "mail.py"
    theirs = tmp_path / "bench" / environment / "lib" / "theirs.py"
    for file in (ours, theirs):
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "bench" / environment / "pyvenv.cfg").touch()

    assert list(python_files("bench", project=tmp_path)) == [ours]
