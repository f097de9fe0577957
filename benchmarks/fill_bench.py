"""How long it takes to fill a new column from `extra`, and for how long that keeps a writer waiting.

    .venv/bin/python benchmarks/fill_bench.py [--rows N] [URL ...]

A URL is that of a database whose tables are empty, as for MariaDB; without one, SQLite and PostgreSQL bring their own.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from threading import Event

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from bench_databases import postgresql_databases, sqlite_database

from etl.database.connection import Database
from etl.database.dialects import insert_rows
from etl.database.engine import make_engine
from etl.database.schema import scan_meta, scans
from etl.transform.readers import integer
from migrations.columns import add_column_from_extra

DEPLOYMENT_ID = 120
CHUNK_ROWS = 10_000
REST_SECONDS = 0.02


def insert_scans(numbers: range, connection: sa.Connection) -> None:
    """Scans of before, whose `extra` holds the field among others."""
    at = datetime(2026, 3, 1, tzinfo=UTC)
    columns = [scans.c[name] for name in ("deployment_id", "scan_id", "content_hash")]
    instants = [scans.c[name] for name in ("first_fetched_at", "fetched_at", "changed_at")]
    insert_rows(connection, scans, [*columns, *instants], [(DEPLOYMENT_ID, n, "", at, at, at) for n in numbers])
    extra = '{"base_sha":"0123456789012345678901234567890123456789","is_sca_scan":1,"org_id":"1000001","shiny":%d}'
    names = ("deployment_id", "scan_id", "branch", "repository", "extra")
    rows = [(DEPLOYMENT_ID, n, "refs/heads/main", "acme/pay", extra % n) for n in numbers]
    insert_rows(connection, scan_meta, [scan_meta.c[name] for name in names], rows)


def longest_wait_seconds(url: str, rows: int, stop: Event) -> float:
    """Of a writer that changes one row after another, all over the table."""
    longest, turn = 0.0, 0
    with closing(Database(url)) as database:
        while not stop.wait(REST_SECONDS):
            turn += 1
            is_row = (scan_meta.c.deployment_id == DEPLOYMENT_ID) & (scan_meta.c.scan_id == turn * 7_919 % rows + 1)
            change = sa.update(scan_meta).where(is_row).values(branch=f"b{turn}")
            started = time.perf_counter()
            database.run_here(partial(sa.Connection.execute, statement=change))
            longest = max(longest, time.perf_counter() - started)
    return longest


def fill(url: str) -> None:
    """As a migration does."""
    engine = make_engine(url)
    with engine.connect() as connection:
        connection.begin()
        with Operations.context(MigrationContext.configure(connection)):
            add_column_from_extra("scan_meta", sa.Column("shiny", sa.BigInteger), "shiny", integer)
        connection.commit()
    engine.dispose()


def measure(url: str, rows: int) -> None:
    """Print a line of figures."""
    with closing(Database(url)) as database:
        for first in range(1, rows + 1, CHUNK_ROWS):
            database.run_here(partial(insert_scans, range(first, min(first + CHUNK_ROWS, rows + 1))))
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(longest_wait_seconds, url, rows, stop)
        started = time.perf_counter()
        fill(url)
        seconds = time.perf_counter() - started
        stop.set()
    name = sa.make_url(url).get_backend_name()
    print(f"{name:<12}{rows:>12,} rows{seconds:>8.1f} s; a writer waited for {waiting.result():.2f} s at most")


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the filling of a new column.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("urls", nargs="*", metavar="URL")
    options = parser.parse_args()
    for url in options.urls:
        measure(url, options.rows)
    if not options.urls:
        with sqlite_database() as url:
            measure(url, options.rows)
        with postgresql_databases() as new_database, new_database() as url:
            measure(url, options.rows)


if __name__ == "__main__":
    main()
