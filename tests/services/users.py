"""Other users of the machine, which only root can become."""

import os
import traceback
from collections.abc import Callable

import pytest

from tests.services.postgres import unprivileged_account

#: Root without the right to read what belongs to others: the worker's command comes behind it.
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def as_another_user(work: Callable[[], object]) -> None:
    """Do this in a process that belongs to a user without rights. What fails there fails here."""
    account = unprivileged_account() or pytest.skip("This needs root.")
    if not (child := os.fork()):
        code = 1
        try:
            os.setgroups([])
            os.setgid(account["group"])
            os.setuid(account["user"])
            work()
            code = 0
        except BaseException:  # noqa: BLE001 -- there is but one pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "it failed there: see its traceback above"
