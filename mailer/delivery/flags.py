"""Flags that the processes of one worker share: to stop, and the time of the last delivery."""

import mmap


class WorkerFlags:
    """Flags in shared memory, made before a prefork pool forks its children."""

    def __init__(self) -> None:
        self._stopped = mmap.mmap(-1, 1)
        # 8 aligned bytes are written at once.
        self._delivered_at = memoryview(mmap.mmap(-1, 8)).cast("d")

    def start(self) -> None:
        """Clear the flags: a process may start a worker more than once."""
        self._stopped[0] = 0
        self._delivered_at[0] = 0.0

    def stop(self) -> None:
        """Let each process of the worker end after the batch at hand."""
        self._stopped[0] = 1

    @property
    def is_stopped(self) -> bool:
        return bool(self._stopped[0])

    def note_delivery(self, now: float) -> None:
        """Note that a relay took a mail."""
        self._delivered_at[0] = now

    @property
    def delivered_at(self) -> float | None:
        """Return when a relay last took a mail from this worker. None if none did."""
        return self._delivered_at[0] or None
