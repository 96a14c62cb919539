"""The rules that `docker-compose.yml`, `.env.example` and `Dockerfile` keep."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from app import DEFAULTS
from mailer.settings import Settings, keys

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

SERVICES: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
LONG_RUNNING = sorted(SERVICES.keys() - {"migrate"})

#: What the compose file asks the environment for: ${KEY}, ${KEY:-default}, ${KEY:?message}; with $$
#: a shell in a container does.
ASKED: dict[str, str] = dict(re.findall(r"\$\{([A-Z_]+)(?::?-([^}]*)|:\?[^}]*)?\}", COMPOSE))
#: What .env.example explains: KEY=value, or #KEY=value.
EXPLAINED = {
    key: value.strip("'")
    for key, value in re.findall(r"^#?([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE)
}
#: What neither Mailer nor app.py reads, but gunicorn, libpq or an image does.
OF_OTHERS = {
    "FORWARDED_ALLOW_IPS": "127.0.0.1,::1",
    "LANG": "",
    "MP_MAX_MESSAGES": "",
    "PGPASSWORD": "",
    "POSTGRES_DB": "",
    "POSTGRES_PASSWORD": "",
    "POSTGRES_USER": "",
    "WEB_CONCURRENCY": "1",
}


def default_settings() -> Settings:
    return Settings.load({}, {}, default_database_url="sqlite://")


def seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def words(command: list[str]) -> str:
    return " ".join(command)


def test_it_fits_the_specification_of_compose() -> None:
    """Docker is not needed to see that."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yml",
    ]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout + check.stderr


def test_a_worker_has_the_time_to_finish_its_mail() -> None:
    """A worker that is killed while it waits for the relay's reply leaves a mail in doubt."""
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > default_settings().longest_try


def test_only_the_main_process_of_a_worker_gets_the_signal() -> None:
    """No shell is in between that would keep it, and docker-init passes it on to its only child."""
    worker = SERVICES["worker"]

    assert worker["init"] is True
    assert worker["command"][:4] == ["celery", "-A", "worker", "worker"]


def test_redis_never_throws_away_what_it_was_told() -> None:
    """An eviction policy could take the list of calls itself; the append-only file brings it back after a restart."""
    command = words(SERVICES["redis"]["command"])

    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_runs_for_long_is_watched_and_comes_back(name: str) -> None:
    """One can see whether it works, and a crash or a reboot does not end it."""
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["web", "worker"])
def test_nobody_uses_the_tables_before_they_are_up_to_date(name: str) -> None:
    """They wait for `flask mail migrate`, which ends."""
    assert words(SERVICES["migrate"]["command"]) == "flask --app app mail migrate"
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES[name]["depends_on"]["migrate"] == {
        "condition": "service_completed_successfully"
    }


@pytest.mark.parametrize("name", sorted(name for name in SERVICES if "ports" in SERVICES[name]))
def test_other_machines_reach_nothing(name: str) -> None:
    """Whoever opens a port to the world does so on purpose."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_every_variable_means_something() -> None:
    """A key that nobody reads, one that is misspelt, would be ignored without a word."""
    set_for_services = {
        key for service in SERVICES.values() for key in service.get("environment", {})
    }

    assert set_for_services <= keys().keys() | DEFAULTS.keys() | OF_OTHERS.keys()
    assert EXPLAINED.keys() <= keys().keys() | DEFAULTS.keys() | OF_OTHERS.keys() | ASKED.keys()


def test_every_variable_is_explained() -> None:
    """What the compose file asks for is in .env.example."""
    assert ASKED.keys() <= EXPLAINED.keys()


@pytest.mark.parametrize("key", sorted(EXPLAINED))
def test_the_example_shows_what_holds_without_it(key: str) -> None:
    """The compose file's default comes first, then app.py's and Mailer's."""
    settings = {name: getattr(default_settings(), field) for name, field in keys().items()}
    default = ({**settings, **OF_OTHERS, **DEFAULTS, **ASKED})[key]

    assert EXPLAINED[key].lower() == ("" if default is None else str(default).lower())


def test_the_image_does_not_run_as_root() -> None:
    """The last word is a number: orchestrators that refuse root can't look up a name."""
    users = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)

    assert users
    assert int(users[-1]) > 0
