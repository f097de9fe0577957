"""Whether the queue stays fast when it is long, when much of it waits and when much has gone through it; and what
filling it costs beside the database's own work.

    make bench-queue
    .venv/bin/python benchmarks/queue_bench.py [--rows N] [--waiting N] [--churned N] [--pairs N] [--rounds N]

Times are elapsed ones, for the work is the database's. What is compared takes turns, and the medians count.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TypeVar

import psycopg
from answering_server import DEPLOYMENT_ID, scan_body
from bench_databases import NewDatabase, postgresql_databases, sqlite_database
from sqlalchemy import Connection, delete

from etl.app.intake import fill
from etl.database.connection import Database
from etl.database.dialects import in_pairs, insert_rows
from etl.database.schema import fetch_queue
from etl.model import Complete, Lease, Pair, Release
from etl.pipeline.run_state import RunRequest
from etl.store import enqueue, queue
from etl.store import settle as settling
from etl.transform.sanitize import decode
from etl.transform.scan import flatten

SHORT_QUEUE_ROWS = 10_000
LEASED = 100
TURNS = 30
"""So many leases of so many rows, after which the short queue still has two thirds of its rows."""
STAGED = 10_000
DEAD_ROWS = 20_000
"""After so many a PostgreSQL server clears up in the queue, by the table's settings."""
FIRST_IN_FRONT, FIRST_CHURNED = 10**9, 2 * 10**9
TOKEN, BATCH, RUN_ID = "token", "batch", "run"

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds, and the result."""
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1e3, result


def fill_queue(database: Database, rows: int) -> None:
    """Queue `rows` pairs of one batch, all of them due."""
    pairs = iter(Pair(DEPLOYMENT_ID, scan_id) for scan_id in range(1, rows + 1))
    database.run_here(partial(enqueue.open_stage, batch=BATCH))
    while chunk := list(islice(pairs, STAGED)):
        database.run_here(partial(enqueue.stage, batch=BATCH, pairs=chunk))
    database.run_here(partial(enqueue.merge, stage=BATCH, valid=rows, batch=BATCH))


def lease(connection: Connection, batch: str | None) -> list[Lease]:
    """Lease what a worker takes at a time."""
    return queue.lease(connection, TOKEN, LEASED, 60, batch=batch)


def work_off(database: Database) -> dict[str, float]:
    """Milliseconds of one turn: lease from the whole queue and give back, lease from the batch and settle."""
    whole, leases = timed(lambda: database.run_here(partial(lease, batch=None)))
    given_back = [Release(taken.pair) for taken in leases]
    database.run_here(partial(settling.settle, token=TOKEN, outcomes=given_back, run_id=RUN_ID))
    of_batch, leases = timed(lambda: database.run_here(partial(lease, batch=BATCH)))
    now = datetime.now(UTC)
    done = [Complete(flatten(taken.pair, decode(details(taken.pair)), now)) for taken in leases]
    settle = partial(settling.settle, token=TOKEN, outcomes=done, run_id=RUN_ID)
    settle_ms, settled = timed(lambda: database.run_here(settle))
    if settled.inserted != LEASED:
        raise SystemExit(f"a lease of {LEASED} led to {settled}: the figures would be void")
    return {"lease, whole queue": whole, "lease, one batch": of_batch, "settle": settle_ms}


def details(pair: Pair) -> bytes:
    """An answer of the API."""
    return scan_body(*(str(number).encode() for number in pair))


def lease_twice(database: Database) -> dict[str, float]:
    """Milliseconds of leasing from the whole queue and from the batch. All is given back."""
    found = {}
    for name, batch in (("lease, whole queue", None), ("lease, one batch", BATCH)):
        found[name], leases = timed(partial(database.run_here, partial(lease, batch=batch)))
        given_back = [Release(taken.pair) for taken in leases]
        database.run_here(partial(settling.settle, token=TOKEN, outcomes=given_back, run_id=RUN_ID))
    return found


def compare(what: str, turn: Callable[[Database], dict[str, float]], short: Database, long: Database) -> None:
    """Print what leasing, or settling too, costs in a short and a long queue, and the ratio."""
    turns = [(turn(short), turn(long)) for _ in range(TURNS)]
    for name in turns[0][0]:
        of_short, of_long = (median(each[place][name] for each in turns) for place in (0, 1))
        print(
            f"{what:35} {name:19} {LEASED} rows: {of_short:6.2f} ms, {of_long:6.2f} ms, ratio {of_long / of_short:.2f}",
            flush=True,
        )


def put_in_front(database: Database, rows: int) -> None:
    """Queue rows that are leased or back off, and that expire before all others."""
    now = datetime.now(UTC)
    names = ("deployment_id", "scan_id", "batch", "due_at", "expires_at", "lease_token", "error_kind")
    columns = [fetch_queue.c[name] for name in names]
    kinds = (("of another", None), (None, "timeout"))
    values = [
        (
            DEPLOYMENT_ID,
            FIRST_IN_FRONT + n,
            BATCH,
            now + timedelta(hours=9, seconds=n),
            now + timedelta(seconds=n),
            *kinds[n % 2],
        )
        for n in range(rows)
    ]
    database.run_here(partial(insert_rows, table=fetch_queue, columns=columns, rows=values))


def churn(database: Database, rows: int) -> None:
    """Let rows go through the queue: new ones in, others out, and the database clears up as often as it would."""
    columns = [fetch_queue.c[name] for name in ("deployment_id", "scan_id", "batch")]
    is_postgresql = database.engine.name == "postgresql"
    for first in range(FIRST_CHURNED, FIRST_CHURNED + rows, DEAD_ROWS // 2):
        if is_postgresql:
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM fetch_queue")
        # A lease leaves one dead row behind, and the removal another.
        for start in range(first, first + DEAD_ROWS // 2, 1_000):
            values = [(DEPLOYMENT_ID, scan_id, BATCH) for scan_id in range(start, start + 1_000)]
            database.run_here(partial(insert_rows, table=fetch_queue, columns=columns, rows=values))
            leased = database.run_here(partial(queue.lease, token=TOKEN, limit=1_000, lease_seconds=60))
            database.run_here(partial(remove, pairs=[one.pair for one in leased]))


def remove(connection: Connection, pairs: list[Pair]) -> None:
    """Remove rows as an outcome does."""
    connection.execute(delete(fetch_queue).where(in_pairs(connection, fetch_queue, pairs)))


def size_bytes(database: Database) -> int:
    """Of the queue with its indexes; on SQLite of the whole file."""
    sql = {
        "postgresql": "SELECT pg_total_relation_size('fetch_queue')",
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
    }[database.engine.name]
    return int(database.run_here(lambda connection: connection.exec_driver_sql(sql).scalar_one()))


def compare_lengths(new_database: NewDatabase, dialect: str, rows: int, waiting: int, churned: int) -> None:
    """Print what leasing and settling cost with a short and a long queue: as it is filled, with much that waits in
    front, and after a day of work."""
    with ExitStack() as stack:
        databases = []
        for size in (SHORT_QUEUE_ROWS, rows):
            url = stack.enter_context(new_database())
            databases.append(stack.enter_context(closing(Database(url))))
            fill_queue(databases[-1], size)
        compare(f"{dialect}: {SHORT_QUEUE_ROWS:,} and {rows:,}", work_off, *databases)
        long = databases[1]
        put_in_front(long, waiting)
        compare(f"  and {waiting:,} that wait in front", lease_twice, *databases)
        before = size_bytes(long)
        churn(long, churned)
        compare(f"  and after {churned:,} in and out", lease_twice, *databases)
        print(f"{dialect}: {size_bytes(long) / before:.2f} times the size after that", flush=True)


def bare_enqueue(url: str, path: Path) -> None:
    """What PostgreSQL itself needs: COPY of the file as it is, and a merge without the pairs that are final."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor, path.open("rb") as file:
        cursor.execute("CREATE TEMPORARY TABLE stage (deployment_id int8, scan_id int8)")
        with cursor.copy("COPY stage FROM STDIN (FORMAT CSV, HEADER)") as copy:
            while block := file.read(65_536):
                copy.write(block)
        cursor.execute("ANALYZE stage")
        cursor.execute(  # in order, for that is two to four times as fast
            "INSERT INTO fetch_queue (deployment_id, scan_id, batch)"
            " SELECT DISTINCT deployment_id, scan_id, 'batch' FROM stage WHERE NOT EXISTS (SELECT FROM scans"
            " WHERE (scans.deployment_id, scans.scan_id) = (stage.deployment_id, stage.scan_id)"
            " AND completed_at IS NOT NULL) ORDER BY deployment_id, scan_id"
            " ON CONFLICT (deployment_id, scan_id) DO UPDATE SET batch = excluded.batch"
        )


