"""`python -m devstack`, called by `make run`: run the local stack until Ctrl-C."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from devstack import probes
from devstack.broker import CannotStart, find_program, given_url
from devstack.console import Console
from devstack.processes import Ledger
from devstack.stack import HOST, Stack, is_local, plan
from devstack.supervisor import Interrupts, PartFailed, StopRequested, Supervisor
from mailer.errors import MailerError
from mailer.private import make_private_folder


def main() -> int:
    """Return the exit code: 0 after a requested stop of all parts."""
    console = Console(sys.stdout, ("broker", "inbox", "worker", "web"))
    folder = Path(os.environ.get("INSTANCE_PATH") or "instance").absolute()
    try:
        with Interrupts() as interrupts, only_one(folder):
            supervisor = Supervisor(console, Ledger(folder / "devstack.json"), interrupts)
            supervisor.recover()
            stack = prepare(folder)
            return run(stack, supervisor, console)
    except MailerError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"The local stack can't keep its files in {folder}: {error}", file=sys.stderr)
    return 1


def prepare(folder: Path) -> Stack:
    """Check the requirements before any part is started, and return the parts."""
    check_packages()
    program = None if given_url(os.environ) else find_program()
    stack = plan(os.environ, folder, program, node=f"local-{os.getpid()}@localhost")
    check_ports(stack)
    if program:
        make_private_folder(folder / "broker")
    elif not probes.broker_answers(stack.broker_url):
        raise CannotStart(
            "The broker of MAILER_REDIS_URL or REDIS_URL does not answer: start it, or unset the"
            " variable."
        )
    return stack


def run(stack: Stack, supervisor: Supervisor, console: Console) -> int:
    failed = False
    try:
        supervisor.start(*(part for part in (stack.broker, stack.inbox) if part))
        supervisor.start(stack.worker, stack.web)
        console.say(welcome(stack))
        supervisor.watch()
    except StopRequested:
        console.say("Stopping; a mail on the wire is finished first. Ctrl-C again kills.")
    except PartFailed as failure:
        failed = True
        console.say(f"{failure} Stopping everything.")
    finally:
        obedient = supervisor.stop()
    console.say("Stopped.")
    return 0 if obedient and not failed else 1


def welcome(stack: Stack) -> str:
    aside = ""
    if not is_local(os.environ.get("MAIL_SERVER")):
        aside = "\nMAIL_SERVER is not used here: all mail goes to the inbox.\n"
    return f"""
Mailer is running:  {stack.url}
its inbox:          {stack.url}/inbox
{aside}
Stop with Ctrl-C.
"""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder: two stacks in one folder would stop each other."""
    make_private_folder(folder)
    with (folder / "devstack.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CannotStart(
                f"The local stack runs already (process {file.read()}): stop it with Ctrl-C in its"
                " terminal."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_packages() -> None:
    missing = [name for name in ("aiosmtpd", "gunicorn") if find_spec(name) is None]
    if missing:
        raise CannotStart(
            f"Python lacks {' and '.join(missing)}: start the local stack with `make run`, which"
            " installs them."
        )


def check_ports(stack: Stack) -> None:
    for variable, port in stack.ports.items():
        if not probes.port_is_free(HOST, port):
            raise CannotStart(
                f"Port {port} can't be used (it is taken, or reserved): stop the program that uses"
                f" it, or choose another, for example `make run {variable}={port + 1}`."
            )


if __name__ == "__main__":
    sys.exit(main())
