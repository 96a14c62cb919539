"""The virtual environment of the peers that the lock of Mailer does not contain."""

import subprocess
import sys
import venv
from pathlib import Path

from bench.program import Missing
from bench.rounds import tell

FOLDER = Path(__file__).with_name(".peers")
LOCK = Path(__file__).with_name("peers.txt")

#: A copy of the lock, made when all of it is installed: without it, the installation is repeated.
_STAMP = FOLDER / "installed"


def python() -> str:
    """Return the Python with the peers, which are installed at first use or if the lock changed."""
    program = FOLDER / "bin" / "python"
    if not _STAMP.exists() or _STAMP.read_bytes() != LOCK.read_bytes():
        tell(f"installing the packages of {LOCK.name} in a virtual environment")
        try:
            venv.create(FOLDER, clear=True, with_pip=True)
            pip = "-m pip install --quiet --disable-pip-version-check --require-hashes -r".split()
            subprocess.run([str(program), *pip, str(LOCK)], check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing(
                f"the packages of {LOCK.name} could not be installed; see the lines above"
            ) from error
        _STAMP.write_bytes(LOCK.read_bytes())
    return str(program)
