"""Snapshots of templates: what they hold, what they refuse, and the mails they make."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask_babel import Babel, lazy_gettext
from jinja2 import DictLoader, FunctionLoader
from markupsafe import Markup

from mailer.content.snapshot_rendering import RenderedMail, SnapshotRenderer
from mailer.content.snapshots import Snapshot, take_snapshot, used_names
from mailer.errors import TemplateError


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return Flask("shop", root_path=str(tmp_path))


@pytest.fixture
def templates(app: Flask) -> dict[str, str]:
    """Return the app's templates, to be filled."""
    templates: dict[str, str] = {}
    app.jinja_env.loader = DictLoader(templates)
    return templates


@pytest.fixture
def render(app: Flask) -> Callable[..., RenderedMail]:
    """Return `render(locale, **context)`, which renders "mail" as a worker does."""

    def render(
        locale: str | None = None, /, subject: str = "Hello", shared: Any = None, **context: Any
    ) -> RenderedMail:
        snapshot = Snapshot.from_json(take_snapshot(app, subject, "mail", shared=shared).to_json())
        return SnapshotRenderer(app, snapshot).render(context, locale)

    return render


@pytest.fixture
def refusal(app: Flask) -> Callable[..., str]:
    """Return `refusal(subject)`, which returns the error of a snapshot of "mail"."""

    def refusal(subject: str = "Hello", **options: Any) -> str:
        with pytest.raises(TemplateError) as error:
            take_snapshot(app, subject, "mail", **options)
        return str(error.value)

    return refusal


# --- what a snapshot holds ------------------------------------------------------------------------


def test_all_templates_are_in_it(app: Flask, templates: dict[str, str]) -> None:
    """A snapshot has the pair, and what it extends, includes and imports, however deep."""
    templates |= {
        "mail.html": "{% extends 'base' %}{% block b %}{% from 'macros' import m %}{% endblock %}",
        "mail.txt": "{% import 'own' as own %}{% include ['none', 'text'] %}",
        "base": "{% block b %}{% endblock %}{% include 'foot' %}",
        "foot": "{% if 0 %}{% include 'deep' %}{% include 'mail.txt' %}{% endif %}",
        "deep": "{% include 'absent' ignore missing %}",
        **dict.fromkeys(("macros", "own", "text", "other", "mail.old"), ""),
    }

    snapshot = take_snapshot(app, "{% include 'short' ignore missing %}Hi", "mail")

    expected = {"mail.html", "mail.txt", "base", "foot", "deep", "macros", "own", "text"}
    assert snapshot.sources.keys() == expected


def test_a_deployment_changes_nothing(
    app: Flask, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """Mails are rendered with the templates of the call."""
    templates |= {"mail.txt": "{% include 'part' %}", "part": "old"}
    snapshot = take_snapshot(app, "Hello", "mail")
    templates |= {"mail.txt": "new", "part": "new", "mail.html": "new"}

    mail = SnapshotRenderer(app, snapshot).render({})

    assert (mail.bodies.text, mail.bodies.html) == ("old", None)


def test_the_same_content_has_the_same_digest(app: Flask, templates: dict[str, str]) -> None:
    """The JSON is canonical: it depends on the content alone."""
    templates["mail.txt"] = "{{ a }}{{ b }}é"
    one = take_snapshot(app, "Hello", "mail", shared={"a": 1, "b": [2]})
    two = take_snapshot(app, "Hello", "mail", shared={"b": (2,), "a": 1})
    three = take_snapshot(app, "Hello", "mail", shared={"a": 1, "b": [3]})

    assert one.to_json() == two.to_json() == Snapshot.from_json(one.to_json()).to_json()
    assert one.digest == two.digest != three.digest
    assert one.to_json().startswith('{"locales":[],"shared":{"a":1,"b":[2]},"sources":{')
    assert len(one.digest) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"subject": 1, "template": "", "sources": {}, "shared": {}, "locales": []}),
        json.dumps(
            {"subject": "", "template": "", "sources": {"a": 1}, "shared": {}, "locales": []}
        ),
        json.dumps({"subject": "", "template": "", "sources": [], "shared": {}, "locales": []}),
        json.dumps({"subject": "", "template": "", "sources": {}, "shared": [], "locales": []}),
        " " * 5_000_001,
    ],
)
def test_unreadable_json(text: str) -> None:
    """What is no snapshot is an error that says what to do."""
    with pytest.raises(TemplateError, match=r"can't be read: .*: queue the bulk send again\."):
        Snapshot.from_json(text)


