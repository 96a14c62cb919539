"""The packages of this project: built, and installed as a user does.

`make package` builds and installs them for real, and says where with variables. Otherwise an
environment has links to the dependencies that the wheel asks for, which takes two seconds.
"""

import fcntl
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from tests.services.requirement import do_without

PROJECT = Path(__file__).parents[2]
NAME = "flask-mailer-queue"

#: Set by `make package`: a folder with both packages, and the Pythons of two environments.
PACKAGES, PYTHON, PYTHON_WITH_INBOX = "TEST_PACKAGES", "TEST_PYTHON", "TEST_PYTHON_WITH_INBOX"


@dataclass(frozen=True, slots=True)
class Packages:
    wheel: Path
    sdist: Path

    @classmethod
    def found_in(cls, folder: Path) -> "Packages":
        [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
        return cls(wheel, sdist)


def build_packages(folder: Path) -> Packages:
    """Build both packages once for all processes of the test run."""
    if given := os.environ.get(PACKAGES):
        return Packages.found_in(Path(given))
    if find_spec("hatchling") is None:
        do_without("hatchling")
    with _once(folder) as is_first:
        if is_first:
            _build(PROJECT, folder)
    return Packages.found_in(folder)


def install(package: Path, folder: Path, *extras: str, beside: Iterable[str] = ()) -> Path:
    """Install a package in a new environment, once for all processes. Return its Python.

    `beside` has the names of other packages, which are linked as well.
    """
    if given := os.environ.get(PYTHON_WITH_INBOX if extras else PYTHON):
        return Path(given).absolute()
    python = folder / "bin" / "python"
    with _once(folder) as is_first:
        if is_first:
            venv.create(folder, symlinks=True, with_pip=False)
            wheel = package if package.suffix == ".whl" else _build_wheel(package, folder)
            pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "install"]
            pip += ["--no-index", "--no-deps", "--no-compile", str(wheel)]
            subprocess.run(pip, check=True, timeout=60)
            site = _site_packages(folder)
            [installed] = [one for one in distributions(path=[str(site)]) if one.name == NAME]
            seen: set[str] = set()
            _link(site, _required_by(installed, frozenset(extras), seen))
            for name in beside:
                _link(site, [distribution(name)])
                _link(site, _required_by(distribution(name), frozenset(), seen))
    return python


def _build(source: Path, folder: Path) -> None:
    """Build sdist and wheel from a folder with pyproject.toml."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)


def _build_wheel(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.glob("*/pyproject.toml")
    _build(source.parent, folder / "built")
    return Packages.found_in(folder / "built").wheel


@contextmanager
def _once(folder: Path) -> Iterator[bool]:
    """Yield whether this process is the first one here. The others wait until it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / ".done"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


def _site_packages(folder: Path) -> Path:
    names = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "venv", names))


def _link(site: Path, packages: Iterable[Distribution]) -> None:
    for one in packages:
        for name in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(one.locate_file(name))))


def _required_by(
    one: Distribution, extras: frozenset[str], seen: set[str]
) -> Iterator[Distribution]:
    """Yield what a package requires, directly or not, without what was `seen` before."""
    for text in one.requires or ():
        required = Requirement(text)
        applies = required.marker is None or any(
            required.marker.evaluate({"extra": extra}) for extra in extras or {""}
        )
        if applies and f"{required.name.lower()}{sorted(required.extras)}" not in seen:
            seen.add(f"{required.name.lower()}{sorted(required.extras)}")
            found = distribution(required.name)
            yield found
            yield from _required_by(found, frozenset(required.extras), seen)
