"""The Jinja environment of templates that come from the database, where anybody may have put them.

Such a template reaches values, and functions that the application has registered, but no attribute
that leads to code. Its compiled code charges each step, so that no template exhausts a worker.
"""

import functools
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar, cast

from flask import Flask
from jinja2 import (
    BaseLoader,
    Environment,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    nodes,
    pass_context,
)
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import TemplateModule
from jinja2.ext import DebugExtension
from jinja2.runtime import (
    BlockReference,
    Context,
    LoopContext,
    Macro,
    markup_join,
    str_join,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup, escape
from werkzeug.local import LocalProxy

from mailer.content import bounded, budget
from mailer.content.budget import (
    PLAIN,
    SCALARS,
    STEP,
    LimitExceeded,
    charge,
    check_size,
    current_budget,
    kept,
    measure,
)
from mailer.content.failures import unreadable
from mailer.errors import TemplateError

#: The name of a subject beside those of templates: no template's name is without an ending.
SUBJECT = "subject"
#: The most characters of a template.
MAX_SOURCE = 250_000
# Each takes 50 microseconds and 4 kB to compile.
_MAX_TOKENS = 10_000
_NO_CODE = frozenset({"data", "whitespace", "comment"})
# Work of each expression in a block.
_NODE = 5
#: Of the request that queues a mail, or secret.
FORBIDDEN_GLOBALS = frozenset("request session g config get_flashed_messages lipsum".split())
# Functions of Python that read attributes for templates, or run code.
_REFLECTING = frozenset(
    {
        *(getattr, setattr, delattr, hasattr, eval, exec, open, compile, __import__, vars, dir),
        *(globals, locals, type, object, super, input, breakpoint, print, map, filter, iter),
        *(bytes, bytearray, memoryview, classmethod, staticmethod, property, range),
    }
)
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    type,
)
_OF_JINJA = (Macro, LoopContext, BlockReference)
_TO_ESCAPE = re.compile("[&<>'\"]")
_GETTEXT = frozenset("_ gettext ngettext pgettext npgettext".split())
_SYNTAX = (
    "block_start_string block_end_string variable_start_string variable_end_string"
    " comment_start_string comment_end_string line_statement_prefix line_comment_prefix"
    " trim_blocks lstrip_blocks newline_sequence keep_trailing_newline finalize"
).split()
# The attributes of values that are safe. Those of other objects are as in Jinja's own sandbox.
_ATTRIBUTES: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, bounded.TEXT_METHODS),
    ((int, float), frozenset({"real", "imag", "bit_length", "is_integer"})),
    (dict, frozenset({"get", "items", "keys", "values", "copy"})),
    ((list, tuple), frozenset({"count", "index", "copy"})),
    ((bytes, bytearray), frozenset({"decode"})),
    ((range, types.GeneratorType, Joiner), frozenset()),
    (Cycler, frozenset({"next", "reset", "current"})),
)
# What compiled code calls of the environment.
_CALLED = "charge charge_loop join_values kept searched show_html show_text".split()
_OPERATORS = {
    "+": bounded.add,
    "*": bounded.multiply,
    "**": bounded.power,
    "%": bounded.modulo,
}


