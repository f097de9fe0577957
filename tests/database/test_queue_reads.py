"""How much the databases read of the queue, whatever they have counted in it before: what a lease takes, what a settle
changes, and not what is queued."""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from rows_read import counting_reads
from scan_rows import scan_rows
from sqlalchemy import Connection, delete, text

from etl.database.connection import Database
from etl.database.dialects import insert_rows
from etl.database.schema import fetch_queue
from etl.model import Complete, Discard, Lease, Outcome, Release, Retry
from etl.store import queue, settle

ROWS, OF_OURS, PUT_OFF, BACK_NOW = 20_000, 40, 2_000, 10
LINE, LONG_AGO, NEXT_CENTURY = (datetime(year, 1, 1, tzinfo=UTC) for year in (1970, 2020, 2100))
"""The `due_at` of what stands in line, of what was put off until then, and of what comes back much later."""

ANALYZE = {"postgresql": "ANALYZE fetch_queue", "sqlite": "ANALYZE", "mysql": "ANALYZE TABLE fetch_queue"}
COLUMNS = ("deployment_id", "scan_id", "batch", "priority", "due_at", "error_kind")


def queue_rows(connection: Connection, scan_ids: range, batch: str, due_at: datetime) -> None:
    """Queue pairs of two deployments; those of the batch `ours` go first."""
    priority, kind = (0 if batch == "ours" else 10), (None if due_at == LINE else "timeout")
    rows = [(120 + scan_id % 2, scan_id, batch, priority, due_at, kind) for scan_id in scan_ids]
    insert_rows(connection, fetch_queue, [fetch_queue.c[name] for name in COLUMNS], rows)


def fill(connection: Connection) -> None:
    """A long queue with a short batch in it, some of which comes back now, and much that comes back later."""
    queue_rows(connection, range(1, 1 + OF_OURS), "ours", LINE)
    queue_rows(connection, range(1_000, 1_000 + ROWS), "theirs", LINE)
    queue_rows(connection, range(50_000, 50_000 + BACK_NOW), "ours", LONG_AGO)
    queue_rows(connection, range(60_000, 60_000 + PUT_OFF), "theirs", NEXT_CENTURY)


def count_rows(connection: Connection) -> None:
    connection.execute(text(ANALYZE[connection.dialect.name])).close()


def never_counted(connection: Connection) -> None:
    fill(connection)


def counted_while_empty(connection: Connection) -> None:
    """As the server does by itself a minute after a queue was drained."""
    queue_rows(connection, range(100_000, 100_206), "theirs", LINE)
    connection.execute(delete(fetch_queue))
    count_rows(connection)
    fill(connection)


def counted_with_others(connection: Connection) -> None:
    """Full, but of what was put off, and drained and filled since."""
    queue_rows(connection, range(100_000, 100_000 + ROWS), "others", NEXT_CENTURY)
    count_rows(connection)
    connection.execute(delete(fetch_queue))
    fill(connection)


def counted(connection: Connection) -> None:
    fill(connection)
    count_rows(connection)


def outcomes_of(leases: list[Lease]) -> list[Outcome]:
    """One of each kind by turns."""
    kinds: list[Callable[[Any], Outcome]] = [
        lambda pair: Complete(scan_rows(pair.scan_id, deployment_id=pair.deployment_id)),
        lambda pair: Discard(pair, 1, "kind", "error", None),
        lambda pair: Retry(pair, 60, 1, "kind", "error"),
        Release,
    ]
    return [kinds[number % len(kinds)](lease.pair) for number, lease in enumerate(leases)]


@pytest.mark.parametrize("fill_and_count", [never_counted, counted_while_empty, counted_with_others, counted])
def test_what_is_read_is_what_is_worked_on(database_url: str, fill_and_count: Callable[[Connection], None]) -> None:
    """Whatever the server has counted: of a lease its rows, of a renewal and a settle their pairs, of what is left
    those that count, and a deployment is one look-up."""
    found: dict[str, int] = {}

    def measure(name: str, work: Callable[[Connection], Any]) -> Any:
        def measured(connection: Connection) -> Any:
            with counting_reads(connection, "fetch_queue") as count:
                before = count()
                result = work(connection)
                found[name] = count() - before
            return result

        return database.run_here(measured)

    with closing(Database(database_url)) as database:
        if database.engine.name == "postgresql":
            by_itself = text("ALTER TABLE fetch_queue SET (autovacuum_enabled = off)")
            database.run_here(lambda connection: connection.execute(by_itself).close())
        database.run_here(fill_and_count)
        lease = partial(queue.lease, token="token", limit=OF_OURS, lease_seconds=60)
        left = [
            measure("left of a batch", partial(queue.left, batch="ours")),
            measure("left before a priority", partial(queue.left, batch=None, below=10)),
        ]
        deployments = [
            measure("deployments", partial(queue.deployments_of, batch=None)),
            measure("deployments of a batch", partial(queue.deployments_of, batch="ours")),
            measure("deployments of a long batch", partial(queue.deployments_of, batch="theirs")),
        ]
        leases = [
            measure("lease of a batch, and what comes back", partial(lease, batch="ours")),
            measure("lease before a priority", partial(lease, below=10)),
            measure("lease of the whole queue", lease),
            measure("lease of a long batch", partial(lease, batch="theirs")),
        ]
        of_whole = leases[2]
        pairs = [taken.pair for taken in of_whole]
        renew = partial(queue.renew, token="token", pairs=pairs, lease_seconds=60)
        renewed = measure("renewal", renew)
        settled = measure("settle", partial(settle.settle, token="token", outcomes=outcomes_of(of_whole), run_id="run"))

    assert [sorted(each) for each in deployments] == [[120, 121]] * 3
    assert [each.remaining for each in left] == [OF_OURS + BACK_NOW] * 2
    assert [len(each) for each in leases] == [OF_OURS, BACK_NOW, OF_OURS, OF_OURS]
    assert (renewed, settled.lost) == (OF_OURS, 0)
    assert {name: read for name, read in found.items() if read >= ROWS // 10} == {}
