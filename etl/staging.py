"""Filling the queue: the pairs of an input go into a temporary table, and from there into the queue, all or none."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    MetaData,
    Select,
    Table,
    and_,
    case,
    delete,
    func,
    literal,
    or_,
    select,
)

from etl.database import analyze, drop_temporary, insert_rows, on_pairs, upsert
from etl.model import PERISHES_AFTER, Enqueued, Pair
from etl.queue import FILE_PRIORITY
from etl.schema import at_once, fetch_queue, moved, scans

TAKEN_BACK_AT_ONCE = 10_000

_q = fetch_queue.c
_KEY = (_q.deployment_id, _q.scan_id)

_stage = Table(
    "enqueue_stage",
    MetaData(),
    Column("deployment_id", BigInteger, nullable=False),
    Column("scan_id", BigInteger, nullable=False),
    prefixes=["TEMPORARY"],
)


def open_stage(connection: Connection) -> None:
    """Make an empty temporary table for the pairs of one input, so that memory doesn't grow with it."""
    drop_temporary(connection, _stage)
    _stage.create(connection)


def stage(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Add pairs to the temporary table of this connection."""
    insert_rows(connection, _stage, tuple(_stage.c), pairs)


_PAIRS = select(_stage.c.deployment_id, _stage.c.scan_id).distinct().subquery("pairs")


def _is_final(of: FromClause) -> ColumnElement[bool]:
    """Whether the stored scan of a pair is final, or was still unfinished when the API had shown it for the last
    time."""
    perished_at = moved(scans.c.started_at, literal(PERISHES_AFTER.total_seconds()))
    return (
        select(1)
        .where(
            scans.c.deployment_id == of.c.deployment_id,
            scans.c.scan_id == of.c.scan_id,
            or_(scans.c.completed_at.is_not(None), scans.c.fetched_at > perished_at),
        )
        .exists()
    )


def _count(connection: Connection, rows: FromClause) -> int:
    found: int = connection.execute(select(func.count()).select_from(rows)).scalar_one()
    return found


def _counts(connection: Connection) -> tuple[int, int]:
    """How many pairs are staged, and how many different ones."""
    analyze(connection, _stage)
    return _count(connection, _stage), _count(connection, _PAIRS)


def staged(connection: Connection, *, refresh: bool) -> tuple[Enqueued, Select[Any]]:
    """What would become of the staged pairs, and the pairs to queue: each once, without the final ones (unless
    `refresh`)."""
    valid, distinct = _counts(connection)
    wanted = select(_PAIRS)
    if not refresh:
        wanted = wanted.where(~_is_final(_PAIRS))
    queued = distinct if refresh else _count(connection, wanted.subquery())
    return Enqueued(valid, valid - distinct, distinct - queued, queued), wanted


def enqueue_staged(connection: Connection, batch: str | None, *, refresh: bool = False) -> Enqueued:
    """Queue the pairs of `staged`. One that is queued already passes to `batch` and keeps its place, its attempts
    and its lease."""

    def change(new: Any) -> dict[str, Any]:
        changes: dict[str, Any] = {"batch": func.coalesce(new.batch, _q.batch)}
        if refresh:
            changes["due_at"] = case((_q.lease_token.is_(None), at_once()), else_=_q.due_at)
        return changes

    valid, distinct = _counts(connection)
    queued = distinct
    # What is final now leaves the stage: if it is queued, somebody wants it anew, and it isn't ours to take back.
    if not refresh and connection.execute(delete(_stage).where(_is_final(_stage))).rowcount:
        queued = _count(connection, _PAIRS)
    priority = literal(FILE_PRIORITY if batch else 0).label("priority")
    wanted = select(_PAIRS, literal(batch).label("batch"), priority).order_by("deployment_id", "scan_id")
    names = ["deployment_id", "scan_id", "batch", "priority"]
    # SQLite can't tell ON CONFLICT from a join's ON without a WHERE.
    wanted = wanted.where(literal(True))
    connection.execute(upsert(connection, fetch_queue, change).from_select(names, wanted))
    if not refresh:
        queued -= _take_back_finished(connection)
    drop_temporary(connection, _stage)
    return Enqueued(valid, valid - distinct, distinct - queued, queued)


_FINISHED = (
    select(*_KEY)
    .distinct()
    .select_from(_stage)
    .join(fetch_queue, and_(_q.deployment_id == _stage.c.deployment_id, _q.scan_id == _stage.c.scan_id))
    .join(scans, and_(scans.c.deployment_id == _q.deployment_id, scans.c.scan_id == _q.scan_id))
    .where(_q.lease_token.is_(None), scans.c.completed_at.is_not(None))
    .limit(TAKEN_BACK_AT_ONCE)
)
_TAKE_BACK = delete(fetch_queue).where(_q.lease_token.is_(None))


def _take_back_finished(connection: Connection) -> int:
    """Take back the pairs that another worker has finished while they were being queued.

    Its queue row was gone by the time ours was inserted, but its scan wasn't there yet when we looked for it.
    """
    count = 0
    while pairs := [Pair(*row) for row in connection.execute(_FINISHED)]:
        # By their keys: MariaDB would read the whole queue for a DELETE by a subquery.
        count += on_pairs(connection, _TAKE_BACK, fetch_queue, pairs).rowcount
        if len(pairs) < TAKEN_BACK_AT_ONCE:
            break
    return count
