"""Postfix as the queue: an instance that accepts over SMTP, stores, and delivers to the sink."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import Calls, Contender, Place, Round, python, run_producer
from bench.contenders.smtp_source import sending
from bench.program import Missing, Program, free_port
from bench.sink import Sink, find_program

_MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
local_recipient_maps =
alias_maps =
alias_database =
relayhost = [{sink.host}]:{sink.port}
smtp_dns_support_level = disabled
smtp_host_lookup = native
# The default slows down clients that hand over faster than Postfix delivers.
in_flow_delay = 0
"""
# Not in a chroot, as in the upstream default: a chroot would need copies of system files.
_MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
{comment}qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix(Contender):
    """Postfix that accepts and delivers at the same time."""

    key = "postfix"
    title = "Postfix, accepting and delivering at once"
    share = 0.1

    def require(self) -> None:
        super().require()
        find_program("postfix")
        if os.geteuid() != 0:
            raise Missing("Postfix starts only as root. Run the bench as root.")

    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        with running(folder, sink) as postfix:
            started = time.perf_counter()
            with sending(folder, f"127.0.0.1:{postfix.port}", mails) as source:
                flow = sink.wait_for(mails, check=source.check, since=started)
            return Round(mails, flow, None, postfix.program.memory())

    def hand_over(self, sink: Sink, folder: Path, mails: int) -> Calls:
        with running(folder, sink, delivers=False) as postfix:
            return postfix.hand_over(mails)


class PostfixDelivery(Postfix):
    """Postfix that delivers after all mails are queued."""

    key = "postfix-delivery"
    title = "Postfix, delivering queued mail"

    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        with running(folder, sink, delivers=False) as postfix:
            calls = postfix.hand_over(mails)
            postfix.begin_to_deliver()
            flow = sink.wait_for(mails, check=postfix.program.check)
            return Round(mails, flow, calls, postfix.program.memory())


class Instance:
    """A running Postfix."""

    def __init__(self, folder: Path, sink: Sink, port: int, program: Program) -> None:
        self.port = port
        self.program = program
        self._folder = folder
        self._sink = sink

    def hand_over(self, mails: int) -> Calls:
        """Hand over mails from one process over one connection."""
        env = {"MAIL_SERVER": "127.0.0.1", "MAIL_PORT": str(self.port)}
        return run_producer(
            python("bench.programs.smtp_client"), Place(self._folder, self._sink, env), mails
        )

    def begin_to_deliver(self) -> None:
        _configure(self._folder, self.port, delivers=True)
        _command(self._folder, "reload")


@contextmanager
def running(folder: Path, sink: Sink, *, delivers: bool = True) -> Iterator[Instance]:
    port = free_port()
    folder.chmod(0o755)  # for the accounts of Postfix
    for name in ("etc", "spool", "data"):
        (folder / name).mkdir()
    shutil.chown(folder / "data", "postfix")
    (folder / "etc" / "main.cf").write_text(_MAIN.format(folder=folder, sink=sink))
    _configure(folder, port, delivers=delivers)
    command = [find_program("postfix"), "-c", str(folder / "etc"), "start-fg"]
    with Program(command, folder / "postfix.log") as program:
        try:
            program.wait_for_port(port)
            yield Instance(folder, sink, port, program)
        finally:
            _command(folder, "stop")


def _configure(folder: Path, port: int, *, delivers: bool) -> None:
    """Configure the services; without its queue manager Postfix only accepts and stores."""
    (folder / "etc" / "master.cf").write_text(
        _MASTER.format(port=port, comment="" if delivers else "#")
    )


def _command(folder: Path, word: str) -> None:
    command = [find_program("postfix"), "-c", str(folder / "etc"), word]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
