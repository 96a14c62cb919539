"""`flask mail …`: what it prints, how it exits, and what it moves."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import create_engine

from mailer import Status, send_email
from mailer.message import Lane
from mailer.policy import Quota, TenantRules
from mailer.schema import REVISION, version
from mailer.store.workers import Worker
from tests.mails import LATER, NOW, a_message, bring, claim, insert, mark, record, table
from tests.services.databases import sqlite_only
from tests.services.sink import Sink
from tests.shop import OpenShop, rows, store_of

PROJECT = Path(__file__).parents[2]

Flasks = Callable[..., Result]


@pytest.fixture
def flask_mail(shop: Flask) -> Flasks:
    """Return a function that runs `flask mail …` in this process."""
    return lambda *arguments: run_in(shop, *arguments)


def run_in(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=["mail", *arguments])


def failure(result: Result) -> str:
    """Return the error that a failed command prints, which must be no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.stderr


# --- queue and status ---------------------------------------------------------------------------


def test_an_empty_queue(flask_mail: Flasks) -> None:
    """An empty queue is reported in words, not by silence, and with its database."""
    said, place = flask_mail("queue").output.splitlines()

    assert said == "No mail yet."
    assert re.fullmatch(r"Mail is kept in (sqlite|postgresql).+ \(MAILER_DATABASE_URL\)\.", place)


def test_the_queue(shop: Flask, flask_mail: Flasks) -> None:
    """The queue has a line for each lane and state, urgent lanes first, with the first due time."""
    store = store_of(shop)
    bring(store, Status.SENT, lane=Lane.CRITICAL)
    insert(store, "ada@example.com", "bob@example.com", lane=Lane.BULK, due_at=LATER)
    insert(store, lane=Lane.BULK)
    result = flask_mail("queue")

    *lines, _place = result.output.splitlines()

    assert result.exit_code == 0
    assert [line.split() for line in lines] == [
        "critical sent 1".split(),
        "bulk queued 3 the first due at 2027-01-15 08:00:00 UTC".split(),
    ]


ALL_LANES = "critical,normal,bulk"


def test_the_queue_says_which_lanes_are_served(shop: Flask, flask_mail: Flasks) -> None:
    """`queue` shows the lanes of a dedicated worker, and warns of mail in a lane without one."""
    store, now = store_of(shop), time.time()
    insert(store, due_at=now - 1)
    one = Worker(
        id="1", machine="web", pid=7, version="1", lanes="critical,bulk", started_at=0, seen_at=now
    )
    store.beat(one)

    assert re.match(
        r"1 worker seen, the last \d+ s ago: web pid 7 \(critical, bulk\)\n"
        r"1 mail is due in the lane normal, which no worker serves ",
        flask_mail("queue").output,
    )


def test_the_queue_says_who_delivers(shop: Flask, flask_mail: Flasks) -> None:
    """`queue` shows the workers and the last delivery, or warns that no worker is there."""
    store, now = store_of(shop), time.time()
    insert(store, due_at=now - 1)
    assert flask_mail("queue").output.startswith(
        "1 mail is due and no worker has ever been seen.\n"
    )

    one = Worker(
        id="1", machine="host", pid=7, version="1", lanes=ALL_LANES, started_at=now, seen_at=now
    )
    store.beat(one)
    assert re.match(
        r"1 worker seen, the last \d+ s ago: host pid 7\nnormal ", flask_mail("queue").output
    )

    store.beat(replace(one, delivered_at=1_800_000_000.0))
    store.beat(replace(one, id="2", pid=8, delivered_at=1_700_000_000.0))
    assert (
        flask_mail("queue").output.splitlines()[1]
        == "Last delivery at 2027-01-15 08:00:00 UTC by host pid 7"
    )


def test_the_queue_says_who_is_silent(shop: Flask, flask_mail: Flasks) -> None:
    """A worker that was killed is shown for a minute, with the time of its silence."""
    store, now = store_of(shop), time.time()
    one = Worker(id="", machine="web", pid=0, version="1", lanes=ALL_LANES, started_at=0, seen_at=0)
    for silent in (70, 40, 5):
        store.beat(replace(one, id=f"{silent}", pid=silent, seen_at=now - silent))

    assert re.match(
        r"2 workers seen, the last \d s ago: web pid 5, web pid 40 \(silent for 4\d s\)\n",
        flask_mail("queue").output,
    )


