"""Processes of other users, which only root can start."""

import os
import traceback
from collections.abc import Callable

import pytest

from tests.services.postgres import unprivileged_account

#: Runs the command that follows as root without the right to read the files of others.
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def as_another_user(work: Callable[[], object]) -> None:
    """Call this in a process of a user without rights. A failure there fails here."""
    account = unprivileged_account() or pytest.skip("This needs root.")
    if not (child := os.fork()):
        code = 1
        try:
            os.setgroups([])
            os.setgid(account["group"])
            os.setuid(account["user"])
            work()
            code = 0
        except BaseException:  # noqa: BLE001 -- pytest must not continue in the child
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "it failed in the child: see the traceback above"
