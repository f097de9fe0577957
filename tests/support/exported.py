"""A database with something in each table that an export may read, and exports of it."""

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path

from scan_rows import BEGAN_AT, scan_rows
from sqlalchemy import Connection, insert, update

from etl.app.export import Exported, export
from etl.database.connection import Database
from etl.database.migrate import dictionary
from etl.database.schema import dead_letters, fetch_queue, repositories, runs, scan_listings, scans
from etl.store.exports import extract
from etl.store.scans import load_scans
from etl.store.summaries import refresh_piece

ODD_TEXT = 'Ärger "quoted", with, commas\r\nand a second line \N{GRINNING FACE}'


def fill(url: str) -> None:
    """Store scans of two deployments and three months, of which one has no start, and what else a run leaves."""
    with closing(Database(url)) as database:
        database.run_here(_fill)
        while database.run_here(refresh_piece):
            pass


def _fill(connection: Connection) -> None:
    meta = {"on": "push", "repository": "acme/pay", "commit_title": ODD_TEXT, "commit_author_username": "ann"}
    batch = [
        scan_rows(1, meta=meta),
        scan_rows(2, exit_code=-9, started_at="2026-02-28T23:59:59.999999Z", completed_at="2026-03-01T00:00:00Z"),
        scan_rows(3, exit_code=None, completed_at=None, meta=None, stats=None),
        scan_rows(4, started_at=None, has_logs=None, repository_id=None),
        scan_rows(2**53 + 1, deployment_id=2**53 + 1, started_at="2026-01-01T00:00:00Z", exit_code=1),
    ]
    load_scans(connection, batch, "run")
    start = {"started_at": BEGAN_AT, "started_day": BEGAN_AT.date()}
    seen = {"deployment_id": 120, "listed_at": BEGAN_AT, "is_full_scan": True, **start}
    connection.execute(insert(scan_listings), [{**seen, "scan_id": number, "repository_id": 7} for number in (1, 99)])
    connection.execute(insert(fetch_queue), {"deployment_id": 120, "scan_id": 98, "expires_at": BEGAN_AT})
    connection.execute(
        insert(dead_letters), {"deployment_id": 120, "scan_id": 97, "due_at": BEGAN_AT, "died_at": BEGAN_AT}
    )
    known = {"first_seen_at": BEGAN_AT, "seen_at": BEGAN_AT, "tags": ["a", "b"], "name": "acme/pay"}
    connection.execute(insert(repositories), {"deployment_id": 120, "repository_id": 7, **known})
    run = {"run_id": "a" * 32, "command": "sync", "version": "1", "started_at": BEGAN_AT, "duration_seconds": 0.1}
    connection.execute(insert(runs), {**run, "inputs": ["-"], "settings": {"api.rate": 20}})


def changed(url: str, scan_id: int, at: datetime) -> None:
    """Say that a scan changed then."""
    statement = update(scans).where(scans.c.scan_id == scan_id).values(changed_at=at)
    with closing(Database(url)) as database:
        database.run_here(partial(Connection.execute, statement=statement))


def exported(
    url: str,
    name: str,
    out: Path,
    *,
    form: str = "parquet",
    deployment_ids: Sequence[int] = (),
    changed_since: datetime | None = None,
) -> Exported:
    """Export a table or a view."""
    chosen = extract(dictionary(), name, deployment_ids, changed_since)
    with closing(Database(url)) as database:
        return export(database, chosen, form, out, lambda _: None)
