"""Marks of the days whose counts are behind: whoever changes what becomes of scans leaves them in the same transaction.

A mark is a row of its own, so that no two writers wait for each other; `summaries` counts the days, and removes the
marks that it has read.
"""

from collections.abc import Collection, Sequence
from datetime import date
from typing import Any

from sqlalchemy import Connection, Date, Select, Table, and_, func, insert, literal, select

from etl.database.dialects import on_pairs
from etl.database.schema import scan_listings, scans, staged_pairs
from etl.database.summaries import summary_marks
from etl.model import Pair

UNKNOWN_DAY = date(1970, 1, 1)
"""Stands for the day of scans without a start, or without one that is believed."""

DeploymentDay = tuple[int, date]


def _days(table: Table) -> Select[Any]:
    day = func.coalesce(table.c.started_day, literal(UNKNOWN_DAY, Date))
    return select(table.c.deployment_id, day.label("day")).distinct()


_LISTING_DAYS = _days(scan_listings)
# Without `coalesce`, of which MariaDB makes a text.
_STARTED_DAYS = {
    table: select(table.c.deployment_id, table.c.started_day).distinct() for table in (scans, scan_listings)
}


def mark(connection: Connection, pairs: Sequence[Pair], also: Collection[DeploymentDay] = ()) -> None:
    """Mark the days of these scans, and of their listings, as they are now, and `also` others."""
    if not pairs:
        return
    days = set(also)
    for table in (scans, scan_listings):
        found = on_pairs(connection, _STARTED_DAYS[table], table, pairs)
        days |= {(row.deployment_id, row.started_day or UNKNOWN_DAY) for row in found}
    if days:
        connection.execute(insert(summary_marks), [{"deployment_id": of, "day": day} for of, day in sorted(days)])


def mark_staged(connection: Connection, batch: str) -> None:
    """Mark the days of those pairs of a stage that are listed."""
    if connection.execute(select(scan_listings.c.scan_id).limit(1)).first() is None:
        return
    key = ("deployment_id", "scan_id")
    is_same = and_(*(staged_pairs.c[name] == scan_listings.c[name] for name in key))
    listed = _LISTING_DAYS.select_from(staged_pairs.join(scan_listings, is_same)).where(staged_pairs.c.batch == batch)
    connection.execute(insert(summary_marks).from_select(["deployment_id", "day"], listed))


def mark_all(connection: Connection) -> None:
    """Mark every day that there is anything of, counted before or not."""
    for table in (scans, scan_listings):
        connection.execute(insert(summary_marks).from_select(["deployment_id", "day"], _days(table)))
