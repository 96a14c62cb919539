"""The verdict of `make audit` on pip-audit's output and on the list of accepted findings."""

import json
from datetime import date

import pytest

from requirements.audit import (
    ACCEPTED,
    CLEAN,
    FOUND,
    LOCKS,
    UNKNOWN,
    Accepted,
    Answer,
    Finding,
    judge,
    pinned,
    read_accepted,
    read_answer,
)

NAMES = frozenset(["flask", "redis"])
FAULT = Finding("redis", "6.4.0", "PYSEC-2026-1", ())
ENTRY = Accepted(
    "PYSEC-2026-1", "redis", "6.4.0", date(2026, 11, 25), "It is in a command that nobody calls."
)
CLEAN_ANSWER = Answer(frozenset(), frozenset())


def test_each_reason_is_for_something_that_is_locked() -> None:
    """Each entry of accepted.toml is for a version that is still locked."""
    locked = set().union(*map(pinned, LOCKS))

    assert {(one.package, one.version) for one in read_accepted(ACCEPTED.read_text())} <= locked


def test_each_lock_is_audited() -> None:
    """Each lock file is audited, and has hashes for all its packages."""
    assert {lock.name for lock in LOCKS} == {
        "audit.txt",
        "deploy.txt",
        "dev.txt",
        "fuzz.txt",
        "local.txt",
        "package.txt",
        "peers.txt",
        "pyright.txt",
        "release.txt",
    }
    for lock in LOCKS:
        assert pinned(lock)
        assert lock.read_text().count("--hash=sha256:") >= len(pinned(lock))


def test_nothing_is_found() -> None:
    """Without findings the audit passes."""
    assert judge([CLEAN_ANSWER], []) == (
        ["No vulnerability is known, except the accepted ones."],
        CLEAN,
    )


def test_a_finding() -> None:
    """A finding is listed with the version that fixes it, if there is one, and fails the audit."""
    fixed = Finding("flask", "3.1.0", "PYSEC-2026-2", ("3.1.1",))
    lines, code = judge(
        [Answer(frozenset([FAULT]), frozenset()), Answer(frozenset([FAULT, fixed]), frozenset())],
        [],
    )

    assert lines == [
        "flask 3.1.0: PYSEC-2026-2: fixed in 3.1.1: run make lock ARGS=--upgrade",
        "redis 6.4.0: PYSEC-2026-1: no fix yet",
    ]
    assert code == FOUND


def test_a_finding_with_a_reason() -> None:
    """An accepted finding is listed with its reason, and does not fail the audit."""
    lines, code = judge([Answer(frozenset([FAULT]), frozenset())], [ENTRY])

    assert (
        "redis 6.4.0: PYSEC-2026-1: accepted on 2026-11-25: It is in a command that nobody calls."
        in lines
    )
    assert code == CLEAN


def test_a_reason_without_a_finding() -> None:
    """An entry whose finding is gone fails the audit, so that it is removed."""
    lines, code = judge([CLEAN_ANSWER], [ENTRY])

    assert "accepted.toml: redis 6.4.0 PYSEC-2026-1 is no longer found. Remove the entry." in lines
    assert code == FOUND


@pytest.mark.parametrize(
    "printed",
    [
        "",
        json.dumps(
            {"dependencies": [{"name": name, "skip_reason": "not found"} for name in NAMES]}
        ),
    ],
    ids=["it failed", "it skipped everything and called that clean"],
)
def test_a_database_that_is_out_of_reach(printed: str) -> None:
    """If no database of vulnerabilities answers, the audit says that nothing was audited."""
    lines, code = judge([read_answer(printed, NAMES)], [ENTRY])

    assert (
        lines[-1]
        == "NOT AUDITED: neither pypi.org nor api.osv.dev answered for 2 packages: flask, redis"
    )
    assert code == UNKNOWN


def test_what_was_found_counts_though_something_is_unknown() -> None:
    """A finding fails the audit even if other packages could not be audited."""
    known = {
        "name": "redis",
        "version": "6.4.0",
        "vulns": [{"id": "PYSEC-2026-1", "fix_versions": []}],
    }
    printed = json.dumps({"dependencies": [known, {"name": "flask", "skip_reason": "not found"}]})

    assert judge([read_answer(printed, NAMES)], [])[1] == FOUND


@pytest.mark.parametrize(
    "entry",
    [
        'id = "X"',
        (
            'id = "X"\npackage = "a"\nversion = "1"\nlooked_at = "yesterday"\n'
            'reason = "It is in a command that nobody calls."'
        ),
        'id = "X"\npackage = "a"\nversion = "1"\nlooked_at = 2026-11-25\nreason = "later"',
    ],
    ids=["incomplete", "no date", "no reason"],
)
def test_an_entry_that_says_too_little_is_refused(entry: str) -> None:
    """An entry of accepted.toml needs a package, a version, a date and a reason."""
    with pytest.raises(ValueError, match=r"accepted\.toml"):
        read_accepted(f"[[finding]]\n{entry}\n")
