"""What dashboards read: the marked days are counted anew, from the scans as they are.

A piece of that is one transaction: some marks are read, their days counted, and these marks removed. A scan whose
writer hasn't committed when its day is counted has its mark still to come. So nothing is counted twice or missed,
whoever is killed when, and any number of processes may do it: one after the other, for each locks `summary_state`.

Days come from `bi_scan` and from the queue, weeks from days, and what is known of a repository from its weeks.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date, timedelta
from statistics import quantiles
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    CompoundSelect,
    Connection,
    Date,
    Double,
    FromClause,
    Insert,
    String,
    Table,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    table,
    true,
    union_all,
    update,
)

from etl.database.dialects import insert_rows, plan_by_index
from etl.database.schema import dead_letters, fetch_queue, repositories, scan_listings, scans
from etl.database.summaries import (
    OUTCOMES,
    PRODUCTS,
    author_days,
    coverage_days,
    duration_weeks,
    repository_summaries,
    scan_days,
    scan_groups,
    scan_weeks,
    summary_marks,
    summary_state,
)
from etl.database.types import UtcDateTime, utc_now
from etl.store.day_counts import Fact, count_day
from etl.store.marks import UNKNOWN_DAY, DeploymentDay, mark_all

DAYS_AT_ONCE = 7
MARKS_AT_ONCE = 100_000
KEYS_AT_ONCE = 1_000
UNFINISHED_AFTER = timedelta(days=1)
"""A scan without an end counts as running for so long, as in `bi_scan`."""
ALL_DEPLOYMENTS = 0
_SIX_DAYS = timedelta(days=6)
_FINDINGS = ("", "_code", "_supply_chain", "_secrets")

_mark = summary_marks.c


def refresh_piece(connection: Connection) -> int:
    """Count up to `DAYS_AT_ONCE` of the marked days. Returns how many; 0: there is nothing left to count."""
    plan_by_index(connection)
    refreshed_at = connection.execute(select(summary_state.c.refreshed_at).with_for_update()).scalar()
    if refreshed_at is None or _nothing_is_counted(connection):
        mark_all(connection)
    marks = _read_marks(connection)
    _count(connection, list(marks))
    _add_up(connection, marks)
    _rank_durations(connection, marks)
    _remove_marks(connection, [number for numbers in marks.values() for number in numbers])
    connection.execute(update(summary_state).values(refreshed_at=utc_now()))
    return len(marks)


def _nothing_is_counted(connection: Connection) -> bool:
    return not any(connection.execute(select(each.c.day).limit(1)).first() for each in (scan_days, coverage_days))


def mark_everything(connection: Connection) -> None:
    """Have everything counted anew, whatever changed the tables."""
    connection.execute(update(summary_state).values(refreshed_at=None))
    for each in (scan_days, coverage_days):
        rows = select(each.c.deployment_id, each.c.day).distinct()
        connection.execute(insert(summary_marks).from_select(["deployment_id", "day"], rows))


def _read_marks(connection: Connection) -> dict[DeploymentDay, list[int]]:
    """The first of the marked days, the newest weeks first and days of one deployment together, each with its marks."""
    due = select(_mark.id, _mark.deployment_id, _mark.day).where(_mark.due_at <= select(utc_now()).scalar_subquery())
    found: dict[DeploymentDay, list[int]] = defaultdict(list)
    for number, deployment_id, day in connection.execute(due.order_by(_mark.id).limit(MARKS_AT_ONCE)):
        found[deployment_id, day].append(number)
    newest = sorted(found, key=lambda of_day: (week_of(of_day[1]), of_day), reverse=True)
    return {of_day: found[of_day] for of_day in newest[:DAYS_AT_ONCE]}


def _remove_marks(connection: Connection, numbers: Sequence[int]) -> None:
    """Exactly those that were read: of others the writers may not have committed when the days were counted."""
    if numbers:
        by_number = delete(summary_marks).where(_mark.id == bindparam("number"))
        connection.execute(by_number, [{"number": number} for number in numbers])


# A day

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
_b, _l = _bi_scan.c, scan_listings.c


def _same(one: Any, other: Any) -> ColumnElement[bool]:
    return and_(one.deployment_id == other.deployment_id, one.scan_id == other.scan_id)


def _is_in(held: Table, scan: Any) -> ColumnElement[bool]:
    """Whether a scan is in the queue or among the dead letters. Looked up one by one: whatever a planner takes these
    tables for, it can't compare all scans with all of their rows."""
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
    listed = (
        select(*(_OF_LISTING[name].label(name) for name in Fact._fields))
        .select_from(scan_listings.outerjoin(scans, _same(scans.c, _l)))
        .where(_l.deployment_id == bindparam("deployment"), is_of_day(_l.started_day), scans.c.scan_id.is_(None))
    )
    return union_all(stored, listed)


