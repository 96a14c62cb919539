"""`make run` with all its processes, from the first line to the last exit."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from app import create_app, mailer
from devstack.processes import Ledger, Process
from mailer.smtpd.inbox import Inbox
from tests.services.ports import free_port
from tests.services.waiting import wait_until

PROJECT = Path(__file__).parents[2]
OF_THE_USER = re.compile("MAIL|REDIS|PORT|INSTANCE|MAKE")


class LocalStack:
    """`python -m devstack` on free ports, with its state in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inbox = Inbox(folder / "inbox")
        self.ports = {"PORT": str(free_port()), "MAIL_PORT": str(free_port())}
        self._log = folder.parent / "stack.log"
        self.parts: list[Process] = []

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        """Return when the stack prints that it is ready."""
        with self._log.open("wb") as log:
            self.runner = subprocess.Popen(
                [sys.executable, "-m", "devstack"],
                cwd=PROJECT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        wait_until(
            lambda: "Mailer is running" in self.log or self.runner.poll() is not None, timeout=60
        )
        assert self.runner.poll() is None, self.log
        self.parts += Ledger(self.folder / "devstack.json").left_behind()

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.runner.send_signal(signal.SIGTERM)
        return self.runner.wait(timeout=60)

    def refusal(self, **environment: str) -> str:
        """Start a stack that can't start, and return the sentence that it prints."""
        command = [sys.executable, "-m", "devstack"]
        environment = self.environment | environment
        run = subprocess.run(
            command,
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (run.returncode, run.stdout) == (1, "")
        (sentence,) = run.stderr.splitlines()
        return sentence

    def post(self, path: str, **form: str) -> str:
        """Submit a form as a browser does, and return the address of the redirect."""
        browser = build_opener(HTTPCookieProcessor())
        address = f"http://127.0.0.1:{self.ports['PORT']}{path}"
        with browser.open(address, timeout=10) as page:
            token = re.search(
                r'name="csrf_token" type="hidden" value="([^"]+)"', page.read().decode()
            )
        assert token is not None
        with browser.open(
            address, urlencode({**form, "csrf_token": token[1]}).encode(), timeout=10
        ) as page:
            return str(page.url)

    def status(self, mail_id: str) -> str:
        with create_app({"INSTANCE_PATH": str(self.folder)}).app_context():
            return mailer.status(mail_id).deliveries[0].status

    @property
    def environment(self) -> dict[str, str]:
        others = {key: value for key, value in os.environ.items() if not OF_THE_USER.match(key)}
        return others | self.ports | {"INSTANCE_PATH": str(self.folder)}

    def end(self) -> None:
        """Stop the stack after a test, even one that failed."""
        if self.runner.poll() is None:
            self.stop()
        for part in self.parts:
            if part.alive:
                part.kill()


@pytest.fixture
def local_stack(tmp_path: Path) -> LocalStack:
    return LocalStack(tmp_path / "instance")


@pytest.fixture
def stack(local_stack: LocalStack) -> Iterator[LocalStack]:
    try:
        local_stack.start()
        yield local_stack
    finally:
        local_stack.end()


def groups_of(parts: list[Process]) -> list[int]:
    """Return the process groups that still have a process."""

    def has_members(group: int) -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True

    return [part.pid for part in parts if has_members(part.pid)]


def test_from_start_to_stop(stack: LocalStack) -> None:
    """A typed mail arrives; a stop finishes the mail being sent and ends all processes."""
    assert [part.name for part in stack.parts] == ["broker", "inbox", "worker", "web"]
    stack.post("/members", nickname="ada", address="ada@example.com")
    (arrived,) = wait_until(stack.inbox.latest)
    assert arrived.recipients == ("admin@example.com",)

    mail_id = stack.post(
        "/write", to="slow@fault.example", subject="Slow", text="Hello"
    ).rpartition("/")[2]
    wait_until(lambda: stack.status(mail_id) == "transmitting")

    assert stack.stop() == 0

    assert stack.status(mail_id) == "sent"
    assert [mail.subject for mail in stack.inbox.latest()] == ["Slow", arrived.subject]
    assert groups_of(stack.parts) == []
    for name in ("broker", "inbox", "worker", "web"):
        assert re.search(rf"^{name} +\| .", stack.log, re.MULTILINE), f"{name} has no log"


def test_after_a_kill_the_next_run_recovers(stack: LocalStack) -> None:
    """The next run after SIGKILL cleans up and delivers again."""
    stack.runner.kill()
    stack.runner.wait()

    stack.start()
    first, second = stack.parts[:4], stack.parts[4:]
    stack.post("/members", nickname="ada", address="ada@example.com")
    wait_until(stack.inbox.latest)

    assert groups_of(first) == []
    assert [part.name for part in second] == ["broker", "inbox", "worker", "web"]
    assert stack.stop() == 0
    assert groups_of(second) == []


def test_one_stack_in_a_folder(local_stack: LocalStack) -> None:
    """A second run names the process of the first and starts nothing."""
    local_stack.folder.mkdir()
    with (local_stack.folder / "devstack.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert (
            local_stack.refusal()
            == "The local stack runs already (process 4711): stop it with Ctrl-C in its terminal."
        )


@pytest.mark.parametrize("variable", ["PORT", "MAIL_PORT"])
def test_a_port_in_use(local_stack: LocalStack, variable: str) -> None:
    """The error names the port and the variable that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        local_stack.ports[variable] = str(port)
        refusal = local_stack.refusal()

    assert refusal.startswith(f"Port {port} can't be used")
    assert f"`make run {variable}={port + 1}`" in refusal


def test_a_given_broker_that_does_not_answer(local_stack: LocalStack) -> None:
    """A broker that the user chose is not replaced by another."""
    assert "does not answer" in local_stack.refusal(REDIS_URL="redis://127.0.0.1:1")


class Checkout:
    """The files that make needs to set up a virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(PROJECT / "Makefile", folder)
        (folder / "requirements").mkdir()
        (folder / "requirements" / "local.txt").touch()

    def make_run(self, python: str) -> str:
        """Return the output of `make run` with this shell script as Python."""
        program = self.folder / "python"
        program.write_text(f"#!/bin/sh\n{python}\n")
        program.chmod(0o755)
        environment = {
            key: value for key, value in os.environ.items() if not OF_THE_USER.match(key)
        }
        command = ["make", "run", f"PYTHON={program}"]
        made = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert made.returncode
        return made.stderr.splitlines()[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_python_that_is_too_old(checkout: Checkout) -> None:
    """One sentence names the needed version before anything is installed."""
    assert "Mailer needs Python 3.11 or newer" in checkout.make_run("exit 1")


def test_a_python_that_makes_no_virtual_environments(checkout: Checkout) -> None:
    """The error names the missing package, as Debian calls it."""
    assert "install the package python3-venv" in checkout.make_run(
        'case "$2" in *ensurepip*) exit 1 ;; esac'
    )