def test_the_status_of_a_mail(shop: Flask, flask_mail: Flasks) -> None:
    """The status has a line for each recipient with the relay's reply, and each failed attempt."""
    store = store_of(shop)
    mail_id = insert(store, "ada@example.com", "bob@example.com")
    ada, bob = claim(store)
    mark(store, ada, bob)
    record(store, ada, to=Status.QUEUED, reply="450 4.2.1 mailbox busy")
    record(store, bob, to=Status.SENT, reply="250 2.0.0 queued as 7")
    result = flask_mail("status", mail_id)
    head, line_of_ada, trial, line_of_bob = result.output.splitlines()

    assert result.exit_code == 0
    assert head == f"{mail_id}  2027-01-15 08:00:00 UTC  Welcome"
    assert line_of_ada.startswith("  ada@example.com  queued  2027-01-16 08:00:00 UTC  attempts 1")
    assert trial == (
        "    2027-01-15 08:00:00 UTC  deferred at dot, relay.example.com: 450 4.2.1 mailbox busy"
    )
    assert line_of_bob == (
        "  bob@example.com  sent  2027-01-15 08:00:00 UTC  attempts 1"
        "  relay.example.com: 250 2.0.0 queued as 7"
    )


def test_the_status_tells_no_next_try_in_the_past(shop: Flask, flask_mail: Flasks) -> None:
    """The status shows no attempt in the past, but mail as due now or being tried now."""
    store = store_of(shop)
    waits = insert(store, "ada@example.com", due_at=LATER)
    due = insert(store, "ada@example.com", due_at=time.time() - 60)
    assert "queued  2027-01-16 08:00:00 UTC  attempts 0" in flask_mail("status", waits).output
    assert "queued  due now  attempts 0" in flask_mail("status", due).output

    [delivery] = claim(store)
    assert "claimed  being tried now  attempts 1" in flask_mail("status", due).output
    mark(store, delivery)
    assert "transmitting  being tried now  attempts 1" in flask_mail("status", due).output


# --- cancel, retry, resolve ---------------------------------------------------------------------


DECISIONS = [
    (Status.QUEUED, ["cancel"], Status.CANCELLED),
    (Status.FAILED, ["retry"], Status.QUEUED),
    (Status.DOUBTFUL, ["retry"], Status.QUEUED),
    (Status.DOUBTFUL, ["resolve", "sent"], Status.SENT),
    (Status.DOUBTFUL, ["resolve", "failed"], Status.FAILED),
]


def test_a_person_moves_a_mail(shop: Flask, flask_mail: Flasks) -> None:
    """Each command moves deliveries along the state chart and prints how many moved."""
    for state, [name, *verdict], to in DECISIONS:
        delivery = bring(store_of(shop), state)
        result = flask_mail(name, delivery.mail_id, *verdict)

        assert (result.exit_code, result.output) == (0, f"1 moved to {to}.\n")
        assert table(store_of(shop))[delivery.id]["status"] == to
        # Finish it, so that the next command does not meet it.
        store_of(shop).settle_if_resting(delivery.mail_id, Status.CANCELLED, now=LATER)


def test_only_what_can_be_moved_is(shop: Flask, flask_mail: Flasks) -> None:
    """`cancel` moves only the deliveries that wait; those already sent stay sent."""
    store = store_of(shop)
    mail_id = insert(store, "ada@example.com", "bob@example.com", "eve@example.com")
    [first] = claim(store, most=1)
    mark(store, first)
    record(store, first, to=Status.SENT)

    assert flask_mail("cancel", mail_id).output == "2 moved to cancelled.\n"
    assert sorted(row["status"] for row in table(store).values()) == [
        "cancelled",
        "cancelled",
        "sent",
    ]


@sqlite_only
def test_nothing_to_move_is_a_failure(shop: Flask, flask_mail: Flasks) -> None:
    """A command that moves nothing fails, for scripts, and prints why, for people."""
    sent = bring(store_of(shop), Status.SENT).mail_id
    claimed = bring(store_of(shop), Status.CLAIMED).mail_id

    for arguments, to, state in [
        (["cancel", sent], "cancelled", "sent"),
        (["retry", sent], "queued", "sent"),
        (["resolve", sent, "failed"], "failed", "sent"),
        (["cancel", claimed], "cancelled", "claimed"),
    ]:
        assert (
            failure(flask_mail(*arguments))
            == f"Error: Nothing was moved to {to}: the deliveries of this mail are {state}.\n"
        )


