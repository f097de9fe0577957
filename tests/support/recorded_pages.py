"""Pages of a list that are recorded, and what they queue."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import select

from etl.database.connection import Database
from etl.database.schema import fetch_queue
from etl.model import (
    Listing,
    ListingPass,
    Pair,
    Settled,
    WatermarkMove,
)
from etl.store import queue, watermarks
from etl.store import settle as settling
from etl.store.listings import PageToRecord, record
from etl.transform.search_page import Page

BEGAN_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LISTED_AT = BEGAN_AT + timedelta(hours=2)
DAY = timedelta(days=1)
OPEN: dict[str, Any] = {"completed_at": None, "exit_code": None}


def put(database: Database, *found: Listing, listed_at: datetime = LISTED_AT, refresh: bool = False) -> int:
    """Record one page."""
    piece = PageToRecord(Page(tuple(sorted(found)), "", ()), listed_at, refresh, 300.0)
    return database.run_here(partial(record, piece=piece))


def queued(database: Database) -> list[dict[str, Any]]:
    return rows(database, fetch_queue)


def rows(database: Database, table: Any) -> list[dict[str, Any]]:
    statement = select(table).order_by(*table.primary_key)
    return database.run_here(lambda connection: [dict(row) for row in connection.execute(statement).mappings()])


def lease(database: Database, token: str = "w", **options: Any) -> list[Pair]:
    leases = database.run_here(lambda connection: queue.lease(connection, token, 100, 60.0, **options))
    return [one.pair for one in leases]


def settle(database: Database, *outcomes: Any, token: str = "w") -> Settled:
    return database.run_here(lambda connection: settling.settle(connection, token, outcomes, "run"))


def walked(
    database: Database,
    at: datetime,
    since: datetime | None = None,
    *,
    hours: float = 0,
    partial_: bool = False,
    wake: Any = (),
    newest: datetime | None = BEGAN_AT,
) -> WatermarkMove:
    """End a walk that took so many hours."""
    walk = ListingPass(120, since, at, at + timedelta(hours=hours), newest, partial_, wake)
    return database.run_here(partial(watermarks.finish, walk=walk, token_key="key"))
