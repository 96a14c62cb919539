"""Who is measured: ways to send a mail, each with its best settings, all with the same mail into the same sink."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import ClassVar

import redis

from bench.program import Failed, Memory, Program
from bench.sink import Flow, Sink, running_sink
from bench.sink import find_program as find_postfix
from devstack.broker import find_program
from tests.services.broker import RedisServer

_LONGEST_QUEUEING = 600.0


@dataclass(frozen=True, slots=True)
class Calls:
    """How long each call took that hands a mail over, in seconds, one after the other in one process."""

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
class Round:
    """What one round came to."""

    mails: int
    flow: Flow
    calls: Calls | None = None
    memory: Memory | None = None  # of the worker with its children
    redis_bytes: int | None = None  # that all of them, queued, took in Redis
    cpu_seconds: float | None = None  # that the worker computed for them, from the first one on


class Contender(ABC):
    """One way to send mail."""

    key: ClassVar[str]
    title: ClassVar[str]
    share: ClassVar[float] = (
        1.0  # of the mails of a round: who is slow gets fewer, so that each takes about as long
    )

    def require(self) -> None:
        """Raise `Missing` if it can't be measured here."""
        find_postfix("smtp-sink")

    def deliver(self, folder: Path, mails: int) -> Round:
        """Hand over that many mails, and see all of them arrive."""
        self.require()
        with running_sink(folder) as sink:
            return self.deliver_to(sink, folder, mails)

    def queue(self, folder: Path, mails: int) -> Calls:
        """Only hand them over, while nobody delivers, if delivery is somebody else's."""
        self.require()
        with running_sink(folder) as sink:
            return self.hand_over(sink, folder, mails)

    @abstractmethod
    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        """Hand them over, and see all of them arrive there."""

    def hand_over(self, sink: Sink, folder: Path, mails: int) -> Calls:
        """Only hand them over."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Place:
    """What stands ready for a round."""

    folder: Path
    sink: Sink
    env: Mapping[str, str]
    redis: RedisServer | None = None


class Queue(Contender):
    """Mails are queued first, then a worker delivers them."""

    @abstractmethod
    def services(self, folder: Path, sink: Sink) -> AbstractContextManager[Place]:
        """Start what is needed beside the worker."""

    @abstractmethod
    def producer(self) -> Sequence[str]:
        """The program that queues as many mails as its first argument says."""

    @abstractmethod
    def worker(self) -> Sequence[str]:
        """The program that delivers."""

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
    """Who hands a mail over also delivers it."""

    @abstractmethod
    def producer(self) -> Sequence[str]:
        """The program that sends as many mails as its first argument says."""

    def deliver_to(self, sink: Sink, folder: Path, mails: int) -> Round:
        with producing(self.producer(), Place(folder, sink, sink.env), mails) as (program, result):
            flow = sink.wait_for(mails, check=program.check)
            return Round(mails, flow, result())

    def hand_over(self, sink: Sink, folder: Path, mails: int) -> Calls:
        return run_producer(self.producer(), Place(folder, sink, sink.env), mails)


# --- programs that hand mails over --------------------------------------------------------------


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, "COUNT", *arguments]


@contextmanager
def producing(
    command: Sequence[str], place: Place, mails: int
) -> Iterator[tuple[Program, Callable[[], Calls]]]:
    """Start it; the second value waits for its end and reads what it printed."""
    command = [str(mails) if word == "COUNT" else word for word in command]
    printed = place.folder / "producer.json"
    with (
        printed.open("wb") as stdout,
        Program(command, place.folder / "producer.log", env=place.env, stdout=stdout) as program,
    ):

        def result() -> Calls:
            program.wait(_LONGEST_QUEUEING)
            return Calls(json.loads(printed.read_text()))

        yield program, result


def run_producer(command: Sequence[str], place: Place, mails: int) -> Calls:
    with producing(command, place, mails) as (_, result):
        return result()


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
