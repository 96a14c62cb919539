"""`flask mail bulk`: the files that it reads, what it prints, and what it moves."""

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import Result
from flask import Flask

from mailer import BulkState, Calendar, Mailer, Status
from mailer.errors import InvalidMail
from mailer.intake.bulk_files import FileLines, read_csv, read_ndjson
from mailer.intake.bulk_rows import UnreadableRow
from mailer.message import Delivery
from mailer.store import Importer, Store
from tests.mails import TOKEN, claim, record
from tests.shop import close, create_shop, rows, store_of

TEMPLATES = {"mail/news.txt": "Hello {{ name }}!"}
OPTIONS = ("--template", "mail/news", "--subject", "News for {{ name }}")
LATER = ("--send-at", "2099-01-01 10:00")
WAITS = "running: it waits for its time, until 2099-01-01 10:00:00 UTC"
MUCH_LATER = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
TWO = "email,name\nada@example.com,Ada\nbob@example.com,Bob\n"

Run = Callable[..., Result]


@pytest.fixture
def app() -> Iterator[Flask]:
    app = create_shop(
        {
            "TESTING": True,
            "MAILER_DATABASE_URL": "sqlite://",
            "MAIL_DEFAULT_SENDER": "shop@example.com",
            "MAILER_MAX_SIZE": 10_000,
        },
        TEMPLATES,
    )
    yield app
    close(app)


@pytest.fixture
def run(app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs `flask mail bulk …` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, input: str | bytes | None = None) -> Result:  # noqa: A002 -- click's
        return app.test_cli_runner().invoke(args=["mail", "bulk", *arguments], input=input)

    return run


@pytest.fixture
def send(run: Run, tmp_path: Path) -> Run:
    """Return `send(content, *options, name="send.csv")`, which sends to those in a file."""

    def send(content: str | bytes, *options: str, name: str = "send.csv") -> Result:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return run(name, *OPTIONS, *options)

    return send


def id_in(result: Result) -> str:
    found = re.search(r"^Bulk send (\w+)", result.stdout, re.MULTILINE)
    assert found, result.output
    return found[1]


def refusal(result: Result) -> str:
    """Return the error of a command, which must be no traceback."""
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr


def addresses(app: Flask, bulk_id: str) -> list[str]:
    with app.app_context():
        return [one.address for one in Mailer().bulk(bulk_id).recipients()]


# --- send -----------------------------------------------------------------------------------------


def test_a_file_is_sent(app: Flask, send: Run) -> None:
    """`flask mail bulk FILE` sends a mail to each row, and prints the id and the numbers."""
    sent = send(TWO)

    assert sent.exit_code == 0
    bulk_id = id_in(sent)
    assert sent.stdout == (
        f"Bulk send {bulk_id}: 2 accepted, 0 duplicates, 0 refused.\n"
        f"Its progress: flask mail bulk status --watch {bulk_id}\n"
    )
    assert addresses(app, bulk_id) == ["ada@example.com", "bob@example.com"]


def test_the_same_with_the_command(run: Run, tmp_path: Path) -> None:
    """`send` may be written, so that a file may be named like a command."""
    (tmp_path / "list").write_text(TWO)

    assert id_in(run("send", "list", *OPTIONS))
    assert id_in(run("./list", *OPTIONS))
    assert "2 recipients" in run("list").output


def test_stdin(run: Run) -> None:
    """A dash is stdin, and its format is CSV unless another one is given."""
    assert "2 accepted" in run("-", *OPTIONS, input=TWO).stdout
    line = json.dumps({"email": "ada@example.com", "name": "Ada"})
    assert "1 accepted" in run("-", "--format", "ndjson", *OPTIONS, input=line).stdout


def test_options_may_come_first(send: Run, run: Run, app: Flask) -> None:
    """An option before the file is no command."""
    store_of(app).check_schema()
    before = rows(app)
    send(TWO, "--dry-run")

    result = run("--dry-run", "send.csv", *OPTIONS)

    assert result.exit_code == 0
    assert "2 recipients would be accepted" in result.stdout
    assert rows(app) == before


