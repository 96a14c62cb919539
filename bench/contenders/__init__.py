"""The contenders: ways to send mail, each with its best settings, with one mail and one sink."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, ClassVar

import redis

from bench.program import Failed, Memory, Program
from bench.sink import Flow, Sink, running_sink
from bench.sink import find_program as find_postfix
from devstack.broker import find_program
from tests.services.broker import RedisServer

_LONGEST_QUEUEING = 600.0


@dataclass(frozen=True, slots=True)
class Calls:
    """Seconds of each call that hands a mail over, made one after the other in one process."""

    times: Sequence[float]

    @property
    def p50(self) -> float:
        return median(self.times)

    @property
    def p99(self) -> float:
        return quantiles(self.times, n=100)[98]

    @property
    def per_second(self) -> float:
        return len(self.times) / sum(self.times)


@dataclass(frozen=True, slots=True)
class Once:
    """One call that hands over all mails."""

    began: float  # as time.perf_counter() of any process
    seconds: float
    peak: int  # of the resident memory of its process, in bytes


@dataclass(frozen=True, slots=True)
class Round:
    """The measurements of one round."""

    mails: int
    flow: Flow
    calls: Calls | None = None
    memory: Memory | None = None  # of the worker and its children
    redis_bytes: int | None = None  # memory of Redis for all queued mails
    cpu_seconds: float | None = None  # processor time of the worker after the first mail


class Contender(ABC):
    """One way to send mail."""

    key: ClassVar[str]
    title: ClassVar[str]
    #: Share of the mails of a round. A slow contender gets fewer, so that all take about as long.
    share: ClassVar[float] = 1.0

    def require(self) -> None:
        """Raise `Missing` if the contender can't be measured here."""
        find_postfix("smtp-sink")

    def deliver(self, folder: Path, mails: int) -> Round:
        """Hand over this many mails and wait until all have arrived."""
        self.require()
        with running_sink(folder) as sink:
            return self.deliver_to(sink, folder, mails)

    def queue(self, folder: Path, mails: int) -> Calls:
        """Hand over the mails without delivering them, if the contender has a queue."""
        self.require()
        with running_sink(folder) as sink:
            return self.hand_over(sink, folder, mails)

    @abstractmethod
    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        """Hand over the mails and wait until all have arrived at the sink."""

    def hand_over(self, sink: Sink, folder: Path, mails: int) -> Calls:
        """Hand over the mails without delivering them."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Place:
    """The services and the environment of a round."""

    folder: Path
    sink: Sink
    env: Mapping[str, str]
    redis: RedisServer | None = None


class Queue(Contender):
    """A contender whose worker delivers after all mails are queued."""

    @abstractmethod
    def services(self, folder: Path, sink: Sink) -> AbstractContextManager[Place]:
        """Start the services that worker and producer need."""

    @abstractmethod
    def producer(self) -> Sequence[str]:
        """Return the command that queues as many mails as its first argument says."""

    @abstractmethod
    def worker(self) -> Sequence[str]:
        """Return the command of the worker."""

    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        with self.services(folder, sink) as place:
            empty = used_memory(place.redis) if place.redis else 0
            calls = run_producer(self.producer(), place, mails)
            redis_bytes = used_memory(place.redis) - empty if place.redis else None
            with Program(self.worker(), folder / "worker.log", env=place.env) as worker:
                sink.wait_for(1, check=worker.check, then_more=True)
                began = worker.cpu_seconds()
                flow = sink.wait_for(mails, check=worker.check)
                cpu_seconds = worker.cpu_seconds() - began
                memory = worker.memory()
            if sink.count != mails:
                raise Failed(f"{sink.count} mails arrived, {mails} were queued")
            return Round(mails, flow, calls, memory, redis_bytes, cpu_seconds)

    def hand_over(self, sink: Sink, folder: Path, mails: int) -> Calls:
        with self.services(folder, sink) as place:
            return run_producer(self.producer(), place, mails)


class Direct(Contender):
    """A contender that delivers a mail when it is handed over."""

    @abstractmethod
    def producer(self) -> Sequence[str]:
        """Return the command that sends as many mails as its first argument says."""

    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        with producing(self.producer(), Place(folder, sink, sink.env), mails) as (program, result):
            flow = sink.wait_for(mails, check=program.check)
            return Round(mails, flow, Calls(result()))

    def hand_over(self, sink: Sink, folder: Path, mails: int) -> Calls:
        return run_producer(self.producer(), Place(folder, sink, sink.env), mails)


# --- programs that hand mails over --------------------------------------------------------------


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, "COUNT", *arguments]


@contextmanager
def producing(
    command: Sequence[str], place: Place, mails: int
) -> Iterator[tuple[Program, Callable[[], Any]]]:
    """Start the producer; the second value waits for its end and returns what it has printed."""
    command = [str(mails) if word == "COUNT" else word for word in command]
    printed = place.folder / "producer.json"
    with (
        printed.open("wb") as stdout,
        Program(command, place.folder / "producer.log", env=place.env, stdout=stdout) as program,
    ):

        def result() -> Any:
            program.wait(_LONGEST_QUEUEING)
            return json.loads(printed.read_text())

        yield program, result


def run_producer(command: Sequence[str], place: Place, mails: int) -> Calls:
    """Let a program hand over the mails, each with a call of its own."""
    with producing(command, place, mails) as (_, result):
        return Calls(result())


def run_once(command: Sequence[str], place: Place, mails: int) -> Once:
    """Let a program hand over all mails with one call."""
    with producing(command, place, mails) as (_, result):
        return Once(**result())


# --- Redis --------------------------------------------------------------------------------------


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(find_program(), folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def used_memory(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("memory")["used_memory"])