@sqlite_only
def test_an_unknown_id(flask_mail: Flasks) -> None:
    """The error for an unknown id names both reasons: never queued here, or purged."""
    for arguments in (
        ["status", "nope"],
        ["cancel", "nope"],
        ["retry", "nope"],
        ["resolve", "nope", "sent"],
    ):
        assert failure(flask_mail(*arguments)) == (
            "Error: No mail has the id 'nope': it was never queued here, or it has been purged.\n"
        )


@sqlite_only
def test_a_wrong_call(flask_mail: Flasks) -> None:
    """A wrong call exits with 2 and prints the arguments that are allowed."""
    unknown_verdict, no_id = flask_mail("resolve", "nope", "lost"), flask_mail("status")

    assert (unknown_verdict.exit_code, no_id.exit_code) == (2, 2)
    assert "'lost' is not one of 'sent', 'failed'" in unknown_verdict.stderr
    assert "Missing argument 'MAIL_ID'" in no_id.stderr


@sqlite_only
def test_every_command_is_explained(flask_mail: Flasks) -> None:
    """`flask mail --help` explains every command."""
    lines = flask_mail("--help").output.partition("Commands:\n")[2].splitlines()

    assert [line.split()[0] for line in lines] == (
        "bulk cancel due inbox init list migrate migrate-code pause queue relays"
        " reschedule resolve resume retry status tenants".split()
    )
    assert all(len(line.split()) > 3 for line in lines)


# --- pauses -------------------------------------------------------------------------------------


def test_everything_is_paused_and_resumed(shop: Flask, flask_mail: Flasks) -> None:
    """`pause` and `resume` print their effect; `queue` and `due` show a pause meanwhile."""
    store = store_of(shop)
    bring(store, Status.CLAIMED)
    insert(store)
    paused = flask_mail("pause", "--reason", "restored from a backup").output
    assert paused == "Everything is paused. 1 are in the hands of workers, and may still go out.\n"
    assert flask_mail("queue").output.startswith("Everything is paused since ")
    assert ": restored from a backup\n" in flask_mail("due").output
    assert claim(store) == []

    assert [flask_mail("resume").output for _ in range(2)] == [
        "The pause of everything is over.\n",
        "Nothing is paused as a whole.\n",
    ]
    assert len(claim(store)) == 1


def test_a_lane_is_paused_and_resumed(shop: Flask, flask_mail: Flasks) -> None:
    """Pausing a lane affects no other, and counts no mail of other lanes in workers' hands."""
    bring(store_of(shop), Status.CLAIMED)
    assert flask_mail("pause", "--lane", "bulk").output == "The lane bulk is paused.\n"
    assert store_of(shop).list_pauses().keys() == {Lane.BULK}
    assert flask_mail("resume", "--lane", "bulk").output == "The pause of the lane bulk is over.\n"
    assert store_of(shop).list_pauses() == {}


def test_tenants(shop: Flask, flask_mail: Flasks) -> None:
    """`tenants` counts the mail of each tenant, and shows how much of its quotas is used."""
    assert flask_mail("tenants").output == "No mail of a tenant is waiting.\n"
    for tenant in ("acme", "acme", "acme", "other"):
        insert(store_of(shop), tenant=tenant, message=a_message(created_at=NOW))
    store_of(shop)._rules = TenantRules(quotas={"acme": (Quota(2, 86_400),)})
    insert(store_of(shop), tenant="acme", message=a_message(created_at=NOW))

    acme, other = flask_mail("tenants").output.splitlines()

    assert acme.startswith(
        "acme                                  3 queued        1 held  0 of 2 until"
    )
    assert acme.endswith(" 00:00:00 UTC")
    assert other == "other                                 1 queued        0 held  no quota"


