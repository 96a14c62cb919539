"""The pages in a real browser."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from werkzeug.serving import make_server

from devstack.demo import create_app
from mailer.smtpd.inbox import Inbox
from mailer.smtpd.server import InboxServer
from tests.services.databases import sqlite_only
from tests.services.requirement import find_program, require
from tests.services.worker import StartWorker
from tests.shop import close

pytestmark = sqlite_only

# Root has no sandbox; the other options keep the browser from contacting its vendor.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = require("Chromium", find_program("chromium"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*FLAGS, "--disable-sync", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def site(config: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Start web server and inbox. A test whose mail has to arrive starts a worker."""
    inbox = Inbox(tmp_path / "inbox")
    with InboxServer(inbox.add) as smtp:
        config |= {
            "MAIL_PORT": str(smtp.port),
            "MAILER_INBOX_DIR": str(inbox.directory),
            "INSTANCE_PATH": str(tmp_path),
        }
        app = create_app(config)
        web = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.port}"
        web.shutdown()
        thread.join()
        web.server_close()
        close(app)


@pytest.fixture
def open_page(browser: Browser, site: str) -> Iterator[Callable[..., Page]]:
    """Return `open_page("/write")`, which opens a page in a new browser session.

    An error that the browser reports fails the test.
    """
    complaints: list[str] = []
    contexts = []

    def open_page(path: str, **options: object) -> Page:
        contexts.append(browser.new_context(base_url=site, **options))  # type: ignore[arg-type]
        page = contexts[-1].new_page()
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def test_a_typed_mail_arrives(open_page: Callable[..., Page], start_worker: StartWorker) -> None:
    """The page shows without a reload that the mail was sent, and links to it."""
    start_worker()
    page = open_page("/write")
    page.get_by_label("To").fill("ada@example.org")
    page.get_by_label("Subject").fill("Hello from the page")
    page.get_by_label("Text").fill("Dear Ada,\n\n<b>good</b> news.")
    page.get_by_role("button", name="Queue it").click()

    expect(page.locator(".state")).to_have_text("sent")
    page.get_by_role("link", name="See it in the inbox").click()
    page.get_by_role("link", name="Hello from the page").click()
    expect(page.frame_locator("iframe").get_by_text("<b>good</b> news.")).to_be_visible()
    expect(page.locator("pre.raw")).to_contain_text("Subject: Hello from the page")


def test_the_inbox_shows_what_arrives(
    open_page: Callable[..., Page], start_worker: StartWorker
) -> None:
    """New mail appears without a reload."""
    start_worker()
    inbox = open_page("/inbox")
    expect(inbox.get_by_text("Nothing yet.")).to_be_visible()

    other = open_page("/members")
    other.get_by_label("Nickname").fill("ada")
    other.get_by_label("Email address").fill("ada@example.org")
    other.get_by_role("button", name="Sign up").click()

    expect(inbox.get_by_role("link", name="New user")).to_be_visible()


def test_the_race_is_watched(open_page: Callable[..., Page], start_worker: StartWorker) -> None:
    """All three ways run one after the other, and each mail has a cell."""
    start_worker()
    page = open_page("/race")
    page.get_by_label("Mails").fill("12")
    page.get_by_role("button", name="All three").click()

    expect(page.get_by_role("button", name="All three")).to_be_disabled()
    expect(page.get_by_role("button", name="All three")).to_be_enabled(timeout=30_000)
    expect(page.locator(".cells i.sent")).to_have_count(36)
    expect(page.get_by_role("row")).to_have_count(4)


def test_without_javascript_everything_works_but_does_not_move(
    open_page: Callable[..., Page],
) -> None:
    """Forms work, and a reload shows the progress."""
    page = open_page("/race", java_script_enabled=False)
    page.get_by_role("button", name="In the request").click()

    expect(page.get_by_text("50 sent")).to_be_visible()


def test_pages_fit_on_a_phone(open_page: Callable[..., Page]) -> None:
    """No page scrolls sideways."""
    page = open_page("/", viewport={"width": 360, "height": 740})
    for path in ("/", "/write", "/members", "/race", "/inbox"):
        page.goto(path)

        assert page.evaluate("document.documentElement.scrollWidth") <= 360