_FACTS = _facts(lambda day: day == bindparam("day", type_=Date))
_FACTS_OF_NO_DAY = _facts(lambda day: day.is_(None))
_COUNTED = (scan_days, scan_groups, author_days, coverage_days)
_COLUMNS = {each: tuple(column for column in each.c if column.name != "id") for each in _COUNTED}


def _count(connection: Connection, days: Sequence[DeploymentDay]) -> None:
    """Replace what is counted of these days."""
    rows: dict[Table, list[tuple[Any, ...]]] = {each: [] for each in _COUNTED}
    again: list[dict[str, Any]] = []
    for deployment_id, day in days:
        of_day = {"deployment_id": deployment_id, "day": day}
        counts = count_day(_facts_of(connection, deployment_id, day), day if day != UNKNOWN_DAY else None)
        for each, found in counts.rows.items():
            rows[each] += (tuple((of_day | row)[column.name] for column in _COLUMNS[each]) for row in found)
        if counts.running_since is not None:
            again.append({**of_day, "due_at": counts.running_since + UNFINISHED_AFTER})
    for each in _COUNTED:
        connection.execute(delete(each).where(_is_among(each, days)))
        insert_rows(connection, each, _COLUMNS[each], rows[each])
    # A day is counted again when the first of its scans that run is given up. By their numbers: a DELETE of MariaDB
    # waits for every row that it looks at.
    later = select(_mark.id).where(_is_among(summary_marks, days), _mark.due_at > utc_now())
    _remove_marks(connection, connection.execute(later).scalars().all())
    if again:
        connection.execute(insert(summary_marks), again)


def _facts_of(connection: Connection, deployment_id: int, day: date) -> Iterator[Fact]:
    if day == UNKNOWN_DAY:
        return map(Fact._make, connection.execute(_FACTS_OF_NO_DAY, {"deployment": deployment_id}))
    return map(Fact._make, connection.execute(_FACTS, {"deployment": deployment_id, "day": day}))


def _is_among(counted: Table, days: Sequence[DeploymentDay]) -> ColumnElement[bool]:
    by_deployment = defaultdict(list)
    for deployment_id, day in days:
        by_deployment[deployment_id].append(day)
    c = counted.c
    return or_(false(), *(and_(c.deployment_id == of, c.day.in_(each)) for of, each in by_deployment.items()))


# Weeks, and all time


def week_of(day: date) -> date:
    """The Monday of its week."""
    return day - timedelta(days=day.weekday())


_SUMS = ("scans", *OUTCOMES, "full_scans", "diff_scans", "findings", "timed", "duration_seconds_total")
_LARGEST = (
    *("duration_seconds_longest", "last_started_at", "last_fetched_at"),
    *(f"last_{product}_day" for product in PRODUCTS),
)
_OF_LAST = ("last_scan_id", "last_outcome", "last_exit_code", "last_products", "last_semgrep_version")
_OF_FULL = ("full_scan_id", "full_started_at", *(f"full_findings{name}" for name in _FINDINGS))


