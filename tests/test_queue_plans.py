"""How the databases find the rows to lease: by an index that has them in order, however long the queue is."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from etl import queue, staging
from etl.database import Database
from etl.model import Pair

ROWS = 20_000
"""So many that no planner would rather read them all."""


@contextmanager
def recording(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    """The statements, with their parameters, that are executed in the block."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_others: object) -> None:
        statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(connection, "before_cursor_execute", note)


def statements_of_a_lease(connection: Connection, batch: str | None, below: int | None) -> list[tuple[str, Any]]:
    with recording(connection) as statements:
        assert len(queue.lease(connection, "token", 10, 60, batch=batch, below=below)) == 10
    return statements


def postgresql_faults(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
    # It may sort the keys of the few rows that are taken already.
    return [line for line in plan if "Seq Scan" in line or ("Sort Key:" in line and "_at" in line)]


def sqlite_faults(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
    return [row[3] for row in plan if "TEMP B-TREE" in row[3] or row[3].startswith("SCAN fetch_queue")]


def mysql_faults(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).mappings()
    return [str(row) for row in plan if row["type"] in ("ALL", "index") or "filesort" in (row["Extra"] or "")]


FAULTS = {"postgresql": postgresql_faults, "sqlite": sqlite_faults, "mysql": mysql_faults}
STATISTICS = {"postgresql": "ANALYZE fetch_queue", "sqlite": "ANALYZE", "mysql": "ANALYZE TABLE fetch_queue"}


@pytest.mark.parametrize(("batch", "below"), [(None, None), (None, 11), ("b", None)])
@pytest.mark.parametrize("counted", [True, False])
def test_a_lease_reads_an_index_in_its_order(
    database_url: str, batch: str | None, below: int | None, counted: bool
) -> None:
    """No statement of a lease sorts rows or reads the whole queue, whether the planner has counted it or not."""
    dialect = database_url.partition(":")[0]
    with closing(Database(database_url)) as database:
        database.run_here(staging.open_stage)
        pairs = [Pair(120 + number % 2, number) for number in range(1, ROWS + 1)]
        database.run_here(partial(staging.stage, pairs=pairs))
        database.run_here(partial(staging.enqueue_staged, batch="b"))
        if counted:
            database.run_here(lambda connection: connection.execute(text(STATISTICS[dialect])).close())
        statements = database.run_here(partial(statements_of_a_lease, batch=batch, below=below))
        found = {
            statement: database.run_here(partial(FAULTS[dialect], statement=statement, parameters=parameters))
            for statement, parameters in statements
        }

    assert len(found) >= 3
    assert {statement: faults for statement, faults in found.items() if faults} == {}
