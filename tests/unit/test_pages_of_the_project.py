"""The pages and forms that visitors of the repository see first."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [
    *PROJECT.glob("*.md"),
    *(PROJECT / "docs").glob("*.md"),
    *(PROJECT / "examples").glob("**/README.md"),
]
FORMS = {
    "vendor.github-workflows": "workflows/ci.yml",
    "vendor.github-issue-config": "ISSUE_TEMPLATE/config.yml",
    "vendor.github-issue-forms": "ISSUE_TEMPLATE/[bf]*.yml",
}


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each link on a page leads to an existing file and heading."""
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_fits_on_a_screen_or_two() -> None:
    """The README stays below 600 words."""
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").split()) < 600


def test_ci_on_github_is_ci() -> None:
    """The GitHub workflow runs `.ci/run` and nothing else."""
    assert re.findall(
        r"- run: (.*)", (PROJECT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    ) == [".ci/run"]


@pytest.mark.parametrize("schema", FORMS)
def test_the_forms_fit_their_specification(schema: str) -> None:
    """The workflow and the issue forms are valid, as GitHub ignores invalid ones."""
    files = sorted((PROJECT / ".github").glob(FORMS[schema]))
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        schema,
        *map(str, files),
    ]
    check = subprocess.run(command, capture_output=True, text=True, check=False)

    assert files
    assert check.returncode == 0, check.stdout + check.stderr
