"""Rendering templates to text and HTML, and the errors of templates."""

import errno
import sqlite3
import ssl
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import flask
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import DictLoader
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm.exc import DetachedInstanceError
from werkzeug.exceptions import NotFound

from mailer.content import Bodies, Renderer, inline_css, text_from_html
from mailer.errors import StoreUnavailable, TemplateError, UnknownMail

Render = Callable[..., Bodies]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop", template_folder=tmp_path)
    with app.app_context():
        yield app


@pytest.fixture
def template(tmp_path: Path) -> Callable[..., None]:
    """Return `template(name, source)`, which writes a file into the app's template folder."""

    def write(name: str, source: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)

    return write


@pytest.fixture
def render(app: Flask) -> Render:
    """Return `render(name, **context)`, which returns the bodies."""
    renderer = Renderer(app)
    return lambda name, /, **context: renderer.render(name, context)


@pytest.fixture
def refusal(render: Render) -> Callable[..., str]:
    """Return `refusal(name, **context)`, which returns the text of the error."""

    def refusal(name: str, /, **context: Any) -> str:
        with pytest.raises(TemplateError) as error:
            render(name, **context)
        return str(error.value)

    return refusal


# --- a pair, or one of the two ------------------------------------------------------------------


def test_both_are_rendered(template: Callable[..., None], render: Render) -> None:
    """A template's name without its ending stands for the text and the HTML version."""
    template("mail/hello.txt", "Hello {{ name }}")
    template("mail/hello.html", "<p>Hello <b>{{ name }}</b></p>")

    assert render("mail/hello", name="Ada") == Bodies("Hello Ada", "<p>Hello <b>Ada</b></p>")


def test_only_a_text(template: Callable[..., None], render: Render) -> None:
    """With a text template only, the mail has no HTML."""
    template("hello.txt", "Hello {{ name }}")

    assert render("hello", name="Ada") == Bodies("Hello Ada", None)


def test_only_html(template: Callable[..., None], render: Render) -> None:
    """With an HTML template only, the text is made from it, with the targets of its links."""
    template(
        "hello.html",
        "<h1>Hello {{ name }}</h1><ul><li>one<li>two</ul><a"
        " href='https://example.com/a?b=1&amp;c=2'>More</a>",
    )

    text = render("hello", name="Ada & Bob").text

    assert (
        text.split() == "Hello Ada & Bob * one * two [More](https://example.com/a?b=1&c=2)".split()
    )


def test_neither(refusal: Callable[..., str]) -> None:
    """The error for a missing template names both files that were looked for."""
    assert refusal("mail/hello") == (
        "template 'mail/hello': neither 'mail/hello.txt' nor 'mail/hello.html' is in a template"
        " folder: create one of them, and give the name without its ending."
    )


def test_a_name_with_its_ending(template: Callable[..., None], refusal: Callable[..., str]) -> None:
    """The error for a name with an ending says to leave it out."""
    template("hello.html", "Hello")

    assert refusal("hello.html").endswith("give the name without its ending.")


@pytest.mark.parametrize("name", ["../hello", "/etc/passwd", "", None, 5])
def test_no_template_is_outside_the_folders(name: str, refusal: Callable[..., str]) -> None:
    """A template's name cannot point outside the template folders."""
    assert "is in a template folder" in refusal(name)


# --- html and text ------------------------------------------------------------------------------


def test_only_html_is_escaped(template: Callable[..., None], render: Render) -> None:
    """Values are escaped in HTML, and not in text."""
    template("hello.txt", "{{ name }}")
    template("hello.html", "{{ name }}")

    assert render("hello", name="<b>Ada & Bob</b>") == Bodies(
        "<b>Ada & Bob</b>", "&lt;b&gt;Ada &amp; Bob&lt;/b&gt;"
    )


def test_css_is_inlined(template: Callable[..., None], render: Render) -> None:
    """CSS rules become style attributes; rules that cannot stay as they are."""
    template(
        "hello.html",
        "<style>p { color: red } @media print { p { color: black } } a:hover { color: blue"
        " }</style><p>Hello",
    )

    html = render("hello").html or ""

    assert '<p style="color: red;">Hello</p>' in html
    assert "@media print" in html
    assert "a:hover" in html


