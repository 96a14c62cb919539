"""The amounts of work in a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.contenders import Contender
from bench.contenders.ours import Ours, WorkerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    contenders: Sequence[Contender]
    worker: WorkerOptions
    mails: int  #: delivered by a fast contender in a round
    repeats: int
    calls: int  #: timed one by one in a round
    depths: Sequence[int]  #: numbers of queued mails in the part growth

    @property
    def ours(self) -> list[Ours]:
        return [contender for contender in self.contenders if isinstance(contender, Ours)]
