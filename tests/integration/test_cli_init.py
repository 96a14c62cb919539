"""`flask mail init`: the files that it writes, and its answers to a project that it can't use."""

import ast
import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask
from flask.cli import ScriptInfo
from ruamel.yaml import YAML

from mailer import Mailer
from mailer.cli import mail_group
from mailer.settings import Settings, keys
from tests.shop import close

#: `init(app, *options)`: the command with `flask --app`, in an empty folder.
Init = Callable[..., Result]

FACTORY = """
from flask import Flask
from mailer import Mailer

mailer = Mailer()

def create_app(name="shop"):
    app = Flask(name)
    mailer.init_app(app)
    return app
"""
PLAIN = "from flask import Flask\n\napp = Flask(__name__)\n"
WRITTEN = {"worker.py", ".env", "docker-compose.yml", "Dockerfile", ".dockerignore", ".gitignore"}


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Init]:
    """Run the command in `tmp_path`. Modules of that folder are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(app: str | None, *options: str) -> Result:
        return CliRunner().invoke(
            mail_group, ["init", *options], obj=ScriptInfo(app_import_path=app)
        )

    yield run
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def names(code: str) -> set[str]:
    """Return the global names of a module."""
    tree = ast.parse(code)
    imported = [one for one in tree.body if isinstance(one, ast.ImportFrom)]
    stored = [one for one in ast.walk(tree) if isinstance(one, ast.Name)]
    return {alias.asname or alias.name for one in imported for alias in one.names} | {
        one.id for one in stored if isinstance(one.ctx, ast.Store)
    }


def services(folder: Path, file: str = "docker-compose.yml") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = YAML(typ="safe").load(folder / file)["services"]
    return found


def refusal(result: Result, folder: Path) -> str:
    """Return the error of a command that must have written nothing."""
    assert result.exit_code == 1, result.output
    assert not (folder / "worker.py").exists()
    return result.stderr


# --- the app ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "app", "flask_app", "server", "lines"),
    [
        (
            {"shop1": FACTORY},
            "shop1",
            "shop1:create_app",
            "shop1:create_app()",
            ["from shop1 import create_app", 'celery = create_app().extensions["celery"]'],
        ),
        (
            {"shop2": FACTORY},
            'shop2.py:create_app("b")',
            'shop2:create_app("b")',
            'shop2:create_app("b")',
            ["from shop2 import create_app", 'celery = create_app("b").extensions["celery"]'],
        ),
        (
            {"wsgi": "from shop3 import create_app\napplication = create_app()", "shop3": FACTORY},
            None,
            "wsgi:application",
            "wsgi:application",
            ["from wsgi import application", 'celery = application.extensions["celery"]'],
        ),
        (
            {"shop4": PLAIN},
            "shop4:app",
            "shop4:app",
            "shop4:app",
            ["from shop4 import app as flask_app", 'celery = flask_app.extensions["celery"]'],
        ),
        (
            {"shop5": f"from flask import current_app\n{PLAIN.replace('app =', 'web =')}"},
            "shop5",
            "shop5:web",
            "shop5:web",
            ["from shop5 import web", 'celery = web.extensions["celery"]'],
        ),
        (
            {"shop6": FACTORY.replace("create_app", "app")},
            "shop6:app",
            "shop6:app",
            "shop6:app()",
            ["from shop6 import app as make_app", 'celery = make_app().extensions["celery"]'],
        ),
    ],
)
def test_the_worker_imports_the_app(
    init: Init,
    tmp_path: Path,
    modules: dict[str, str],
    app: str | None,
    flask_app: str,
    server: str,
    lines: list[str],
) -> None:
    """Worker, web server and `flask` get the app that `flask --app` names, or would find.

    No name in the worker is `app`, since Celery would take it for its own.
    """
    write(tmp_path, **modules)
    result = init(app)
    worker = (tmp_path / "worker.py").read_text()

    assert result.exit_code == 0, result.output
    assert [re.sub(" +# noqa.*", "", line) for line in worker.splitlines() if "import" in line][
        -1
    ] == lines[0]
    assert worker.splitlines()[-1] == lines[1]
    assert "app" not in names(worker)
    assert services(tmp_path)["web"]["environment"]["FLASK_APP"] == flask_app
    [command] = re.findall(r"^CMD (.*)$", (tmp_path / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(command)[:2] == ["gunicorn", server]


def test_an_app_without_mailer(init: Init, tmp_path: Path) -> None:
    """The next step is to set up Mailer, with the lines for an app or for a factory."""
    write(tmp_path, shop7=PLAIN)
    result = init("shop7")

    assert result.exit_code == 0
    assert f"1. The app has no Mailer yet: set it up in {tmp_path}/shop7.py:" in result.stdout
    assert "mailer = Mailer(app)" in result.stdout


def test_an_app_with_flask_mail(init: Init, tmp_path: Path) -> None:
    """The next step is to change the import."""
    write(tmp_path, shop8=f"{PLAIN}from flask_mail import Mail\nMail(app)\n")

    assert (
        "Change `from flask_mail import Mail` to `from mailer import Mail`" in init("shop8").stdout
    )


def test_an_app_with_mailer(init: Init, tmp_path: Path) -> None:
    """Nothing has to be set up. The steps name settings, worker, containers and `mail queue`."""
    write(tmp_path, shop9=FACTORY)
    said = init("shop9:create_app").stdout

    assert "has no Mailer" not in said
    assert "MAIL_DEFAULT_SENDER" in said
    assert "celery -A worker worker" in said
    assert "docker compose up --build" in said
    assert "flask --app shop9:create_app mail queue" in said


OWN_CELERY = 'from celery import Celery\napp.extensions["celery"] = Celery("own")\n'


@pytest.mark.parametrize(
    ("name", "code", "is_in_order"),
    [
        ("shop10", f"{OWN_CELERY}from mailer import Mailer\nMailer(app)\n", True),
        ("shop10b", f"{OWN_CELERY}from flask_mail import Mail\nMail(app)\n", False),
        ("shop10c", f"from mailer import Mailer\nMailer(app)\n{OWN_CELERY}", False),
    ],
)
def test_an_app_with_a_celery_app_of_its_own(
    init: Init, tmp_path: Path, name: str, code: str, *, is_in_order: bool
) -> None:
    """The steps are about its order, unless that is right, its broker, and its workers alone."""
    write(tmp_path, **{name: f"{PLAIN}{code}"})
    said = init(name).stdout

    asks_for_order = 'set app.extensions["celery"] to it before mail.init_app(app)' in said
    assert asks_for_order is not is_in_order
    assert "broker_url from MAILER_REDIS_URL" in said
    assert "Restart the workers of that Celery app" in said
    assert "Start a worker" not in said


def test_an_app_that_can_not_be_made_here(init: Init, tmp_path: Path) -> None:
    """A factory that fails, as without a variable of production, stops no file."""
    write(tmp_path, shop11=FACTORY.replace("app = Flask(name)", "raise KeyError('X')"))
    result = init("shop11")

    assert result.exit_code == 0
    assert "create_app() failed here" in result.stderr
    assert "KeyError: 'X'" in result.stderr
    assert "If the app has no Mailer yet" in result.stdout
    assert (tmp_path / "worker.py").exists()


@pytest.mark.parametrize(
    ("modules", "app", "words"),
    [
        ({}, None, "neither wsgi.py nor app.py in this folder. Name the app, as in: flask --app"),
        ({}, "nowhere", "nowhere can't be imported: No module named 'nowhere'. Call this command"),
        ({"bad1": "1 / 0"}, "bad1", "ZeroDivisionError: division by zero. Correct that first"),
        ({"bad2": "x = 1"}, "bad2", "The module bad2 has no Flask app. Name the one to use"),
        (
            {"bad3": f"{PLAIN.replace('app', 'a')}b = Flask('b')"},
            "bad3",
            "bad3 has several Flask apps: a, b.",
        ),
        ({"bad4": "x = 1"}, "bad4:x", "'x' in the module bad4 is neither a Flask app nor a"),
        ({"bad5": PLAIN}, "bad5:app.x", "'app.x' is neither a name nor a call"),
        ({"bad-6": PLAIN}, "bad-6", "no name that `import` takes. Rename the file, for example to"),
        (
            {"bad7": "from bad7b import x", "bad7b": "from bad7 import y"},
            "bad7",
            "Two modules import each other. Make the objects that both need",
        ),
        ({"sub/bad9": PLAIN}, "sub/bad9", "could not import bad9, which is in"),
    ],
)
def test_a_project_that_can_not_be_used(
    init: Init, tmp_path: Path, modules: dict[str, str], app: str | None, words: str
) -> None:
    """The error says what is wrong and what to do, and nothing is written."""
    (tmp_path / "sub").mkdir()
    write(tmp_path, **modules)

    assert words in refusal(init(app), tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_an_app_that_imports_its_worker(init: Init, tmp_path: Path, *, exists: bool) -> None:
    """The error says that only the worker imports the application, and how to do without."""
    write(tmp_path, shop8b="from mail_worker import celery")
    if exists:
        write(tmp_path, mail_worker="from shop8b import app")
    said = refusal(init("shop8b", "--worker", "mail_worker"), tmp_path)

    assert "The application must not import mail_worker.py" in said
    assert 'current_app.extensions["celery"]' in said


def test_a_name_for_the_worker(init: Init, tmp_path: Path) -> None:
    """`--worker` names another module, everywhere. It has to be one that can be imported."""
    write(tmp_path, shop12=FACTORY)
    result = init("shop12", "--worker", "mail_worker")

    assert result.exit_code == 0
    assert "celery -A mail_worker worker" in result.stdout
    assert services(tmp_path)["worker"]["command"][2] == "mail_worker"
    assert (tmp_path / "mail_worker.py").exists()
    (tmp_path / "mails").mkdir()
    for name in ("my-worker", "class", "celery", "mailer", "json", "mails"):
        assert init("shop12", "--worker", name).exit_code == 2
        assert not (tmp_path / f"{name}.py").exists()
    assert "celery.py would hide the package" in init("shop12", "--worker", "celery").stderr


@pytest.mark.parametrize("command", ["queue", "migrate", "inbox", "relays", "list"])
def test_other_commands_say_how_to_set_up_mailer(command: str) -> None:
    """In an app without Mailer, a command names the lines to add, and `flask mail init`."""
    info = ScriptInfo(create_app=lambda: Flask("shop"))
    result = CliRunner().invoke(mail_group, [command], obj=info)

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The app 'shop' has no Mailer. Where it is made, write")
    assert "flask mail init" in result.stderr


@pytest.mark.parametrize(
    ("url", "options", "variable", "advice"),
    [
        ("sqlite:///{folder}/shop.db", [], "sqlite:////srv", "is not on the volume `instance`"),
        ("sqlite://", [], "sqlite:////srv", "is not on the volume `instance`"),
        ("sqlite:///shop.db", [], None, None),
        ("sqlite:///{folder}/instance/shop.db", [], None, None),
        ("postgresql://db/shop", [], None, None),
        ("postgresql://me:secret@db/shop", ["--postgres"], "postgresql://app@", "hold no mail"),
        ("sqlite:///shop.db", ["--postgres"], "postgresql://app@", "would hold no mail"),
    ],
)
def test_an_app_that_chooses_the_database_itself(
    init: Init,
    tmp_path: Path,
    url: str,
    options: list[str],
    variable: str | None,
    advice: str | None,
) -> None:
    """app.config comes before the variable of the stack: a step says so if mail would be lost."""
    chosen = f'app.config["MAILER_DATABASE_URL"] = "{url.format(folder=tmp_path)}"\n'
    write(tmp_path, shop20=PLAIN + chosen)
    result = init("shop20", *options)
    given = services(tmp_path)["web"]["environment"].get("MAILER_DATABASE_URL")

    assert result.exit_code == 0, result.output
    assert (given or "").startswith(variable or "")
    assert (given is None) is (variable is None)
    assert ("app.config sets MAILER_DATABASE_URL to" in result.stdout) is (advice is not None)
    assert (advice or "") in result.stdout
    assert "secret" not in result.stdout
    extras = "postgres,web" if "postgres" in (given or url) else "web"
    assert f"flask-mailer-queue[{extras}]" in (tmp_path / "Dockerfile").read_text()


def test_a_database_of_the_environment(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that takes the variable takes that of the stack in the containers."""
    monkeypatch.setenv("MAILER_DATABASE_URL", f"sqlite:///{tmp_path}/shop.db")
    code = 'app.config["MAILER_DATABASE_URL"] = os.environ["MAILER_DATABASE_URL"]\n'
    write(tmp_path, shop21=f"import os\n{PLAIN}{code}")
    result = init("shop21")

    assert "app.config sets" not in result.stdout
    assert services(tmp_path)["web"]["environment"]["MAILER_DATABASE_URL"].startswith("sqlite:////")


