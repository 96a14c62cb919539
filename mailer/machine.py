"""The identity of the machine since its last boot.

Processes on the same kernel share file locks, and see writes before they are synced.
"""

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """Return the boot id of the kernel, the same in all containers. Return None outside Linux."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None
