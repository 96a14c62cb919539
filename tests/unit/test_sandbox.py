"""Templates that anybody may have written into the database: no code, and bounded costs."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from jinja2 import DictLoader
from werkzeug.local import LocalProxy

from mailer.content.budget import Limits
from mailer.content.snapshot_rendering import SnapshotRenderer
from mailer.content.snapshots import Snapshot
from mailer.errors import TemplateError

Render = Callable[..., str]
_MEMORY = 50_000_000
_BOUNDED = " needs |has no end|SecurityError|OverflowError|'lipsum' is undefined|'fromkeys'"

# Each is one template. What they make would take gigabytes, or hours.
TRICKS = r"""
{{ 'a' * 10**9 }}
{{ 10**9 * 'a' }}
{{ ('a'|safe) * 10**9 }}
{{ [0] * 10**9 }}
{{ (1, 2) * 10**9 }}
{{ [[0] * 10**4] * 10**4 }}
{{ 10**(10**8) }}
{{ (-7)**(10**9) }}
{{ 2**9999 * 2**9999 }}
{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}
{{ '%1000000000d' % 1 }}
{{ '%.1000000000f' % 1 }}
{{ '%*d' % (10**9, 1) }}
{{ '%5%%1000000000d' % 1 }}
{{ '%%(x %1000000000d)' % 1 }}
{{ '%((a)b)1000000000d' % {'(a)b': 1} }}
{{ ('%(a)s' * 10**4) % {'a': 'x' * 10**5} }}
{{ ('%s' * 10**3) % (('x' * 10**5,) * 10**3) }}
{{ ('%1000000000d'|safe) % 1 }}
{{ '%1000000000d'|format(1) }}
{{ '%s%s'|format('x' * 900000, 'x' * 900000) }}
{{ '{:1000000000}'.format(1) }}
{{ '{:.1000000000f}'.format(1) }}
{{ '{:{}}'.format(1, 10**9) }}
{{ '{a:1000000000}'.format_map({'a': 1}) }}
{{ ('{0}' * 4000).format('x' * 10**6) }}
{{ ('{:1000000000}'|safe).format(1) }}
{{ ['{:1000000000}'.format]|first|string }}{{ (['{:1000000000}'.format]|first)(1) }}
{{ 'x'|center(10**9) }}
{{ ['x']|map('center', 10**9)|list }}
{% filter center(10**9) %}x{% endfilter %}
{{ 'x'.center(10**9) }}
{{ 'x'.ljust(10**9) }}
{{ 'x'.rjust(10**9) }}
{{ 'x'.zfill(10**9) }}
{{ ('x'|safe).center(10**9) }}
{{ 'x'['ljust'](10**9) }}
{{ ('x'|attr('ljust'))(10**9) }}
{% set f = 'x'.ljust %}{{ f(10**9) }}
{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}
{{ ('a' * 10**5).replace('', 'b' * 10**5) }}
{{ ('a' * 10**5)|replace('a', 'b' * 10**5) }}
{{ ('\t' * 10**5).expandtabs(10**5) }}
{{ ('x' * 10**5).join('y' * 10**5) }}
{{ ','.join(['x' * 10**5] * 10**5) }}
{{ (['x' * 10**5] * 10**5)|join }}
{{ range(100000)|join('x' * 10**5) }}
{{ range(100000)|map('string')|join('x' * 10**5) }}
{{ (range(100000)|map('default', 'x' * 10**5)|list)|length }}{{ range(10000)|map('center', 10**4)|join }}
{{ 'a\nb'|indent(10**9) }}
{{ ('a\n' * 10**5)|indent(10**5) }}
{{ ('a\n' * 10**5)|indent('x' * 10**5) }}
{{ ('a' * 10**6)|wordwrap(1) }}
{{ ('a-' * 10**5)|wordwrap(10) }}
{{ ('a ' * 10**5)|wordwrap(1, wrapstring='x' * 10**5) }}
{{ ('www.example.com/' ~ ('a' * 10**5) ~ ('(' * 10**5) ~ (')' * 10**5))|urlize }}
{{ ('a.com ' * 10**5)|urlize(rel='x' * 10**5) }}
{{ ('<!--' * 10**5)|striptags }}
{{ ('<!---->' * 10**5)|striptags }}{{ ('<' * 10**6)|striptags }}
{{ 'x'|tojson(indent=10**9) }}
{{ [[1]]|tojson(indent=10**9) }}
{{ ('ab ' * 300000)|title }}
{{ ('ab ' * 300000).split() }}
{{ ('a' * 900000).strip('b' * 10**5 ~ 'a') }}{{ ('a' * 900000)|trim('b' * 10**5 ~ 'a') }}
{{ ('a' * 900000).rfind('b' ~ 'a' * 400000) }}
{{ 1|round(10**9) }}
{{ 1|round(-10**9) }}
{{ 1.5|round(10**9, 'ceil') }}
{{ ('0x' ~ 'f' * 10**5)|int(0, 16) }}
{{ [1]|batch(10**9, 0)|list }}
{{ [1]|batch(10**5, 'x' * 10**5)|list }}
{{ [1]|slice(10**9)|list }}
{{ 'x' in [1]|slice(10**9) }}
{% for x in [1]|slice(10**9) %}{% endfor %}
{% for x in [1]|slice(10**9) %}{{ loop.length }}{% endfor %}
{% for x in [1]|slice(10**9) if false %}{% endfor %}
{{ [1]|slice(10**9)|sum(start=[]) }}
{{ ([[0] * 1000] * 40)|sum(start=[]) }}
{{ range(10**9) }}{{ range(10**9)|length }}
{{ range(10**30) }}
{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}
{% for i in range(100000) %}{% set x = range(100000)|list %}{% endfor %}
{% for i in range(100000) %}{{ 'a' in range(100000) }}{% endfor %}
{% set r = range(100000) %}{% for i in r %}{{ 'a' in r or 'b' in r }}{% endfor %}
{% for i in range(100000) %}{{ 'a' is in(range(100000)) }}{% endfor %}
{% for i in range(3) recursive %}{{ loop(range(3)) }}{% endfor %}
{% for i in range(100000) %}{% for j in 'abc' recursive %}{{ loop('abc') if loop.depth < 9 }}{% endfor %}{% endfor %}
{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}
{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}
{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set a = f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}
{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs == (varargs,) }}{{ varargs }}{% endif %}{% endmacro %}{{ f(60, 1) }}
{% macro f(n) %}{% if n %}{{ f(n - 1, a=kwargs, b=kwargs) }}{% else %}{{ kwargs }}{% endif %}{% endmacro %}{{ f(60, a=1) }}
{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}
{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}
{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}
{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}
{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}
{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}{{ ns.x }}
{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}
{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x]|batch(9, ns.x)|list %}{% endfor %}{{ ns.x }}
{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = range(9)|map('attr', 'x')|map('default', ns.x)|list %}{% endfor %}{{ ns.x }}
{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ 'x' * 10**7 ~ ns.x }}
{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = cycler(ns.x, ns.x).items %}{% endfor %}{{ ns.x }}
{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}
{% set a = 'a' * 10**6 %}{% for i in range(100000) %}{% set b = a[1:] %}{% endfor %}
{% set a = 'a' * 10**6 %}{% set b = 'a' * 10**6 %}{% for i in range(100000) %}{{ a == b }}{% endfor %}
{% set a = 'a' * 900000 %}{% set b = a ~ 'b' %}{% for i in range(100000) %}{{ b in a or a < b }}{% endfor %}
{% set a = 'a' * 10**6 %}{{ a }}{{ a }}
{% set a = 'a' * 10**6 %}{% set b %}{% for i in range(1000) %}{{ a }}{% endfor %}{% endset %}
{% set b %}{% for i in range(100000) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endset %}
{% for i in range(100000) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}
{% for i in range(100000) %}{% set x = i.bit_length() + i.bit_length() + i.bit_length() + i.bit_length() + i.bit_length() %}{% endfor %}
{{ (5).to_bytes(10**9, 'big') }}
{{ lipsum(n=10**6) }}
{{ dict.fromkeys(range(100000), 'x' * 10**5) }}
{{ {}.fromkeys(range(100000), 1) }}
{% set ns = namespace(x=[1]) %}{% for i in range(90000) %}{% set ns.x = ns.x|select %}{% endfor %}
{% block a %}{{ self.a() }}{% endblock %}
{% include 'own' %}
{% for i in range(100000) %}{% include 'loop' %}{% endfor %}
{% import 'long' as long %}{{ long }}
{% from 'own' import x %}
{{ _('%(x)s%(x)s', x='x' * 10**6) }}
{{ _('%(x)1000000000d', x=1) }}
{{ gettext('%(x)1000000000d', x=1) }}
{{ ngettext('%(num)1000000000d', '%(num)1000000000d', 1) }}
{% trans x='x' * 10**6 %}{{ x }}{{ x }}{% endtrans %}
{% set gettext = 'x'.center %}{{ _(10**9) }}
{{ repeat('x' * 10**5, 10**5) }}
""".strip().splitlines()  # noqa: E501
_INCLUDED = {
    "own": "{% include 'own' %}",
    "loop": "{% for i in range(100000) %}{% endfor %}",
    "long": "{% for i in range(100000) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
}


def repeat(text: str, times: int) -> str:
    """Return what the application's own code lets a template have."""
    return text * min(times, 20)


