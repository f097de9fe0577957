"""The leanest pipeline of the same libraries: what `scan-etl run` is measured against.

It reads pairs, fetches, decodes, and writes 500 scans at a time into the five tables of scans, which must be
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

BATCH = 500
KEY = {"deployment_id": "int8", "scan_id": "int8"}
TABLES = {
    "scans": {
        **KEY,
        "repository_id": "int8",
        "started_at": "timestamptz",
        "completed_at": "timestamptz",
        "exit_code": "int8",
        "has_logs": "bool",
        "content_hash": "text",
        "first_fetched_at": "timestamptz",
        "fetched_at": "timestamptz",
        "changed_at": "timestamptz",
    },
    "scan_products": {**KEY, "product": "text"},
    "scan_meta": {
        **KEY,
        **dict.fromkeys(
            (
                *("trigger_event", "branch", "commit_sha", "config", "repo_url", "ci_job_url", "repository"),
                *("commit_title", "pull_request_id", "pull_request_title"),
                *("commit_author_name", "commit_author_email", "commit_author_username", "commit_author_image_url"),
                *("pull_request_author_username", "pull_request_author_image_url"),
            ),
            "text",
        ),
    },
    "scan_stats": {**KEY, "findings": "int8", "total_time_seconds": "float8"},
    "scan_stat_items": {**KEY, "category": "text", "name": "text", "value": "float8"},
}
Rows = dict[str, list[tuple[Any, ...]]]


class Meta(msgspec.Struct, rename={"trigger_event": "on", "commit_sha": "commit"}):
    """The documented fields of `meta`, in the order of the columns."""

    trigger_event: str | None = None
    branch: str | None = None
    commit_sha: str | None = None
    config: str | None = None
    repo_url: str | None = None
    ci_job_url: str | None = None
    repository: str | None = None
    commit_title: str | None = None
    pull_request_id: str | None = None
    pull_request_title: str | None = None
    commit_author_name: str | None = None
    commit_author_email: str | None = None
    commit_author_username: str | None = None
    commit_author_image_url: str | None = None
    pull_request_author_username: str | None = None
    pull_request_author_image_url: str | None = None


class Stats(msgspec.Struct):
    """The documented fields of `stats`, and the map of findings."""

    findings: int | None = None
    total_time: float | None = None
    findings_by_product: dict[str, float] = {}


class Scan(msgspec.Struct):
    """The documented fields of a scan."""

    id: int
    deployment_id: int
    repository_id: int | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    exit_code: int | None = None
    has_logs: bool | None = None
    enabled_products: list[str] = []
    meta: Meta = msgspec.field(default_factory=Meta)
    stats: Stats = msgspec.field(default_factory=Stats)


def flatten(batch: list[tuple[Scan, datetime]]) -> Rows:
    """The rows of a batch, by table."""
    rows: Rows = {name: [] for name in TABLES}
    scans, products, meta, stats, items = rows.values()
    for scan, at in batch:
        key = scan.deployment_id, scan.id
        times = scan.started_at, scan.completed_at
        scans.append((*key, scan.repository_id, *times, scan.exit_code, scan.has_logs, "", at, at, at))
        meta.append(key + msgspec.structs.astuple(scan.meta))
        stats.append((*key, scan.stats.findings, scan.stats.total_time))
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
                sql = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - names from above
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
    batch: list[tuple[Scan, datetime]] = []
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
