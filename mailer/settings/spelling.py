"""Names that are nearly right: a misspelt key would be ignored, and nobody would notice.

A near miss of a key in the app's configuration is refused. An unknown `MAILER_*` key is warned about, and so is the plural of a
`MAIL_*` key, which the application may have meant. Of the environment, which holds the variables of other programs, only near
misses are warned about.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mailer.errors import ConfigurationError
from mailer.logs import get_logger

_PREFIX = "MAILER_"
#: Of Flask-Mail: the application may have others that begin with MAIL_.
_PREFIX_OF_MAIL = "MAIL_"
#: Keys that begin like those of Mailer, and are read elsewhere: by the local stack.
_OTHERS = frozenset({"MAILER_INBOX_DIR"})
#: Words shorter than this are near to anything.
_SHORTEST = 4
#: From this length on, two letters may be wrong.
_LONG = 11
#: How alike a key has to be that a warning asks about.
_LOOSE = 0.65

log = get_logger(__name__)


def near(word: str, known: Iterable[str]) -> list[str]:
    """Return what the word may have been meant to be, the nearest first."""
    found = [(distance, name) for name in known if (distance := _misses(word, name)) is not None]
    return [name for _distance, name in sorted(found)]


def did_you_mean(names: Collection[str]) -> str:
    """Ask: 'did you mean A or B?'."""
    return f"did you mean {' or '.join(names)}?"


def check_keys(config: Mapping[str, Any], environ: Mapping[str, str], known: Collection[str]) -> None:
    """Refuse a misspelt key of the app's configuration, and log what else looks like one."""
    known = {*known, *_OTHERS}
    ours = sorted(key for key in config if isinstance(key, str) and key not in known)
    near_misses = {key: meant for key in ours if (meant := _meant(key, known))}
    if wrong := [key for key in near_misses if not _is_plural(key, known)]:
        raise ConfigurationError("\n".join(_refusal(key, near_misses[key]) for key in wrong))
    for key in ours:
        if key in near_misses:
            log.warning("Unknown key in the app's configuration is ignored: key=%s: %s", key, did_you_mean(near_misses[key]))
        elif key.upper().startswith(_PREFIX):
            names = [name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX)]
            loose = difflib.get_close_matches(key.upper().removeprefix(_PREFIX), names, n=1, cutoff=_LOOSE)
            hint = f": {did_you_mean([_PREFIX + name for name in loose])}" if loose else ""
            log.warning("Unknown key in the app's configuration is ignored: key=%s%s", key, hint)
    for key in sorted(environ.keys() - known):
        if environ[key] and (meant := _meant(key, known)):
            log.warning("Unknown environment variable is ignored: key=%s: %s", key, did_you_mean(meant))


def _refusal(key: str, meant: Collection[str]) -> str:
    return f"{key}: there is no such key: {did_you_mean(meant)} If it is your own, give it another name."


def _is_plural(key: str, known: Collection[str]) -> bool:
    """Tell whether the key is the plural of one of Flask-Mail's, such as MAIL_SERVERS: an application may have several."""
    name = key.upper().removesuffix("S")
    return name != key.upper() and name.startswith(_PREFIX_OF_MAIL) and name in known


def _meant(key: str, known: Collection[str]) -> list[str]:
    """Return the keys that this one is a near miss of."""
    head, underscore, rest = key.upper().replace("-", "_").partition("_")
    head += underscore
    if head == _PREFIX_OF_MAIL:
        return _among(rest, _PREFIX_OF_MAIL, known)
    if head != _PREFIX and (not head.startswith("M") or _misses(head, _PREFIX) is None):
        return []
    return _among(rest, _PREFIX, known) or _among(rest, _PREFIX_OF_MAIL, known)


def _among(rest: str, prefix: str, known: Collection[str]) -> list[str]:
    names = [name.removeprefix(prefix) for name in known if name.startswith(prefix) and name not in _OTHERS]
    return [prefix + name for name in near(rest, names)]


def _misses(word: str, name: str) -> int | None:
    """Return by how much a word misses a name; None if it is another word."""
    given, meant = _folded(word), _folded(name)
    if given == meant:
        return 0
    is_numbered = re.sub(r"\D", "", given) != re.sub(r"\D", "", meant)  # as MAIL_PASSWORD2: a second one, on purpose
    most = 2 if len(meant) >= _LONG else 1
    if is_numbered or len(meant) < _SHORTEST or abs(len(given) - len(meant)) > most:
        return None
    distance = _distance(given, meant)
    if distance > most or (len(meant) < _LONG and _is_another_letter(given, meant)):
        return None
    return distance


def _is_another_letter(given: str, meant: str) -> bool:
    """Short words with one letter replaced are mostly words of their own: `lang` is not `lane`, nor `gender` `sender`."""
    is_replaced = len(given) == len(meant) and sorted(given) != sorted(meant)
    return is_replaced and (len(meant) <= _SHORTEST or given[0] != meant[0])


def _folded(word: str) -> str:
    return re.sub(r"[_\-\s]", "", word).lower()


def _distance(given: str, meant: str) -> int:
    """Count the letters that are missing, too many, wrong, or swapped with the next one."""
    before: list[int] = []
    row: list[int] = [*range(len(meant) + 1)]
    for i, letter in enumerate(given, 1):
        before, row, above = row, [i], before
        for j, other in enumerate(meant, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == meant[j - 2] and given[i - 2] == other:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]
