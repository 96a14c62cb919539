"""Projects of one file for the tests of `mailer.migrate_code`."""

from textwrap import dedent

from mailer.migrate_code import Migration, migrate


def moved(text: str, **others: str) -> Migration:
    """Return the migration of one file, in a project that has others as well."""
    text = dedent(text)
    sources = {f"{name}.py": dedent(other) for name, other in others.items()}
    return dict(migrate({"app.py": text, **sources})).get("app.py", Migration(text))


def check(before: str, after: str, **others: str) -> Migration:
    """Check that a file becomes another one, with nothing left to change in that."""
    migration = moved(before, **others)
    assert migration.text == dedent(after)
    assert bool(migration.changes) is (dedent(before) != dedent(after))
    assert moved(migration.text, **others).changes == ()
    return migration


def advice(text: str, **others: str) -> list[tuple[int, str]]:
    """Return the advice for a file, with the lines, and check that nothing is changed."""
    migration = moved(text, **others)
    assert (migration.changes, migration.text) == ((), dedent(text))
    return [(finding.line, finding.text) for finding in migration.advice]