def test_a_snapshot_without_its_pair(app: Flask) -> None:
    """A snapshot from the database may lack its templates."""
    with pytest.raises(TemplateError, match="neither text nor html"):
        SnapshotRenderer(app, Snapshot("Hello", "mail", {}, {})).render({})


def test_used_names(app: Flask, templates: dict[str, str]) -> None:
    """The variables of all parts are known, without those that the templates set."""
    templates |= {
        "mail.txt": "{% set a = b %}{{ a }}{% for x in xs %}{{ x }}{% endfor %}{% include 'part' %}",  # noqa: E501
        "part": "{{ c.d }}{{ range(3) }}{{ url_for('x') }}",
    }
    snapshot = take_snapshot(app, "{{ e }}", "mail")

    assert used_names(app, snapshot) == {"b", "c", "e", "xs"}


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n{% include name %}", "template 'mail.txt', line 2: the name of a template is computed"),
        ("{% extends 'a' if x else 'b' %}", "line 1: the name of a template is computed"),
        ("{% include ['a', name] %}", "line 1: the name of a template is computed"),
        ("{% import 'a' ~ name as a %}", "line 1: the name of a template is computed"),
        ("{% from name import a %}", "line 1: the name of a template is computed"),
        (
            "\n\n{% include 'part' %}",
            "template 'mail.txt', line 3: 'part' is in no template folder",
        ),
        ("{% include ['a', 'b'] %}", "'a' and 'b' is in no template folder"),
        ("{% extends 'base' %}", "'base' is in no template folder"),
        ("{% import 'base' as a %}", "'base' is in no template folder"),
        ("\n{% if %}", "template 'mail.txt': Expected an expression, got 'end of statement block'"),
        ("\n{{ x|markdown }}", "No filter named 'markdown'. (mail.txt, line 2)"),
        ("{{ x is pretty }}", "No test named 'pretty'. (mail.txt, line 1)"),
        ("{{ 1|pprint }}", "No filter named 'pprint'"),
        ("\n{{ now() }}", "template 'mail.txt', line 2: now() is no global function of your app"),
        ("\n{{ request.url }}", "template 'mail.txt', line 2: 'request' is not there in a bulk"),
        ("{{ session.x }}", "'session' is not there in a bulk send"),
        ("{{ g.x }}", "'g' is not there in a bulk send"),
        ("{{ config.SECRET_KEY }}", "'config' is not there in a bulk send"),
        ("{{ get_flashed_messages() }}", "'get_flashed_messages' is not there in a bulk send"),
        ("{{ lipsum() }}", "'lipsum' is not there in a bulk send"),
        ("a" * 250_001, "template 'mail.txt' has 250,001 characters: a bulk send takes up to"),
    ],
)
def test_refused_template(
    source: str, message: str, templates: dict[str, str], refusal: Callable[..., str]
) -> None:
    """The call fails for a template that a worker could not render, and names the place."""
    templates["mail.txt"] = source

    text = refusal()

    assert message in text
    assert text.endswith(".")


def test_refused_subject(templates: dict[str, str], refusal: Callable[..., str]) -> None:
    """The errors of the subject name it."""
    templates["mail.txt"] = ""

    assert refusal("{{ a").startswith("subject: unexpected end of template")
    assert refusal("{% include 'a' %}").startswith("subject, line 1: 'a' is in no template folder")
    assert refusal("{{ config }}").startswith("subject, line 1: 'config' is not there")


