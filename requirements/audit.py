"""`make audit`: look up known vulnerabilities of all locked packages.

The exit code is 0 if there is none; 1 if there is one without a reason in accepted.toml, or a
reason without one; and 3 if some packages could not be looked up, which says nothing about them.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
#: The lowest versions that work. Only tests use them, so that their vulnerabilities harm nobody.
LOWEST = PROJECT / "requirements" / "lowest.txt"
LOCKS = [
    *sorted({*(PROJECT / "requirements").glob("*.txt")} - {LOWEST}),
    PROJECT / "bench" / "peers.txt",
]
ACCEPTED = Path(__file__).with_name("accepted.toml")

CLEAN, FOUND, UNKNOWN = 0, 1, 3
#: The databases of pip-audit. The second is asked if the first does not answer.
_SERVICES = ("pypi", "osv")
_SHOWN = 5
_LEAST_WORDS = 4  # in a reason
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted finding."""

    id: str
    package: str
    version: str
    looked_at: date
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A vulnerability of a locked package."""

    package: str
    version: str
    id: str
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        cure = (
            f"fixed in {', '.join(self.fixed_in)}: run make lock ARGS=--upgrade"
            if self.fixed_in
            else "no fix yet"
        )
        return f"{self.package} {self.version}: {self.id}: {cure}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a database about a lock."""

    findings: frozenset[Finding]
    unknown: frozenset[str]  #: packages that could not be looked up


def main() -> int:
    answers = [ask(lock) for lock in LOCKS]
    lines, code = judge(answers, read_accepted(ACCEPTED.read_text()))
    print(*lines, sep="\n")
    return code


def ask(lock: Path) -> Answer:
    """Return the answer of the first database that knows some of the packages."""
    names = frozenset(name for name, _ in pinned(lock))
    for service in _SERVICES:
        # Without resolving: exactly the lock is audited, and nothing is downloaded.
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--require-hashes",
            "--disable-pip",
            "--progress-spinner",
            "off",
        ]
        command += [
            "--vulnerability-service",
            service,
            "--timeout",
            "15",
            "--format",
            "json",
            "--requirement",
            str(lock),
        ]
        asked = subprocess.run(command, check=False, capture_output=True, text=True)
        answer = read_answer(asked.stdout, names)
        if answer.unknown != names:
            return answer
    return answer


def read_answer(printed: str, names: frozenset[str]) -> Answer:
    """Parse the output of pip-audit, which calls a lock clean even if it skipped all packages."""
    try:
        dependencies: list[Mapping[str, Any]] = json.loads(printed)["dependencies"]
    except (ValueError, KeyError):  # pip-audit ended with an error
        return Answer(frozenset(), names)
    findings = {
        Finding(one["name"], one["version"], fault["id"], tuple(fault["fix_versions"]))
        for one in dependencies
        for fault in one.get("vulns", ())
    }
    return Answer(
        frozenset(findings), frozenset(one["name"] for one in dependencies if "skip_reason" in one)
    )


def judge(answers: Iterable[Answer], accepted: Sequence[Accepted]) -> tuple[list[str], int]:
    """Return the lines to print and the exit code."""
    answers = list(answers)
    found = sorted(frozenset().union(*(answer.findings for answer in answers)))
    unknown = sorted(frozenset().union(*(answer.unknown for answer in answers)))
    known = {(one.package, one.version, one.id) for one in accepted}
    serious = [one for one in found if (one.package, one.version, one.id) not in known]
    needless = known - {(one.package, one.version, one.id) for one in found}
    lines = [str(one) for one in serious]
    lines += [
        f"{one.package} {one.version}: {one.id}: accepted on {one.looked_at}: {one.reason}"
        for one in accepted
    ]
    if unknown:
        some = ", ".join(unknown[:_SHOWN]) + (", …" if len(unknown) > _SHOWN else "")
        lines.append(
            f"NOT AUDITED: neither pypi.org nor api.osv.dev answered for {len(unknown)} packages:"
            f" {some}"
        )
        return lines, FOUND if serious else UNKNOWN
    lines += [
        f"{ACCEPTED.name}: {' '.join(one)} is no longer found. Remove the entry."
        for one in sorted(needless)
    ]
    if serious or needless:
        return lines, FOUND
    return [*lines, "No vulnerability is known, except the accepted ones."], CLEAN


def pinned(lock: Path) -> set[tuple[str, str]]:
    """Return the names and versions in a lock."""
    return set(_PINNED.findall(lock.read_text()))


def read_accepted(text: str) -> list[Accepted]:
    """Parse accepted.toml. Raise ValueError with the entry that is wrong, and how."""
    return [_accepted(entry) for entry in tomllib.loads(text).get("finding", [])]


def _accepted(entry: Mapping[str, Any]) -> Accepted:
    wanted = {"id": str, "package": str, "version": str, "looked_at": date, "reason": str}
    if entry.keys() != wanted.keys() or not all(
        isinstance(entry[key], kind) for key, kind in wanted.items()
    ):
        raise ValueError(
            f"{ACCEPTED.name}: {dict(entry)} is not an entry. Give it exactly id, package, version,"
            " looked_at (a date) and reason."
        )
    if len(entry["reason"].split()) < _LEAST_WORDS:
        raise ValueError(
            f"{ACCEPTED.name}: {entry['id']}: {entry['reason']!r} is too short. Say why the"
            " vulnerability does no harm here."
        )
    return Accepted(**entry)


if __name__ == "__main__":
    sys.exit(main())
