"""Which machine this is, since it was started. Processes that share its kernel see the same locks, and files before a sync."""

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """One for all containers of a machine, another one after each start; None where nothing tells: only Linux does."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None
