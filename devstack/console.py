"""One terminal for several logs: each line begins with the name of its part."""

import itertools
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

COLOURS = (36, 33, 35, 32, 34)  # cyan, yellow, magenta, green, blue
RUNNER = "stack"


class Console:
    """A terminal that prints whole lines, from any thread."""

    def __init__(self, stream: TextIO, names: Iterable[str]) -> None:
        names = [RUNNER, *names]
        width = max(map(len, names))
        colours = itertools.cycle(COLOURS)
        self._stream = stream
        self._lock = threading.Lock()
        self._prefixes = {name: f"{name:<{width}} | " for name in names}
        if stream.isatty() and not os.environ.get("NO_COLOR"):
            self._prefixes = {
                name: f"\033[{next(colours)}m{prefix}\033[0m"
                for name, prefix in self._prefixes.items()
            }

    def say(self, text: str) -> None:
        """Print a message of the runner itself."""
        for line in text.splitlines() or [""]:
            self.show(RUNNER, line)

    def show(self, name: str, line: str) -> None:
        # A reader that went away (`make run | head`, a closed terminal) must not stop the parts.
        with self._lock, suppress(OSError):
            print(self._prefixes[name] + _harmless(line), file=self._stream, flush=True)


def _harmless(line: str) -> str:
    """Return the line without control characters: a part may print input from the network."""
    return "".join(
        letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in line
    )