def compare_enqueue(new_database: NewDatabase, order: str, pairs: int, rounds: int) -> None:
    """Print the time of filling an empty queue from a file, sorted or not, beside the bare way."""
    found = []
    scan_ids = list(range(1, pairs + 1))
    if order == "shuffled":
        random.Random(1).shuffle(scan_ids)  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.csv"
        with path.open("w") as file:
            file.write("deployment_id,scan_id\n")
            file.writelines(f"{DEPLOYMENT_ID},{scan_id}\n" for scan_id in scan_ids)
        request = RunRequest("enqueue", (str(path),))
        for _ in range(rounds):
            with new_database() as url:
                bare, _ = timed(partial(bare_enqueue, url, path))
            with new_database() as url, closing(Database(url)) as database:
                ours, counts = timed(partial(fill, database, request, interactive=False))
            if counts["queued"] != pairs:
                raise SystemExit(f"{counts}: the figures would be void")
            found.append((ours, bare))
    ours, bare = (median(times) / 1e3 for times in zip(*found, strict=True))
    ratio = median(ours / bare for ours, bare in found)
    print(f"postgresql  {pairs:,} pairs, {order}: {ours:.1f} s, bare COPY and merge {bare:.1f} s, ratio {ratio:.2f}")


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the queue.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="length of the long queue, e.g. 10000000")
    parser.add_argument("--waiting", type=int, default=200_000, help="rows leased or backing off, in front")
    parser.add_argument("--churned", type=int, default=200_000, help="rows that go through the long queue")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs to enqueue")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with postgresql_databases() as new_postgresql:
        lengths = (options.rows, options.waiting, options.churned)
        compare_lengths(sqlite_database, "sqlite", *lengths)
        compare_lengths(new_postgresql, "postgresql", *lengths)
        for order in ("sorted", "shuffled"):
            compare_enqueue(new_postgresql, order, options.pairs, options.rounds)


if __name__ == "__main__":
    main()
