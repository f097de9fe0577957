"""What a run has stored, and the variables that it runs with."""

from contextlib import closing
from typing import Any

from sandbox_thread import RunningSandbox
from scan_rows import BOOKKEEPING, SCAN_TABLES
from sqlalchemy import Connection, Table, select
from tables_of import ask

from etl.database.connection import Database

SUMMARY = (
    "run_id command requested invalid duplicate already_final discovered requests fetched inserted updated unchanged"
    " waiting retried rate_limited dead remaining duration_seconds exit_code started_at finished_at stop_reason"
).split()


def rows(url: str, table: Table, *left_out: str) -> list[tuple[Any, ...]]:
    def work(connection: Connection) -> list[tuple[Any, ...]]:
        columns = [column for column in table.c if column.name not in left_out]
        return [tuple(row) for row in connection.execute(select(*columns).order_by(*table.primary_key))]

    with closing(Database(url)) as database:
        return database.run_here(work)


def environment(sandbox: RunningSandbox, url: str, **additions: str) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_DATABASE__URL=url, **additions)


def loaded(url: str) -> dict[str, list[dict[str, Any]]]:
    """All that the tables hold of the scans, but for the bookkeeping."""
    found = {}
    for table in SCAN_TABLES:
        columns = [column for column in table.c if column.name not in BOOKKEEPING]
        found[table.name] = [row._asdict() for row in ask(url, select(*columns).order_by(*table.primary_key))]
    return found
