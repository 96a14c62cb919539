"""The plans of queries, and how much of a database they read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mailer.store import Store
from mailer.store.transactions import Row, Transaction


def executed(store: Store, ask: Callable[[Store], Any]) -> list[tuple[str, Any]]:
    """Return the statements that a question executes, with their parameters."""
    found: list[tuple[str, Any]] = []
    execute = Transaction.execute

    def noting(self: Transaction, statement: str, values: Mapping[str, Any]) -> list[Row]:
        found.append((self._render(statement), values))
        return execute(self, statement, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "execute", noting)
        ask(store)
    return found


def plan_of(store: Store, ask: Callable[[Store], Any], table: str = "mailer_delivery") -> str:
    """Return how the database would run these queries on a very large table."""
    statements = executed(store, ask)
    with store.engine.connect() as connection:
        explain = "EXPLAIN "
        if connection.dialect.name == "sqlite":
            explain = "EXPLAIN QUERY PLAN "
        else:
            connection.exec_driver_sql("SET enable_seqscan = off")
        plans = [
            connection.exec_driver_sql(explain + statement, parameters)
            for statement, parameters in statements
            if table in statement
        ]
        return "\n".join(str(line) for plan in plans for line in plan)


def work_of(store: Store, ask: Callable[[Store], Any]) -> int:
    """Return how much a question reads: steps of SQLite's machine, or pages of PostgreSQL."""
    statements = executed(store, ask)
    with store.engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
            plans = [
                connection.exec_driver_sql(explain + statement, parameters).scalar_one()
                for statement, parameters in statements
            ]
            return sum(
                _pages(plan if isinstance(plan, list) else json.loads(plan)) for plan in plans
            )
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(count, 1)
        try:
            for statement, parameters in statements:
                connection.exec_driver_sql(statement, parameters).close()
        finally:
            driver.set_progress_handler(None, 1)
        return steps


def _pages(plan: list[dict[str, Any]]) -> int:
    root = plan[0]["Plan"]
    return int(root["Shared Hit Blocks"] + root["Shared Read Blocks"])
