"""Identifying the processes that the local stack started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.processes import Ledger, Process, start_time


def me(pid: int | None = None, started: str | None = None) -> Process:
    return Process("me", pid or os.getpid(), started or start_time(os.getpid()) or "", grace=1)


def test_a_process_that_ended_is_not_alive() -> None:
    """A process that ended is not alive, even before its exit code is collected."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = Process("child", child.pid, start_time(child.pid) or "", grace=1)
        assert process.alive
        assert child.stdin
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.alive


def test_a_pid_used_again_is_another_process() -> None:
    """A process is identified by its pid and start time together."""
    assert me().alive
    assert not me(started="another time").alive


def test_the_ledger_is_read_by_the_next_run(tmp_path: Path) -> None:
    """The ledger returns the processes that still run, and no others."""
    ledger = Ledger(tmp_path / "devstack.json")
    ledger.add(me())
    ledger.add(me(started="another time"))

    assert Ledger(tmp_path / "devstack.json").left_behind() == [me()]
    ledger.clear()
    assert ledger.left_behind() == []


@pytest.mark.parametrize("content", ["", "{", "null", '[{"pid": 1}]', '["text"]'])
def test_a_ledger_nobody_can_read_is_an_empty_one(tmp_path: Path, content: str) -> None:
    """A damaged ledger, or one of another version, counts as empty."""
    (tmp_path / "devstack.json").write_text(content)

    assert Ledger(tmp_path / "devstack.json").left_behind() == []


def test_start_times_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, start times come from ps."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    if subprocess.run(["which", "ps"], capture_output=True, check=False).returncode:
        pytest.skip("ps is not installed")

    assert start_time(os.getpid()) == start_time(os.getpid()) is not None
