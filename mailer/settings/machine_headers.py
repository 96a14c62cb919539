"""MAILER_MACHINE_HEADERS: the headers that Mailer adds by itself."""

from typing import Annotated

from pydantic import BeforeValidator

from mailer.message import MACHINE_HEADERS

_NONE = "none"
_NAMES = {name.lower(): name for name in MACHINE_HEADERS}


def _read(value: object) -> object:
    """Read a list of names, also as a text. Raise ValueError for any other name."""
    if isinstance(value, str):
        value = [] if value.strip().lower() == _NONE else value.split(",")
    names = [str(one).strip() for one in value] if isinstance(value, (list, tuple)) else [""]
    if not all(name.lower() in _NAMES for name in names):
        raise ValueError(f"allowed: some of {', '.join(MACHINE_HEADERS)}, or {_NONE}")
    return tuple(_NAMES[name.lower()] for name in names)


MachineHeaderNames = Annotated[tuple[str, ...], BeforeValidator(_read)]