class BoundedCode(CodeGenerator):
    """Compiles templates to code that charges each block, iteration, text and list."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop_bodies: set[int] = set()

    def write_commons(self) -> None:
        super().write_commons()
        for name in _CALLED:
            self.writeline(f"{name} = environment.{name}")

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        function = "charge_loop" if id(body) in self._loop_bodies else "charge"
        self.writeline(f"{function}({STEP + _NODE * _steps(body)})")
        super().blockvisit(body, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        self._loop_bodies.add(id(node.body))
        if node.test:
            cost = nodes.Const(STEP + _NODE * _steps([node.test]))
            charged = nodes.Call(nodes.EnvironmentAttribute("charge"), [cost], [], None, None)
            charged.set_environment(self.environment).set_lineno(node.lineno)
            node.test = nodes.And(nodes.Not(charged, lineno=node.lineno), node.test)
        super().visit_For(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if isinstance(node, nodes.TemplateData):
            return super()._output_child_to_const(node, frame, finalize)
        raise nodes.Impossible  # the compiler must not compute 'a' * 10**9

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile:
            self.write("(show_html if context.eval_ctx.autoescape else show_text)(")
        else:
            self.write("show_html(" if frame.eval_ctx.autoescape else "show_text(")
        if finalize.src is not None:
            self.write(finalize.src)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        html = str(bool(frame.eval_ctx.autoescape))
        if frame.eval_ctx.volatile:
            html = "context.eval_ctx.autoescape"
        self.write(f"join_values({html}, (")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        if node.op in {"in", "notin"}:
            self.write(f" {'not ' if node.op == 'notin' else ''}in searched(")
            self.visit(node.expr, frame)
            self.write(")")
        else:
            super().visit_Operand(node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._write_kept(node, lambda: super(BoundedCode, self).visit_Tuple(node, frame))
        else:
            super().visit_Tuple(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._write_kept(node, lambda: super(BoundedCode, self).visit_List(node, frame))

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._write_kept(node, lambda: super(BoundedCode, self).visit_Dict(node, frame))

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._write_kept(node, lambda: super(BoundedCode, self).visit_Getitem(node, frame))
        else:
            super().visit_Getitem(node, frame)

    def _write_kept(self, node: nodes.Expr, write: Callable[[], None]) -> None:
        self.write("kept(")
        write()
        self.write(")")


def _steps(parts: Iterable[nodes.Node]) -> int:
    """Return how many nodes are executed with a block: those of the blocks inside count there."""
    steps, waiting = 0, list(parts)
    while waiting:
        node = waiting.pop()
        steps += 1
        waiting.extend(node.iter_child_nodes(exclude=("body", "else_")))
    return steps


class _RenderedTemplate(Template):
    """A template whose import belongs to one rendering: what it keeps is one recipient's."""

    _macros: TemplateModule | None = None

    def make_module(
        self,
        vars: dict[str, Any] | None = None,  # noqa: A002 -- the name is Jinja's
        shared: bool = False,
        locals: Mapping[str, Any] | None = None,  # noqa: A002
    ) -> TemplateModule:
        context = self.new_context(vars, shared, locals)
        body = self.environment.concat(self.root_render_func(context))
        module = TemplateModule(self, context, [body])
        # Macros keep nothing. Any other value may be a namespace, which they change.
        has_macros_only = all(type(value) is Macro for value in context.vars.values())
        if vars is None and has_macros_only and not body.strip():
            self._macros = module
        return module

    def _get_default_module(self, ctx: Context | None = None) -> TemplateModule:
        if self._macros is not None:
            return self._macros
        modules = current_budget().modules
        if id(self) not in modules:
            modules[id(self)] = self.make_module()
        return modules[id(self)]  # type: ignore[no-any-return]