def test_html_without_css_is_left_alone(template: Callable[..., None], render: Render) -> None:
    """HTML without CSS stays unchanged to the byte."""
    template("hello.html", "<p class=a>Hello<br>&nbsp;&copy; <img src='cid:logo'>")

    assert render("hello").html == "<p class=a>Hello<br>&nbsp;&copy; <img src='cid:logo'>"


def test_no_stylesheet_is_fetched(tmp_path: Path) -> None:
    """No stylesheet is fetched, neither from the network nor from a file."""
    secret = tmp_path / "secret.css"
    secret.write_text("p { color: red }")

    for href in (secret, secret.as_uri(), "http://127.0.0.1:1/a.css"):
        html = inline_css(
            f'<link rel="stylesheet" href="{href}">'
            f"<style>@import url({href}); a {{ b: c }}</style><p>Hello</p>"
        )
        assert "red" not in html


def test_an_inline_image_survives(template: Callable[..., None], render: Render) -> None:
    """Inlining CSS keeps inline images and conditional comments."""
    template(
        "hello.html",
        "<style>img { width: 10px }</style><img src='cid:logo'><!--[if mso]>Outlook<![endif]-->",
    )

    html = render("hello").html or ""

    assert 'src="cid:logo"' in html
    assert "<!--[if mso]>Outlook<![endif]-->" in html


def test_a_bottomless_document_ends_no_process() -> None:
    """HTML nested too deeply is left as it is, since inlining would overflow the stack."""
    html = "<style>p { color: red }</style>" + "<div>" * 100_000

    assert inline_css(html) == html
    assert text_from_html(html)


@given(st.text())
@example("")
@example("<!-- nothing -->")
@example("<?xml version='1.0' encoding='utf-16'?><p>Hello")
@example("\ufeff<!doctype html>")
@example("<table><td rowspan=99999999 colspan=99999999>Hello")
def test_any_html_has_a_text(html: str) -> None:
    """Any HTML, however broken, gives a text that ends with a line break."""
    assert text_from_html(html).endswith("\n")


# --- what a template can use --------------------------------------------------------------------


def test_a_template_has_what_the_apps_pages_have(
    app: Flask, template: Callable[..., None], render: Render
) -> None:
    """Templates have the app's filters, globals and context processors; passed values win."""
    app.add_template_filter(str.upper, "shout")
    app.add_template_global(lambda: "global", "greet")
    app.context_processor(lambda: {"shop": "Shop", "name": "nobody"})
    app.config["COLOUR"] = "red"
    template(
        "hello.txt",
        "{{ name|shout }} {{ greet() }} {{ shop }} {{ config.COLOUR }} {{ g.get('x') }}",
    )

    assert render("hello", name="Ada").text == "ADA global Shop red None"


def test_filters_that_come_later_are_known(
    app: Flask, template: Callable[..., None], render: Render
) -> None:
    """A filter that is added after the first mail is available."""
    template("hello.txt", "Hello")
    render("hello")
    app.jinja_env.filters["shout"] = str.upper
    template("loud.txt", "{{ 'hello'|shout }}")

    assert render("loud").text == "HELLO"


def test_the_apps_own_pages_stay_lenient(
    app: Flask, template: Callable[..., None], render: Render
) -> None:
    """An undefined variable is an error in a mail, but not in the app's own pages."""
    template("hello.txt", "Hello {{ name }}")
    with pytest.raises(TemplateError):
        render("hello")

    assert app.jinja_env.get_template("hello.txt").render() == "Hello "


def test_what_may_be_missing_can_be_said(template: Callable[..., None], render: Render) -> None:
    """`default` and `is defined` work for variables that may be missing."""
    template(
        "hello.txt", "{{ name|default('friend') }}{% if title is defined %}{{ title }}{% endif %}"
    )

    assert render("hello").text == "friend"


# --- what is wrong with a template --------------------------------------------------------------

ADVICE = (
    "correct the name there, or pass the value: a keyword, or context={…}. For one that may be"
    " missing, write |default('') after its name."
)


