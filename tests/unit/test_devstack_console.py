"""The console of the local stack, which shows all its parts in one terminal."""

from io import StringIO

import pytest

from devstack.console import Console


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_each_line_carries_the_name_of_its_part() -> None:
    """Each line begins with the name of its part, padded to line up."""
    out = StringIO()
    console = Console(out, ["web", "worker"])

    console.show("web", "hello")
    console.show("worker", "world")
    console.say("two\nlines")

    assert out.getvalue() == "web    | hello\nworker | world\nstack  | two\nstack  | lines\n"


def test_colours_only_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours are used on a terminal only, and not if NO_COLOR is set."""
    terminal, plain = Terminal(), Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    Console(terminal, ["web"]).show("web", "hello")
    monkeypatch.setenv("NO_COLOR", "1")
    Console(plain, ["web"]).show("web", "hello")

    assert "\033[" in terminal.getvalue()
    assert "\033[" not in plain.getvalue()


def test_what_a_part_prints_is_shown_and_not_obeyed() -> None:
    """Control and bidirectional characters in a part's output are printed as escapes."""
    out = StringIO()
    Console(out, ["inbox"]).show("inbox", "a\tb \x1b[2J \x9b1m \r \x07 \u202e ü")

    assert out.getvalue() == "inbox | a\tb \\x1b[2J \\x9b1m \\r \\x07 \\u202e ü\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    """A closed output (`make run | head`) does not stop the parts."""

    class Gone(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Console(Gone(), ["web"]).show("web", "hello")
