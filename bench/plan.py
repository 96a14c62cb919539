"""How much of everything a run does."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.contenders import Contender
from bench.contenders.ours import Ours, WorkerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    contenders: Sequence[Contender]
    worker: WorkerOptions
    mails: int  #: a round of a fast contender delivers so many
    repeats: int
    calls: int  #: a round of what is timed call by call
    depths: Sequence[int]  #: how many mails are queued, in the part that looks how the figures grow

    @property
    def ours(self) -> list[Ours]:
        return [contender for contender in self.contenders if isinstance(contender, Ours)]
