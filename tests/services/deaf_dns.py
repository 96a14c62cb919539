"""A machine whose DNS server receives every question and answers none.

`python -m tests.services.deaf_dns COMMAND …`.

The command runs in its own user, mount and network namespaces, in which any user may be root.
"""

import fcntl
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.services.requirement import do_without, find_program, require

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def command(*words: str) -> Sequence[str]:
    """Return the command line that runs these words there."""
    program = str(require("unshare", find_program("unshare")))
    unshare = [program, "--user", "--map-root-user", "--mount", "--net"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        do_without("a kernel with namespaces for every user")
    return [*unshare, sys.executable, "-m", "tests.services.deaf_dns", *words]


def main(words: Sequence[str]) -> int:
    with TemporaryDirectory() as folder, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        fcntl.ioctl(server, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))
        server.bind(("127.0.0.1", 53))
        resolv = Path(folder, "resolv.conf")
        resolv.write_text("nameserver 127.0.0.1\n")
        subprocess.run(["mount", "--bind", resolv, Path("/etc/resolv.conf").resolve()], check=True)
        return subprocess.run(words, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