class _Namespace(Namespace):
    """The `namespace` of templates, without a text that repeats all that it refers to."""

    def __repr__(self) -> str:
        return "<Namespace>"


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """The environment of one app's templates, with `loader` for their sources."""

    code_generator_class: type[CodeGenerator] = BoundedCode
    template_class: type[Template] = _RenderedTemplate
    intercepted_binops: frozenset[str] = frozenset(_OPERATORS)
    charge: ClassVar[Callable[[int], None]] = staticmethod(budget.charge)
    charge_loop: ClassVar[Callable[[int], None]] = staticmethod(budget.charge_loop)
    kept: ClassVar[Callable[..., Any]] = staticmethod(budget.kept)
    searched: ClassVar[Callable[[Any], Any]] = staticmethod(bounded.searched)

    def __init__(self, app: Flask, loader: BaseLoader) -> None:
        own = app.jinja_env
        super().__init__(
            **{name: getattr(own, name) for name in _SYNTAX},
            # {% debug %} shows everything.
            extensions=[
                type(one) for one in own.extensions.values() if type(one) is not DebugExtension
            ],
            optimized=False,  # the compiler computes nothing: that has no budget
            undefined=StrictUndefined,
            autoescape=lambda name: _is_escaped(own, name),
            loader=loader,
            cache_size=-1,
            auto_reload=False,
        )
        self.policies: dict[str, Any] = dict(own.policies)
        if hasattr(own, "newstyle_gettext"):
            self.newstyle_gettext: bool = own.newstyle_gettext
        self.binop_table |= _OPERATORS
        self.filters: dict[str, Callable[..., Any]] = {
            name: bounded.bounded_filter(name, function)
            for name, function in own.filters.items()
            if name not in bounded.REMOVED_FILTERS and _is_allowed(function)
        }
        self.tests: dict[str, Any] = {
            name: test for name, test in own.tests.items() if _is_allowed(test)
        }
        self.tests["in"] = lambda value, values: value in bounded.searched(values)
        self.globals: dict[str, Any] = {
            name: function
            for name, function in own.globals.items()
            if name not in FORBIDDEN_GLOBALS and is_function(function)
        }
        self.globals |= {"dict": _dict, "namespace": _Namespace, "range": _range}
        if "_" in self.globals and "gettext" in self.globals:
            self.globals["_"] = _translated
        self._gettext = [self.globals[name] for name in _GETTEXT if name in self.globals]

    # --- what the compiled code calls ---------------------------------------------------------

    @staticmethod
    def show_text(value: Any) -> str:
        """Return a value as a piece of a text."""
        if type(value) is not str:
            if type(value) not in SCALARS:
                measure(value)
            value = str(value)
        spent = current_budget()  # as in charge(), without a call for each piece
        spent.left -= STEP + len(value)
        if spent.left < spent.next_look:
            spent.look()
        return value  # type: ignore[no-any-return]

    @staticmethod
    def show_html(value: Any) -> str:
        """Return a value as a piece of html."""
        kind = type(value)
        # Most texts have nothing to escape, and a search is faster than to make Markup of them.
        if kind is not Markup and (kind is not str or _TO_ESCAPE.search(value)):
            if kind not in PLAIN:
                measure(value)
            value = escape(value)
        spent = current_budget()
        spent.left -= STEP + len(value)
        if spent.left < spent.next_look:
            spent.look()
        return value  # type: ignore[no-any-return]

    @staticmethod
    def join_values(html: bool, values: tuple[Any, ...]) -> str:
        """Return the result of `~`."""
        return bounded.joined(values, markup_join if html else str_join)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Return the output of a template, macro, block or {% set %}."""
        if type(pieces) is list:
            charge(check_size(sum(map(len, pieces))) + len(pieces))
            return "".join(pieces)
        limit, taken, size = current_budget().limits.size, [], 0
        for piece in pieces:
            size += len(piece)
            if size > limit:
                check_size(size)
            taken.append(piece)
        charge(size + len(taken))
        return "".join(taken)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return the result of `+`, `*`, `**` or `%`."""
        charge(STEP)
        return _OPERATORS[operator](left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of a template."""
        charge(STEP)
        if type(function) is Macro:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            if function.catch_varargs or function.catch_kwargs:
                kept((*args, *kwargs.values()))
            return function(context.eval_ctx, *args, **kwargs)
        if isinstance(getattr(function, "__self__", None), str):
            kwargs = {name: kwargs[name] for name in kwargs if name not in _INTERNAL}
            return bounded.call_text_method(function, args, kwargs)
        if function in self._gettext:
            values = {name: kwargs[name] for name in kwargs if name not in _INTERNAL}
            for arg in args:
                if isinstance(arg, str):
                    bounded.check_format(arg, values)
        result = super().call(context, function, *args, **kwargs)
        return kept(result, sources=args, with_contents=True)

    # --- attributes ---------------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute`."""
        # The fast way to what templates read most.
        if type(obj) is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is LoopContext and attribute[:1] != "_":
            return getattr(obj, attribute)
        if isinstance(obj, str) and attribute in bounded.FORMATS:
            return bounded.formatter(self, obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]`."""
        if isinstance(obj, str) and isinstance(argument, str):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may read an attribute."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, tuple) and attr in getattr(type(obj), "_fields", ()):
            return True
        for kinds, names in _ATTRIBUTES:
            if isinstance(obj, kinds):
                return attr in names
        return isinstance(obj, _OF_JINJA) or not callable(obj)

    # --- templates ----------------------------------------------------------------------------

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        """Return the globals of a template, as a dict: Jinja's own ChainMap is slow to copy."""
        return {**self.globals, **(d or {})}

    # A signature without the overloads of Jinja's.
    def compile(self, source: str, name: str | None = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the code of a template. Refuse one that takes long to compile."""
        with _readable(name or ""):
            _check_source(self, name or "", source)
            return super().compile(source, name, *args, **kwargs)


def parsed(environment: Environment, name: str, source: str) -> nodes.Template:
    """Return the tree of a template, in the environment of the app or of a snapshot."""
    with _readable(name):
        _check_source(environment, name, source)
        return environment.parse(source, name, name)


def _check_source(environment: Environment, name: str, source: str) -> None:
    """Refuse a template that takes long to compile."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"{called(name)} has {len(source):,} characters: a bulk send takes up to"
            f" {MAX_SOURCE:,}. Shorten it, or split it with include."
        )
    code = (
        token for token in environment.lexer.tokeniter(source, name) if token[1] not in _NO_CODE
    )
    if next(islice(code, _MAX_TOKENS, None), None):
        raise TemplateError(
            f"{called(name)} has more than {_MAX_TOKENS:,} names, operators and other words of"
            " code: pass large values in the context, or split it with include."
        )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except TemplateError:  # is a ValueError
        raise
    except TemplateSyntaxError as error:
        if name == SUBJECT:
            raise TemplateError(f"subject: {error.message}: correct it.") from error
        raise unreadable(name, error) from error
    except (ValueError, RecursionError, MemoryError, OverflowError, SyntaxError) as error:
        raise TemplateError(
            f"{called(name)} can't be compiled: {type(error).__name__}: {error}: write simpler"
            " expressions, with fewer levels."
        ) from error


def called(name: str) -> str:
    """Return what errors call a template, or the subject."""
    return SUBJECT if name == SUBJECT else f"template {name!r}"


_OF_DICTS = frozenset(dir(dict))
_INTERNAL = frozenset({"_loop_vars", "_block_vars"})


def is_function(value: object) -> bool:
    """Return whether a template may call a global of the application."""
    return isinstance(value, _FUNCTIONS) and _is_allowed(value)


def _is_allowed(function: Any) -> bool:
    if isinstance(function, LocalProxy):
        return False
    try:
        return function not in _REFLECTING
    except TypeError:  # without a hash
        return True


def _is_escaped(environment: Environment, name: str | None) -> bool:
    if name == SUBJECT:
        return False
    decision = environment.autoescape
    return decision(name) if callable(decision) else bool(decision)


@pass_context
def _translated(context: Context, *args: Any, **kwargs: Any) -> Any:
    # Jinja's own `_` calls what a template names "gettext" without asking the environment.
    environment = cast(SandboxedTemplates, context.environment)
    return environment.call(context, context.resolve("gettext"), *args, **kwargs)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _range(*args: int) -> range:
    numbers = range(*args)
    limit = current_budget().limits.loops
    if len(numbers) > limit:
        raise LimitExceeded(f"a range() of more than {limit:,} numbers", "use a smaller one")
    charge(len(numbers))
    return numbers