# --- the files ----------------------------------------------------------------------------------


def test_nothing_is_overwritten(init: Init, tmp_path: Path) -> None:
    """An existing file stays as it is, and the text for it is shown."""
    write(tmp_path, shop13=FACTORY, worker="# mine\n")
    (tmp_path / "compose.yaml").write_text("# mine\n")
    (tmp_path / ".env").symlink_to(tmp_path / "nowhere")
    result = init("shop13")

    assert result.exit_code == 0
    assert (tmp_path / "worker.py").read_text() == "# mine\n"
    assert (tmp_path / "compose.yaml").read_text() == "# mine\n"
    assert not (tmp_path / "docker-compose.yml").exists()
    assert not (tmp_path / "nowhere").exists()
    assert result.stdout.count("exists, and stays as it is. The text for it is:") == 3
    assert '    celery = create_app().extensions["celery"]\n' in result.stdout
    assert "    #MAIL_SERVER=smtp.example.com\n" in result.stdout
    assert "Dockerfile          written" in result.stdout


def test_a_second_call_changes_nothing(init: Init, tmp_path: Path) -> None:
    """A second call leaves each file as the first one wrote it."""
    write(tmp_path, shop14=FACTORY)
    init("shop14", "--postgres")
    files = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert init("shop14", "--postgres").exit_code == 0

    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == files
    assert {file.name for file in files} == {"shop14.py", *WRITTEN}


