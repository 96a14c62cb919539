"""The bench runs. No test asserts a speed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.services import requirement
from tests.services.worker import PROJECT


def test_the_quick_mode_ends_in_a_table_and_in_json(tmp_path: Path) -> None:
    """Both have every requested figure, with its bounds."""
    figures, printed = _run(
        tmp_path,
        only="delivery,queueing",
        contenders="ours-sqlite,flask-mail,celery-flask-mail,smtp-source",
    )

    for key in ("ours-sqlite", "flask-mail", "celery-flask-mail", "smtp-source"):
        assert figures[f"delivered.{key}"]["value"] > 0, figures[f"delivered.{key}"]["why_none"]
        assert figures[f"delivered.{key}"]["title"] in printed
    assert figures["delivered.celery-flask-mail"]["bound"]["at_least"] == 15
    assert figures["queueing.render.ours-sqlite"]["value"] > 0
    assert figures["queueing.raw.ours-sqlite"]["value"] > 0
    assert _bound(figures["queueing.enqueue-to-raw.sqlite"]) == (2, 1.5)
    assert (tmp_path / "latest.txt").read_text() == printed
    assert (tmp_path / "chart.svg").exists()


def test_bulk_sends_are_measured(tmp_path: Path) -> None:
    """The import, its memory and the delivery have figures, each with its bounds."""
    figures, _printed = _run(tmp_path, only="bulk,personal", contenders="ours-sqlite")

    for key, bound in (
        ("bulk.import.sqlite", (0.35, 0.6)),
        ("bulk.memory.sqlite", (1.2, 1)),
        ("personal.bulk.sqlite", (0.6, 0.85)),
    ):
        assert figures[key]["value"] > 0, figures[key]["why_none"]
        assert _bound(figures[key]) == bound


@pytest.mark.parametrize("contender", ["ours-sqlite", "celery-flask-mail"])
def test_mailings_are_measured(tmp_path: Path, contender: str) -> None:
    """Each way to send the same personalised mail to many has a figure."""
    figures, _printed = _run(tmp_path, only="recipients", contenders=contender)

    assert figures
    for figure in figures.values():
        assert figure["value"] > 0, figure["why_none"]


def test_calls_beside_a_busy_worker_are_measured(tmp_path: Path) -> None:
    """Both ways to queue have a figure, with its bounds."""
    figures, _printed = _run(tmp_path, only="busy", contenders="ours-sqlite")

    for method in ("enqueue", "send_email"):
        figure = figures[f"busy.{method}.ours-sqlite"]
        assert figure["value"] > 0, figure["why_none"]
        assert _bound(figure) == (3, 2)


def _run(folder: Path, *, only: str, contenders: str) -> tuple[dict[str, Any], str]:
    """Return the figures by their keys, and the printed table."""
    requirement.require(
        "Postfix (smtp-sink)", requirement.find_program("smtp-sink", also_in=[Path("/usr/sbin")])
    )
    command = [sys.executable, "-m", "bench", "--quick", "--mails", "40", "--out", str(folder)]
    command += ["--only", only, "--contenders", contenders]
    printed = subprocess.run(
        command, cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    run = json.loads((folder / "latest.json").read_text())
    figures = {
        figure["key"]: figure for section in run["sections"] for figure in section["figures"]
    }
    return figures, printed


def _bound(figure: dict[str, Any]) -> tuple[float, float]:
    """Return limit and goal of a figure whose ratio has them."""
    assert figure["ratio"] > 0
    assert figure["bound"]["of_ratio"]
    return figure["bound"]["at_least"], figure["bound"]["aim"]
