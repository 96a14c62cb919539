"""Choices, numbers and texts made from a fuzzer's bytes, always the same for the same bytes."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Bytes:
    """Bytes that are consumed from the beginning, with endless zeros after the end."""

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
        """Return up to 255 bytes."""
        return self.take(self.number(256))

    def text(self) -> str:
        """Decode a piece, dropping bytes that are not UTF-8 or turning them into surrogates."""
        return self.piece().decode(
            "utf-8", self.pick(["ignore", "ignore", "ignore", "surrogateescape"])
        )

    def rest(self) -> bytes:
        return self.take(len(self._data))