def test_neither_text_nor_html(templates: dict[str, str], refusal: Callable[..., str]) -> None:
    """A missing template is the error of other mail."""
    templates |= {"mails.txt": "", "mail.de.txt": ""}

    assert refusal() == (
        "template 'mail': neither 'mail.txt' nor 'mail.html' is in a template folder, but"
        " 'mails.txt' is: create one of them, and give the name without its ending."
    )


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"day": date(2026, 1, 2)}, "shared['day'] is not JSON, but date: pass a str"),
        ({"a": [{"b": {1}}]}, "shared['a'][0]['b'] is not JSON, but set"),
        ({"a": float("nan")}, "shared['a'] is not JSON, but nan"),
        ({"a": 10**5000}, "shared['a'] is not JSON, but too long"),
        ({"a": nested(101)}, "is nested too deeply: 100 levels are allowed"),
        ({"a": Markup("<b>")}, "shared['a'] is not JSON, but Markup"),
        ({"a": {1: 2}}, "shared['a']: the key 1 is not a str"),
        ({"a": lazy_gettext("Hello")}, "shared['a'] is not JSON, but LazyString"),
        ({"a": "x" * 5_000_000}, "more than 5,000,000 characters: make it smaller"),
    ],
)
def test_refused_shared_context(
    shared: dict[str, Any],
    message: str,
    templates: dict[str, str],
    refusal: Callable[..., str],
) -> None:
    """What JSON would change or lose can't be in the shared context."""
    templates["mail.txt"] = ""

    assert message in refusal(shared=shared)


# --- contexts, filters and functions of the application -------------------------------------------


