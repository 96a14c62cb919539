"""The Python files of this project, for tests that read them."""

import os
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def python_files(*folders: str, project: Path = PROJECT) -> Iterator[Path]:
    """Yield what was written here, and not what a tool has installed beside it.

    `make bench` sets up a virtual environment below bench/, for example.
    """
    for folder in folders:
        for place, subfolders, names in os.walk(project / folder):
            subfolders[:] = [name for name in subfolders if not _is_a_tools(Path(place, name))]
            yield from (Path(place, name) for name in names if name.endswith(".py"))


def _is_a_tools(folder: Path) -> bool:
    return folder.name.startswith(".") or (folder / "pyvenv.cfg").exists()
