"""The leanest pipeline of the same libraries: what `scan-etl run` is measured against.

It reads pairs, fetches, decodes, and writes 500 scans at a time into the tables of scans, which must be
there and empty. No queue, no retry, no pace, no resume, no look at what is odd: the first fault ends it.

    lean_client.py DATABASE_URL BASE_URL PAIRS.csv WORKERS
"""

import asyncio
import csv
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from etl.transform.fields import META, SCAN, STATS, Level
from etl.transform.readers import boolean, flag, instant, integer, seconds, text, title

BATCH = 500
TYPES: dict[Any, tuple[Any, str]] = {
    integer: (int, "int8"),
    instant: (datetime, "timestamptz"),
    boolean: (bool, "bool"),
    flag: (bool, "bool"),
    seconds: (float, "float8"),
    text: (str, "text"),
    title: (str, "text"),
}
"""What each reader of a field gives: in Python, and in PostgreSQL."""
KEY = {"deployment_id": "int8", "scan_id": "int8"}


def columns(level: Level) -> dict[str, str]:
    """The columns of a level and their types."""
    return {field.column: TYPES[field.read][1] for field in level.fields}


def struct(name: str, level: Level, **others: tuple[Any, Any]) -> Any:
    """A type that decodes the fields of a level, in the order of its columns, and others after them."""
    fields = [(field.column, TYPES[field.read][0] | None, None) for field in level.fields]
    more = [(name, kind, default) for name, (kind, default) in others.items()]
    return msgspec.defstruct(name, [*fields, *more], rename=dict(zip(level.columns, level.names, strict=True)))


TABLES = {
    "scans": {
        **KEY,
        **columns(SCAN),
        "content_hash": "text",
        "first_fetched_at": "timestamptz",
        "fetched_at": "timestamptz",
        "changed_at": "timestamptz",
    },
    "scan_products": {**KEY, "product": "text"},
    "scan_meta": {**KEY, **columns(META)},
    "scan_stats": {**KEY, **columns(STATS)},
    "scan_stat_items": {**KEY, "category": "text", "name": "text", "value": "float8"},
}
Rows = dict[str, list[tuple[Any, ...]]]

OF_SCAN, OF_STATS = len(SCAN.fields), len(STATS.fields)
Meta = struct("Meta", META)
Stats = struct("Stats", STATS, findings_by_product=(dict[str, float], {}))
Scan = struct(
    "Scan",
    SCAN,
    id=(int, 0),
    deployment_id=(int, 0),
    enabled_products=(list[str], []),
    meta=(Meta, msgspec.field(default_factory=Meta)),
    stats=(Stats, msgspec.field(default_factory=Stats)),
)


def flatten(batch: list[tuple[Any, datetime]]) -> Rows:
    """The rows of a batch, by table."""
    rows: Rows = {name: [] for name in TABLES}
    scans, products, meta, stats, items = rows.values()
    for scan, at in batch:
        key = scan.deployment_id, scan.id
        scans.append((*key, *msgspec.structs.astuple(scan)[:OF_SCAN], "", at, at, at))
        meta.append(key + msgspec.structs.astuple(scan.meta))
        stats.append(key + msgspec.structs.astuple(scan.stats)[:OF_STATS])
        for product in scan.enabled_products:
            products.append((*key, product))
        for name, value in scan.stats.findings_by_product.items():
            items.append((*key, "findings_by_product", name, value))
    return rows


@contextmanager
def sqlite_writer(path: str) -> Iterator[Callable[[Rows], None]]:
    """Writes rows by the driver's executemany, a transaction a batch."""
    import sqlite3  # noqa: PLC0415 - a program for one database imports one driver

    sqlite3.register_adapter(datetime, lambda at: at.isoformat(" ", "microseconds")[:26])
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

        def write(rows: Rows) -> None:
            connection.execute("BEGIN IMMEDIATE")
            for name, columns in TABLES.items():
                marks = ", ".join("?" * len(columns))
                sql = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"
                connection.executemany(sql, rows[name])
            connection.execute("COMMIT")

        yield write


@contextmanager
def postgresql_writer(url: str) -> Iterator[Callable[[Rows], None]]:
    """Writes rows by binary COPY, a transaction a batch."""
    import psycopg  # noqa: PLC0415 - a program for one database imports one driver

    with psycopg.connect(url, autocommit=True) as connection:

        def write(rows: Rows) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                for name, columns in TABLES.items():
                    with cursor.copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)") as copy:
                        copy.set_types(list(columns.values()))
                        for row in rows[name]:
                            copy.write_row(row)

        yield write


async def load(write: Callable[[Rows], None], base_url: str, pairs: Iterator[list[str]], workers: int) -> None:
    """Fetch with `workers` requests in flight, and write a batch while the next one is fetched."""
    decode = msgspec.json.Decoder(Scan).decode
    batch: list[tuple[Any, datetime]] = []
    thread, turn = ThreadPoolExecutor(max_workers=1), asyncio.Lock()
    on_thread = partial(asyncio.get_running_loop().run_in_executor, thread)

    async def save(least: int) -> None:
        async with turn:  # one batch is written, one is filled: memory stays small
            if len(batch) >= least:
                full, batch[:] = batch[:], []
                await on_thread(lambda: write(flatten(full)))

    async def fetch(session: aiohttp.ClientSession) -> None:
        for deployment_id, scan_id in pairs:
            async with session.get(f"{base_url}/api/v1/deployments/{deployment_id}/scan/{scan_id}") as response:
                body = await response.read()
            batch.append((decode(body), datetime.now(UTC)))
            if len(batch) >= BATCH:
                await save(BATCH)

    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": "Bearer benchmark"},
            raise_for_status=True,
        ) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(workers):
            tasks.create_task(fetch(session))
    await save(1)


def main(database_url: str, base_url: str, path: str, workers: int) -> None:
    """Load the pairs of a CSV file with a header."""
    place = database_url.removeprefix("sqlite:///")
    writer = sqlite_writer(place) if place != database_url else postgresql_writer(database_url)
    with writer as write, Path(path).open(newline="") as file:
        pairs = csv.reader(file)
        next(pairs)
        uvloop.run(load(write, base_url, pairs, workers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