def test_context_processors(
    app: Flask, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """Context processors run at the call. What the templates use of their values is kept."""
    calls = []

    @app.context_processor
    def company() -> dict[str, object]:
        calls.append(1)
        return {"company": "Shop", "year": 2026, "unused": object()}

    templates["mail.txt"] = "{{ company }} {{ year }}"
    snapshot = take_snapshot(app, "Hello", "mail", shared={"year": 2027})

    assert snapshot.shared == {"company": "Shop", "year": 2027}
    assert SnapshotRenderer(app, snapshot).render({}).bodies.text == "Shop 2027"
    assert SnapshotRenderer(app, snapshot).render({"company": "Own"}).bodies.text == "Own 2027"
    assert calls == [1]


def test_a_context_processor_with_a_function(
    app: Flask, templates: dict[str, str], refusal: Callable[..., str]
) -> None:
    """A value that is no JSON is refused if a template uses it."""
    app.context_processor(lambda: {"price": lambda value: f"{value} €"})
    templates["mail.txt"] = "\n{{ price(5) }}"

    message = "template 'mail.txt', line 2: 'price' of your app is not JSON, but function"
    assert message in refusal()


def test_globals(
    app: Flask, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """A global function is called on the worker, a global value is kept."""
    app.jinja_env.globals |= {"double": lambda value: 2 * value, "company": {"name": "Shop"}}
    templates["mail.txt"] = "{{ double(4) }}{{ company.name }}"

    assert take_snapshot(app, "Hello", "mail").shared == {"company": {"name": "Shop"}}
    assert render().bodies.text == "8Shop"


def test_filters_and_tests(
    app: Flask, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """Filters and tests of the app work as ever, in an app context."""
    app.add_template_filter(lambda value: f"{value} €", "price")
    app.add_template_test(lambda value: value > 4, "large")
    templates["mail.txt"] = "{% if x is large %}{{ x|price }}{{ [x]|map('price')|join }}{% endif %}"

    assert render(x=5).bodies.text == "5 €5 €"


def test_url_for(
    app: Flask, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """Links need SERVER_NAME on the worker. Without, the error says so."""
    app.add_url_rule("/orders/<int:number>", "order")
    templates["mail.txt"] = "{{ url_for('order', number=5, _external=True) }}"

    with pytest.raises(TemplateError, match=r"SERVER_NAME.*\(mail.txt, line 1\)"):
        render()
    app.config["SERVER_NAME"] = "shop.example"
    assert render().bodies.text == "http://shop.example/orders/5"


def test_blueprints(app: Flask, tmp_path: Path, render: Callable[..., RenderedMail]) -> None:
    """Templates of blueprints are found as in the app."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mail.txt").write_text("{% include 'part.txt' %}")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "part.txt").write_text("part")
    app.register_blueprint(
        Blueprint("shop", "shop", root_path=str(tmp_path), template_folder="own")
    )

    assert render().bodies.text == "part"


def test_macros_may_be_called_where_they_are_not_defined(
    templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """An included template may call the macros of the one that includes it."""
    templates |= {"mail.txt": "{% macro m() %}m{% endmacro %}{% include 'p' %}", "p": "{{ m() }}"}

    assert render().bodies.text == "m"


# --- rendering ------------------------------------------------------------------------------------


def test_inheritance(templates: dict[str, str], render: Callable[..., RenderedMail]) -> None:
    """Blocks, super(), macros and imports with context work as in other mail."""
    templates |= {
        "base.html": "<body>{% block a %}base {{ name }}{% endblock %}{% include 'foot.html' %}",
        "foot.html": "<i>{{ name }}{% include 'absent.html' ignore missing %}</i>",
        "macros.html": "{% macro bold(x) %}<b>{{ x }}{{ name|default('') }}</b>{% endmacro %}",
        "mail.html": "{% extends 'base.html' %}{% import 'macros.html' as m with context %}"
        "{% from 'macros.html' import bold %}"
        "{% block a %}{{ super() }}{{ m.bold('&') }}{{ bold('x') }}{% endblock %}",
    }

    assert render(name="<A>").bodies.html == (
        "<body>base &lt;A&gt;<b>&amp;&lt;A&gt;</b><b>x</b><i>&lt;A&gt;</i>"
    )


def test_escaping(templates: dict[str, str], render: Callable[..., RenderedMail]) -> None:
    """Values are escaped in html, and neither in text nor in the subject."""
    templates |= dict.fromkeys(("mail.txt", "mail.html"), "{{ name }}{{ '<b>'|safe }}")

    mail = render(subject="{{ name }}", name="<A>")

    assert mail.subject == "<A>"
    assert (mail.bodies.text, mail.bodies.html) == ("<A><b>", "&lt;A&gt;<b>")


@pytest.mark.parametrize(
    ("source", "context", "message"),
    [
        (
            "\n{{ name }}",
            {},
            "template 'mail.txt': 'name' is undefined (mail.txt, line 2): correct",
        ),
        ("{% include 'p.txt' %}", {}, "template 'mail.txt': 'deep' is undefined (p.txt, line 3)"),
        ("{{ a.b }}", {"a": {}}, "'dict object' has no attribute 'b' (mail.txt, line 1)"),
        ("{{ a + 1 }}", {"a": "x"}, "could not be rendered: TypeError: "),
        ("{{ 1 / a }}", {"a": 0}, "ZeroDivisionError: division by zero (mail.txt, line 1)"),
        ("a\x00", {}, "template 'mail.txt': the character '\\x00' at 1 can't be in a mail"),
    ],
)
def test_errors_name_the_place(
    source: str,
    context: dict[str, Any],
    message: str,
    templates: dict[str, str],
    render: Callable[..., RenderedMail],
) -> None:
    """The error of one mail names the template, the line and what is wrong."""
    templates |= {"mail.txt": source, "p.txt": "\n\n{{ deep }}"}

    with pytest.raises(TemplateError) as error:
        render(**context)

    assert message in str(error.value)


def test_an_undefined_value_of_the_subject(
    templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """A missing value is an error in the subject as well."""
    templates["mail.txt"] = ""

    with pytest.raises(TemplateError, match=r"^subject: 'name' is undefined: correct the name"):
        render(subject="{{ name }}")


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\nBcc: x@example.com", "\u2028", "\x85"])
def test_a_subject_is_one_line(
    line_break: str, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """A value with a line break is refused by its name. Space around the subject is none of it."""
    templates["mail.txt"] = ""

    assert render(subject=" {{ name }}\n", name="A").subject == "A"
    with pytest.raises(TemplateError, match=r"^subject: the value of 'name' has a line break"):
        render(subject="{{ name }} {{ x }}", name=f"A{line_break}B", x=1)
    with pytest.raises(TemplateError, match=r"^subject: it has a line break"):
        render(subject=f"A{line_break}B")


def test_text_from_html(templates: dict[str, str], render: Callable[..., RenderedMail]) -> None:
    """A mail with html only gets its text and inlined CSS, as other mail does."""
    templates["mail.html"] = "<style>p {color: red}</style><p>Hello</p>"

    bodies = render().bodies

    assert bodies.text == "Hello\n"
    assert '<p style="color: red;">' in (bodies.html or "")


# --- locales --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("locale", "text", "html"),
    [
        (None, "any", "any"),
        ("", "any", "any"),
        ("de", "de", None),
        ("de_DE", "de", None),
        ("de_AT", "\n", "de_AT"),
        ("DE-at", "\n", "de_AT"),
        ("pt_br", "pt-BR", None),
        ("pt", "any", "any"),
        ("zh_Hans_CN", "zh", None),
        ("fr", "any", "any"),
        ("nonsense ", "any", "any"),
    ],
)
def test_locales(
    locale: str | None,
    text: str,
    html: str | None,
    templates: dict[str, str],
    render: Callable[..., RenderedMail],
) -> None:
    """The pair of the most exact locale is used, however it is written. Languages don't mix."""
    templates |= {
        **dict.fromkeys(("mail.txt", "mail.html"), "any"),
        "mail.de.txt": "de",
        "mail.de_AT.html": "<p>de_AT",
        "mail.pt-BR.txt": "pt-BR",
        "mail.zh.txt": "zh",
    }

    bodies = render(locale).bodies

    assert bodies.html == (html if html in {None, "any"} else f"<p>{html}")
    assert bodies.text == (text if text != "\n" else "de_AT\n")


def test_locales_of_a_loader_that_lists_nothing(app: Flask) -> None:
    """Without a list of the templates, those of the given locales are looked for."""
    sources = {
        "mail.txt": "any",
        "mail.de_AT.txt": "{% include 'de' %}",
        "de": "",
        "mail.fr.txt": "",
    }
    app.jinja_env.loader = FunctionLoader(sources.get)

    snapshot = take_snapshot(app, "Hello", "mail", locales=["de-AT", "es"])

    assert snapshot.sources.keys() == {"mail.txt", "mail.de_AT.txt", "de"}
    assert snapshot.locales == ("de_AT",)


def test_two_templates_of_one_locale(
    templates: dict[str, str], refusal: Callable[..., str]
) -> None:
    """Two spellings of a locale are refused: nobody could tell which is used."""
    templates |= dict.fromkeys(("mail.txt", "mail.pt-BR.txt", "mail.pt_br.txt"), "")

    assert "'mail.pt-BR.txt' and 'mail.pt_br.txt' are for the same locale" in refusal()


@pytest.fixture
def babel(app: Flask, tmp_path: Path) -> Babel:
    """Return Flask-Babel with a German translation."""
    from babel.messages.catalog import Catalog  # noqa: PLC0415
    from babel.messages.mofile import write_mo  # noqa: PLC0415

    catalog = Catalog(locale="de")
    catalog.add("Hello", "Hallo")
    catalog.add("Hello %(name)s", "Hallo %(name)s")
    folder = tmp_path / "translations" / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    with (folder / "messages.mo").open("wb") as file:
        write_mo(file, catalog)
    return Babel(app, default_translation_directories=str(tmp_path / "translations"))


def test_translations(
    babel: Babel, templates: dict[str, str], render: Callable[..., RenderedMail]
) -> None:
    """Flask-Babel translates into the locale of each recipient, and formats in it."""
    templates["mail.txt"] = (
        "{{ _('Hello') }} {% trans name=name %}Hello {{ name }}{% endtrans %} {{ 1.5|decimalformat }}"  # noqa: E501
    )

    mails = [
        render(one, subject="{{ _('Hello') }}", name="A") for one in ("de-AT", "en", None, "xx")
    ]

    assert mails[0].subject == "Hallo"
    assert mails[0].bodies.text == "Hallo Hallo A 1,5"
    assert {mail.bodies.text for mail in mails[1:]} == {"Hello Hello A 1.5"}