def test_a_variable_is_missing(template: Callable[..., None], refusal: Callable[..., str]) -> None:
    """An undefined variable that is printed, tested or looped over is an error with its line."""
    template("hello.txt", "Hello\n{{ name }}")
    template("page.txt", "Hello")
    template("page.html", "{% if name %}Hello{% endif %}")
    template("list.html", "{% for one in names %}{% endfor %}")

    assert (
        refusal("hello")
        == f"template 'hello.txt': 'name' is undefined (hello.txt, line 2): {ADVICE}"
    )
    assert (
        refusal("page")
        == f"template 'page.html': 'name' is undefined (page.html, line 1): {ADVICE}"
    )
    assert (
        refusal("list")
        == f"template 'list.html': 'names' is undefined (list.html, line 1): {ADVICE}"
    )


def test_an_attribute_is_missing(
    template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """An undefined attribute is an error with its name and line."""
    template("hello.txt", "{{ user.nmae }}")

    assert refusal("hello", user={"name": "Ada"}) == (
        f"template 'hello.txt': 'dict object' has no attribute 'nmae' (hello.txt, line 1): {ADVICE}"
    )


def test_the_place_is_where_it_went_wrong(
    template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """The error names the place in the extended, included or imported template."""
    template("base.html", "<p>\n{{ shop }}")
    template("extends.html", "{% extends 'base.html' %}")
    template("footer.txt", "\n\n{{ shop }}")
    template("includes.txt", "{% include 'footer.txt' %}")
    template("macros.jinja", "{% macro footer() %}\n{{ shop }}{% endmacro %}")
    template("imports.txt", "{% from 'macros.jinja' import footer %}{{ footer() }}")

    assert refusal("extends").startswith(
        "template 'extends.html': 'shop' is undefined (base.html, line 2)"
    )
    assert refusal("includes").startswith(
        "template 'includes.txt': 'shop' is undefined (footer.txt, line 3)"
    )
    assert refusal("imports").startswith(
        "template 'imports.txt': 'shop' is undefined (macros.jinja, line 2)"
    )


def test_a_template_that_another_one_uses_is_missing(
    template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """The error names the missing template and the one that uses it."""
    template("hello.html", "\n{% extends 'bsae.html' %}")

    assert refusal("hello") == (
        "template 'hello.html' uses 'bsae.html', which is in no template folder"
        " (hello.html, line 2)."
    )


def test_a_template_can_not_be_read(
    template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """A syntax error is reported with its template and line, in included templates too."""
    template("hello.txt", "Hello\n{% if %}")
    template("outer.txt", "{% include 'hello.txt' %}")
    template("filter.txt", "{{ 1|shout }}")

    assert refusal("hello") == (
        "template 'hello.txt': Expected an expression, got 'end of statement block' (hello.txt,"
        " line 2): correct it."
    )
    assert "(hello.txt, line 2)" in refusal("outer")
    assert (
        refusal("filter")
        == "template 'filter.txt': No filter named 'shout'. (filter.txt, line 1): correct it."
    )


def test_a_template_of_another_encoding(tmp_path: Path, refusal: Callable[..., str]) -> None:
    """A template that is not UTF-8 is an error that says so."""
    (tmp_path / "hello.txt").write_bytes("Grüße".encode("latin-1"))

    assert refusal("hello").startswith(
        "template 'hello.txt' can't be read as UTF-8: 'utf-8' codec can't decode byte 0xfc in"
        " position 2"
    )


def test_code_that_a_template_calls_fails(
    template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """An exception of a function that a template calls is reported with its line."""

    def fail() -> None:
        raise LookupError("no such order")

    template("hello.txt", "\n\n{{ fail() }}")

    assert refusal("hello", fail=fail) == (
        "template 'hello.txt' could not be rendered: LookupError: no such order (hello.txt, line 3)"
    )


class OutOfStock(LookupError):
    """An exception of the application."""


class Unprintable:
    """A value that queries a database when it is printed, and fails."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        raise self._error

    __html__ = __str__

    @property
    def name(self) -> str:
        raise self._error


#: Errors that are not the template's fault.
OF_OTHERS = [
    OperationalError("SELECT 1", {}, Exception("the server is away")),
    DetachedInstanceError("not bound to a Session"),
    sqlite3.OperationalError("database is locked"),
    OSError("no space left"),
    ConnectionRefusedError("refused"),
    ssl.SSLCertVerificationError("a ValueError too"),
    MemoryError(),
    SoftTimeLimitExceeded(),
    StoreUnavailable("away"),
    UnknownMail("no mail"),
    OutOfStock("an exception of the application"),
    NotFound(),
    RuntimeError("the payment service is closed"),
    NotImplementedError(),
    KeyboardInterrupt(),
]
PLACES = [
    "{{ value() }}",
    "{{ value.name }}",
    "{{ value }}",
    "{% include 'inner.txt' %}",
    "{{ [value]|map(attribute='name')|list }}",
]


@pytest.mark.parametrize("source", PLACES)
@pytest.mark.parametrize("error", OF_OTHERS, ids=repr)
def test_an_error_of_others_passes(
    error: BaseException, source: str, template: Callable[..., None], render: Render
) -> None:
    """Exceptions of the database, system or application pass through a template unchanged."""

    class Value(Unprintable):
        def __call__(self) -> None:
            raise error

    for name in ("hello.txt", "hello.html"):
        template("inner.txt", "{{ value.name }}")
        template(name, source)
        with pytest.raises(type(error)) as raised:
            render("hello", value=Value(error))
        assert raised.value is error


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ '%d' % 'a' }}", "TypeError"),
        ("{{ 'a'|round }}", "TypeError"),
        ("{{ decimal.quantize('x') }}", "TypeError"),
        ("{{ number / decimal }}", "DivisionByZero"),
        ("{{ data.decode() }}", "UnicodeDecodeError"),
        ("{{ request.path }}", "RuntimeError: Working outside of request context"),
    ],
)
def test_an_error_of_a_value(
    source: str, words: str, template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """A wrong use of a value is reported with the template and its line."""
    template("hello.txt", source)
    said = refusal(
        "hello", decimal=Decimal(0), number=Decimal(1), data=b"\xff", request=flask.request
    )
    assert words in said
    assert "(hello.txt, line 1)" in said


def test_a_template_that_the_disk_does_not_give(template: Callable[..., None], app: Flask) -> None:
    """A disk error while reading a template passes unchanged."""

    class Broken(DictLoader):
        def get_source(self, *_arguments: object) -> NoReturn:
            raise OSError(errno.EIO, "Input/output error")

    app.jinja_loader = Broken({})
    with pytest.raises(OSError, match="Input/output error"):
        Renderer(app).render("hello", {})


def test_a_link_needs_a_server_name(
    template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """A link outside a request without SERVER_NAME is an error that names the key."""
    template("hello.txt", "{{ url_for('static', filename='a.css', _external=True) }}")

    assert "outside an active request without 'SERVER_NAME' configured" in refusal("hello")


def test_a_link_to_nowhere(
    app: Flask, template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """A link to an unknown endpoint is an error of the template."""
    template("hello.txt", "{{ url_for('nowhere') }}")

    with app.test_request_context():
        assert "BuildError" in refusal("hello")


def test_a_link_in_a_request(app: Flask, template: Callable[..., None], render: Render) -> None:
    """A link in a request has the request's host."""
    template("hello.txt", "{{ url_for('static', filename='a.css', _external=True) }}")

    with app.test_request_context(base_url="https://shop.example"):
        assert render("hello").text == "https://shop.example/static/a.css"


def test_a_link_outside_a_request(template: Callable[..., None], tmp_path: Path) -> None:
    """A link outside a request has the host of SERVER_NAME."""
    template("hello.txt", "{{ url_for('static', filename='a.css', _external=True) }}")
    app = Flask("shop", template_folder=tmp_path)
    app.config.update(SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https")

    with app.app_context():
        assert Renderer(app).render("hello", {}).text == "https://shop.example/static/a.css"


@pytest.mark.parametrize("forbidden", ["\x00", "\ud800"])
def test_what_no_mail_can_hold_is_refused(
    forbidden: str, template: Callable[..., None], refusal: Callable[..., str]
) -> None:
    """A character that no mail can hold is refused, with the name of the template."""
    template("hello.txt", "Hello {{ name }}")
    template("page.html", "<style>p { color: red }</style>{{ name }}")

    assert (
        refusal("hello", name=forbidden)
        == f"template 'hello.txt': the character {forbidden!r} at 6 can't be in a mail: remove it."
    )
    assert refusal("page", name=forbidden).startswith(
        f"template 'page.html': the character {forbidden!r} at 31"
    )
