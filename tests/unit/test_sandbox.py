"""Templates that anybody may have written into the database: no code, and bounded costs."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from jinja2 import DictLoader

from mailer.content.budget import Limits
from mailer.content.snapshot_rendering import SnapshotRenderer
from mailer.content.snapshots import Snapshot
from mailer.errors import TemplateError

Render = Callable[..., str]
_MEMORY = 50_000_000

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
{{ '{:1000000000}'.format_map({}) }}
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
{{ [[0] * 1000] * 40 |sum(start=[]) }}
{{ range(10**9) }}{{ range(10**9)|length }}
{{ range(10**30) }}
{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}
{% for i in range(100000) %}{% set x = range(100000)|list %}{% endfor %}
{% for i in range(100000) %}{{ 'a' in range(100000) }}{% endfor %}
{% set r = range(100000) %}{% for i in r %}{{ 'a' in r or 'b' in r }}{% endfor %}
{% for i in range(3) recursive %}{{ loop(range(3)) }}{% endfor %}
{% for i in range(100000) %}{% for j in 'abc' recursive %}{{ loop('abc') if depth else '' }}{% endfor %}{% endfor %}
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
{{ dict([1]|slice(10**9)) }}
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
""".strip().splitlines()
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
        with pytest.raises(TemplateError):
            render(source)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < _MEMORY