@pytest.fixture(scope="module")
def app() -> Flask:
    app = Flask("shop")
    app.jinja_env.add_extension("jinja2.ext.i18n")
    app.jinja_env.install_null_translations(newstyle=True)  # type: ignore[attr-defined]
    app.add_template_global(repeat)
    app.add_template_filter(repeat)
    return app


@pytest.fixture
def render(app: Flask) -> Render:
    """Return `render(source, **context)`, which returns the html."""

    def render(source: str, /, limits: Limits | None = None, **context: Any) -> str:
        sources = {"mail.html": source, "mail.txt": "", **_INCLUDED}
        snapshot = Snapshot("Hello", "mail", sources, {})
        return SnapshotRenderer(app, snapshot, limits).render(context).bodies.html or ""

    return render


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", TRICKS)
def test_no_template_exhausts_a_worker(source: str, render: Render) -> None:
    """A template that wants to make gigabytes, or to run for hours, is an error before."""
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match=_BOUNDED):
            render(source, Limits(seconds=0.2))
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < _MEMORY


@pytest.mark.parametrize(
    ("limits", "needed"),
    [
        (Limits(loops=5), "more than 5 iterations of loops"),
        (Limits(size=20), "a value that is larger than 20 characters"),
        (Limits(work=300), "more than 300 units of work"),
        (Limits(seconds=-1), "more than -1 s of CPU time"),
    ],
)
def test_each_limit_is_named(limits: Limits, needed: str, render: Render) -> None:
    """The error of a limit names it, the template's line, and a cure."""
    source = (
        "\n{% for i in [1] * 4 %}{% for j in 'abcd' %}{{ 'a' * i * 21 }}{% endfor %}{% endfor %}"
    )
    source *= 50

    with pytest.raises(TemplateError) as error:
        render(source, limits)

    assert f"template 'mail.html' needs {needed} (mail.html, line " in str(error.value)
    assert str(error.value).endswith(".")


