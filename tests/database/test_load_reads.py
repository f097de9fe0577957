"""How much the databases read of what is stored, whatever they have counted in it before, when more of it comes: the
scans and the listings that come, and not what is there."""

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from listings_of import listing
from recorded_pages import LISTED_AT
from rows_read import counting_reads
from scan_rows import BEGAN_AT, scan_rows
from sqlalchemy import Connection, Table, text

from etl.database.connection import Database
from etl.database.dialects import insert_rows
from etl.database.schema import metadata, scan_listings, scan_meta, scan_products, scan_stats, scans
from etl.model import Pair
from etl.store import enqueue
from etl.store.listings import PageToRecord, record
from etl.store.marks import mark_all, mark_days
from etl.store.scans import load_scans
from etl.store.summaries import refresh_piece
from etl.transform.search_page import Page

ROWS, WORKED_ON, OF_A_DAY = 20_000, 40, 80
KEY = {"deployment_id": 120}
INSTANTS = dict.fromkeys(("first_fetched_at", "fetched_at", "changed_at"), BEGAN_AT)


def insert_many(connection: Connection, table: Table, **values: Any) -> None:
    """A row for each of many scans of one deployment, of which a few are of a day."""
    columns = [table.c[name] for name in ("deployment_id", "scan_id", *values)]
    rows = [(120, number, *values.values()) for number in range(1, 1 + ROWS)]
    if "started_day" in table.c:
        columns.append(table.c.started_day)
        rows = [(*row, BEGAN_AT.date() - timedelta(days=row[1] // OF_A_DAY)) for row in rows]
    insert_rows(connection, table, columns, rows)


def fill(connection: Connection) -> None:
    insert_many(connection, scans, content_hash="x", repository_id=7, **INSTANTS)
    insert_many(connection, scan_meta, repository="acme/pay")
    insert_many(connection, scan_stats, findings=3)
    insert_many(connection, scan_products, product="sast")
    insert_many(connection, scan_listings, listed_at=BEGAN_AT, repository_id=7)


def count_rows(connection: Connection, *tables: Table) -> None:
    for table in tables or metadata.tables.values():
        sql = {"postgresql": f"ANALYZE {table}", "sqlite": f"ANALYZE {table}", "mysql": f"ANALYZE TABLE {table}"}
        connection.execute(text(sql[connection.dialect.name])).close()


def never_counted(connection: Connection) -> None:
    fill(connection)


def counted_while_empty(connection: Connection) -> None:
    count_rows(connection)
    fill(connection)


def listings_counted(connection: Connection) -> None:
    """As a server does that counts one table after the other."""
    counted_while_empty(connection)
    count_rows(connection, scan_listings)


def counted(connection: Connection) -> None:
    fill(connection)
    count_rows(connection)


def count_all(database: Database) -> None:
    while database.run_here(refresh_piece):
        pass


def page(first: int) -> PageToRecord:
    return PageToRecord(
        Page(tuple(listing(number) for number in range(first, first + WORKED_ON)), "", ()), LISTED_AT, False, 300.0
    )


def load(connection: Connection, first: int, minutes: int) -> None:
    batch = [scan_rows(number, minutes=minutes) for number in range(first, first + WORKED_ON)]
    load_scans(connection, batch, "run")


def queue_file(connection: Connection) -> None:
    pairs = [Pair(120, number) for number in range(1 + ROWS - WORKED_ON, 1 + ROWS)]
    enqueue.open_stage(connection, "file")
    enqueue.stage(connection, "file", pairs)
    enqueue.merge(connection, "file", len(pairs), batch=None, refresh=True)


@pytest.mark.parametrize("fill_and_count", [never_counted, counted_while_empty, listings_counted, counted])
def test_what_is_read_is_what_comes(database_url: str, fill_and_count: Callable[[Connection], None]) -> None:
    """Of scans that are new, changed, seen again or queued by a file, of listings that are new or known, and of a day
    that is counted, their own rows, whatever the server has counted."""
    found: dict[str, int] = {}

    def measure(name: str, work: Callable[[Connection], Any]) -> None:
        def measured(connection: Connection) -> None:
            with counting_reads(connection, *metadata.tables) as count:
                before = count()
                work(connection)
                found[name] = count() - before

        database.run_here(measured)

    with closing(Database(database_url)) as database:
        database.run_here(fill_and_count)
        database.run_here(mark_all)
        count_all(database)
        measure("new scans", partial(load, first=ROWS + 1, minutes=1))
        measure("changed scans", partial(load, first=101, minutes=2))
        measure("the same scans", partial(load, first=101, minutes=3))
        measure("known listings", partial(record, to_record=page(1_001)))
        measure("new listings", partial(record, to_record=page(ROWS + 1_001)))
        measure("a file of known scans", queue_file)
        count_all(database)
        database.run_here(partial(mark_days, days=[(120, BEGAN_AT.date())]))
        measure("a day", refresh_piece)

    assert {name: read for name, read in found.items() if read >= ROWS} == {}
