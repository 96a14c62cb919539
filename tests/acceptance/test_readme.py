"""The example of the README runs as it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.services.databases import sqlite_only
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, READY

_FILE = re.compile(r"```\w+\n(?:# |\{# )(?P<name>\S+?)(?: #\})?\n(?P<text>.*?)```", re.DOTALL)


@sqlite_only
def test_the_ten_lines_deliver_a_mail(config: dict[str, str], sink: Sink, tmp_path: Path) -> None:
    """The files of the README queue a mail in a request and deliver it."""
    for match in _FILE.finditer((PROJECT / "README.md").read_text()):
        file = tmp_path / match["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(match["text"])
    assert {file.name for file in tmp_path.rglob("*.*")} == {"app.py", "worker.py", "order.txt"}

    del config["MAIL_SERVER"], config["MAIL_DEFAULT_SENDER"]  # as the README has its own
    environment = {**os.environ, **config, "PYTHONPATH": str(PROJECT)}
    request = "from app import app; print(app.test_client().post('/orders').json['mail'])"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker",
        "worker",
        "--pool",
        "threads",
        "--loglevel",
        "INFO",
    ]
    log = tmp_path / "worker.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output
        ) as worker,
    ):
        try:
            wait_until(lambda: READY in log.read_text(), timeout=30)
            subprocess.run(
                [sys.executable, "-c", request],
                cwd=tmp_path,
                env=environment,
                check=True,
                timeout=60,
            )
            [received] = sink.wait_for(1)
        finally:
            worker.terminate()

    assert received.recipients == ("ada@example.com",)
    assert "Your order has the number 42." in received.raw.decode()
    assert "Shop" in str(received.parsed["From"])