def test_what_would_go_out(shop: Flask, flask_mail: Flasks) -> None:
    """`due` counts mail by lane, age and domain, and lists the first without secret subjects."""
    assert flask_mail("due").output == "Nothing would go out.\n"
    old = insert(store_of(shop), "ada@example.com", due_at=NOW - 60)
    secret = insert(
        store_of(shop),
        "bob@example.org",
        due_at=NOW,
        message=a_message(sensitive=True),
        lane=Lane.BULK,
    )

    assert flask_mail("due").output.splitlines() == [
        (
            "normal    queued                1  due from 2027-01-15 07:59:00 UTC to 2027-01-15"
            " 07:59:00 UTC"
        ),
        (
            "bulk      queued                1  due from 2027-01-15 08:00:00 UTC to 2027-01-15"
            " 08:00:00 UTC"
        ),
        "",
        "Due for:",
        "not due yet                     2",
        "",
        "Domains with the most:",
        "example.com                     1",
        "example.org                     1",
        "",
        "The first:",
        f"{old}  normal  2027-01-15 07:59:00 UTC  ada@example.com  Welcome",
        f"{secret}  bulk  2027-01-15 08:00:00 UTC  bob@example.org  (sensitive)",
    ]


def test_what_was_due_is_cancelled(shop: Flask, flask_mail: Flasks) -> None:
    """`cancel --due-before` cancels due mail, also of one lane; mail in doubt is not resent."""
    store = store_of(shop)
    bring(store, Status.DOUBTFUL)
    insert(store, "ada@example.com", "bob@example.com", due_at=NOW - 60)
    insert(store, due_at=NOW - 60, lane=Lane.BULK)
    insert(store, due_at=NOW + 60)

    assert (
        flask_mail("cancel", "--due-before", "2027-01-15 08:00", "--lane", "bulk").output
        == "1 cancelled.\n"
    )
    assert flask_mail("cancel", "--due-before", "2027-01-15T09:00:01+01:00").output == (
        "2 cancelled. 1 are in doubt, and are not sent again by themselves.\n"
    )
    assert sorted(row["status"] for row in table(store).values()) == [
        *["cancelled"] * 3,
        "doubtful",
        "queued",
    ]


@sqlite_only
def test_one_mail_or_many(flask_mail: Flasks) -> None:
    """`cancel` takes either an id or a valid time, never both and never neither."""
    for arguments in ([], ["mail", "--due-before", "2027-01-15"]):
        result = flask_mail("cancel", *arguments)
        assert result.exit_code == 2
        assert "Give the id of a mail, or --due-before." in result.stderr
    assert "'yesterday' is no time: give one such as '2026-11-25 10:00' (UTC)." in flask_mail(
        "cancel", "--due-before", "yesterday"
    ).stderr.replace("\n", " ")


def test_what_was_erased_is_not_requeued(shop: Flask, flask_mail: Flasks) -> None:
    """Mail with erased content is not requeued, and the error gives the time of erasure."""
    mail_id = bring(store_of(shop), Status.FAILED, message=a_message(sensitive=True)).mail_id

    assert failure(flask_mail("retry", mail_id)) == (
        "Error: This mail can't be sent again: what it said was erased at 2027-01-15 08:00:00 UTC."
        " Queue it anew.\n"
    )
    head = flask_mail("status", mail_id).output.splitlines()[0]
    assert head == (
        f"{mail_id}  2027-01-15 08:00:00 UTC  (sensitive)"
        "  what it said was erased at 2027-01-15 08:00:00 UTC"
    )


# --- relays -------------------------------------------------------------------------------------

FIRST: dict[str, Any] = {
    "name": "first",
    "MAIL_SERVER": "smtp.example.com",
    "MAIL_PORT": 587,
    "MAIL_PASSWORD": "geheim",
}
SECOND = {
    "name": "second",
    "preference": 1,
    "weight": 2.5,
    "senders": ["example.com"],
    "lanes": ["normal", "bulk"],
}