def test_a_rendering_has_a_budget_of_its_own(render: Render) -> None:
    """What one mail costs is no part of the next one's limits."""
    source = "{% for i in range(60) %}{{ i }}{% endfor %}"

    assert [len(render(source, Limits(loops=100))) for _ in range(3)] == [110, 110, 110]


def test_large_mail_is_within_the_limits(render: Render) -> None:
    """A mail with a table of thousands of rows is no attack."""
    rows = [{"name": f"Thing {i}", "price": i} for i in range(8000)]
    source = (
        "{{ rows|length }}{% for row in rows|sort(attribute='name') %}<tr><td>{{ loop.index }}"
        "<td>{{ row.name|upper }}<td>{{ '%.2f'|format(row.price) }}{% endfor %}"
        "{{ rows|sum(attribute='price') }}{{ rows|map(attribute='name')|join|length }}"
    )

    assert "<td>THING 7999<td>7999.00" in render(source, rows=rows)


# --- code ----------------------------------------------------------------------------------------

_ATTACKS = r"""
{{ ''.__class__.__mro__ }}
{{ ''['__class__'] }}
{{ ''|attr('__class__') }}
{{ ['']|map(attribute='__class__')|first }}
{{ (['']|groupby('__class__'))[0].grouper }}
{{ ['']|join(attribute='__class__') }}
{{ [1]|sum(attribute='__class__') }}
{{ ''.upper.__self__ }}
{{ cycler.__init__.__globals__ }}
{{ cycler(1)._pos }}
{{ namespace.__init__ }}
{{ joiner.__init__.__globals__ }}
{{ dict.__init__ }}
{{ dict.mro() }}
{{ range.__class__ }}
{{ url_for.__globals__ }}
{{ url_for.__self__ }}
{{ helper.config }}
{{ helper.__call__ }}
{{ self.__init__ }}
{{ self._TemplateReference__context }}
{{ '{0.__class__}'.format(1) }}
{{ '{0[__class__]}'.format(x) }}
{{ ('{0.__class__}'|safe).format(1) }}
{{ '{x.__class__}'.format_map({'x': 1}) }}
{{ ('{0.__class__}'|attr('format'))(1) }}
{{ '{0.__class__}'['format'](1) }}
{% set f = '{0.__class__}'.format %}{{ f(1) }}
{{ '{.__class__}'|format(1) ~ '{0.__class__!r}'.format(1) }}
{{ '%s'.translate({}) }}
{{ 'x'.encode() }}
{{ [1].append(2) }}
{{ {}.update(a=1) }}
{{ {}.setdefault('a', 1) }}
{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}
{% macro f() %}{% endmacro %}{{ f.__init__ }}
{% for i in [1] %}{{ loop._iterable }}{% endfor %}
{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}
{% import 'macros' as m %}{{ m.__dict__ }}{{ m._body_stream }}
{% import 'macros' as m %}{{ m['__init__'] }}
{{ config }}
{{ config.SECRET_KEY }}
{{ request.args }}
{{ session }}
{{ g.user }}
{{ get_flashed_messages() }}
{{ getattr('', '__class__') }}
{{ ''|getattr('__class__') }}
{{ eval('1') }}
{{ proxy() }}
{{ str.format('{0.__class__}', 1) }}
{% debug %}
{{ 1|pprint }}
{{ (1).__add__(2) }}
{{ caller }}
{{ missing_function() }}
{{ url_for('nowhere') }}
""".strip().splitlines()


