"""Celery with Flask-Mail, as tutorials show it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import Place, Queue, python, running_redis
from bench.sink import Sink


class CeleryFlaskMail(Queue):
    program = "bench.programs.celery_flask_mail"
    key = "celery-flask-mail"
    title = "Celery + Flask-Mail, a task per mail"
    share = 0.05

    @contextmanager
    def services(self, folder: Path, sink: Sink) -> Iterator[Place]:
        with running_redis(folder) as redis:
            broker_url = redis.url.replace("unix://", "redis+socket://", 1)
            yield Place(folder, sink, {"BROKER_URL": broker_url, **sink.env}, redis)

    def producer(self) -> Sequence[str]:
        return python(self.program)

    def worker(self) -> Sequence[str]:
        # The fastest pool here: threads and gevent are slower.
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            f"{self.program}:celery",
            "worker",
            "--loglevel",
            "WARNING",
        ]
        return [*command, "--pool", "prefork", "--concurrency", "2"]