def test_the_relays(open_shop: OpenShop) -> None:
    """`relays` shows the rules and state of each relay, its last reply and how to fix a fault."""
    shop = open_shop(MAILER_RELAYS=[FIRST, SECOND])
    advice = (
        "535 5.7.8 no MAIL_USERNAME and MAIL_PASSWORD: the relay refuses this login: correct it."
    )
    store_of(shop).pause_relay("first", failures=0, now=NOW, until=0.5, reason="421 closed")
    once = run_in(shop, "relays").output
    store_of(shop).pause_relay("first", failures=1, now=NOW + 10, until=4e9, reason=advice)
    twice = run_in(shop, "relays").output

    assert (
        "  paused since 2027-01-15 08:00:00 UTC, to be tried with the next mail, failed once: 421"
        " closed\n" in once
    )
    assert twice.splitlines() == [
        "first  smtp.example.com:587  all mail; preference 0; weight 1",
        (
            "  paused since 2027-01-15 08:00:00 UTC, until 2096-10-02 07:06:40 UTC, failed 2 times:"
            f" {advice}"
        ),
        "second  127.0.0.1:25  senders example.com; lanes normal, bulk; preference 1; weight 2.5",
        "  open",
    ]
    assert "geheim" not in once + twice


def test_the_only_relay(shop: Flask, flask_mail: Flasks, sink: Sink) -> None:
    """Without MAILER_RELAYS, a relay is named by its host and port."""
    name = f"{sink.host}:{sink.port}"
    assert (
        flask_mail("relays").output == f"{name}  {name}  all mail; preference 0; weight 1\n  open\n"
    )

    store_of(shop).pause_relay(name, failures=0, now=NOW, until=LATER, reason="421 closed")
    assert flask_mail("resume", name).output == f"The pause of {name} is over.\n"
    assert store_of(shop).relay_pauses() == {}


def test_a_pause_is_ended(open_shop: OpenShop) -> None:
    """`resume` ends the pause of one relay only, and succeeds if there is none."""
    shop = open_shop(MAILER_RELAYS=[FIRST, SECOND])
    for name in ("first", "second"):
        store_of(shop).pause_relay(name, failures=0, now=NOW, until=LATER, reason="421 closed")

    for words in ("The pause of first is over.\n", "first is not paused.\n"):
        result = run_in(shop, "resume", "first")
        assert (result.exit_code, result.output) == (0, words)
    assert store_of(shop).relay_pauses().keys() == {"second"}


@sqlite_only
def test_an_unknown_relay(open_shop: OpenShop) -> None:
    """The error for an unknown relay names those that exist."""
    shop = open_shop(MAILER_RELAYS=[FIRST, SECOND])

    assert (
        failure(run_in(shop, "resume", "third"))
        == "Error: No relay is named 'third': there is first, second.\n"
    )


# --- tables -------------------------------------------------------------------------------------


