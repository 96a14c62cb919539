"""The virtual environment of what is measured beside this product and what its own lock has not."""

import subprocess
import sys
import venv
from pathlib import Path

from bench.program import Missing
from bench.rounds import tell

FOLDER = Path(__file__).with_name(".peers")
LOCK = Path(__file__).with_name("peers.txt")

#: A copy of the lock, made when all of it is installed: a half-finished installation has none and
#: is repaired.
_STAMP = FOLDER / "installed"


def python() -> str:
    """The Python that has the peers; they are installed at first use, and when their lock has changed."""
    program = FOLDER / "bin" / "python"
    if not _STAMP.exists() or _STAMP.read_bytes() != LOCK.read_bytes():
        tell(f"installing what {LOCK.name} lists, in a virtual environment of its own")
        try:
            venv.create(FOLDER, clear=True, with_pip=True)
            pip = "-m pip install --quiet --disable-pip-version-check --require-hashes -r".split()
            subprocess.run([str(program), *pip, str(LOCK)], check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing(
                f"what {LOCK.name} lists could not be installed; the lines above say why"
            ) from error
        _STAMP.write_bytes(LOCK.read_bytes())
    return str(program)
