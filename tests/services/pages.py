"""The pages of the documentation: their blocks, and a reader who does what they say."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Self

import pytest

from tests.services.ports import free_port
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, READY

# --- blocks -------------------------------------------------------------------------------------

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# The first line of a block that is a file: the name in a comment, and perhaps a place.
_NAME = re.compile(
    r"(?:\{?#) (?P<name>\.env|[\w./-]+\.\w+)(?:, (?P<place>at the end|before|after))?(?: #\})?\n"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None  #: the reason why it is not run

    @property
    def name(self) -> str | None:
        """The file that the first line names."""
        found = _NAME.match(self.text)
        return found["name"] if found else None

    @property
    def place(self) -> str | None:
        """The place: `at the end` of the file; `before` or `after` the change of a page."""
        found = _NAME.match(self.text)
        return found["place"] if found else None

    @property
    def content(self) -> str:
        """The text without the line that names the file."""
        return _NAME.sub("", self.text, count=1)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, such as "docs/install.md"."""
    text = (PROJECT / page).read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            dedent(found["text"]),
            found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block, with the output that the page shows."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.replace("\\\n", "").partition("\n")
        yield command.strip(), shown.strip()


def fits(shown: str, printed: str) -> bool:
    """Return whether a program printed what a page shows. `…` stands for anything."""
    parts = (r"\s+".join(map(re.escape, part.split())) for part in shown.split("…"))
    pattern = r"\s*.*?\s*".join(parts)
    return re.search(pattern, printed, re.DOTALL) is not None


# --- the reader ---------------------------------------------------------------------------------

#: The ports of the pages, which are free in no test.
_PORTS = ("5000", "1025", "8025")
_SERVERS = {
    r"\bflask run\b": "5000",
    r"\bmail inbox\b": "1025",
    r"\bcelery .*\bworker\b": READY,
}
#: What the environment of the tests has already, or what only changes the shell.
_INSTALLATION = re.compile(r"(python3? -m venv|\. \.venv/bin/activate|pip install)\b")
#: Commands that only look: a reader repeats them until the mail is there.
_LOOKS = re.compile(r"\bmail (list|queue|status|relays|due)\b|curl http")


