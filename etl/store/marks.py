"""Marks of the days whose counts are behind: whoever changes what becomes of scans leaves them in the same transaction.

A mark is a row of its own, so that no two writers wait for each other; `summaries` counts the days, and removes the
marks that it has read.
"""

from collections.abc import Collection, Sequence
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, FromClause, Select, Table, and_, func, insert, literal, select

from etl.database.dialects import on_pairs
from etl.database.schema import repositories, scan_listings, scans
from etl.database.summaries import summary_marks
from etl.model import Pair

UNKNOWN_DAY = date(1970, 1, 1)
"""Stands for the day of scans without a start, or without one that is believed."""

DeploymentDay = tuple[int, date]


def week_of(day: date) -> date:
    """The Monday of its week."""
    return day - timedelta(days=day.weekday())


def _days(table: Table) -> Select[Any]:
    return select(table.c.deployment_id, func.coalesce(table.c.started_day, UNKNOWN_DAY)).distinct()


# Not DISTINCT, for the sake of which MariaDB reads the index of the days from end to end.
_DAYS_OF = {table: select(table.c.deployment_id, table.c.started_day) for table in (scans, scan_listings)}


def mark(connection: Connection, pairs: Sequence[Pair], also: Collection[DeploymentDay] = ()) -> None:
    """Mark the days of these scans, and of their listings, as they are now, and `also` others."""
    if not pairs:
        return
    days = set(also)
    for table, statement in _DAYS_OF.items():
        found = on_pairs(connection, statement, table, pairs)
        days |= {(row.deployment_id, row.started_day or UNKNOWN_DAY) for row in found}
    mark_days(connection, days)


def mark_days(connection: Connection, days: Collection[DeploymentDay]) -> None:
    """Mark these days."""
    if days:
        connection.execute(insert(summary_marks), [{"deployment_id": of, "day": day} for of, day in sorted(days)])


def mark_listed(connection: Connection, pairs: FromClause) -> None:
    """Mark the days of those of these pairs that are listed."""
    if connection.execute(select(scan_listings.c.scan_id).limit(1)).first() is None:
        return
    is_same = and_(*(pairs.c[name] == scan_listings.c[name] for name in ("deployment_id", "scan_id")))
    # Each looked up by its key, whatever a planner knows: not by a join.
    day = select(func.coalesce(scan_listings.c.started_day, UNKNOWN_DAY)).where(is_same).correlate(pairs).limit(1)
    found = select(pairs.c.deployment_id, day.scalar_subquery().label("day")).distinct().subquery("found")
    listed = select(found).where(found.c.day.is_not(None))
    connection.execute(insert(summary_marks).from_select(["deployment_id", "day"], listed))


def mark_all(connection: Connection) -> None:
    """Mark every day that there is anything of, counted before or not."""
    names = ["deployment_id", "day"]
    for table in (scans, scan_listings):
        connection.execute(insert(summary_marks).from_select(names, _days(table)))
    of_repositories = select(repositories.c.deployment_id, literal(UNKNOWN_DAY)).distinct()
    connection.execute(insert(summary_marks).from_select(names, of_repositories))