def _adding_up(source: Table, period: str, into: Table, which: ColumnElement[bool], **values: Any) -> Insert:
    """An INSERT of what the rows of `source`, one a `period`, come to for each repository. The newest period that has
    a name, a scan, or a full scan that ended well is where these come from."""
    s = source.c
    key = (s.deployment_id, s.repository_key)
    newest = {
        name: func.max(case((s[marker].is_not(None), s[period]))).label(f"newest_{name}")
        for name, marker in (("named", "repository"), ("last", "last_scan_id"), ("full", "full_scan_id"))
    }
    grouped = (
        select(
            *key,
            func.max(s.repository_id).label("repository_id"),
            *(_whole(s[name]) for name in _SUMS),
            *(func.max(s[name]).label(name) for name in _LARGEST),
            func.min(s.first_started_at).label("first_started_at"),
            *newest.values(),
        )
        .where(which)
        .group_by(*key)
        .subquery("grouped")
    )
    g = grouped.c
    named, last, full = (source.alias(name) for name in newest)
    joined: FromClause = grouped
    for name, of in (("named", named), ("last", last), ("full", full)):
        is_same = and_(of.c.deployment_id == g.deployment_id, of.c.repository_key == g.repository_key)
        joined = joined.outerjoin(of, and_(is_same, of.c[period] == g[f"newest_{name}"]))
    columns = {
        **{name: g[name] for name in ("deployment_id", "repository_key", "repository_id", "first_started_at")},
        **{name: g[name] for name in (*_SUMS, *_LARGEST)},
        "repository": named.c.repository,
        **{name: last.c[name] for name in _OF_LAST},
        **{name: full.c[name] for name in _OF_FULL},
        **values,
    }
    return insert(into).from_select(list(columns), select(*columns.values()).select_from(joined))


def _whole(number: Column[Any]) -> ColumnElement[Any]:
    """A sum in the type of what is summed up: servers give another one."""
    return cast(func.sum(number), number.type).label(number.name)


_w, _t = scan_weeks.c, repository_summaries.c
_OF_WEEK = and_(_w.deployment_id == bindparam("deployment"), _w.week == bindparam("monday", type_=Date))
_CLEAR_WEEK = delete(scan_weeks).where(_OF_WEEK)
_ADD_WEEK = _adding_up(
    scan_days,
    "day",
    scan_weeks,
    and_(
        scan_days.c.deployment_id == bindparam("deployment"),
        scan_days.c.day.between(bindparam("monday", type_=Date), bindparam("sunday", type_=Date)),
    ),
    week=bindparam("monday", type_=Date),
)
_KEYS = select(_w.repository_key).where(_OF_WEEK)
_AMONG: Any = bindparam("keys", expanding=True)
_CLEAR_TOTALS = delete(repository_summaries).where(
    _t.deployment_id == bindparam("deployment"), _t.repository_key.in_(_AMONG)
)
_ADD_TOTALS = _adding_up(
    scan_weeks,
    "week",
    repository_summaries,
    and_(_w.deployment_id == bindparam("deployment"), _w.repository_key.in_(_AMONG)),
)


_r = repositories.c
_ID_KEY = literal("id:", String) + cast(_r.repository_id, String(20))
_HAS_TOTAL = select(1).where(_t.deployment_id == _r.deployment_id, _t.repository_key == _ID_KEY).exists()
_UNSCANNED: dict[str, Any] = {
    "deployment_id": _r.deployment_id,
    "repository_key": _ID_KEY,
    "repository_id": _r.repository_id,
    "repository": _r.name,
    **dict.fromkeys(_SUMS, literal(0)),
}
_ADD_UNSCANNED = insert(repository_summaries).from_select(
    list(_UNSCANNED), select(*_UNSCANNED.values()).where(_r.deployment_id == bindparam("deployment"), ~_HAS_TOTAL)
)


