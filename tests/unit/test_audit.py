"""What `make audit` makes of what pip-audit prints, and the list of findings that are lived with."""

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
    """An entry of accepted.toml is well-formed, and goes when its version does."""
    locked = set().union(*map(pinned, LOCKS))

    assert {(one.package, one.version) for one in read_accepted(ACCEPTED.read_text())} <= locked


def test_each_lock_is_audited() -> None:
    """Whatever is installed by hash is looked up; a lock without hashes would not be safe to install."""
    assert {lock.name for lock in LOCKS} == {
        "audit.txt",
        "deploy.txt",
        "dev.txt",
        "fuzz.txt",
        "local.txt",
        "peers.txt",
    }
    for lock in LOCKS:
        assert pinned(lock)
        assert lock.read_text().count("--hash=sha256:") >= len(pinned(lock))


def test_nothing_is_found() -> None:
    """Then all is well."""
    assert judge([CLEAN_ANSWER], []) == (
        ["No vulnerability is known that has no reason to be accepted."],
        CLEAN,
    )


def test_a_finding() -> None:
    """It is named with the version that has no such fault, if there is one."""
    fixed = Finding("flask", "3.1.0", "PYSEC-2026-2", ("3.1.1",))
    lines, code = judge(
        [Answer(frozenset([FAULT]), frozenset()), Answer(frozenset([FAULT, fixed]), frozenset())],
        [],
    )

    assert lines == [
        "flask 3.1.0: PYSEC-2026-2: fixed in 3.1.1: call make lock ARGS=--upgrade",
        "redis 6.4.0: PYSEC-2026-1: no fix yet",
    ]
    assert code == FOUND


def test_a_finding_with_a_reason() -> None:
    """It is shown with the reason, and stops nobody."""
    lines, code = judge([Answer(frozenset([FAULT]), frozenset())], [ENTRY])

    assert (
        "redis 6.4.0: PYSEC-2026-1: accepted on 2026-11-25: It is in a command that nobody calls."
        in lines
    )
    assert code == CLEAN


def test_a_reason_without_a_finding() -> None:
    """It has to go: the next finding of that name must not hide behind it."""
    lines, code = judge([CLEAN_ANSWER], [ENTRY])

    assert (
        "accepted.toml: redis 6.4.0 PYSEC-2026-1 is not found any more: remove the entry" in lines
    )
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
    """That is no all-clear, and no finding either."""
    lines, code = judge([read_answer(printed, NAMES)], [ENTRY])

    assert (
        lines[-1]
        == "NOT AUDITED: neither pypi.org nor api.osv.dev could tell of 2 packages: flask, redis"
    )
    assert code == UNKNOWN


def test_what_was_found_counts_though_something_is_unknown() -> None:
    """A finding is a finding."""
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
        'id = "X"\npackage = "a"\nversion = "1"\nlooked_at = "yesterday"\nreason = "It is in a command that nobody calls."',
        'id = "X"\npackage = "a"\nversion = "1"\nlooked_at = 2026-11-25\nreason = "later"',
    ],
    ids=["incomplete", "no date", "no reason"],
)
def test_an_entry_that_says_too_little_is_refused(entry: str) -> None:
    """Who accepts a finding says of what, when and why."""
    with pytest.raises(ValueError, match=r"accepted\.toml"):
        read_accepted(f"[[finding]]\n{entry}\n")