class _Helper:
    """A global of the application that templates may not look into."""

    config = "secret"

    def __call__(self) -> str:
        return "called"

    def bound(self) -> str:
        return "called"


@pytest.fixture(scope="module")
def careless() -> Flask:
    """Return an app whose globals and filters would open a sandbox."""
    app = Flask("careless")
    app.config["SECRET_KEY"] = "secret"
    app.jinja_env.add_extension("jinja2.ext.debug")
    app.jinja_env.globals |= {
        "getattr": getattr,
        "eval": eval,
        "str": str,
        "helper": _Helper().bound,
        "proxy": LocalProxy(lambda: _Helper),
    }
    app.jinja_env.filters["getattr"] = getattr
    return app


@pytest.mark.parametrize("source", _ATTACKS)
def test_no_template_reaches_code(source: str, careless: Flask) -> None:
    """A template can't get from a value to its class, to a function's globals, or to secrets."""
    sources = {"mail.html": source, "macros": "{% macro f() %}{% endmacro %}"}

    with pytest.raises(TemplateError) as error:
        SnapshotRenderer(careless, Snapshot("Hello", "mail", sources, {})).render({"x": {}})

    assert str(error.value).startswith("template 'mail.html'")


@pytest.mark.parametrize(
    "source", ["{{ x.a" + ".a" * 3000 + " }}", "{{ " + "(" * 5000, "{{ 9" + "9" * 5000]
)
def test_source_that_breaks_the_compiler(source: str, render: Render) -> None:
    """A source on which Jinja or Python give up is an error of the template."""
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "a" * 250_001,
        "{{ 1 }}" * 4_000,
        "{{ [" + "1," * 6_000 + "] }}",
        "{{ a" + "~b" * 6_000 + "}}",
    ],
)
def test_long_source(source: str, render: Render) -> None:
    """A source that takes long to compile is refused."""
    with pytest.raises(TemplateError, match=r"template 'mail.html' has .* with include\.$"):
        render(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% for i in range(21000) %}<p>{% endfor %}",
            "makes 21,000 tags: a text is made of up to",
        ),
        (
            "<style>{{ 'p,' * 40000 }}p{}</style>{{ '<p>'|safe * 9000 }}",
            "its CSS has too many rules",
        ),
        ("{{ '<p>'|safe * 9000 }}<style>{{ 'p,' * 40000 }}", "its CSS has too many rules"),
    ],
)
def test_html_that_takes_seconds(source: str, message: str, app: Flask) -> None:
    """What is made of the html of a mail has limits as well."""
    snapshot = Snapshot("Hello", "mail", {"mail.html": source}, {})

    with pytest.raises(TemplateError, match=f"^template 'mail.html'.* ?{message}"):
        SnapshotRenderer(app, snapshot).render({})


