"""The example of the README runs as it is printed."""

import re
from pathlib import Path

from tests.services.project import Project
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT

_FILE = re.compile(r"```\w+\n(?:# |\{# )(?P<name>\S+?)(?: #\})?\n(?P<text>.*?)```", re.DOTALL)


def test_the_ten_lines_deliver_a_mail(
    installed_python: Path, redis_url: str, sink: Sink, tmp_path: Path
) -> None:
    """The files of the README, in an empty folder and with an installed package, deliver a mail."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    files = {match["name"]: match["text"] for match in _FILE.finditer(readme)}
    assert set(files) == {"app.py", "worker.py", "templates/mail/order.txt"}
    assert re.search(r"`celery -A worker\s+worker`", readme)

    shop = Project(
        tmp_path, installed_python, {"MAILER_REDIS_URL": redis_url, "MAIL_PORT": str(sink.port)}
    )
    shop.write(files)
    request = "from app import app; print(app.test_client().post('/orders').json['mail'])"
    with shop.worker():
        mail_id = shop.output("-c", request).strip()
        [received] = sink.wait_for(1)
        wait_until(lambda: "  sent  " in shop.output("-m", "flask", "mail", "status", mail_id))

    assert received.recipients == ("ada@example.com",)
    assert "Your order has the number 42." in received.raw.decode()
    assert "Shop" in str(received.parsed["From"])
