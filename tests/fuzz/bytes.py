"""Out of the bytes of a fuzzer: choices, numbers and texts. The same bytes make the same, always."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Bytes:
    """They are used up from the beginning; after their end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, below: int) -> int:
        return int.from_bytes(self.take(1)) % below

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number(len(choices))]

    def piece(self) -> bytes:
        """Up to 255 bytes."""
        return self.take(self.number(256))

    def text(self) -> str:
        """What is no UTF-8 is left out, or becomes halves of characters, as a program can make them."""
        return self.piece().decode(
            "utf-8", self.pick(["ignore", "ignore", "ignore", "surrogateescape"])
        )

    def rest(self) -> bytes:
        return self.take(len(self._data))