def _add_up(connection: Connection, days: Collection[DeploymentDay]) -> None:
    """Add up the weeks of these days, and all time of the repositories that have, or had, scans in these weeks. What
    is listed and was never scanned has a row, too."""
    touched: dict[int, set[str]] = defaultdict(set)
    for deployment_id, monday in sorted({(deployment_id, week_of(day)) for deployment_id, day in days}):
        of_week = {"deployment": deployment_id, "monday": monday}
        touched[deployment_id].update(connection.execute(_KEYS, of_week).scalars())
        connection.execute(_CLEAR_WEEK, of_week)
        connection.execute(_ADD_WEEK, {**of_week, "sunday": monday + _SIX_DAYS})
        touched[deployment_id].update(connection.execute(_KEYS, of_week).scalars())
    for deployment_id, keys in touched.items():
        ordered = sorted(keys)
        for at in range(0, len(ordered), KEYS_AT_ONCE):
            of_keys = {"deployment": deployment_id, "keys": ordered[at : at + KEYS_AT_ONCE]}
            connection.execute(_CLEAR_TOTALS, of_keys)
            connection.execute(_ADD_TOTALS, of_keys)
        connection.execute(_ADD_UNSCANNED, {"deployment": deployment_id})


# How long scans took

_DURATIONS = select(_b.is_full_scan, _b.duration_seconds).where(
    _b.deployment_id == bindparam("deployment"),
    _b.started_day.between(bindparam("monday", type_=Date), bindparam("sunday", type_=Date)),
    _b.duration_seconds.is_not(None),
)
_CLEAR_DURATIONS = delete(duration_weeks).where(
    duration_weeks.c.deployment_id == bindparam("deployment"), duration_weeks.c.week == bindparam("monday", type_=Date)
)


def _rank_durations(connection: Connection, days: Collection[DeploymentDay]) -> None:
    """Write the percentiles of these days' weeks, and those of all deployments where a week has no more marks."""
    weeks = {(deployment_id, week_of(day)) for deployment_id, day in days if day != UNKNOWN_DAY}
    for deployment_id, monday in sorted(weeks):
        _write_durations(connection, deployment_id, monday, _durations(connection, deployment_id, monday))
    for monday in sorted({monday for _, monday in weeks}):
        if not _is_marked(connection, monday, days):
            deployments = select(_w.deployment_id).where(_w.week == monday).distinct()
            of_all: list[tuple[bool, float]] = []
            for deployment_id in connection.execute(deployments).scalars().all():
                of_all += _durations(connection, deployment_id, monday)
            _write_durations(connection, ALL_DEPLOYMENTS, monday, of_all)


def _is_marked(connection: Connection, monday: date, without: Collection[DeploymentDay]) -> bool:
    """Whether other days of a week are still to be counted."""
    due = _mark.due_at <= select(utc_now()).scalar_subquery()
    of_week = select(_mark.deployment_id, _mark.day).where(_mark.day.between(monday, monday + _SIX_DAYS), due)
    return any((row[0], row[1]) not in without for row in connection.execute(of_week.distinct()))


def _durations(connection: Connection, deployment_id: int, monday: date) -> list[tuple[bool, float]]:
    of_week = {"deployment": deployment_id, "monday": monday, "sunday": monday + _SIX_DAYS}
    return [(bool(row[0]), row[1]) for row in connection.execute(_DURATIONS, of_week)]


def _write_durations(
    connection: Connection, deployment_id: int, monday: date, durations: Sequence[tuple[bool, float]]
) -> None:
    kinds = {
        "all": [seconds for _, seconds in durations],
        "full": [seconds for is_full, seconds in durations if is_full],
        "diff": [seconds for is_full, seconds in durations if not is_full],
    }
    key = {"deployment_id": deployment_id, "week": monday}
    connection.execute(_CLEAR_DURATIONS, {"deployment": deployment_id, "monday": monday})
    rows = [{**key, "scan_kind": kind, **_percentiles(seconds)} for kind, seconds in kinds.items() if seconds]
    if rows:
        connection.execute(insert(duration_weeks), rows)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Between two durations a percentile is on the line from one to the other, as SQL's PERCENTILE_CONT has it."""
    twentieths = quantiles(seconds if len(seconds) > 1 else [*seconds, *seconds], n=20, method="inclusive")
    return {
        "scans": len(seconds),
        **{f"p{percent}_seconds": twentieths[percent // 5 - 1] for percent in (50, 75, 95)},
        "longest_seconds": max(seconds),
    }