class Reader:
    """A reader who writes the files of a page into a folder, and calls its commands there.

    The programs that a page starts run until the reader is done.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], redis_url: str) -> None:
        self.folder = folder
        free: set[int] = set()
        while len(free) < len(_PORTS):
            free.add(free_port())
        self._ports = dict(zip(_PORTS, map(str, free), strict=True))
        self._celery_broker = redis_url.replace("unix://", "redis+socket://")
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(installed(folder.parent / "installed")),
            "MAILER_REDIS_URL": redis_url,
            "MAIL_PORT": self._ports["1025"],
            "FLASK_RUN_PORT": self._ports["5000"],
            "FLASK_MAIL_INBOX_SMTP_PORT": self._ports["1025"],
            "FLASK_MAIL_INBOX_WEB_PORT": self._ports["8025"],
            **environment,
        }
        self._programs: list[subprocess.Popen[bytes]] = []
        self._modules: list[str] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        for program in self._programs:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()

    def follow(self, page: str) -> None:
        """Do what each block of the page says, in their order."""
        for block in blocks(page):
            self.do(block)
        self.run(self.imports)

    @property
    def imports(self) -> str:
        """The code that imports the modules that were written, but for those of pytest."""
        names = [name for name in self._modules if not name.startswith(("test_", "conftest"))]
        return "".join(f"import {name}\n" for name in names)

    def do(self, block: Block) -> None:
        """Write a file, or call commands."""
        __tracebackhide__ = True
        if block.reason is not None:
            return
        if block.name is not None:
            self._write(block)
        elif block.language in ("console", "sh"):
            for command, shown in commands(block):
                self._call(command, shown, str(block))
        elif block.language == "python":
            self.run(block.text, str(block))
        elif block.language == "json":
            json.loads(block.text)
        else:
            pytest.fail(f"{block}: a block that no reader can run needs a reason.")

    def _write(self, block: Block) -> None:
        assert block.name is not None
        file = self.folder / block.name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = self._here(block.content)
        if block.place == "at the end":
            text = f"{file.read_text(encoding='utf-8')}\n\n{text}"
        file.write_text(text, encoding="utf-8")
        if file.suffix == ".py":
            name = ".".join(Path(block.name).with_suffix("").parts)
            self._modules.append(name.removesuffix(".__init__"))

    def run(self, code: str, where: str = "") -> None:
        """Run a snippet in the folder, in a process of its own."""
        __tracebackhide__ = True
        ran = self._finished([sys.executable, "-c", self._here(code)])
        assert ran.returncode == 0, f"{where}\n{ran.stdout}"

    def _call(self, command: str, shown: str, where: str) -> None:
        __tracebackhide__ = True
        line = self._here(command)
        if found := re.search(r"\bpip install ([^#&]+)", line):
            check_requirements(found[1])
        if _INSTALLATION.match(line):
            return
        if re.search(r"\bcelery .*\bworker\b", line):
            # It says when it is ready, and does not wait for other workers.
            line += " --loglevel INFO --without-mingle --without-gossip"
        if moved := re.fullmatch(r"(?:mkdir (\S+) && )?cd (\S+)", line):
            self.folder /= moved[2]
            self.folder.mkdir(exist_ok=moved[1] is None)
            return
        if line.startswith("export "):
            self._environment |= dict(
                word.split("=", 1) for word in shlex.split(line, comments=True)[1:]
            )
            return
        for server, ready in _SERVERS.items():
            if re.search(server, line):
                self._start(line, ready, where)
                return
        self._check(line, shown, where)

    def _check(self, line: str, shown: str, where: str) -> None:
        """Call a command, and compare what it prints. One that looks is repeated for a while."""
        __tracebackhide__ = True
        printed: list[str] = []

        def is_as_shown() -> bool:
            ran = self._finished(line)
            printed.append(ran.stdout)
            has_failed = ran.returncode != 0 and "Error" not in shown
            return not has_failed and fits(self._here(shown), ran.stdout)

        if _LOOKS.search(line):
            with suppress(pytest.fail.Exception):
                wait_until(is_as_shown, timeout=20)
                return
        elif is_as_shown():
            return
        pytest.fail(f"{where}\n$ {line}\n{printed[-1]}\n--- the page shows:\n{shown}")

    def _finished(self, command: str | list[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            shell=isinstance(command, str),
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )

    def _start(self, line: str, ready: str, where: str) -> None:
        """Start a program of the page, and wait until it is ready."""
        log = self.folder / f"program{len(self._programs)}.log"
        with log.open("wb") as output:
            program = subprocess.Popen(  # noqa: S602 -- the project's own pages
                f"exec {line}" if "=" not in line.split(maxsplit=1)[0] else line,
                shell=True,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._programs.append(program)
        port = self._ports.get(ready)
        sign = f"127.0.0.1:{port}" if port else ready

        def is_ready() -> bool:
            return program.poll() is not None or sign in log.read_text()

        wait_until(is_ready, timeout=60)
        assert program.poll() is None, f"{where}\n$ {line}\n{log.read_text()}"

    def _here(self, text: str) -> str:
        """Replace the ports of the page by those of this test."""
        text = text.replace("redis://127.0.0.1:6379/0", self._celery_broker)
        for port, here in self._ports.items():
            text = re.sub(rf"\b{port}\b", here, text)
        return text


# --- the package --------------------------------------------------------------------------------


@cache
def _project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return found


def check_requirements(words: str) -> None:
    """Check the names behind `pip install`: our own package exists, and has these extras."""
    for word in shlex.split(words):
        name, _, extras = word.rstrip("]").partition("[")
        if name == _project()["name"]:
            known = _project()["optional-dependencies"]
            assert isinstance(known, dict)
            assert {*filter(None, extras.split(","))} <= known.keys(), word


def installed(folder: Path) -> Path:
    """Return a folder for PYTHONPATH that has the package, and its entry points, as pip does."""
    entry_points = _project()["entry-points"]
    assert isinstance(entry_points, dict)
    metadata = folder / f"{str(_project()['name']).replace('-', '_')}-0.dist-info"
    if not metadata.exists():
        metadata.mkdir(parents=True)
        for name in ("mailer", "pytest_mailer.py"):
            (folder / name).symlink_to(PROJECT / name)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {_project()['name']}\nVersion: 0\n"
        )
        lines = [
            line
            for group, names in entry_points.items()
            for line in (f"[{group}]", *(f"{name} = {to}" for name, to in names.items()))
        ]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder
