"""Run a command that gets SIGTERM when its parent dies. A script for Linux, not a module.

python tether.py <pid of the parent> <command> <argument>...
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # kept over exec
    if os.getppid() != int(parent):
        sys.exit("The parent has ended already.")
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is the point


if __name__ == "__main__":
    main()
