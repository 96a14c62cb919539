"""Who can read what Mailer writes: its owner, and no other user of the machine."""

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import URL

from mailer.blackbox import BlackBox, Remains
from mailer.private import make_private_file, make_private_folder
from mailer.smtpd.inbox import Inbox
from mailer.store import Store
from tests.mails import a_message, insert, table
from tests.services.postgres import unprivileged_account
from tests.services.users import as_another_user


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def their_folder() -> Iterator[Path]:
    """The instance folder of another user, which root can write to as well."""
    account = unprivileged_account() or pytest.skip("This needs root.")
    with TemporaryDirectory(prefix="mailer-instance-") as folder:
        os.chown(folder, account["user"], account["group"])
        yield Path(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    """Return what another user can reach below the folder."""
    return [str(path) for path in folder.rglob("*") if mode(path) & 0o077]


def queue_one(file: Path) -> int:
    """Queue a mail in this SQLite file, and return how many it holds."""
    store = Store(f"sqlite:///{file}")
    try:
        insert(store, message=a_message(id=secrets.token_hex(8)))
        return len(table(store))
    finally:
        store.engine.dispose()


def test_a_new_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    """So are its log, its index and the folders that were missing above it."""
    store = Store(f"sqlite:///{tmp_path}/var/mailer/mailer.sqlite3")
    insert(store)

    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"var", "mailer", "mailer.sqlite3", "mailer.sqlite3-wal", "mailer.sqlite3-shm"}
    assert open_to_others(tmp_path) == []
    store.engine.dispose()


def test_a_file_that_is_named_by_a_uri_is_private_too(tmp_path: Path) -> None:
    """SQLite's own way to render a file changes nothing."""
    url = URL.create(
        "sqlite",
        database=f"file://localhost{tmp_path}/my%20mail/mailer.sqlite3",
        query={"uri": "true"},
    )
    store = Store(url.render_as_string())
    insert(store)

    assert open_to_others(tmp_path) == []
    assert mode(tmp_path / "my mail" / "mailer.sqlite3") == 0o600
    store.engine.dispose()


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """Whoever shares the file with a group has set that by hand."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o750)
    file = folder / "mailer.sqlite3"
    file.touch(mode=0o640)

    assert queue_one(file) == 1

    assert (mode(folder), mode(file)) == (0o750, 0o640)


def test_the_inbox_is_private(tmp_path: Path) -> None:
    """What the local SMTP server took may be a one-time code."""
    inbox = Inbox(tmp_path / "instance" / "inbox")
    inbox.add("shop@example.com", ["ada@example.com"], b"Subject: your code\r\n\r\n1111\r\n")

    assert open_to_others(tmp_path) == []


def test_the_black_box_is_private(tmp_path: Path) -> None:
    """It has the words of relays in it, and these have addresses in them."""
    with BlackBox(tmp_path / "instance" / "black-box").box():
        assert len(list(tmp_path.rglob("*"))) == 3
        assert open_to_others(tmp_path) == []


def test_one_command_as_root_locks_out_nobody(their_folder: Path) -> None:
    """`flask mail migrate` as root makes a file that the user of the web application can write to."""
    file = their_folder / "var" / "mailer.sqlite3"
    queue_one(file)

    as_another_user(lambda: assert_equal(queue_one(file), 2))
    assert queue_one(file) == 3


def test_roots_log_of_a_file_belongs_to_the_files_owner(their_folder: Path) -> None:
    """A root process that has the file open keeps nobody from it."""
    file = their_folder / "mailer.sqlite3"
    as_another_user(lambda: assert_equal(queue_one(file), 1))
    store = Store(f"sqlite:///{file}")
    insert(store)  # its log is made by root

    as_another_user(lambda: assert_equal(queue_one(file), 3))
    store.engine.dispose()


def test_boxes_and_mails_of_root_can_be_read_by_the_folders_owner(their_folder: Path) -> None:
    """A worker that ran as root leaves notes that the next one can settle, and an inbox that the page can show."""
    box = BlackBox(their_folder / "black-box")._new()
    box.claiming("token")
    box.close()
    mail_id = Inbox(their_folder / "inbox").add(
        "shop@example.com", ["ada@example.com"], b"Subject: hello\r\n\r\n"
    )

    def look() -> None:
        found: list[str] = []

        def settle(remains: Remains) -> bool:
            found.append(remains.token)
            return True

        BlackBox(their_folder / "black-box").settle_remains(settle)
        assert found == ["token"]
        assert Inbox(their_folder / "inbox").get(mail_id) is not None

    as_another_user(look)
    assert list((their_folder / "black-box").iterdir()) == []


def test_no_link_is_followed_to_what_belongs_to_root(their_folder: Path, tmp_path: Path) -> None:
    """Whoever owns the folder can't have root give away another file."""
    secret = tmp_path / "shadow"
    secret.write_text("root's own")
    (their_folder / "mailer.sqlite3").symlink_to(secret)
    (their_folder / "inbox").symlink_to(tmp_path)

    make_private_file(their_folder / "mailer.sqlite3")
    make_private_folder(their_folder / "inbox")

    assert secret.stat().st_uid == tmp_path.stat().st_uid == 0


def test_a_file_at_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    """It is neither replaced nor taken for a folder; nor is a link to a volume that is not mounted."""
    (tmp_path / "inbox").touch()
    (tmp_path / "black-box").symlink_to(tmp_path / "volume")

    for name in ("inbox", "black-box"):
        with pytest.raises(NotADirectoryError, match=name):
            make_private_folder(tmp_path / name)


def test_many_processes_make_the_same_file(tmp_path: Path) -> None:
    """Who comes second takes what the first one made."""
    children = []
    file, start = tmp_path / "var" / "mailer.sqlite3", time.time() + 0.2
    for _ in range(4):
        if not (child := os.fork()):
            code = 1
            try:
                while time.time() < start:
                    pass
                queue_one(file)
                code = 0
            finally:
                os._exit(code)
        children.append(child)

    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    with closing(Store(f"sqlite:///{file}").engine.connect()):
        assert mode(file) == 0o600


def assert_equal(left: object, right: object) -> None:
    assert left == right
