"""The entry point of Alembic, on the connection and in the transaction of `migrate`."""

from alembic import context

from mailer import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.complete_metadata(),
    version_table=schema.version.name,
    # SQLite alters a table by making a new one.
    render_as_batch=True,
)
context.run_migrations()
