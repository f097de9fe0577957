"""How the databases find rows, however long the queue is: those to lease by an index that has them in order, those to
settle by their keys."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
from queue_filling import enqueue
from scan_rows import scan_rows
from sqlalchemy import Connection, event, text

from etl.database.connection import Database
from etl.database.dialects import plan_by_index
from etl.model import Complete, Discard, Outcome, Pair, Release, Retry
from etl.store import listings, queue, settle

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


def statements_of_settling(connection: Connection, pairs: list[Pair]) -> list[tuple[str, Any]]:
    """Those that find rows of the queue by the keys of these pairs: a quarter of them each is renewed and then done,
    dead, later, or given back. Then all are woken."""
    quarter = len(pairs) // 4
    done, dead, later, rest = (pairs[start : start + quarter] for start in range(0, len(pairs), quarter))
    with recording(connection) as statements:
        assert queue.renew(connection, "token", pairs, 60) == len(pairs)
        outcomes: list[Outcome] = [
            *(Complete(scan_rows(pair.scan_id, deployment_id=pair.deployment_id)) for pair in done),
            *(Discard(pair, 1, "kind", "error", None) for pair in dead),
            *(Retry(pair, 60, 1, "kind", "error") for pair in later),
            *map(Release, rest),
        ]
        assert settle.settle(connection, "token", outcomes, "run").lost == 0
        listings.wake(connection, pairs)
    return [(statement, parameters) for statement, parameters in statements if "fetch_queue" in statement]


def postgresql_faults(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan_by_index(connection)
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


def postgresql_detours(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan_by_index(connection)
    plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
    # Of a table as short as this one it may well read all rows, and find their keys by a hash.
    return [line for line in plan if "Join Filter" in line]


def mysql_detours(connection: Connection, statement: str, parameters: Any) -> list[str]:
    # A long list of keys is a table of its own, which is read as a whole.
    return [row for row in mysql_faults(connection, statement, parameters) if "'table': 'fetch_queue'" in row]


DETOURS = {"postgresql": postgresql_detours, "sqlite": sqlite_faults, "mysql": mysql_detours}
STATISTICS = {"postgresql": "ANALYZE fetch_queue", "sqlite": "ANALYZE", "mysql": "ANALYZE TABLE fetch_queue"}


@pytest.mark.parametrize(("batch", "below"), [(None, None), (None, 11), ("b", None)])
@pytest.mark.parametrize("counted", [True, False])
def test_a_lease_reads_an_index_in_its_order(
    database_url: str, batch: str | None, below: int | None, counted: bool
) -> None:
    """No statement of a lease sorts rows or reads the whole queue, whether the planner has counted it or not."""
    dialect = database_url.partition(":")[0]
    with closing(Database(database_url)) as database:
        enqueue(database, [Pair(120 + number % 2, number) for number in range(1, ROWS + 1)], batch="b")
        if counted:
            database.run_here(lambda connection: connection.execute(text(STATISTICS[dialect])).close())
        statements = database.run_here(partial(statements_of_a_lease, batch=batch, below=below))
        found = {
            statement: database.run_here(partial(FAULTS[dialect], statement=statement, parameters=parameters))
            for statement, parameters in statements
        }

    assert len(found) >= 3
    assert {statement: faults for statement, faults in found.items() if faults} == {}


def test_settling_goes_by_keys_though_nothing_was_leased_when_the_rows_were_counted(database_url: str) -> None:
    """A planner that takes leased rows for rare doesn't compare each of them with each key."""
    dialect = database_url.partition(":")[0]
    with closing(Database(database_url)) as database:
        enqueue(database, [Pair(120, number) for number in range(1, ROWS + 1)])
        database.run_here(lambda connection: connection.execute(text(STATISTICS[dialect])).close())
        leases = database.run_here(partial(queue.lease, token="token", limit=2_000, lease_seconds=60))
        statements = database.run_here(partial(statements_of_settling, pairs=[lease.pair for lease in leases]))
        found = {
            statement: database.run_here(partial(DETOURS[dialect], statement=statement, parameters=first(parameters)))
            for statement, parameters in statements
        }

    assert len(found) >= 5
    assert {statement: faults for statement, faults in found.items() if faults} == {}


def first(parameters: Any) -> Any:
    """The parameters of a statement, or of the first time that it was executed."""
    return parameters[0] if isinstance(parameters, list) else parameters
