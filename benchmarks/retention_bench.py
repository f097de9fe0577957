"""How many bytes a scan takes, how long it takes to remove it, and for how long that keeps a writer waiting.

    .venv/bin/python benchmarks/retention_bench.py [--scans N] [URL ...]

Stores N scans (100,000 if not said) as the sandbox plays them, with their listings, counts them, and removes the older
half. A URL is that of a database whose tables are empty, as for MariaDB; without one, SQLite and PostgreSQL bring their
own.
"""

import argparse
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event

from bench_databases import postgresql_databases, sqlite_database
from sqlalchemy import Connection, insert, text

from etl.app.prune import Ages, Pruned, prune
from etl.app.refresh import refresh
from etl.database.connection import Database
from etl.database.schema import fetch_queue
from etl.database.summaries import DERIVED
from etl.model import Pair
from etl.sandbox.answers import details, listing
from etl.sandbox.world import World, scan
from etl.store.listings import PageToRecord, record
from etl.store.scans import load_scans
from etl.transform.scan import flatten
from etl.transform.search_page import read_page

DAYS = 400
BATCH = 500
LISTING_TABLE = "scan_listings"
REST_SECONDS = 0.02
SIZES = {
    "sqlite": "SELECT m.tbl_name, SUM(CASE WHEN m.type = 'table' THEN s.pgsize ELSE 0 END),"
    " SUM(CASE WHEN m.type = 'index' THEN s.pgsize ELSE 0 END)"
    " FROM dbstat s JOIN sqlite_master m ON m.name = s.name GROUP BY 1",
    "postgresql": "SELECT relname, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace",
    "mysql": "SELECT table_name, data_length, index_length FROM information_schema.tables"
    " WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'",
}
"""By table: the bytes of its rows, and of its indexes. What has no index of its own is stored by its key."""


def fill(url: str, count: int) -> None:
    """Store scans up to yesterday, their listings, and what is counted of them."""
    now = datetime.now(UTC) - timedelta(days=1)
    world = World(scans=count, opened_at=now, scans_per_day=count / DAYS)
    with closing(Database(url)) as database:
        for first in range(world.first_scan_id, world.first_scan_id + count, BATCH):
            numbers = range(first, min(first + BATCH, world.first_scan_id + count))
            database.run_here(partial(_store, world=world, numbers=numbers, now=now))
        refresh(database, seconds=86_400)


def _store(connection: Connection, world: World, numbers: range, now: datetime) -> None:
    ours = [scan(world, number) for number in numbers]
    rows = [flatten(Pair(one.deployment_id, one.id), details(one, None), now) for one in ours]
    load_scans(connection, rows, "run")
    for deployment_id in {one.deployment_id for one in ours}:
        listed = [listing(one, now) for one in ours if one.deployment_id == deployment_id]
        record(connection, PageToRecord(read_page(deployment_id, {"scans": listed}), now, False, 60.0))


def sizes(connection: Connection) -> dict[str, tuple[int, int]]:
    """The bytes of rows and of indexes: of scans with what hangs on them, of listings, and of counts."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    counts = {table.name for table in DERIVED}
    for name, rows, indexes in connection.execute(text(SIZES[connection.dialect.name])):
        if name in counts:
            group = "counts"
        elif name == LISTING_TABLE:
            group = "listings"
        elif name.startswith("scan"):
            group = "scans"
        else:
            continue
        found[group][0] += int(rows)
        found[group][1] += int(indexes)
    return {group: (both[0], both[1]) for group, both in found.items()}


def longest_wait_seconds(url: str, stop: Event) -> float:
    """Of a writer that queues one pair after another."""
    longest, number = 0.0, 0
    with closing(Database(url)) as database:
        while not stop.wait(REST_SECONDS):
            number += 1
            row = insert(fetch_queue).values(deployment_id=999, scan_id=number)
            started = time.perf_counter()
            database.run_here(partial(Connection.execute, statement=row))
            longest = max(longest, time.perf_counter() - started)
    return longest


def measure(url: str, count: int) -> None:
    """Print lines of figures."""
    fill(url, count)
    with closing(Database(url)) as database:
        if (name := database.engine.dialect.name) == "mysql":
            tables = database.run_here(lambda connection: list(sizes_by_table(connection)))
            database.run_here(partial(_analyze, tables=tables))
        for group, (rows, indexes) in sorted(database.run_here(sizes).items()):
            print(f"{name} {group}: {rows / count:,.0f} bytes of rows and {indexes / count:,.0f} of indexes a scan")
        _measure_prune(database, name)


def _measure_prune(database: Database, name: str) -> None:
    stop, started = Event(), time.perf_counter()
    told = [(0, 0.0)]

    def hear(pruned: Pruned) -> None:
        removed = pruned.removed.get("scans", 0)
        if removed > told[-1][0]:
            told.append((removed, time.perf_counter() - started))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(longest_wait_seconds, database.url, stop)
        ages = Ages(scans_seconds=DAYS / 2 * 86_400)
        prune(database, ages, dry_run=False, report=hear, say=hear)
        counted_seconds = time.perf_counter() - started - told[-1][1]
        stop.set()
    removed, seconds = told[-1]
    print(f"{name}: {removed:,} scans removed, {seconds * 1e6 / removed:,.0f} us each, {seconds:,.1f} s in all")
    print(f"{name}: {counted_seconds:,.1f} s to count {DAYS // 2:,} days anew")
    print(f"{name}: a writer beside it waited for {waiting.result():.2f} s at most")


def sizes_by_table(connection: Connection) -> list[str]:
    """The names of the tables."""
    return [row[0] for row in connection.execute(text(SIZES[connection.dialect.name]))]


def _analyze(connection: Connection, tables: list[str]) -> None:
    connection.execute(text(f"ANALYZE TABLE {', '.join(tables)}"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("urls", nargs="*")
    given = parser.parse_args()
    for url in given.urls:
        measure(url, given.scans)
    if not given.urls:
        with sqlite_database() as url:
            measure(url, given.scans)
        with postgresql_databases() as new_database, new_database() as url:
            measure(url, given.scans)


if __name__ == "__main__":
    main()
