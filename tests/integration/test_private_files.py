"""The files that Mailer writes are private to their owner."""

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
from mailer.clock import SystemClock
from mailer.disk import SystemDisk
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
    """Yield the instance folder of another user, to which root can write as well."""
    account = unprivileged_account() or pytest.skip("This needs root.")
    with TemporaryDirectory(prefix="mailer-instance-") as folder:
        os.chown(folder, account["user"], account["group"])
        yield Path(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    """Return the files below the folder that another user can reach."""
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
    """A new SQLite file, its log and the folders made for it are private to their owner."""
    store = Store(f"sqlite:///{tmp_path}/var/mailer/mailer.sqlite3")
    insert(store)

    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"var", "mailer", "mailer.sqlite3", "mailer.sqlite3-wal", "mailer.sqlite3-shm"}
    assert open_to_others(tmp_path) == []
    store.engine.dispose()


def test_a_file_that_is_named_by_a_uri_is_private_too(tmp_path: Path) -> None:
    """A SQLite file that is given as a `file:` URI is private as well."""
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
    """An existing file or folder keeps its mode, since a person may share it with a group."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o750)
    file = folder / "mailer.sqlite3"
    file.touch(mode=0o640)

    assert queue_one(file) == 1

    assert (mode(folder), mode(file)) == (0o750, 0o640)


def test_the_inbox_is_private(tmp_path: Path) -> None:
    """The inbox is private, since a mail in it may hold a one-time code."""
    inbox = Inbox(tmp_path / "instance" / "inbox")
    inbox.add("shop@example.com", ["ada@example.com"], b"Subject: your code\r\n\r\n1111\r\n")

    assert open_to_others(tmp_path) == []


def test_the_black_box_is_private(tmp_path: Path) -> None:
    """The black box is private, since replies of relays in it contain addresses."""
    with BlackBox(tmp_path / "instance" / "black-box", SystemDisk(), SystemClock()).box():
        assert len(list(tmp_path.rglob("*"))) == 3
        assert open_to_others(tmp_path) == []


def test_one_command_as_root_locks_out_nobody(their_folder: Path) -> None:
    """A file that root made in a user's folder stays writable for that user."""
    file = their_folder / "var" / "mailer.sqlite3"
    queue_one(file)

    as_another_user(lambda: assert_equal(queue_one(file), 2))
    assert queue_one(file) == 3


def test_roots_log_of_a_file_belongs_to_the_files_owner(their_folder: Path) -> None:
    """A SQLite log that root made belongs to the owner of the database file."""
    file = their_folder / "mailer.sqlite3"
    as_another_user(lambda: assert_equal(queue_one(file), 1))
    store = Store(f"sqlite:///{file}")
    insert(store)  # its log is made by root

    as_another_user(lambda: assert_equal(queue_one(file), 3))
    store.engine.dispose()


def test_boxes_and_mails_of_root_can_be_read_by_the_folders_owner(their_folder: Path) -> None:
    """Black boxes and inbox mails that root wrote can be read by the owner of the folder."""
    box = BlackBox(their_folder / "black-box", SystemDisk(), SystemClock())._new()
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

        BlackBox(their_folder / "black-box", SystemDisk(), SystemClock()).settle_remains(settle)
        assert found == ["token"]
        assert Inbox(their_folder / "inbox").get(mail_id) is not None

    as_another_user(look)
    assert list((their_folder / "black-box").iterdir()) == []


def test_no_link_is_followed_to_what_belongs_to_root(their_folder: Path, tmp_path: Path) -> None:
    """A symbolic link never makes root change the owner of the file it points to."""
    secret = tmp_path / "shadow"
    secret.write_text("root's own")
    (their_folder / "mailer.sqlite3").symlink_to(secret)
    (their_folder / "inbox").symlink_to(tmp_path)

    make_private_file(their_folder / "mailer.sqlite3")
    make_private_folder(their_folder / "inbox")

    assert secret.stat().st_uid == tmp_path.stat().st_uid == 0


def test_a_file_at_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    """A file or a dangling link in the place of a folder is an error, and is not replaced."""
    (tmp_path / "inbox").touch()
    (tmp_path / "black-box").symlink_to(tmp_path / "volume")

    for name in ("inbox", "black-box"):
        with pytest.raises(NotADirectoryError, match=name):
            make_private_folder(tmp_path / name)


def test_many_processes_make_the_same_file(tmp_path: Path) -> None:
    """Processes that create the same file at the same moment all succeed."""
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
