"""The operators, methods and filters of untrusted templates, with bounded results."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from itertools import chain
from typing import Any

from jinja2 import Environment, pass_environment, pass_eval_context
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from mailer.content.budget import (
    SCALARS,
    STEP,
    Counted,
    LimitExceeded,
    charge,
    check_size,
    collected,
    kept,
    measure,
)

_MAX_FORMAT = 20_000  # characters of a format: each of its fields is looked at
_MAX_SPLIT = 200_000  # characters of a text that becomes pieces of 50 bytes
_MAX_DIGITS = 100
# Each `%` begins a field here: `%%` as well, whose "width" then is a number of the text.
_FIELD = re.compile(r"%(?=(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?)")
_DOUBTFUL_KEY = re.compile(r"%\([^)]*\(")
_WIDTH = re.compile(r"\d+")

_SEQUENCES = (str, list, tuple, bytes)
#: The methods of texts that templates may call. No translate(): it replaces a letter by a text.
TEXT_METHODS = frozenset(
    "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii"
    " isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join"
    " ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition"
    " rsplit rstrip split splitlines startswith strip swapcase title upper zfill".split()
)
# These may compare each letter with each of their argument's.
_SQUARE = frozenset("strip lstrip rstrip rfind rindex rpartition rsplit".split())
#: These make a formatter instead.
FORMATS = frozenset({"format", "format_map"})


# --- operators ------------------------------------------------------------------------------------


def add(left: Any, right: Any) -> Any:
    if isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
        check_size(len(left) + len(right))
    return kept(left + right)


def multiply(left: Any, right: Any) -> Any:
    if type(left) not in SCALARS or type(right) not in SCALARS:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, _SEQUENCES) and isinstance(other, int):
                check_size(len(one) * max(other, 0))
    return kept(left * right)


def power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        check_size(100 * left.bit_length() * abs(right))  # 10,000 bits
    return kept(left**right)


def modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes):
        check_format(left.decode("latin-1") if isinstance(left, bytes) else left, right)
    return kept(left % right)


def check_format(text: str, values: Any) -> None:
    """Refuse a format with `%` whose fields are wide, or repeat large values."""
    size, fields = _measure_format(text) if len(text) > 200 else _measure_short_format(text)
    check_size(size)
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, tuple):
        values = (values,)
    check_size(size + fields * max(map(measure, values), default=0))


def _measure_format(text: str) -> tuple[int, int]:
    """Return the size of a format with its widths, and how many fields it has."""
    if len(text) > _MAX_FORMAT or _DOUBTFUL_KEY.search(text):
        raise LimitExceeded(
            f"a format of more than {_MAX_FORMAT:,} characters, or with a '(' in a key",
            "write the text into the template",
        )
    size, fields = len(text), 0
    for field in _FIELD.finditer(text):
        fields += 1
        for width in field.groups():
            if width == "*":
                raise LimitExceeded("a format with a width of '*'", "write the number")
            size += _as_size(width or "0")
    return size, fields


_measure_short_format = lru_cache(maxsize=1000)(_measure_format)


def _as_size(digits: str) -> int:
    return int(digits) if len(digits) < 10 else check_size(10**9)


def searched(values: Any) -> Any:
    """Charge what `in` may compare."""
    if isinstance(values, list | tuple | range):
        charge(len(values))
    return values


def joined(values: tuple[Any, ...], join: Callable[[Iterable[Any]], str]) -> str:
    """Concatenate values as `~` does."""
    check_size(sum(map(measure, values)))
    text = join(values)
    charge(check_size(len(text)))
    return text


# --- methods of texts -----------------------------------------------------------------------------


def call_text_method(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of a text unless its result is too large."""
    text, name = method.__self__, method.__name__
    charge(STEP + len(text))
    if name == "join" and len(args) == 1:
        args = (args[0] if isinstance(args[0], str) else collected(args[0]),)
        check_size(len(text) * len(args[0]) + sum(map(measure, args[0])))
    elif name in {"center", "ljust", "rjust", "zfill"}:
        _check_numbers(args, kwargs)
    elif name == "replace":
        _check_replacement(text, *args[:2])
    elif name == "expandtabs":
        _check_numbers(args, kwargs, times=text.count("\t"))
    elif name in {"split", "rsplit", "splitlines"}:
        _check_pieces(text)
    if name in _SQUARE:
        charge(len(text) * sum(len(arg) for arg in args if isinstance(arg, str)) // 200)
    return kept(method(*args, **kwargs))


def _check_numbers(args: Iterable[Any], kwargs: Mapping[str, Any], *, times: int = 1) -> None:
    for value in chain(args, kwargs.values()):
        if isinstance(value, int):
            check_size(abs(value) * times)


def _check_replacement(text: str, old: Any = "", new: Any = "") -> None:
    if isinstance(old, str) and isinstance(new, str):
        times = text.count(old) if old else len(text) + 1
        # Html may be escaped: up to five characters for one.
        check_size(len(text) + times * len(new) * (5 if "<" in new or "&" in new else 1))


def _check_pieces(text: str) -> None:
    if len(text) > _MAX_SPLIT:
        raise LimitExceeded(f"to split a text of more than {_MAX_SPLIT:,} characters", "shorten it")
    charge(STEP * len(text))


class _Fields:
    """Bounds the fields of str.format()."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        for width in _WIDTH.findall(str(format_spec)):
            check_size(_as_size(width))
        measure(value)
        text = super().format_field(value, format_spec)  # type: ignore[misc]
        charge(STEP + len(text))
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        charge(measure(value))
        return super().convert_field(value, conversion)  # type: ignore[misc]


class _TextFormatter(_Fields, SandboxedFormatter):
    pass


class _HtmlFormatter(_Fields, SandboxedEscapeFormatter):
    pass


def formatter(environment: Environment, text: str, name: str) -> Callable[..., str]:
    """Return `text.format` or `text.format_map`, which reads attributes as templates do."""
    fields: Any = (
        _HtmlFormatter(environment, escape=text.escape)
        if isinstance(text, Markup)
        else _TextFormatter(environment)
    )

    def format_text(*args: Any, **kwargs: Any) -> str:
        if len(text) > _MAX_FORMAT:
            raise LimitExceeded(f"a format of more than {_MAX_FORMAT:,} characters", "shorten it")
        if name == "format_map":
            args, kwargs = (), dict(*args)
        return kept(type(text)(fields.vformat(text, args, kwargs)))  # type: ignore[no-any-return]

    return format_text


# --- filters --------------------------------------------------------------------------------------

Check = Callable[..., object]


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja's or of the application with a bounded result."""
    if FILTERS.get(name) is not function:
        return _with_limits(function, None, _kept_deep)
    if name in _REPLACED:
        return _REPLACED[name]
    check = _CHECKS.get(name)
    return _with_limits(function, check, _kept_shallow if name not in _GROWING else _kept_deep)


def _with_limits(
    function: Callable[..., Any], check: Check | None, keep: Callable[..., Any]
) -> Callable[..., Any]:
    first = 1 if getattr(function, "jinja_pass_arg", None) else 0

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        charge(STEP)
        if check:
            check(*args[first:], **kwargs)
        return keep(function(*args, **kwargs), args)

    return limited


def _kept_shallow(value: Any, args: tuple[Any, ...] = ()) -> Any:
    """Charge a result whose elements come from a value that is measured already."""
    if isinstance(value, list):
        charge(STEP * len(value))
    elif isinstance(value, str | int) or hasattr(value, "__next__"):
        return kept(value, sources=args)
    return value


def _kept_deep(value: Any, args: tuple[Any, ...] = ()) -> Any:
    """Charge a result with its contents: it may repeat one large value."""
    return kept(value, sources=args, with_contents=True)


def _check_text(value: Any, *_args: Any, **_kwargs: Any) -> None:
    charge(measure(value))


def _check_width(value: Any, *args: Any, **kwargs: Any) -> None:
    charge(measure(value))
    _check_numbers(args, kwargs)


def _check_trim(value: Any, chars: Any = "") -> None:
    charge(measure(value) * (1 + len(str(chars or "")) // 200))


def _check_json(value: Any, indent: Any = None) -> None:
    charge(measure(value))
    check_size(measure(value) * (len(indent) if isinstance(indent, str) else abs(indent or 1)))


def _check_pieces_of(value: Any, *_args: Any, **_kwargs: Any) -> None:
    measure(value)
    if isinstance(value, str):
        _check_pieces(value)


def _check_batch(_value: Any, linecount: Any, fill_with: Any = None) -> None:
    if isinstance(linecount, int):
        charge(check_size(linecount))
        if fill_with is not None:
            check_size(linecount * measure(fill_with))


def _check_slice(_value: Any, _slices: Any, fill_with: Any = None) -> None:
    charge(measure(fill_with))


def _check_indent(value: Any, width: Any = 4, *_args: Any, **_kwargs: Any) -> None:
    charge(size := measure(value))
    lines = 1 + (len(value.splitlines()) if isinstance(value, str) else size)
    check_size(lines * (len(width) if isinstance(width, str) else abs(int(width))))


def _check_replace(value: Any, old: Any, new: Any, *_args: Any, **_kwargs: Any) -> None:
    measure(value)
    _check_replacement(value if isinstance(value, str) else str(value), str(old), str(new))


def _check_round(_value: Any, precision: Any = 0, *_args: Any, **_kwargs: Any) -> None:
    if isinstance(precision, int) and abs(precision) > _MAX_DIGITS:
        raise LimitExceeded(f"to round to {precision} digits", f"use at most {_MAX_DIGITS}")


def _check_words(value: Any, *args: Any, **kwargs: Any) -> None:
    """Charge what the regular expressions need: the square of a word or line."""
    measure(value)
    text = str(value)
    _check_pieces(text)
    for line in text.splitlines():
        charge(len(line) * max(map(len, line.split()), default=0) // 10)
    check_size(len(text) + text.count(".") * sum(map(measure, (*args, *kwargs.values()))))


def _check_lines(
    value: Any,
    _width: Any = 79,
    _break_long_words: Any = True,
    wrapstring: Any = "",
    **_kwargs: Any,
) -> None:
    measure(value)
    text = str(value)
    _check_pieces(text)
    for line in text.splitlines():
        charge(len(line) ** 2 // 100)
    check_size(len(text) * (1 + len(str(wrapstring or ""))))


def _check_tags(value: Any, *_args: Any, **_kwargs: Any) -> None:
    measure(value)
    text = str(value)
    charge(len(text) * (1 + text.count("<") // 100))


@pass_eval_context
def _join(eval_ctx: EvalContext, value: Any, d: Any = "", attribute: Any = None) -> Any:
    charge(STEP)
    values = [value[i] for i in range(len(value))] if isinstance(value, str) else collected(value)
    if attribute is not None:
        values = list(map(make_attrgetter(eval_ctx.environment, attribute), values))
    check_size(sum(map(measure, values)) + measure(d) * len(values))
    return _kept_shallow(FILTERS["join"](eval_ctx, values, d))


@pass_environment
def _sum(environment: Environment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    values: Iterable[Any] = Counted(iterable)
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    total = start
    for value in values:
        if isinstance(total, _SEQUENCES):
            raise LimitExceeded("the sum of texts or lists", "use |join, or a loop")
        total = kept(total + value)
    return total


@pass_environment
def _attr(environment: Environment, value: Any, name: Any) -> Any:
    return environment.getattr(value, str(name))


def _list(value: Any) -> list[Any]:
    return collected(value)


def _format(value: Any, *args: Any, **kwargs: Any) -> Any:
    charge(STEP)
    measure(value)
    check_format(str(value), kwargs or args)
    return _kept_shallow(FILTERS["format"](value, *args, **kwargs))


_REPLACED: dict[str, Callable[..., Any]] = {
    "attr": _attr,
    "format": _format,
    "join": _join,
    "list": _list,
    "sum": _sum,
}
# Their result may hold the same value many times.
_GROWING = frozenset({"map"})
#: pprint is for debugging, and slow.
REMOVED_FILTERS = frozenset({"pprint"})
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(
        "capitalize e escape forceescape lower safe string upper urlencode xmlattr".split(),
        _check_text,
    ),
    "batch": _check_batch,
    "center": _check_width,
    "indent": _check_indent,
    "replace": _check_replace,
    "round": _check_round,
    "slice": _check_slice,
    "striptags": _check_tags,
    "title": _check_pieces_of,
    "tojson": _check_json,
    "trim": _check_trim,
    "truncate": _check_width,
    "urlize": _check_words,
    "wordcount": _check_pieces_of,
    "wordwrap": _check_lines,
}
