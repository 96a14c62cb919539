"""The rules that `docker-compose.yml`, `.env.example` and `Dockerfile` follow."""

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

#: The variables that the compose file takes from the environment: ${KEY}, ${KEY:-default},
#: ${KEY:?message}. One with $$ is for a shell in a container.
ASKED: dict[str, str] = dict(re.findall(r"\$\{([A-Z_]+)(?::?-([^}]*)|:\?[^}]*)?\}", COMPOSE))
#: The variables that .env.example explains: KEY=value, or #KEY=value.
EXPLAINED = {
    key: value.strip("'")
    for key, value in re.findall(r"^#?([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE)
}
#: Variables that gunicorn, libpq or an image reads, with their defaults.
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
    """The compose file is valid against its published schema."""
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
    """A worker has time to finish its mail when it is stopped, so that none is left in doubt."""
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > default_settings().longest_try


def test_only_the_main_process_of_a_worker_gets_the_signal() -> None:
    """The stop signal reaches the worker's main process, with no shell in between."""
    worker = SERVICES["worker"]

    assert worker["init"] is True
    assert worker["command"][:4] == ["celery", "-A", "worker", "worker"]


def test_redis_never_throws_away_what_it_was_told() -> None:
    """Redis evicts nothing and keeps an append-only file, so that it loses no rings."""
    command = words(SERVICES["redis"]["command"])

    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_runs_for_long_is_watched_and_comes_back(name: str) -> None:
    """Each long-running service has a health check and restarts after a crash."""
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["web", "worker"])
def test_nobody_uses_the_tables_before_they_are_up_to_date(name: str) -> None:
    """Web and worker start only after `flask mail migrate` has succeeded."""
    assert words(SERVICES["migrate"]["command"]) == "flask --app app mail migrate"
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES[name]["depends_on"]["migrate"] == {
        "condition": "service_completed_successfully"
    }


@pytest.mark.parametrize("name", sorted(name for name in SERVICES if "ports" in SERVICES[name]))
def test_other_machines_reach_nothing(name: str) -> None:
    """Ports are published on 127.0.0.1 only."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_every_variable_means_something() -> None:
    """Each variable is one that Mailer, app.py or an image reads."""
    set_for_services = {
        key for service in SERVICES.values() for key in service.get("environment", {})
    }

    assert set_for_services <= keys().keys() | DEFAULTS.keys() | OF_OTHERS.keys()
    assert EXPLAINED.keys() <= keys().keys() | DEFAULTS.keys() | OF_OTHERS.keys() | ASKED.keys()


def test_every_variable_is_explained() -> None:
    """Each variable that the compose file uses is in .env.example."""
    assert ASKED.keys() <= EXPLAINED.keys()


@pytest.mark.parametrize("key", sorted(EXPLAINED))
def test_the_example_shows_what_holds_without_it(key: str) -> None:
    """.env.example shows the default of each variable."""
    settings = {name: getattr(default_settings(), field) for name, field in keys().items()}
    default = ({**settings, **OF_OTHERS, **DEFAULTS, **ASKED})[key]

    assert EXPLAINED[key].lower() == ("" if default is None else str(default).lower())


def test_the_image_does_not_run_as_root() -> None:
    """The image's user is a number other than 0, for orchestrators that refuse root."""
    users = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)

    assert users
    assert int(users[-1]) > 0
