"""`make flask-mail-suite`: Flask-Mail's own tests, with `Mail` imported from mailer.

It reads them from a clone of Flask-Mail's repository, as they were when the release was made that
Mailer depends on, and changes nothing but that import. It also runs them without the change: some
releases of Python fail tests of Flask-Mail.
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
_IMPORT = "from flask_mail import Mail\n"
_OPTIONS = ["--import-mode=importlib", "-p", "no:cacheprovider", "-W", "error", "-q"]


class Outcomes:
    """The names of the tests that passed, and of those that did not."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            (self.passed if report.passed else self.failed).add(report.nodeid)

    def of(self, suite: str) -> tuple[set[str], set[str]]:
        """Return the names that passed and failed, of one of the two suites."""
        names = [
            {name.removeprefix(suite) for name in outcome if name.startswith(suite)}
            for outcome in (self.passed, self.failed)
        ]
        return names[0], names[1]


def main(arguments: list[str]) -> str | None:
    """Run the tests. Return a sentence if one fails that passes with Flask-Mail's own `Mail`."""
    if len(arguments) != 1 or not has_release(arguments[0]):
        return f"Name a clone of {REPOSITORY}: make flask-mail-suite CLONE=path/of/the/clone"
    outcomes = Outcomes()
    with TemporaryDirectory(prefix="flask-mail-suite-") as folder:
        copy_tests(arguments[0], Path(folder, "theirs"), _IMPORT)
        copy_tests(arguments[0], Path(folder, "ours"), "from mailer import Mail\n")
        pytest.main([*_OPTIONS, "--rootdir", folder, folder], plugins=[outcomes])
    (passed, failed), (theirs, _failed) = outcomes.of("ours/"), outcomes.of("theirs/")
    if len(passed | failed) != TESTS:
        return f"There are not {TESTS} tests."
    if missing := theirs - passed:
        return f"These fail with mailer.Mail only: {', '.join(sorted(missing))}"
    print(f"{len(passed)} of {TESTS} tests of Flask-Mail pass with mailer.Mail.")
    if failed:
        print(f"With flask_mail.Mail, these fail as well: {', '.join(sorted(failed))}")
    return None


def has_release(clone: str) -> bool:
    command = ["git", "-C", clone, "cat-file", "-e", f"{RELEASE}^{{commit}}"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def copy_tests(clone: str, folder: Path, statement: str) -> None:
    """Write the tests of the release into a folder, with a statement that imports `Mail`."""
    command = ["git", "-C", clone, "archive", "--format=tar", RELEASE, "tests"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], check=True, input=archive)
    for file in folder.glob("tests/*.py"):
        text = file.read_text(encoding="utf-8")
        assert _IMPORT in text, f"{file.name} does not import Mail"
        file.write_text(text.replace(_IMPORT, statement), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
