"""Wrong clocks for whole processes, by libfaketime, which can be set while they run."""

from collections.abc import Mapping
from pathlib import Path

from tests.services.requirement import require


class Clock:
    """The clock of one machine.

    Processes started with `env` see it. Only the time differs, not the speed at which it passes.
    """

    def __init__(self, file: Path) -> None:
        library = require(
            "libfaketime", next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        )
        self._file = file
        self.set(0)
        self.env: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # it lets threads wait for much too long
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name in versions before 0.9.10
            "PYTHONPATH": str(Path(__file__).with_name("faked_clock")),
        }

    def set(self, seconds: float) -> None:
        """Set the clock to this many seconds ahead of the true time, or behind it."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+.3f}")
        fresh.replace(self._file)  # so that no process reads half of it