def test_a_misspelled_command_is_no_file(run: Run) -> None:
    """A word that is neither a command nor a file is refused, with the command that it is like."""
    assert "'statsu' is neither a file nor a command. Did you mean status?" in refusal(
        run("statsu")
    )


def test_refused_rows_are_shown(send: Run) -> None:
    """The first ten refused rows are printed with their reasons, and the command for all."""
    sent = send("email,name\n" + "bad,B\n" * 12 + "ada@example.com,Ada\n" * 2)

    assert "1 accepted, 1 duplicates, 12 refused." in sent.stdout
    shown = re.findall(r"^  row (\d+)  bad  recipient: 'bad' is not", sent.stdout, re.MULTILINE)
    assert shown == [str(row) for row in range(1, 11)]
    assert f"flask mail bulk errors {id_in(sent)}" in sent.stdout


def test_abort(app: Flask, send: Run) -> None:
    """With --on-error abort, the first row that can't be used ends the command."""
    assert "row 1 (bad): recipient: 'bad'" in refusal(
        send("email,name\nbad,B\n", "--on-error", "abort")
    )
    with app.app_context():
        [bulk] = Mailer().bulks()
        assert bulk.progress().state is BulkState.CANCELLED


def test_the_options_are_those_of_the_mail(app: Flask, send: Run) -> None:
    """Lane, times, headers, tags and addresses are passed on."""
    bulk_id = id_in(
        send(
            "email\nada@example.com\n",
            *("--shared", '{"name": "you"}'),
            *("--lane", "normal", *LATER, "--expires-at", "2099-01-02 10:00"),
            *("--sender", "News <news@example.com>", "--reply-to", "help@example.com"),
            *("--header", "List-Id: news.example.com", "--tag", "news", "--tag", "november"),
        )
    )

    store = store_of(app)
    message = store.load_messages([bulk_id])[bulk_id]
    bulk = store.load_bulk(bulk_id)
    assert message.sender.email == "news@example.com"
    assert [one.email for one in message.reply_to] == ["help@example.com"]
    assert message.headers[0] == ("List-Id", "news.example.com")
    assert message.tags == ("news", "november")
    assert bulk.lane.name == "NORMAL"
    assert bulk.starts_at == 4070944800


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--shared", "{", "it is no JSON"),
        ("--shared", "[]", "give a JSON object"),
        ("--header", "List-Id", "'List-Id': write the name, a colon, and the value."),
        ("--send-at", "soon", "'soon' is no time"),
    ],
)
def test_an_option_that_can_not_be_used(send: Run, option: str, value: str, words: str) -> None:
    """The error names the option and the remedy."""
    error = refusal(send(TWO, option, value))

    assert words in error
    assert option in error


def test_a_key_goes_on_after_an_error(app: Flask, send: Run) -> None:
    """With a key, the command that was interrupted goes on, and each recipient is stored once."""
    many = "email,name\n" + "".join(f"u{n}@example.com,U{n}\n" for n in range(1500))
    key = ("--idempotency-key", "news", *LATER)

    first = send(many + 'x@example.com,"X', *key)
    assert "line 1502: a quote" in refusal(first)
    assert "Interrupted after 1,500 rows. Call the same command again" in first.stderr

    second = send(many + "x@example.com,X\n", *key)
    assert "1,501 accepted, 0 duplicates, 0 refused." in second.stdout
    assert id_in(send(many + "x@example.com,X\n", *key)) == id_in(second)
    assert len(addresses(app, id_in(second))) == 1501


def test_without_a_key_an_error_cancels(app: Flask, send: Run) -> None:
    """Without a key, nothing is sent after an error in the middle, and the output says so."""
    first = send('email,name\nada@example.com,Ada\nbob@example.com,"Bob')

    assert "Nothing is sent. With --idempotency-key NAME" in first.stderr
    with app.app_context():
        [bulk] = Mailer().bulks()
        assert bulk.progress().state is BulkState.CANCELLED


def test_another_file_with_the_same_key(send: Run) -> None:
    """Another file with the key of a send is refused, and not told to be an interruption."""
    send(TWO, "--idempotency-key", "news")
    error = refusal(send("email,name\neve@example.com,Eve\n", "--idempotency-key", "news"))

    assert "other recipients" in error
    assert "Interrupted" not in error


