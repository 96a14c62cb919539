"""The ceiling: Postfix's `smtp-source`, in C, without a queue, over ten open connections."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import mail
from bench.contenders import Contender, Round
from bench.program import Program
from bench.sink import Sink, find_program


class SmtpSource(Contender):
    key = "smtp-source"
    title = "ceiling, no queue: smtp-source -d -s 10"
    share = 1.5

    def require(self) -> None:
        super().require()
        find_program("smtp-source")

    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        with sending(folder, f"{sink.host}:{sink.port}", mails) as program:
            return Round(mails, sink.wait_for(mails, check=program.check))


@contextmanager
def sending(folder: Path, server: str, mails: int) -> Iterator[Program]:
    """Send as fast as that server accepts mail."""
    letter = folder / "mail.eml"
    letter.write_bytes(mail.as_bytes().replace(b"\r\n", b"\n"))
    command = [find_program("smtp-source"), "-d", "-s", "10", "-m", str(mails), "-F", str(letter)]
    with Program(
        [*command, "-f", mail.SENDER, "-t", mail.RECIPIENT, server], folder / "smtp-source.log"
    ) as program:
        yield program