def test_a_dry_run_writes_nothing(init: Init, tmp_path: Path) -> None:
    """`--dry-run` shows each file, and what .gitignore would get."""
    write(tmp_path, shop15=FACTORY)
    result = init("shop15", "--dry-run")

    # To load an app with Mailer makes its instance folder.
    written = {file.name for file in tmp_path.iterdir()} - {"__pycache__", "instance"}
    assert written == {"shop15.py"}
    assert result.stdout.count("would be written:") == 5
    assert ".gitignore          would get .env and instance/" in result.stdout
    assert result.stdout.endswith("Nothing is written.\n")


def test_secrets_are_kept_out_of_git_and_the_image(init: Init, tmp_path: Path) -> None:
    """.env is for its owner only, and is added to .gitignore, which keeps its lines."""
    write(tmp_path, shop16=FACTORY)
    (tmp_path / ".gitignore").write_text("/instance\nnode_modules")
    assert ".gitignore          got .env\n" in init("shop16").stdout

    assert (tmp_path / ".gitignore").read_text() == "/instance\nnode_modules\n.env\n"
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert ".env" in (tmp_path / ".dockerignore").read_text().splitlines()


def test_files_of_ignored_names_that_exist(init: Init, tmp_path: Path) -> None:
    """A .dockerignore gets the lines that it lacks as well. Neither file needs to be UTF-8."""
    write(tmp_path, shop19=FACTORY)
    (tmp_path / ".gitignore").write_bytes(b"# R\xe9glages\n!.env\n.env\ninstance")
    (tmp_path / ".dockerignore").write_bytes(b"node_modules # \xff\n.env\n!.env\n")
    result = init("shop19")

    assert result.exit_code == 0
    assert ".dockerignore       got .env and instance/\n" in result.stdout
    assert (tmp_path / ".gitignore").read_bytes() == b"# R\xe9glages\n!.env\n.env\ninstance"
    assert (tmp_path / ".dockerignore").read_bytes() == (
        b"node_modules # \xff\n.env\n!.env\n.env\ninstance/\n"
    )
    assert ".dockerignore" not in init("shop19").stdout


