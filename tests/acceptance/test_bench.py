"""The bench runs. No test asserts a speed."""

import json
import subprocess
import sys
from pathlib import Path

from tests.services import requirement
from tests.services.worker import PROJECT


def test_the_quick_mode_ends_in_a_table_and_in_json(tmp_path: Path) -> None:
    """Both have every requested figure, with its bounds."""
    requirement.require(
        "Postfix (smtp-sink)", requirement.find_program("smtp-sink", also_in=[Path("/usr/sbin")])
    )
    command = [
        sys.executable,
        "-m",
        "bench",
        "--quick",
        "--mails",
        "40",
        "--only",
        "delivery,queueing,bulk",
        "--out",
        str(tmp_path),
    ]
    command += ["--contenders", "ours-sqlite,flask-mail,celery-flask-mail,smtp-source"]
    printed = subprocess.run(
        command, cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout

    run = json.loads((tmp_path / "latest.json").read_text())
    figures = {
        figure["key"]: figure for section in run["sections"] for figure in section["figures"]
    }
    for key in ("ours-sqlite", "flask-mail", "celery-flask-mail", "smtp-source"):
        assert figures[f"delivered.{key}"]["value"] > 0, figures[f"delivered.{key}"]["why_none"]
        assert figures[f"delivered.{key}"]["title"] in printed
    assert figures["delivered.celery-flask-mail"]["bound"]["at_least"] == 15
    assert figures["queueing.render.ours-sqlite"]["value"] > 0
    assert figures["bulk.import.sqlite"]["value"] > 0, figures["bulk.import.sqlite"]["why_none"]
    assert figures["bulk.import.sqlite"]["bound"]["at_least"] == 0.35
    assert (tmp_path / "latest.txt").read_text() == printed
    assert (tmp_path / "chart.svg").exists()
