"""Whether the queue stays fast when it is long, and what filling it costs beside the database's own work.

    .venv/bin/python benchmarks/queue_bench.py [--rows N] [--pairs N] [--rounds N]

Times are elapsed ones, for the work is the database's. What is compared takes turns, and the medians count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TypeVar

import psycopg
from answering_server import DEPLOYMENT_ID, scan_body
from bench_databases import NewDatabase, postgresql_databases, sqlite_database
from sqlalchemy import Connection

from etl import queue
from etl.cleaning import decode
from etl.database import Database
from etl.flatten import flatten
from etl.job import Order, fill
from etl.model import Done, Lease, Pair, Released

SHORT_QUEUE_ROWS = 10_000
LEASED = 100
TURNS = 30
"""So many leases of so many rows, after which the short queue still has two thirds of its rows."""
STAGED = 10_000
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
    database.run_here(queue.open_stage)
    while chunk := list(islice(pairs, STAGED)):
        database.run_here(partial(queue.stage, pairs=chunk))
    database.run_here(partial(queue.enqueue_staged, batch=BATCH))


def lease(connection: Connection, batch: str | None) -> list[Lease]:
    """Lease what a worker takes at a time."""
    return queue.lease(connection, TOKEN, LEASED, 60, batch=batch)


def work_off(database: Database) -> dict[str, float]:
    """Milliseconds of one turn: lease from the whole queue and give back, lease from the batch and settle."""
    whole, leases = timed(lambda: database.run_here(partial(lease, batch=None)))
    given_back = [Released(taken.pair) for taken in leases]
    database.run_here(partial(queue.settle, token=TOKEN, verdicts=given_back, run_id=RUN_ID))
    of_batch, leases = timed(lambda: database.run_here(partial(lease, batch=BATCH)))
    now = datetime.now(UTC)
    done = [Done(flatten(taken.pair, decode(details(taken.pair)), now)) for taken in leases]
    settle = partial(queue.settle, token=TOKEN, verdicts=done, run_id=RUN_ID)
    settling, settled = timed(lambda: database.run_here(settle))
    if settled.inserted != LEASED:
        raise SystemExit(f"a lease of {LEASED} led to {settled}: the figures would be void")
    return {"lease, whole queue": whole, "lease, one batch": of_batch, "settle": settling}


def details(pair: Pair) -> bytes:
    """An answer of the API."""
    return scan_body(*(str(number).encode() for number in pair))


def compare_lengths(new_database: NewDatabase, dialect: str, rows: int) -> None:
    """Print what leasing and settling cost with a short and a long queue, and the ratio."""
    sizes = (SHORT_QUEUE_ROWS, rows)
    with ExitStack() as stack:
        databases = []
        for size in sizes:
            url = stack.enter_context(new_database())
            databases.append(stack.enter_context(closing(Database(url))))
            fill_queue(databases[-1], size)
        turns = [[work_off(database) for database in databases] for _ in range(TURNS)]
    for name in turns[0][0]:
        short, long = (median(turn[place][name] for turn in turns) for place in (0, 1))
        print(
            f"{dialect:11} {name:19} {LEASED} rows: {short:6.2f} ms of {sizes[0]:,}, {long:6.2f} ms of {sizes[1]:,},"
            f" ratio {long / short:.2f}",
            flush=True,
        )


def bare_enqueue(url: str, path: Path) -> None:
    """What PostgreSQL itself needs: COPY of the file as it is, and a merge without the pairs that are final."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor, path.open("rb") as file:
        cursor.execute("CREATE TEMPORARY TABLE stage (deployment_id int8, scan_id int8)")
        with cursor.copy("COPY stage FROM STDIN (FORMAT CSV, HEADER)") as copy:
            while block := file.read(65_536):
                copy.write(block)
        cursor.execute("ANALYZE stage")
        cursor.execute(
            "INSERT INTO fetch_queue (deployment_id, scan_id, batch)"
            " SELECT DISTINCT deployment_id, scan_id, 'batch' FROM stage WHERE NOT EXISTS (SELECT FROM scans"
            " WHERE (scans.deployment_id, scans.scan_id) = (stage.deployment_id, stage.scan_id)"
            " AND completed_at IS NOT NULL)"
            " ON CONFLICT (deployment_id, scan_id) DO UPDATE SET batch = excluded.batch"
        )


def compare_enqueue(new_database: NewDatabase, pairs: int, rounds: int) -> None:
    """Print the time of filling an empty queue from a file, beside the bare way."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.csv"
        with path.open("w") as file:
            file.write("deployment_id,scan_id\n")
            file.writelines(f"{DEPLOYMENT_ID},{scan_id}\n" for scan_id in range(1, pairs + 1))
        for _ in range(rounds):
            with new_database() as url:
                bare, _ = timed(partial(bare_enqueue, url, path))
            with new_database() as url, closing(Database(url)) as database:
                ours, counts = timed(partial(fill, database, Order("enqueue", (str(path),))))
            if counts["queued"] != pairs:
                raise SystemExit(f"{counts}: the figures would be void")
            found.append((ours, bare))
    ours, bare = (median(times) / 1e3 for times in zip(*found, strict=True))
    ratio = median(ours / bare for ours, bare in found)
    print(f"postgresql  enqueue of {pairs:,} pairs: {ours:.1f} s, bare COPY and merge {bare:.1f} s, ratio {ratio:.2f}")


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the queue.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="length of the long queue, e.g. 10000000")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs to enqueue")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with postgresql_databases() as new_postgresql:
        compare_lengths(sqlite_database, "sqlite", options.rows)
        compare_lengths(new_postgresql, "postgresql", options.rows)
        compare_enqueue(new_postgresql, options.pairs, options.rounds)


if __name__ == "__main__":
    main()
