"""How PostgreSQL finds the queue's rows while files are queued, shared and settled: by their keys, whatever has been
counted, and also where that was while all was empty."""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from queue_filling import stage
from sqlalchemy import Connection, delete, insert, update
from test_queue_plans import STATISTICS, first, recording, statements_of_settling

from etl.database.connection import Database
from etl.database.dialects import plan_by_index
from etl.database.schema import dead_letters, fetch_queue, scans, staged_pairs, staged_pieces, workers
from etl.database.types import utc_now
from etl.model import Pair
from etl.store import enqueue, queue, revive, runs

PAIRS = [Pair(120 + number % 2, number) for number in range(1, 5_001)]
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
QUEUE_TABLES = ("fetch_queue", "dead_letters", "staged_pairs", "staged_pieces")
Statements = list[tuple[str, Any]]


def recorded(database: Database, *work: Callable[[Connection], object]) -> Statements:
    """The statements of all this, in one transaction."""

    def do(connection: Connection) -> Statements:
        with recording(connection) as statements:
            for one in work:
                one(connection)
        return statements

    return database.run_here(do)


def count_while_empty(connection: Connection) -> None:
    """Rows that come and go leave the room that they took, in which PostgreSQL then counts none."""
    keys = [{"deployment_id": 1, "scan_id": number} for number in range(1, 207)]
    connection.execute(insert(fetch_queue), keys)
    connection.execute(insert(staged_pairs).values(batch="x"), keys)
    connection.execute(insert(staged_pieces).values(batch="x", pairs="[]"), [{"digest": f"{n}"} for n in range(206)])
    for table in (fetch_queue, staged_pairs, staged_pieces):
        connection.execute(delete(table))
    for table in (fetch_queue, staged_pairs, staged_pieces, dead_letters, scans):
        connection.exec_driver_sql(STATISTICS[connection.dialect.name].replace("fetch_queue", table.name)).close()


def let_go(connection: Connection) -> None:
    connection.execute(update(workers).where(workers.c.run_id == "first").values(seen_at=LONG_AGO))


def share(database: Database) -> Statements:
    """Queue a file twice, for two runs, the first of which then ends and leaves the pairs to the second."""
    found: Statements = []
    for run in ("first", "second"):
        database.run_here(partial(runs.see, run_id=run, token=run, version="1"))
        stage(database, PAIRS, run)
        found += recorded(database, partial(enqueue.merge, stage=run, valid=len(PAIRS), batch=run))
    looks = [partial(look, batch="second") for look in (enqueue.shared_left, enqueue.awaits)]
    found += recorded(database, *looks)
    database.run_here(let_go)
    return found + recorded(database, partial(enqueue.take_over, batch="second"))


def settle(database: Database) -> Statements:
    """Lease, settle, and bring back what has died."""
    lease = partial(queue.lease, token="token", limit=1_000, lease_seconds=60)
    pairs = [leased.pair for leased in database.run_here(lease)]
    found = database.run_here(partial(statements_of_settling, pairs=pairs))
    letters = [{"deployment_id": 120, "scan_id": number} for number in range(10_001, 12_001)]
    died = insert(dead_letters).values(died_at=utc_now(), retry_at=utc_now())
    database.run_here(lambda connection: connection.execute(died, letters).close())
    return found + recorded(database, revive.revive)


def detours(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """Steps that read a table or an index as a whole, or compare each row with each other one."""
    plan_by_index(connection)
    steps: list[str] = []
    for line in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars():
        if "->" in line or not steps:
            steps.append(line)
        else:
            steps[-1] += line
    whole = (step for step in steps if " using " in step and "Index Cond" not in step)
    each_with_each = (step for step in steps if "Nested Loop" in step and "Join Filter" in step)
    return [*whole, *each_with_each, *(step for step in steps if "Seq Scan" in step)]


@pytest.mark.parametrize("work", [share, settle])
@pytest.mark.parametrize("counted", [False, True])
def test_no_plan_hangs_on_what_was_counted(
    postgres_url: str, counted: bool, work: Callable[[Database], Statements]
) -> None:
    """Never counted or counted while empty: each row is looked up by its key or read in the order of an index."""
    with closing(Database(postgres_url)) as database:
        if counted:
            database.run_here(count_while_empty)
        if work is settle:
            share(database)
        statements = {statement: first(parameters) for statement, parameters in work(database)}
        found = {
            statement: database.run_here(partial(detours, statement=statement, parameters=parameters))
            for statement, parameters in statements.items()
            # A recursion reads one entry of an index at a time.
            if any(name in statement for name in QUEUE_TABLES) and not statement.startswith("WITH RECURSIVE")
        }

    assert len(found) > 5
    assert {statement: steps for statement, steps in found.items() if steps} == {}
