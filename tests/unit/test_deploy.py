"""The rules that the files in `deploy/` follow."""

import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mailer.settings import Settings, keys

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
#: The API of each kind.
KINDS = {
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "PodDisruptionBudget": "policy/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "Service": "v1",
    "TriggerAuthentication": "keda.sh/v1alpha1",
}
#: The slowest delivery that the default time-outs allow, which a stop has to wait for.
SLOWEST = Settings.load({}, {}, default_database_url="sqlite:///x").longest_delivery


def objects(*kinds: str) -> dict[str, dict[str, Any]]:
    """Return the objects of these kinds, or all, by name and kind."""
    return {
        f"{found.get('metadata', {}).get('name')} {found['kind']}": found
        for path in KUBERNETES
        for found in YAML(typ="safe").load_all(path.read_text(encoding="utf-8"))
        if not kinds or found["kind"] in kinds
    }


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield each pod with its name and its only container."""
    for name, found in objects("Deployment", "Job").items():
        spec = found["spec"]["template"]["spec"]
        [container] = spec["containers"]
        yield name, spec, container


def test_each_object_has_the_api_of_its_kind() -> None:
    """Each object has a known kind, its API, and a name, which is unique for the kind."""
    found = [
        one
        for path in KUBERNETES
        for one in YAML(typ="safe").load_all(path.read_text(encoding="utf-8"))
    ]

    assert {one["kind"]: one["apiVersion"] for one in found} == KINDS
    assert len(objects()) == len(found)


def test_selectors_find_their_pods() -> None:
    """Services, budgets and deployments select the labels of a pod that is there."""
    labels = [
        found["spec"]["template"]["metadata"]["labels"] for found in objects("Deployment").values()
    ]
    for found in objects("Deployment", "PodDisruptionBudget").values():
        assert found["spec"]["selector"]["matchLabels"] in labels
    for found in objects("Service").values():
        assert found["spec"]["selector"] in labels


def test_kustomize_lists_what_stays() -> None:
    """The kustomization has all files but that of the Job, which comes before them."""
    [kustomization] = objects("Kustomization").values()
    files = {path.name for path in KUBERNETES} - {"kustomization.yaml", "migrate.yaml"}

    assert set(kustomization["resources"]) == files


def test_settings_are_settings() -> None:
    """Each key of the ConfigMap is a setting, and all together are accepted."""
    [found] = objects("ConfigMap").values()

    assert found["data"].keys() <= keys().keys()
    assert all(isinstance(value, str) for value in found["data"].values())
    settings = Settings.load({}, found["data"], default_database_url="sqlite:///x")
    assert settings.relay_concurrency == 100


def test_pods_are_confined_and_write_only_to_volumes() -> None:
    """No pod runs as root, gains rights, has a token, or writes outside its volumes."""
    for name, spec, container in pods():
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["automountServiceAccountToken"] is False, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }, name
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}, name


def test_a_worker_that_stops_waits_for_the_slowest_relay() -> None:
    """A worker gets more time to stop than any relay can take, in Kubernetes and in systemd."""
    [spec] = [spec for name, spec, _container in pods() if name.startswith("mailer-worker")]
    assert spec["terminationGracePeriodSeconds"] > SLOWEST
    assert spec["shareProcessNamespace"], "Celery would be process 1, which ignores SIGTERM"

    unit = (DEPLOY / "systemd" / "mailer-worker@.service").read_text(encoding="utf-8")
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) > SLOWEST
    assert "KillMode=mixed" in unit


def test_no_probe_ends_workers_while_a_service_is_down() -> None:
    """A worker has no probe: one by way of the broker would end all workers when that is down."""
    [worker] = [container for name, _spec, container in pods() if name.startswith("mailer-worker")]

    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & worker.keys()


def test_the_scaler_scales_the_workers() -> None:
    """The ScaledObject names the deployment of the workers, which has no number of its own."""
    [scaled] = objects("ScaledObject").values()
    worker = objects("Deployment")[f"{scaled['spec']['scaleTargetRef']['name']} Deployment"]
    [trigger] = scaled["spec"]["triggers"]

    assert "replicas" not in worker["spec"]
    assert f"{trigger['authenticationRef']['name']} TriggerAuthentication" in objects()
    assert trigger["type"] == "postgresql"
    assert trigger["metadata"].keys() == {
        "host", "port", "userName", "dbName", "sslmode", "targetQueryValue", "query"
    }  # fmt: skip
    assert all(isinstance(value, str) for value in trigger["metadata"].values())


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").iterdir()), ids=lambda path: path.name)
def test_units_have_their_sections(unit: Path) -> None:
    """A unit has the three sections, and starts a command of the virtual environment."""
    sections = re.findall(r"^\[(\w+)\]$", unit.read_text(encoding="utf-8"), re.MULTILINE)

    assert sections == ["Unit", "Service", "Install"]
    assert "\nExecStart=/srv/shop/.venv/bin/" in unit.read_text(encoding="utf-8")


def test_pgbouncer_pools_transactions() -> None:
    """PgBouncer shares sessions between transactions, which MAILER_PGBOUNCER allows."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(DEPLOY / "pgbouncer" / "pgbouncer.ini")

    assert settings["pgbouncer"]["pool_mode"] == "transaction"
