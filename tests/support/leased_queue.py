"""A queue in a database, which is filled, leased and settled."""

from typing import Any

from queue_filling import enqueue
from sqlalchemy import update

from etl.database.connection import Database
from etl.database.schema import fetch_queue
from etl.database.types import utc_now
from etl.model import (
    Enqueued,
    Lease,
    Outcome,
    Pair,
    Settled,
)
from etl.store import queue
from etl.store import settle as settling

NOTHING = Settled(inserted=0, updated=0, unchanged=0, waiting=0, later=0, dead=0, released=0, lost=0)


def fill(database: Database, *pairs: Pair, batch: str | None = None, refresh: bool = False) -> Enqueued:
    return enqueue(database, pairs, batch=batch, refresh=refresh)


def lease(database: Database, token: str, limit: int = 100, seconds: float = 60, **options: Any) -> list[Lease]:
    return database.run_here(lambda connection: queue.lease(connection, token, limit, seconds, **options))


def settle(database: Database, token: str, *outcomes: Outcome) -> Settled:
    return database.run_here(lambda connection: settling.settle(connection, token, outcomes, "run"))


def pairs(*scan_ids: int, deployment_id: int = 120) -> list[Pair]:
    return [Pair(deployment_id, scan_id) for scan_id in scan_ids]


def end_leases(database: Database) -> None:
    """Let the time pass that a lease lasts."""
    database.run_here(lambda connection: connection.execute(update(fetch_queue).values(due_at=utc_now())))
