"""`make run`, for real: from the first line to the last process."""

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
        """Return when it says that it is ready."""
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
        """SIGTERM, and the exit code."""
        self.runner.send_signal(signal.SIGTERM)
        return self.runner.wait(timeout=60)

    def refusal(self, **environment: str) -> str:
        """Start what can't be started; returns the one sentence that it says."""
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
        """Fill in a form as a browser does; returns the address it leads to."""
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
        """After a test, whatever happened."""
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
    """The process groups that still have somebody in them."""

    def has_members(group: int) -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True

    return [part.pid for part in parts if has_members(part.pid)]


def test_from_start_to_stop(stack: LocalStack) -> None:
    """A mail typed into a page arrives; a stop lets the mail on the wire finish and leaves no process behind."""
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
    """A runner that got SIGKILL could not tidy up: the next one does, and mails are delivered again."""
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
    """A second run names the first, and nothing is started."""
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
    """It is named, with the variable that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        local_stack.ports[variable] = str(port)
        refusal = local_stack.refusal()

    assert refusal.startswith(f"Port {port} can't be used")
    assert f"`make run {variable}={port + 1}`" in refusal


def test_a_given_broker_that_does_not_answer(local_stack: LocalStack) -> None:
    """It is the user's: we start no other one behind their back."""
    assert "does not answer" in local_stack.refusal(REDIS_URL="redis://127.0.0.1:1")


class Checkout:
    """Only what make needs to set up a virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(PROJECT / "Makefile", folder)
        (folder / "requirements").mkdir()
        (folder / "requirements" / "local.txt").touch()

    def make_run(self, python: str) -> str:
        """What `make run` says with a Python that is this shell script."""
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
    """Before anything is installed, one sentence says what is needed."""
    assert "Mailer needs Python 3.11 or newer" in checkout.make_run("exit 1")


def test_a_python_that_makes_no_virtual_environments(checkout: Checkout) -> None:
    """As on Debian, where that is a package of its own: it is named."""
    assert "install the package python3-venv" in checkout.make_run(
        'case "$2" in *ensurepip*) exit 1 ;; esac'
    )