def test_a_file_that_can_not_be_written(init: Init, tmp_path: Path) -> None:
    """The error names the file and the reason, with no traceback."""
    write(tmp_path, shop17=FACTORY)
    name = "x" * 300  # longer than a file system allows, for root as well
    result = init("shop17", "--worker", name)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}/{name}.py can't be written: File name too")
    assert "--dry-run" in result.stderr


# --- Docker -------------------------------------------------------------------------------------


KINDS = ["sqlite", "postgres", "own"]


def make_stack(init: Init, folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the services of a compose file for a kind of database."""
    own = 'app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql://db/shop"\n'
    name = f"shop_with_{kind}"
    write(folder, **{name: PLAIN + own * (kind == "own")})
    result = init(name, *["--postgres"] * (kind == "postgres"))
    assert result.exit_code == 0, result.output
    return services(folder)


@pytest.fixture(params=KINDS)
def stack(init: Init, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return make_stack(init, tmp_path, request.param)


def test_the_stacks_fit_the_specification(init: Init, tmp_path: Path) -> None:
    """The compose files are valid against the published schema of Compose.

    The mail is in a PostgreSQL of the stack, in that of the application, or in SQLite.
    """
    databases, files = {}, []
    for kind in KINDS:
        stack = make_stack(init, tmp_path, kind)
        databases[kind] = stack["worker"]["environment"].get("MAILER_DATABASE_URL", "")[:8]
        files.append((tmp_path / "docker-compose.yml").rename(tmp_path / f"{kind}.yml"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.compose-spec", *map(str, files)]
    check = subprocess.run(command, capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout + check.stderr
    assert databases == {"sqlite": "sqlite:/", "postgres": "postgres", "own": ""}


def test_the_stack_delivers_safely(stack: dict[str, Any]) -> None:
    """The tables are made first, Redis forgets no ring, and a worker may finish its mail.

    Nothing can be reached from other machines, and no mail leaves before a relay is named.
    """
    defaults = Settings.load({}, {}, default_database_url="sqlite://")
    grace = re.fullmatch(r"(\d+)m", stack["worker"]["stop_grace_period"])

    assert stack["migrate"]["command"] == ["flask", "mail", "migrate"]
    for name in ("web", "worker"):
        assert stack[name]["depends_on"]["migrate"] == {
            "condition": "service_completed_successfully"
        }
        assert stack[name]["environment"]["MAIL_SERVER"] == "${MAIL_SERVER:-mailpit}"
        assert "MAIL_PORT" not in stack[name]["environment"]  # a named relay has its own
    assert stack["mailpit"]["environment"]["MP_SMTP_BIND_ADDR"].endswith(f":{defaults.mail_port}")
    assert stack["worker"]["init"] is True
    assert grace is not None
    assert int(grace[1]) * 60 > defaults.longest_try
    assert "noeviction" in stack["redis"]["command"]
    ports = [port for service in stack.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_stack_reads_what_env_explains(stack: dict[str, Any], tmp_path: Path) -> None:
    """Each variable of the compose file is in .env, and each in .env is read by something."""
    compose = (tmp_path / "docker-compose.yml").read_text()
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", compose))
    explained = set(re.findall(r"^#?([A-Z_]+)=", (tmp_path / ".env").read_text(), re.MULTILINE))

    assert asked <= explained
    assert explained <= keys().keys() | asked
    assert ("POSTGRES_PASSWORD" in explained) == ("postgres" in stack)


def test_a_dollar_in_an_argument_of_the_factory(init: Init, tmp_path: Path) -> None:
    """Compose would replace "$HOME", so it gets "$$HOME". A Dockerfile replaces nothing in CMD."""
    write(tmp_path, shop22=FACTORY)
    init('shop22:create_app("$HOME")')

    flask_app = services(tmp_path)["web"]["environment"]["FLASK_APP"]
    assert flask_app == 'shop22:create_app("$$HOME")'
    assert r"create_app(\"$HOME\")" in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("requirements.txt", "RUN pip install --no-cache-dir -r requirements.txt 'flask-mailer"),
        ("pyproject.toml", "RUN pip install --no-cache-dir . 'flask-mailer-queue[web]'"),
        ("nothing.txt", "# Add the other packages that the application imports"),
    ],
)
def test_the_image_has_the_packages_of_the_app(
    init: Init, tmp_path: Path, file: str, line: str
) -> None:
    """The image installs what requirements.txt or pyproject.toml lists, and runs as a user."""
    write(tmp_path, shop19=FACTORY)
    (tmp_path / file).write_text("")
    init("shop19")
    dockerfile = (tmp_path / "Dockerfile").read_text()

    assert line in dockerfile
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE)
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in dockerfile


@pytest.mark.parametrize("has_mailer", [False, True])
def test_an_own_group_of_the_application(tmp_path: Path, *, has_mailer: bool) -> None:
    """The commands of an application's own group `mail` are called beside those of Mailer."""
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(TESTING=True, MAIL_DEFAULT_SENDER="shop@example.com")
    app.cli.group("mail")(lambda: None).command("send-digest")(lambda: print("Sent."))
    if has_mailer:
        Mailer(app)
    info = ScriptInfo(create_app=lambda: app)

    done = CliRunner().invoke(mail_group, ["send-digest"], obj=info)
    listed = CliRunner().invoke(mail_group, ["--help"], obj=info)

    assert done.output == "Sent.\n"
    assert {"send-digest", "migrate-code", "queue"} <= set(listed.output.split())
    if has_mailer:
        close(app)