def test_a_call_that_waits_says_so(app: Flask, send: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A call waits until an importer that was killed has been silent long enough, and says so."""
    key = ("--idempotency-key", "news", *LATER)
    send(TWO + 'eve@example.com,"Eve', *key)
    store, now = store_of(app), time.time()
    [bulk] = store.load_bulks(most=1)
    assert store.take_import(bulk.id, Importer("killed", now + 0.3), now=now)

    sent = send(TWO + "eve@example.com,Eve\n", *key)

    assert "3 accepted" in sent.stdout
    assert caplog.text.count("this call waits: bulk=") == 1


def test_a_long_file_tells_its_progress(send: Run) -> None:
    """Without a terminal, a line is printed after each ten thousand rows, not into the output."""
    sent = send("email,name\n" + "bad,B\n" * 20_001, "--dry-run")

    assert sent.stderr == "10,000 rows\n20,000 rows\n"


def test_a_terminal_has_a_bar(send: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, a bar shows the part of the file that is read, to its end."""
    told = list[int]()
    bar = click.progressbar

    def recorded(*args: Any, **options: Any) -> Any:
        found = bar(*args, **options)
        update = found.update

        def note(steps: int) -> None:
            told.append(steps)
            update(steps)

        found.update = note  # type: ignore[assignment]
        return found

    monkeypatch.setattr("mailer.cli.bulk_file.is_terminal", lambda: True)
    monkeypatch.setattr("mailer.cli.bulk_file.click.progressbar", recorded)
    content = "email,name\n" + "bad,B\n" * 1200
    send(content, "--dry-run")

    assert len(told) == 3
    assert sum(told) == len(content)


# --- the rehearsal --------------------------------------------------------------------------------


def test_a_rehearsal(send: Run) -> None:
    """A rehearsal prints the counts, the errors, three mails, the sizes and the time."""
    shown = send(TWO + "bad,B\nada@example.com,A\n", "--dry-run").stdout

    assert shown.startswith(
        "Nothing is stored or sent. 2 recipients would be accepted, 1 rows are duplicates, 1"
        " refused, and 0 mails can't be rendered.\n  row 3  bad  recipient: 'bad' is not"
    )
    assert "--- row 1, ada@example.com: " in shown
    assert "\nSubject: News for Ada\n--- text\nHello Ada!\n" in shown
    assert re.search(r"A mail has \d+ bytes \(median\), the largest \d+, all \d+\.", shown)
    assert re.search(r"The delivery takes about 1 second: one process of this machine", shown)


def test_a_rehearsal_obeys_no_mail(send: Run) -> None:
    """Control characters of a mail do not reach the terminal."""
    shown = send("email,name\nada@example.com,\x1b[31mAda\x07\n", "--dry-run").stdout

    assert "\x1b" not in shown
    assert "\x07" not in shown


# --- progress and decisions -----------------------------------------------------------------------


def test_the_list(send: Run, run: Run) -> None:
    """The list has the newest sends first, page by page, with their subjects."""
    assert run("list").output == "No bulk send.\n"
    first, second = id_in(send(TWO)), id_in(send(TWO, *LATER))

    assert run("list").output.splitlines() == [
        f"{second}  running  2 recipients, 0 sent  News for {{{{ name }}}}",
        f"{first}  finished  2 recipients, 2 sent  News for {{{{ name }}}}",
    ]
    assert run("list", "--limit", "1").output.splitlines()[1] == f"More: --before {second}"
    assert run("list", "--before", second).output.startswith(first)


def test_each_database(database_url: str, tmp_path: Path) -> None:
    """A send, its list, errors and recipients are the same on SQLite and PostgreSQL."""
    config = {"MAILER_DATABASE_URL": database_url, "MAIL_DEFAULT_SENDER": "shop@example.com"}
    app = create_shop({"TESTING": True, **config}, TEMPLATES)
    file = tmp_path / "send.csv"
    file.write_text(TWO + "bad,B\n")

    def run(*words: str) -> Result:
        return app.test_cli_runner().invoke(args=["mail", "bulk", *words])

    bulk_id = id_in(run(str(file), *OPTIONS))

    assert "finished  2 recipients, 2 sent  News for" in run("list").output
    assert "100% done: 2 sent" in run("status", bulk_id[:12]).output
    assert run("errors", bulk_id).output.splitlines()[1].startswith("3,bad,")
    assert len(run("recipients", bulk_id, "--state", "sent").output.splitlines()) == 3
    close(app)


def test_the_status(send: Run, run: Run) -> None:
    """The status has the state, the recipients by state and the rows."""
    bulk_id = id_in(send(TWO + "bad,B\nada@example.com,A\n", *LATER))

    assert run("status", bulk_id).output.splitlines() == [
        f"{bulk_id}  News for {{{{ name }}}}",
        WAITS,
        "2 recipients, 0% done: 2 held",
        "4 rows: 1 duplicates, 1 refused",
    ]


def test_the_status_of_a_finished_send(send: Run, run: Run) -> None:
    """The beginning of an id is enough, and the rate is shown."""
    lines = run("status", "--watch", id_in(send(TWO))[:12]).output.splitlines()

    assert lines[1:4] == [
        "finished",
        "2 recipients, 100% done: 2 sent",
        "2 rows: 0 duplicates, 0 refused",
    ]


def test_watching_ends_with_the_send(
    app: Flask, send: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--watch looks once a second, prints what has changed, and ends when the send is over."""
    bulk_id, looks = id_in(send(TWO, *LATER)), list[float]()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            with app.app_context():
                Mailer().bulk(bulk_id).cancel("a mistake")

    monkeypatch.setattr("mailer.cli.bulk.time", SimpleNamespace(sleep=sleep))
    shown = run("status", "--watch", bulk_id).output

    assert looks == [1, 1, 1]
    assert shown.count(f"{WAITS}\n") == 1
    assert "cancelled: a mistake\n" in shown


def test_watching_on_a_terminal(app: Flask, send: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, each look replaces the lines of the one before."""
    bulk_id = id_in(send(TWO, *LATER))

    def sleep(_seconds: float) -> None:
        with app.app_context():
            Mailer().bulk(bulk_id).cancel()

    monkeypatch.setattr("mailer.cli.bulk.time", SimpleNamespace(sleep=sleep))
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("mailer.cli.bulk.sys", SimpleNamespace(stdout=terminal))
    words = ["mail", "bulk", "status", "--watch", bulk_id]
    shown = app.test_cli_runner().invoke(args=words, color=True).output

    before, after = shown.split("\x1b[3A\x1b[J")  # up three lines, and clear to the end
    assert before.splitlines()[1] == WAITS
    assert len(before.splitlines()) == 1 + 3  # the subject stays
    assert after.startswith("cancelled: by hand\n")


def test_the_decisions(send: Run, run: Run, app: Flask) -> None:
    """pause, resume and cancel change the state, and a second time they fail with the state."""
    bulk_id = id_in(send(TWO, *LATER))

    def state() -> tuple[str, str | None]:
        with app.app_context():
            progress = Mailer().bulk(bulk_id).progress()
            return progress.state.value, progress.reason

    said = run("pause", bulk_id, "--reason", "wrong prices").output
    assert said == f"Bulk send {bulk_id} is paused.\n"
    assert state() == ("paused", "wrong prices")
    assert refusal(run("pause", bulk_id)) == "Error: It can't be paused: it is paused.\n"
    assert run("resume", bulk_id).output == f"Bulk send {bulk_id} is resumed.\n"
    assert state()[0] == "running"
    assert run("cancel", bulk_id).output == f"Bulk send {bulk_id} is cancelled.\n"
    assert state() == ("cancelled", "by hand")
    assert "it is cancelled" in refusal(run("resume", bulk_id))


def test_a_large_send_waits_to_be_confirmed(send: Run, run: Run) -> None:
    """Above the number, the send waits, and the output has the command."""
    assert "confirm" not in send(TWO, "--confirm-above", "2").stdout
    sent = send(TWO, "--confirm-above", "1")
    bulk_id = id_in(sent)

    assert f"flask mail bulk confirm {bulk_id}\n" in sent.stdout
    assert run("status", bulk_id).output.splitlines()[1].startswith("ready: 2 recipients")
    assert run("confirm", bulk_id).output == f"Bulk send {bulk_id} is confirmed.\n"
    assert "it is running" in refusal(run("confirm", bulk_id))


def test_a_send_is_rescheduled(send: Run, run: Run) -> None:
    """`reschedule` moves the begin of a send, and says so if it has begun."""
    bulk_id = id_in(send(TWO, *LATER))
    moved = run("reschedule", bulk_id, "2099-02-01 10:00")
    assert moved.stdout == f"Bulk send {bulk_id} is rescheduled to 2099-02-01 10:00:00 UTC.\n"
    assert (
        "running: it waits for its time, until 2099-02-01 10:00:00 UTC"
        in run("status", bulk_id).stdout
    )

    over = id_in(send(TWO))
    assert "It can't be rescheduled: it has begun" in refusal(run("reschedule", over, "2099-02-01"))


# --- hours ----------------------------------------------------------------------------------------


def test_the_hours_of_a_send(app: Flask, send: Run) -> None:
    """`--days`, `--hours` and `--time-zone` are the calendar, and the file may name other zones."""
    rows = (
        "email,name,time_zone\nada@example.com,Ada,Asia/Tokyo\n"
        "bob@example.com,Bob,\neve@example.com,Eve,Mars/X\n"
    )
    sent = send(
        rows, *LATER, "--days", "mon-fri", "--hours", "09:00-18:00", "--time-zone", "Europe/Berlin"
    )

    assert "2 accepted, 0 duplicates, 1 refused" in sent.stdout
    assert "row 3  eve@example.com  time_zone: 'Mars/X': there is no such time zone" in sent.stdout
    bulk = store_of(app).load_bulk(id_in(sent))
    assert bulk.calendar == Calendar(days="mon-fri", hours="09:00-18:00", time_zone="Europe/Berlin")
    zones = {zone.time_zone for zone in store_of(app).load_bulk_zones(bulk.id)}
    assert zones == {"Asia/Tokyo", "Europe/Berlin"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--days", "mon-fri"], "--days and --hours go with --time-zone"),
        (["--time-zone", "Europe/Berlin"], "--days and --hours go with --time-zone"),
        (["--hours", "9-18", "--time-zone", "Europe/Berlin"], "calendar: hours: '9-18'"),
        (["--hours", "09:00-18:00", "--time-zone", "Berlin"], "calendar: time_zone: 'Berlin'"),
        (["--undo", "-1"], "undo: -1.0: give seconds"),
    ],
)
def test_hours_that_can_not_be_used(send: Run, options: list[str], words: str) -> None:
    """Hours without a zone, or that nobody understands, are refused."""
    assert words in refusal(send(TWO, *options))


def test_the_undo_window_of_a_send(app: Flask, send: Run) -> None:
    """`--undo` is that of `send_bulk()`."""
    bulk = store_of(app).load_bulk(id_in(send(TWO, "--undo", "600")))

    assert bulk.starts_at > time.time() + 500


@pytest.mark.parametrize(
    "verb", ["status", "pause", "resume", "confirm", "cancel", "errors", "recipients"]
)
def test_an_unknown_id(run: Run, app: Flask, verb: str) -> None:
    """An unknown id is an error in words."""
    store_of(app).check_schema()

    assert "'01a220fe15003b'" in refusal(run(verb, "01a220fe15003b"))


def test_failed_and_doubtful_mail(send: Run, run: Run, app: Flask) -> None:
    """`retry` queues failed mail again, `resolve` settles doubtful mail: all of it, or one."""
    bulk_id, store = id_in(send(TWO, *LATER)), store_of(app)
    store.release_held(bulk_id, now=MUCH_LATER, most=2)
    record(store, *mark_all(store), to=Status.FAILED)

    assert run("retry", bulk_id, "--to", "BOB@example.com").output == "1 moved to queued.\n"
    assert run("retry", bulk_id).output == "1 moved to queued.\n"
    record(store, *mark_all(store), to=Status.DOUBTFUL)
    assert run("resolve", bulk_id, "failed", "--to", "ada@example.com").output == (
        "1 moved to failed.\n"
    )
    assert run("resolve", bulk_id, "sent").output == "1 moved to sent.\n"
    assert "has no recipient 'eve@example.com'" in refusal(
        run("retry", bulk_id, "--to", "eve@example.com")
    )


def mark_all(store: Store) -> list[Delivery]:
    """Claim and mark what is due, as a worker does before it sends it."""
    until = MUCH_LATER + 60
    claimed = claim(store, now=MUCH_LATER, lease_until=until)
    ids = [one.id for one in claimed]
    store.mark_if_claimed(ids, token=TOKEN, now=MUCH_LATER, lease_until=until)
    return claimed


def test_no_cell_is_a_formula(send: Run, run: Run) -> None:
    """A cell that a spreadsheet would run has an apostrophe before it."""
    bulk_id = id_in(send("email,name\n=1+1,B\nada@example.com,Ada\n"))

    assert "1,'=1+1," in run("errors", bulk_id).stdout


def test_the_errors(send: Run, run: Run) -> None:
    """The errors are CSV: the refused rows, and the mails that failed."""
    bulk_id = id_in(send('email,name\nbad,B\n"a,b",B\nada@example.com,Ada\n'))

    read = list(csv.reader(io.StringIO(run("errors", bulk_id).stdout)))

    assert read[0] == ["row", "address", "reason"]
    assert [row[:2] for row in read[1:]] == [["1", "bad"], ["2", "a,b"]]


def test_the_recipients(send: Run, run: Run) -> None:
    """The recipients are CSV, all or those in one state."""
    bulk_id = id_in(send(TWO, *LATER))
    two = ["1,ada@example.com,held,", "2,bob@example.com,held,"]

    assert run("recipients", bulk_id).stdout.splitlines() == ["row,address,state,reply", *two]
    assert run("recipients", bulk_id, "--state", "held").stdout.splitlines()[1:] == two
    assert run("recipients", bulk_id, "--state", Status.SENT).stdout.splitlines()[1:] == []


# --- files ----------------------------------------------------------------------------------------


def lines_of(content: bytes | str, longest: int = 1000) -> FileLines:
    data = content if isinstance(content, bytes) else content.encode()
    return FileLines(io.BytesIO(data), "send.csv", longest=longest)


def read(content: bytes | str, longest: int = 1000) -> list[object]:
    return list(read_csv(lines_of(content, longest)))


@pytest.mark.parametrize(
    "content",
    [
        "email,name\nada@example.com,Ada\n",
        "email,name\r\nada@example.com,Ada\r\n",
        "email,name\nada@example.com,Ada",
        "\ufeffemail,name\nada@example.com,Ada\n",
        '\ufeff"email","name"\nada@example.com,Ada\n',
        "\n\nemail , name\n\nada@example.com,Ada\n\n",
        "Email,name\nada@example.com,Ada\n",
        'email,name\n"ada@example.com","Ada"\n',
        "email,name,\nada@example.com,Ada,\n",
    ],
)
def test_csv_that_can_be_read(content: str) -> None:
    """Line breaks, a BOM, spaces in the header and what is empty make no difference."""
    assert read(content) == [{"email": "ada@example.com", "name": "Ada"}]


def test_quoted_fields() -> None:
    """A quoted field may have commas, quotes and line breaks."""
    assert read('email,name\na@example.com,"Ada, ""the first""\r\nof all"\n') == [
        {"email": "a@example.com", "name": 'Ada, "the first"\r\nof all'}
    ]


@pytest.mark.parametrize("column", ["email", "address", "recipient", "RECIPIENT"])
def test_the_column_of_the_address(column: str) -> None:
    """The column of the address has one of three names."""
    assert read(f"name,{column}\nAda,ada@example.com\n") == [
        {"name": "Ada", column.lower(): "ada@example.com"}
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1: the file is empty"),
        ("email,name\nada@example.com,Ad\u00e4\n".encode("latin-1"), "line 2: the byte 0xe4"),
        ("email,name\n".encode("utf-16"), "line 1: the file is in UTF-16"),
        ('email,name\na@example.com,A\n\nb@example.com,"B\nC\n', "line 4: a quote"),
        ('email,name\na@example.com,"A" B\n', "line 2: text follows a closing quote"),
        ("email,name\ra@example.com,A\r", "line 1: it ends with a carriage return alone"),
        ("name,mail\n", "line 1: no column has the name email or address or recipient, but"),
        ("email;name\n", "line 1: the columns are separated by semicolons"),
        ("email\tname\n", "line 1: the columns are separated by tabs"),
        ("email,name,name\n", "line 1: the column 'name' is there twice"),
        ("Email,EMAIL\n", "line 1: the column 'email' is there twice"),
        ("email," + ",".join(f"c{n}" for n in range(1000)), "line 1: the file has 1,001 columns"),
        ("email,name\na@example.com," + "x" * 9000, "line 2: the row has more than 8,000 bytes"),
        (
            'email,name\na@example.com,"' + "x\n" * 4001 + '"\n',
            "line 2: the row has more than 8,000",
        ),
    ],
)
def test_csv_that_can_not_be_read(content: bytes | str, words: str) -> None:
    """An error names the file and the line."""
    with pytest.raises(InvalidMail) as error:
        read(content, 8000)
    assert f"send.csv, {words}" in str(error.value)


