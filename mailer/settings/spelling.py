"""Near misses of names: a misspelt key would be ignored silently.

A near miss of a key in the app's configuration is an error. An unknown `MAILER_*` key is a warning,
and so is the plural of a `MAIL_*` key, which the application may own. In the environment, which
contains the variables of other programs, only near misses are warnings.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from logging import Logger
from typing import Any

from mailer.errors import ConfigurationError
from mailer.logs import get_logger

_PREFIX = "MAILER_"
#: The prefix of Flask-Mail: the application may have other keys that begin so.
_PREFIX_OF_MAIL = "MAIL_"
#: Keys with our prefix that the local stack reads.
_OTHERS = frozenset({"MAILER_INBOX_DIR"})
#: Shorter words are never near misses.
_SHORTEST = 4
#: From this length on, two letters may differ.
_LONG = 11
#: The similarity (0 to 1) from which a warning suggests a key.
_LOOSE = 0.65

log: Logger = get_logger(__name__)


def near(word: str, known: Iterable[str]) -> list[str]:
    """Return the known words that this word is a near miss of, the nearest first."""
    found = [(distance, name) for name in known if (distance := _misses(word, name)) is not None]
    return [name for _distance, name in sorted(found)]


def did_you_mean(names: Collection[str]) -> str:
    """Return the question "did you mean A or B?"."""
    return f"did you mean {' or '.join(names)}?"


def check_keys(
    config: Mapping[str, Any], environ: Mapping[str, str], known: Collection[str]
) -> None:
    """Refuse misspelt keys of the app's configuration. Log other suspicious keys."""
    known = {*known, *_OTHERS}
    ours = sorted(key for key in config if isinstance(key, str) and key not in known)
    near_misses = {key: meant for key in ours if (meant := _meant(key, known))}
    if wrong := [key for key in near_misses if not _is_plural(key, known)]:
        raise ConfigurationError("\n".join(_refusal(key, near_misses[key]) for key in wrong))
    for key in ours:
        if key in near_misses:
            log.warning(
                "Unknown key in the app's configuration is ignored: key=%s: %s",
                key,
                did_you_mean(near_misses[key]),
            )
        elif key.upper().startswith(_PREFIX):
            names = [name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX)]
            loose = difflib.get_close_matches(
                key.upper().removeprefix(_PREFIX), names, n=1, cutoff=_LOOSE
            )
            hint = f": {did_you_mean([_PREFIX + name for name in loose])}" if loose else ""
            log.warning("Unknown key in the app's configuration is ignored: key=%s%s", key, hint)
    for key in sorted(environ.keys() - known):
        if environ[key] and (meant := _meant(key, known)):
            log.warning(
                "Unknown environment variable is ignored: key=%s: %s", key, did_you_mean(meant)
            )


def _refusal(key: str, meant: Collection[str]) -> str:
    question = did_you_mean(meant)
    return f"{key}: there is no such key: {question} If it is your own, give it another name."


def _is_plural(key: str, known: Collection[str]) -> bool:
    """Return whether the key is a plural such as MAIL_SERVERS, which an application may own."""
    name = key.upper().removesuffix("S")
    return name != key.upper() and name.startswith(_PREFIX_OF_MAIL) and name in known


def _meant(key: str, known: Collection[str]) -> list[str]:
    """Return the known keys that this key is a near miss of."""
    head, underscore, rest = key.upper().replace("-", "_").partition("_")
    head += underscore
    if head == _PREFIX_OF_MAIL:
        return _among(rest, _PREFIX_OF_MAIL, known)
    if head != _PREFIX and (not head.startswith("M") or _misses(head, _PREFIX) is None):
        return []
    return _among(rest, _PREFIX, known) or _among(rest, _PREFIX_OF_MAIL, known)


def _among(rest: str, prefix: str, known: Collection[str]) -> list[str]:
    names = [
        name.removeprefix(prefix)
        for name in known
        if name.startswith(prefix) and name not in _OTHERS
    ]
    return [prefix + name for name in near(rest, names)]


def _misses(word: str, name: str) -> int | None:
    """Return the distance of a word from a name. Return None if it is no near miss."""
    given, meant = _folded(word), _folded(name)
    if given == meant:
        return 0
    # Such as MAIL_PASSWORD2: a second key, on purpose.
    is_numbered = re.sub(r"\D", "", given) != re.sub(r"\D", "", meant)
    limit = 2 if len(meant) >= _LONG else 1
    if is_numbered or len(meant) < _SHORTEST or abs(len(given) - len(meant)) > limit:
        return None
    distance = _distance(given, meant)
    if distance > limit or (len(meant) < _LONG and _is_another_word(given, meant)):
        return None
    return distance


def _is_another_word(given: str, meant: str) -> bool:
    """Return whether a replaced letter makes another word: `lang` is not a misspelt `lane`."""
    is_replaced = len(given) == len(meant) and sorted(given) != sorted(meant)
    return is_replaced and (len(meant) <= _SHORTEST or given[0] != meant[0])


def _folded(word: str) -> str:
    return re.sub(r"[_\-\s]", "", word).lower()


def _distance(given: str, meant: str) -> int:
    """Count the letters that are missing, extra, wrong, or swapped with the next one."""
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
