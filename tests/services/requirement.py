"""The treatment of services that are not installed."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest


def require(service: str, program: str | Path | None) -> Path:
    """Return the program that was found, or skip the test."""
    return Path(program) if program is not None else do_without(service)


def do_without(service: str) -> NoReturn:
    """Skip the test on a developer's machine. Fail it in CI, where all tests have to run."""
    if os.environ.get("CI") == "true":
        pytest.fail(
            f"{service} is not installed, and CI=true allows no skip. Run .ci/run, which installs"
            " it.",
            pytrace=False,
        )
    pytest.skip(f"{service} is not installed.")


def find_program(*names: str, also_in: Iterable[Path] = ()) -> str | None:
    """Return the first of these programs that is on PATH or in one of these folders."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, also_in)])
    return next(filter(None, (shutil.which(name, path=places) for name in names)), None)