def test_a_row_with_other_columns_is_refused_alone() -> None:
    """A row with too few or too many columns is refused, with its line, and the next is read."""
    found = read('email,name\na@example.com\n"b@example.com","B\nb"\nc@example.com,C,D\n')

    assert found == [
        UnreadableRow("line 2 has 1 columns, and the first row has 2.", "a@example.com"),
        {"email": "b@example.com", "name": "B\nb"},
        UnreadableRow("line 5 has 3 columns, and the first row has 2.", "c@example.com"),
    ]


def test_a_header_is_refused_before_anything_is_stored(app: Flask, send: Run) -> None:
    """A file without a column of addresses leaves no bulk send behind."""
    assert "no column has the name" in refusal(send("mail,name\n"))
    store_of(app).check_schema()
    assert "mailer_bulk" not in rows(app)


def test_ndjson() -> None:
    """Each line is an object; a line that is none is refused alone, with its number."""
    content = b'\xef\xbb\xbf{"email": "a@example.com"}\n\n{"email": \n["b@example.com", {}]\r\n'
    deep = b"[" * 100_000

    found = list(read_ndjson(lines_of(content + deep, 200_000)))

    assert found[0] == {"email": "a@example.com"}
    assert found[2] == ["b@example.com", {}]
    assert isinstance(found[1], UnreadableRow)
    assert found[1].reason.startswith("line 3 is no JSON: Expecting value")
    assert found[3] == UnreadableRow("line 5 is no JSON: it is nested too deeply.")