def set_revision(url: str, revision: str) -> None:
    """Set the tables to the revision of another, incompatible version."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(version.update().values(version_num=revision, readable_from=revision))
    engine.dispose()


def test_migrate(open_shop: OpenShop, empty_database_url: str) -> None:
    """`migrate` creates the tables in an empty database; a second run changes nothing."""
    shop = open_shop(MAILER_DATABASE_URL=empty_database_url)

    for _ in range(2):
        result = run_in(shop, "migrate")
        assert (result.exit_code, result.output) == (0, "The tables of Mailer are up to date.\n")
    assert rows(shop) == {}


def test_migrate_keeps_mails(shop: Flask, flask_mail: Flasks) -> None:
    """`migrate` keeps the queued mail."""
    insert(store_of(shop))

    assert flask_mail("migrate").exit_code == 0
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


def test_migrate_to_a_revision(flask_mail: Flasks) -> None:
    """`migrate --to` takes a revision or `base`; an unknown revision changes nothing."""
    assert (
        flask_mail("migrate", "--to", REVISION).output
        == f"The tables of Mailer are at {REVISION}.\n"
    )
    assert failure(flask_mail("migrate", "--to", "nonsense")).startswith(
        f"Error: 'nonsense' is not a revision: give head, base, or a number such as {REVISION}."
    )
    assert flask_mail("migrate", "--to", "base").output == "The tables of Mailer are at base.\n"


def test_tables_of_another_version(open_shop: OpenShop, database_url: str) -> None:
    """With tables of another version, each command names both revisions and the remedy."""
    for revision, remedy in (
        ("0000", "run 'flask mail migrate'"),
        ("9999", "install the newer version"),
    ):
        set_revision(database_url, revision)
        shop = open_shop()

        for arguments in (["queue"], ["status", "nope"], ["cancel", "nope"]):
            error = failure(run_in(shop, *arguments))
            assert error.startswith(f"Error: The tables of Mailer are at {revision}, this version ")
            assert remedy in error


def test_tables_of_a_newer_version_are_not_migrated(open_shop: OpenShop, database_url: str) -> None:
    """Tables of a newer version are refused, as this version has no way back from them."""
    set_revision(database_url, "9999")

    assert "The tables of Mailer are at 9999" in failure(run_in(open_shop(), "migrate"))


def test_a_database_that_is_away(open_shop: OpenShop, database_url: str, tmp_path: Path) -> None:
    """The error for a database that is away names its setting and shows no password."""
    gone = (
        "postgresql://mailer:geheim@127.0.0.1:1/mailer"
        if database_url.startswith("postgresql")
        else f"sqlite:///{tmp_path}"
    )
    shop = open_shop(MAILER_DATABASE_URL=gone)

    for arguments in (["queue"], ["status", "nope"], ["migrate"]):
        error = failure(run_in(shop, *arguments))
        assert error.startswith("Error: The database of Mailer (MAILER_DATABASE_URL)")
        assert "geheim" not in error


# --- real processes -----------------------------------------------------------------------------


def flask(
    config: Mapping[str, str], *arguments: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `flask` as a deployment does, configured by the environment."""
    application = "tests.application:create_app({})"
    command = [sys.executable, "-m", "flask", "--app", application, *arguments]
    environment = {**os.environ, **config}
    return subprocess.run(
        command,
        cwd=PROJECT,
        env=environment,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
def test_a_deployment(config: dict[str, str], empty_database_url: str, open_shop: OpenShop) -> None:
    """`migrate`, a mail queued in `flask shell`, and `status` work in separate processes."""
    config["MAILER_DATABASE_URL"] = empty_database_url

    migrated = flask(config, "mail", "migrate")
    assert (migrated.returncode, migrated.stdout) == (
        0,
        "The tables of Mailer are up to date.\n",
    ), migrated.stderr

    call = "send_email('ada@example.com', 'Hi', 'welcome', name='Ada')"
    shell = flask(config, "shell", typed=f"from mailer import send_email\n{call}.id\n")
    assert shell.returncode == 0, shell.stderr
    [mail_id] = {row["mail_id"] for row in table(store_of(open_shop())).values()}
    assert mail_id in shell.stdout

    looked = flask(config, "mail", "status", mail_id)
    assert looked.returncode == 0
    assert "ada@example.com  queued" in looked.stdout


@sqlite_only
def test_a_failure_of_the_real_command(config: dict[str, str]) -> None:
    """A failing command exits with an error code and prints its message to stderr."""
    unknown = flask(config, "mail", "status", "nope")
    wrong = flask({**config, "MAIL_PORT": "abc"}, "mail", "queue")

    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert (
        unknown.stderr
        == "Error: No mail has the id 'nope': it was never queued here, or it has been purged.\n"
    )
    assert wrong.returncode != 0
    assert "MAIL_PORT='abc': allowed: a whole number from 1 to 65535." in wrong.stderr


@sqlite_only
def test_a_command_of_the_application_sends_mail(shop: Flask) -> None:
    """Any Flask command of the application can queue mail."""

    @shop.cli.command("greet")
    def greet() -> None:
        send_email("ada@example.com", "Hello", "only_text", name="Ada")

    assert shop.test_cli_runner().invoke(args=["greet"]).exit_code == 0
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


# --- a database that is away --------------------------------------------------------------------


@sqlite_only
@pytest.mark.parametrize(
    "command",
    [
        "migrate",
        "queue",
        "status 1",
        "cancel 1",
        "retry 1",
        "resolve 1 sent",
        "relays",
        "resume 127.0.0.1:25",
    ],
)
def test_the_database_is_away(open_shop: OpenShop, command: str) -> None:
    """Each command fails with one line that names the setting and hides the password."""
    app = open_shop(
        MAILER_DATABASE_URL="postgresql://mailer:secret@127.0.0.1:1/mailer",
        MAIL_SERVER="127.0.0.1",
        MAIL_PORT=25,
    )
    said = failure(run_in(app, *command.split()))

    assert said.startswith("Error: The database of Mailer (MAILER_DATABASE_URL) did not do it")
    assert said.count("\n") == 1
    assert "secret" not in said
