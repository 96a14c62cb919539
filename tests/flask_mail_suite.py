"""`make flask-mail-suite`: Flask-Mail's own tests, with `Mail` imported from mailer.

It reads them from a clone of Flask-Mail's repository, as they were when the release was made that
Mailer depends on, and changes nothing but that import.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

REPOSITORY = "https://github.com/pallets-eco/flask-mail"
#: The commit of release 0.10.0.
RELEASE = "848ea85f2bf2583d7f0ef58ed55ac1d18f67883a"
TESTS = 51
_BEFORE, _AFTER = "from flask_mail import Mail\n", "from mailer import Mail\n"


class Outcomes:
    """The names of the tests that passed, and of those that did not."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            (self.passed if report.passed else self.failed).append(report.nodeid)


def main(arguments: list[str]) -> str | None:
    """Run the tests. Return a sentence if not all of them passed."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        return f"Name a clone of {REPOSITORY}: make flask-mail-suite CLONE=path/of/the/clone"
    outcomes = Outcomes()
    with TemporaryDirectory(prefix="flask-mail-suite-") as folder:
        copy_tests(Path(arguments[0]), Path(folder))
        options = ["--rootdir", folder, "-p", "no:cacheprovider", "-W", "error", "-q"]
        pytest.main([*options, folder], plugins=[outcomes])
    if outcomes.failed or len(outcomes.passed) != TESTS:
        return f"{len(outcomes.passed)} of {TESTS} tests of Flask-Mail passed."
    return None


def copy_tests(clone: Path, folder: Path) -> None:
    """Write the tests of the release into a folder, with our import."""
    command = ["git", "-C", str(clone), "archive", "--format=tar", RELEASE, "tests"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], check=True, input=archive)
    for file in folder.glob("tests/*.py"):
        text = file.read_text(encoding="utf-8")
        assert _BEFORE in text, f"{file.name} does not import Mail"
        file.write_text(text.replace(_BEFORE, _AFTER), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
