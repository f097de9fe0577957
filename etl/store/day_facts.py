"""What there is of a scan of a day: those that are stored, as `bi_scan` shows them, and those that are but listed."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CompoundSelect,
    Connection,
    Date,
    Double,
    Table,
    and_,
    bindparam,
    case,
    column,
    false,
    literal,
    null,
    select,
    table,
    true,
    union_all,
)

from etl.database.schema import dead_letters, fetch_queue, scan_listings, scans
from etl.database.types import UtcDateTime
from etl.store.day_counts import Fact
from etl.store.marks import UNKNOWN_DAY

_bi_scan = table(
    "bi_scan",
    column("deployment_id"),
    *(column(name) for name in Fact._fields),
    column("started_at", UtcDateTime),
    column("fetched_at", UtcDateTime),
    column("completed_at", UtcDateTime),
    column("started_day", Date),
    column("is_full_scan", Boolean),
    column("duration_seconds", Double),
)
ROWS_AT_ONCE = 2_000
"""A day may have more scans than there is memory."""
_b, _l = _bi_scan.c, scan_listings.c


def _same(one: Any, other: Any) -> ColumnElement[bool]:
    return and_(one.deployment_id == other.deployment_id, one.scan_id == other.scan_id)


def _is_in(held: Table, scan: Any) -> ColumnElement[bool]:
    """Whether a table holds a scan. Looked up one by one: whatever a planner takes the table for, it can't compare all
    scans with all of its rows."""
    found = select(held.c.scan_id).where(_same(held.c, scan)).limit(1).correlate(_bi_scan, scan_listings)
    return found.scalar_subquery().is_not(None)


def _findings(name: str) -> ColumnElement[Any]:
    """Looked up for full scans alone: what is found now is of these."""
    return case((_b.is_full_scan, _b[name])).label(name)


_OF_SCAN: dict[str, Any] = {
    **{name: _b[name] for name in Fact._fields if name in _b},
    **{name: _findings(name) for name in ("findings_code", "findings_supply_chain", "findings_secrets")},
    "is_listed": _l.scan_id.is_not(None),
    "has_end": _b.completed_at.is_not(None),
    "is_queued": case((_b.completed_at.is_(None), _is_in(fetch_queue, _b)), else_=false()),
    "is_dead": false(),
    "is_gone": false(),
    "is_expired": _l.expired_at.is_not(None),
    "is_dropped": _l.dropped_at.is_not(None),
}
_OF_LISTING: dict[str, Any] = {
    **dict.fromkeys(Fact._fields, null()),
    **{name: _l[name] for name in ("repository_id", "scan_id", "started_at")},
    "is_pull_request": literal(0),
    "is_listed": true(),
    "has_end": false(),
    "is_queued": _is_in(fetch_queue, _l),
    "is_dead": _is_in(dead_letters, _l),
    "is_gone": _l.details_gone_at.is_not(None),
    "is_expired": _l.expired_at.is_not(None),
    "is_dropped": _l.dropped_at.is_not(None),
}


def _facts(is_of_day: Callable[[Any], ColumnElement[bool]]) -> CompoundSelect[Any]:
    """The scans of a day that are stored, and those that are but listed, in one statement: as of one instant."""
    stored = (
        select(*(_OF_SCAN[name].label(name) for name in Fact._fields))
        .select_from(_bi_scan.outerjoin(scan_listings, _same(_l, _b)))
        .where(_b.deployment_id == bindparam("deployment"), is_of_day(_b.started_day))
    )
    listed = select(*(_OF_LISTING[name].label(name) for name in Fact._fields)).where(
        _l.deployment_id == bindparam("deployment"), is_of_day(_l.started_day), ~_is_in(scans, _l)
    )
    return union_all(stored, listed)


_FACTS = _facts(lambda day: day == bindparam("day", type_=Date))
_FACTS_OF_NO_DAY = _facts(lambda day: day.is_(None))


def facts_of(connection: Connection, deployment_id: int, day: date) -> Iterator[Fact]:
    """What there is of a day, or of no day that is believed."""
    of_day: dict[str, Any] = {"deployment": deployment_id}
    facts = _FACTS_OF_NO_DAY
    if day != UNKNOWN_DAY:
        of_day, facts = {**of_day, "day": day}, _FACTS
    with connection.execute(facts, of_day, execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
        for some in rows.partitions():
            yield from map(Fact._make, some)
