"""The budget of one rendering: how much a template that nobody trusts may do."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateRuntimeError

#: Work that each step costs, whatever it handles. About a microsecond.
STEP = 20
# CPU time is looked at after this much work: a look costs a system call.
_BETWEEN_LOOKS = 2_000
# The work of an element beside its characters: about its bytes, divided by those of a character.
_ELEMENT = 20
_MAX_BITS = 10_000
_MAX_DEPTH = 50
_SIMPLER = "write a simpler template, or pass values that are computed already"
SCALARS = frozenset({int, float, bool, type(None)})
PLAIN = SCALARS | {str}


class LimitExceeded(TemplateRuntimeError):
    """A template needs more than one mail may cost."""

    def __init__(self, needed: str, cure: str) -> None:
        super().__init__(needed)
        self.cure = cure


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one rendering.

    `size` bounds the characters of a body and of any other text, and what a list or dict holds: 20
    for each element, and its characters. `work` is the sum of all steps, elements and characters.
    """

    loops: int = 100_000
    size: int = 1_000_000
    work: int = 10_000_000
    seconds: float = 1.0


@dataclass(slots=True)
class Budget:
    """The rest of the limits during one rendering."""

    limits: Limits
    loops: int = 0
    left: int = 0
    next_look: int = 0
    started: float | None = None
    modules: dict[int, Any] = field(default_factory=dict)  # imported templates, by id

    def __post_init__(self) -> None:
        self.left = self.limits.work
        self.next_look = self.left - _BETWEEN_LOOKS

    def look(self) -> None:
        """Check the limits of work and CPU time."""
        if self.left < 0:
            raise LimitExceeded(f"more than {self.limits.work:,} units of work", _SIMPLER)
        # Not the time of the clock: a machine that is busy elsewhere must fail no mail.
        now = time.thread_time()
        if self.started is None:
            self.started = now
        if now - self.started > self.limits.seconds:
            raise LimitExceeded(f"more than {self.limits.seconds:g} s of CPU time", _SIMPLER)
        self.next_look = self.left - _BETWEEN_LOOKS


_current: ContextVar[Budget] = ContextVar("mailer_rendering_budget")
current_budget: Callable[[], Budget] = _current.get


@contextmanager
def spending(limits: Limits) -> Iterator[Budget]:
    """Give what is rendered inside a budget of its own."""
    budget = Budget(limits)
    token = _current.set(budget)
    try:
        yield budget
    finally:
        _current.reset(token)


def charge(work: int) -> None:
    budget = current_budget()
    budget.left -= work
    if budget.left < budget.next_look:
        budget.look()


def charge_loop(work: int) -> None:
    """Count one iteration of a loop, and the work of its body."""
    budget = current_budget()
    budget.loops += 1
    if budget.loops > budget.limits.loops:
        raise LimitExceeded(
            f"more than {budget.limits.loops:,} iterations of loops", "pass shorter lists"
        )
    budget.left -= work
    if budget.left < budget.next_look:
        budget.look()


def check_size(size: int) -> int:
    """Refuse a text, list or number before it is made."""
    limit = current_budget().limits.size
    if size > limit:
        raise LimitExceeded(f"a value that is larger than {limit:,} characters", "make it smaller")
    return size


def measure(value: Any) -> int:
    """Return the size of a value with everything inside: what its text and a comparison cost.

    A list that holds the same list twice counts it twice, as its text does.
    """
    if isinstance(value, str):
        return check_size(len(value))
    kind = type(value)
    if kind in SCALARS:
        return _measure_number(value) if kind is int else STEP
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        size += _ELEMENT
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, dict | list | tuple | set | frozenset):
            check_size(size + len(waiting) + len(item))
            waiting.extend(item)
            if isinstance(item, dict):
                waiting.extend(item.values())
        check_size(size)
    return size


def kept(value: Any, *, sources: Iterable[Any] = (), with_contents: bool = False) -> Any:
    """Charge a value that a template has made, with everything inside, and return it.

    An iterator is charged when it is used, since it may have no end: `sources` are the values that
    it may read, and `with_contents` is for one that may repeat the same large value.
    """
    if type(value) in SCALARS and type(value) is not int:
        return value
    if hasattr(value, "__next__") and hasattr(value, "__iter__"):
        return Counted(value, sources, with_contents=with_contents)
    charge(measure(value))
    return value


class Counted(Iterator[Any]):
    """Charges each element of an iterator when it is taken."""

    __slots__ = ("_values", "_with_contents", "depth")

    def __init__(
        self, values: Iterable[Any], sources: Iterable[Any] = (), *, with_contents: bool = False
    ) -> None:
        self._values = iter(values)
        self._with_contents = with_contents
        # Python overflows its stack when it deletes a chain of 100,000 iterators.
        depths = [one.depth for one in sources if isinstance(one, Counted)]
        self.depth: int = 1 + max(depths, default=0)
        if self.depth > _MAX_DEPTH:
            raise LimitExceeded(f"more than {_MAX_DEPTH} filters in a row", "write |list between")

    def __next__(self) -> Any:
        value = next(self._values)
        charge(measure(value) if self._with_contents else _ELEMENT)
        return value


def collected(values: Any) -> list[Any]:
    """Return a list of all elements, which are charged before they use memory."""
    if hasattr(values, "__len__"):
        charge(_ELEMENT * check_size(len(values)))
        return list(values)
    elements = []
    for value in Counted(values):
        elements.append(value)
        if len(elements) & 1023 == 0:
            check_size(len(elements))
    return elements


def _measure_number(number: int) -> int:
    if number.bit_length() > _MAX_BITS:
        raise LimitExceeded(f"a number of more than {_MAX_BITS:,} bits", "use smaller ones")
    return STEP