def test_nothing_of_one_recipient_is_in_the_mail_of_another(app: Flask) -> None:
    """A namespace of an imported template begins anew in each mail."""
    sources = {
        "mail.txt": "{% from 'state' import seen %}{% set seen.all = seen.all ~ name %}{{ seen.all }}",  # noqa: E501
        "state": "{% set seen = namespace(all='') %}",
    }
    renderer = SnapshotRenderer(app, Snapshot("Hello", "mail", sources, {}))

    assert [renderer.render({"name": name}).bodies.text for name in "ab"] == ["a", "b"]


# --- what works as ever --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("{{ '%s has %d (%.1f%%)' % (x, 5, 2.5) }}", "&lt;x&gt; has 5 (2.5%)"),
        ("{{ '%(x)s' % {'x': x} }}", "&lt;x&gt;"),
        ("{{ 'Order 4711000000: %s'|format(x) }}", "Order 4711000000: &lt;x&gt;"),
        ("{{ '{:>5}{:.2f}{a[0]}'.format(x, 1.234, a=[1]) }}", "  &lt;x&gt;1.231"),
        ("{{ ('<b>{}</b>'|safe).format(x) }}", "<b>&lt;x&gt;</b>"),
        ("{{ '{a}'.format_map({'a': 1}) }}", "1"),
        ("{{ x ~ 1 ~ ('<b>'|safe) }}", "&lt;x&gt;1<b>"),
        ("{{ 2 * 3 + 4 ** 2 - 7 // 2 + 7 % 4 }}", "22"),
        ("{{ 'ab' * 2 + 'c' }}{{ [1] + [2] * 2 }}", "ababc[1, 2, 2]"),
        ("{{ 'a,b'.split(',')|join('-') }}{{ '-'.join(['a', 'b']) }}", "a-ba-b"),
        ("{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}{{ x[0] }}", "[2, 3]cba&lt;"),
        ("{{ d.items()|list }}{{ d.get('z', 1) }}{{ d['items'] }}", "[(&#39;items&#39;, 2)]12"),
        ("{% for k, v in d|dictsort %}{{ k }}{{ v }}{% endfor %}", "items2"),
        ("{% for i in range(5) if i % 2 %}{{ loop.index }}{{ i }}{% endfor %}", "1123"),
        ("{% for i in [] %}{% else %}none{% endfor %}", "none"),
        (
            "{% for i in [[1, [2]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
            "12",
        ),
        (
            "{% for i in [1, 2] %}{{ loop.cycle('a', 'b') }}{{ loop.last }}{% endfor %}",
            "aFalsebTrue",
        ),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}", "aba"),
        ("{% set j = joiner('+') %}{{ j() }}a{{ j() }}b", "a+b"),
        (
            "{% set n = namespace(i=0) %}{% for i in [1, 2] %}{% set n.i = n.i + i %}{% endfor %}{{ n.i }}",  # noqa: E501
            "3",
        ),
        ("{{ dict(a=1).a }}{{ {'b': 2}.b }}", "12"),
        ("{{ [3, 1]|sort|map('string')|join(',') }}{{ [1, 2]|sum }}", "1,33"),
        (
            "{{ ['a', 'bb']|map('length')|list }}{{ [1, 2, 3]|batch(2)|list }}",
            "[1, 2][[1, 2], [3]]",
        ),
        (
            "{{ [1, 2, 3]|batch(2, 0)|list }}{{ 'ab'|list }}",
            "[[1, 2], [3, 0]][&#39;a&#39;, &#39;b&#39;]",
        ),
        ("{{ [1, 2, 3]|slice(2)|list }}{{ 1.256|round(2) }}", "[[1, 2], [3]]1.26"),
        ("{{ [d]|groupby('items')|length }}{{ [d]|map(attribute='items')|first }}", "12"),
        ("{{ 'a b'|title }}{{ 'abc'|center(5) }}|{{ 'a\nb'|indent(2) }}", "A B abc |a\n  b"),
        ("{{ 'a b c'|wordwrap(3) }}{{ 'x'|replace('x', '<') }}", "a b\nc&lt;"),
        (
            "{{ 'http://example.com x'|urlize }}",
            '<a href="http://example.com" rel="noopener">http://example.com</a> x',
        ),
        ("{{ '<b>x</b>'|striptags }}{{ d|tojson }}", 'x{"items": 2}'),
        (
            "{% filter upper %}a{{ 'b' }}{% endfilter %}{% set v %}<{{ x }}>{% endset %}{{ v }}",
            "AB<&lt;x&gt;>",
        ),
        (
            "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call f(1) %}c{% endcall %}",  # noqa: E501
            "12c",
        ),
        (
            "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, b=2) }}",
            "(1,){&#39;b&#39;: 2}",
        ),
        (
            "{% with y = 1 %}{{ y }}{% endwith %}{% autoescape false %}{{ x }}{{ x ~ 1 }}{% endautoescape %}",  # noqa: E501
            "1<x><x>1",
        ),
        ("{% raw %}{{ }}{% endraw %}{{ 1 if true else 2 }}{{ 'a' in 'abc' }}", "{{ }}1True"),
        ("{{ none }}{{ true }}{{ y|default('-') }}{{ y is defined }}", "NoneTrue-False"),
        ("{% block b %}{{ x }}{% endblock %}{{ self.b() }}", "&lt;x&gt;&lt;x&gt;"),
        (
            "{% trans n=2 %}one{% pluralize %}{{ n }} of%{% endtrans %}{{ _('a %(x)s', x=x) }}",
            "2 of%a &lt;x&gt;",
        ),
        ("{{ repeat('a', 2) }}{{ 'b'|repeat(3) }}", "aabbb"),
        (
            "{{ '&' }}{{ '<' }}{{ '>' }}{{ '\"' }}{{ \"'\" }}{{ 'a b' }}",
            "&amp;&lt;&gt;&#34;&#39;a b",
        ),
    ],
)
def test_it_renders_as_jinja_does(source: str, html: str, render: Render, app: Flask) -> None:
    """A template has the same result in the sandbox as outside."""
    context = {"x": "<x>", "d": {"items": 2}}
    app.jinja_env.loader = DictLoader({"mail.html": source})
    app.jinja_env.cache.clear()  # type: ignore[union-attr]
    with app.app_context():
        assert app.jinja_env.get_template("mail.html").render(context) == html

    assert render(source, **context) == html