@pytest.mark.parametrize("name", ["send.ndjson", "send.jsonl"])
def test_ndjson_by_its_name(app: Flask, send: Run, name: str) -> None:
    """The ending of the name chooses the format, and lists and dicts reach the templates."""
    line = json.dumps({"email": "ada@example.com", "name": {"first": "Ada"}})
    sent = send(f"{line}\n{{\n", *LATER, name=name)

    assert "1 accepted, 0 duplicates, 1 refused." in sent.stdout
    assert "line 2 is no JSON" in sent.stdout
    assert addresses(app, id_in(sent)) == ["ada@example.com"]


def test_the_bytes_are_counted() -> None:
    """The progress counts the bytes of the file."""
    content = "\ufeffemail,name\nada@example.com,Äda\n".encode()
    lines = lines_of(content)
    list(read_csv(lines))

    assert lines.bytes_read == len(content)


def test_every_command_is_explained(run: Run) -> None:
    """`flask mail bulk --help` explains every command, and says that a file will do."""
    shown = run("--help").output
    lines = shown.partition("Commands:\n")[2].splitlines()

    assert "FILE" in shown.splitlines()[0]
    assert [line.split()[0] for line in lines] == (
        "cancel confirm errors list pause recipients reschedule resolve resume retry send"
        " status".split()
    )
    assert all(len(line.split()) > 3 for line in lines)
