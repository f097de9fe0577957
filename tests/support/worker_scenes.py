"""Work for many workers on one PostgreSQL, with scans that fail for reasons of their own; and the promise, as a check.

SCAN_ETL_SOAK_SECONDS makes everything last longer.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from patience import PATIENCE_SECONDS
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from scan_rows import BOOKKEEPING, SCAN_TABLES, rows_by_table
from sqlalchemy import Connection, Table, select
from worker_processes import Workers, wait_until

from etl.database.connection import Database
from etl.database.schema import dead_letters
from etl.model import Pair
from etl.sandbox import Behaviour
from etl.sandbox.faults import TIMES_MOST, Fault, chosen_fault
from etl.transform.scan import flatten

SOAK_SECONDS = float(os.environ.get("SCAN_ETL_SOAK_SECONDS", "0"))
DISTURBED_SECONDS = max(6.0, SOAK_SECONDS)
RATE = 150
"""Requests a second, of all workers together: what is queued lasts for the disturbances."""
LEASE_SECONDS = 2
MAX_ATTEMPTS = 3
DRAINED_SECONDS = PATIENCE_SECONDS + 10 * DISTURBED_SECONDS
TEST_SECONDS = 4 * PATIENCE_SECONDS + 20 * DISTURBED_SECONDS
CHECKED_AT_ONCE = 5_000

# The first two kill their scans. The third hits a scan as often as it can without killing it: one attempt
# more, spent on anything but the scan itself, would make a dead letter of it.
POISON = (
    Fault("status-404", 0.02, times=0),
    Fault("status-502", 0.02, times=0),
    Fault("status-500", 0.1, times=MAX_ATTEMPTS - 1),
)
DEATHS = {"status-404": ("not_found", 404, 1), "status-502": ("http_status", 502, MAX_ATTEMPTS)}


def environment(sandbox: RunningSandbox, url: str, **additions: str) -> dict[str, str]:
    settings = {
        "SCAN_ETL_API__RATE": str(RATE),
        "SCAN_ETL_API__RETRIES": "0",
        "SCAN_ETL_API__CONCURRENCY": "8",
        "SCAN_ETL_DATABASE__BATCH_SIZE": "20",
        "SCAN_ETL_QUEUE__LEASE_SECONDS": str(LEASE_SECONDS),
        "SCAN_ETL_QUEUE__MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "SCAN_ETL_QUEUE__BACKOFF_MAX_SECONDS": "1",
    }
    return sandbox.environment(**{"SCAN_ETL_DATABASE__URL": url} | settings | additions)


def ask(url: str, sql: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """The rows of one statement, in a transaction of its own."""
    with psycopg.connect(url, connect_timeout=10) as connection:
        cursor = connection.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


def number(url: str, sql: LiteralString) -> int:
    """The one number that a statement gives."""
    [(found,)] = ask(url, sql)
    return int(found)


def queue_up(url: str, first: int, last: int) -> None:
    """Queue the scans from `first` to `last`, by a plain INSERT."""
    ask(
        url, "INSERT INTO fetch_queue (deployment_id, scan_id) SELECT 120, generate_series(%s::bigint, %s)", first, last
    )


def is_drained(url: str) -> bool:
    return not ask(url, "SELECT 1 FROM fetch_queue LIMIT 1")


def drain(workers: Workers, url: str) -> list[dict[str, Any]]:
    """Let the workers finish, end them, and return their summaries."""
    wait_until("the queue is drained", lambda: workers.all_well() and is_drained(url), seconds=DRAINED_SECONDS)
    return workers.stop()


STARTED = "SELECT count(*) FROM workers"
WORKING = "SELECT count(DISTINCT lease_token) FROM fetch_queue"


@contextmanager
def busy_workers(
    workers: Workers,
    url: str,
    count: int,
    seconds: float = DISTURBED_SECONDS,
    faults: tuple[Fault, ...] = POISON,
    **additions: str,
) -> Iterator[tuple[RunningSandbox, dict[str, str]]]:
    """Work for so many seconds, and workers that have all begun; gives the sandbox and the variables for more."""
    scans_count = round(RATE * seconds)
    with running_sandbox(finished_world(scans_count), Behaviour(latency_seconds=0.02, faults=faults)) as sandbox:
        variables = environment(sandbox, url, **additions)
        for _ in range(count):
            workers.start_worker(variables)
        wait_until("all are there", lambda: workers.all_well() and number(url, STARTED) == count)
        queue_up(url, 1, scans_count)
        wait_until("all work", lambda: workers.all_well() and number(url, WORKING) == count)
        yield sandbox, variables


# The promise


def stored(url: str, table: Table, first: int, last: int) -> list[dict[str, Any]]:
    def work(connection: Connection) -> list[dict[str, Any]]:
        found = select(table).where(table.c.scan_id.between(first, last)).order_by(*table.primary_key)
        return [dict(row) for row in connection.execute(found).mappings()]

    with closing(Database(url)) as database:
        return database.run_here(work)


def values(rows: list[dict[str, Any]], *left_out: str) -> list[tuple[Any, ...]]:
    return [tuple(value for name, value in row.items() if name not in left_out) for row in rows]


def assert_promise_kept(url: str, sandbox: RunningSandbox) -> None:
    """Every pair is loaded once, as the API knows it, or dead for its own reason; and nothing is left behind."""
    assert is_drained(url)
    world, drift = sandbox.sandbox.world, Counter[tuple[str, str]]()
    for first in range(1, world.scans + 1, CHECKED_AT_ONCE):
        drift += assert_stored_rightly(url, sandbox, first, min(first + CHECKED_AT_ONCE - 1, world.scans))

    # These instants and counts move with every load, whether it changes rows or not.
    again = "SELECT count(*) FROM scans WHERE fetched_at <> first_fetched_at OR changed_at <> first_fetched_at"
    counts = ask(url, "SELECT path, kind, count FROM schema_drift")

    assert number(url, again) == 0
    assert {(path, kind): count for path, kind, count in counts} == drift


def assert_stored_rightly(url: str, sandbox: RunningSandbox, first: int, last: int) -> Counter[tuple[str, str]]:
    """One stretch of the scans. Returns how often it has each kind of drift."""
    world, faults = sandbox.sandbox.world, sandbox.sandbox.behaviour.faults
    fate = {n: chosen_fault(world.seed, faults, "details", n, TIMES_MOST) for n in range(first, last + 1)}
    truth = [
        flatten(Pair(120, number), sandbox.sandbox.truth(number), datetime.now(UTC))
        for number, fault in fate.items()
        if fault is None
    ]
    dead = stored(url, dead_letters, first, last)
    times_seen = sandbox.sandbox.stats.times_seen

    assert {row["scan_id"]: (row["error_kind"], row["http_status"], row["attempts"]) for row in dead} == {
        number: DEATHS[fault.name] for number, fault in fate.items() if fault is not None
    }
    assert [row for row in dead if row["lease_token"] or row["attempts"] > times_seen(row["scan_id"])] == []
    for table in SCAN_TABLES:
        rows = stored(url, table, first, last)
        found = [{name: row[name] for name in row.keys() - BOOKKEEPING} for row in rows]
        assert found == rows_by_table(truth)[table.name]
    return Counter((drift.path, drift.kind) for one in truth for drift in one.drift)


def fetched_twice(sandbox: RunningSandbox) -> list[int]:
    """The scans without a fault that were asked for more than once."""
    world, faults, stats = sandbox.sandbox.world, sandbox.sandbox.behaviour.faults, sandbox.sandbox.stats
    return [
        number
        for number in range(1, world.scans + 1)
        if stats.times_seen(number) > 1 and not chosen_fault(world.seed, faults, "details", number, 1)
    ]
