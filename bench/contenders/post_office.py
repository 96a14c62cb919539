"""django-post_office on SQLite, `manage.py send_queued_mail --processes 2`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import peers
from bench.contenders import Place, Queue
from bench.program import Program
from bench.sink import Sink


class PostOffice(Queue):
    key = "post-office"
    title = "django-post_office on SQLite"
    share = 0.1
    batch = 100  # the default

    def require(self) -> None:
        super().require()
        peers.python()

    @contextmanager
    def services(self, folder: Path, sink: Sink) -> Iterator[Place]:
        env = {
            "DATABASE_FILE": str(folder / "django.sqlite3"),
            "BATCH_SIZE": str(self.batch),
            **sink.env,
        }
        with Program(self._program("migrate"), folder / "migrate.log", env=env) as migrate:
            migrate.wait(60)
        yield Place(folder, sink, env)

    def producer(self) -> Sequence[str]:
        return self._program("COUNT")

    def worker(self) -> Sequence[str]:
        return self._program("deliver")

    def mailing(self) -> Sequence[str]:
        """Return the command that queues a personalised mail for each recipient."""
        return [*self._program("COUNT"), "send_many"]

    def _program(self, argument: str) -> Sequence[str]:
        return [peers.python(), "-m", "bench.programs.post_office", argument]


class PostOfficeTuned(PostOffice):
    """Twice as fast, but if the process dies, all mails of its batch are sent again."""

    key = "post-office-tuned"
    title = "django-post_office, batches of 5000"
    share = 0.2
    batch = 5000
