"""What dashboards read: the marked days are counted anew, from the scans as they are.

A piece of that is one transaction: some marks are read, their days counted, and these marks removed. A scan whose
writer hasn't committed when its day is counted has its mark still to come. So nothing is counted twice or missed,
whoever is killed when, and any number of processes may do it: one after the other, for each locks `summary_state`.

Days come from `bi_scan` and from the queue, weeks from days, and what is known of a repository from its weeks.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Date,
    FromClause,
    Insert,
    String,
    Table,
    and_,
    bindparam,
    case,
    cast,
    delete,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from etl.database.dialects import insert_rows, plan_by_index
from etl.database.schema import repositories, scan_listings, scans
from etl.database.summaries import (
    OUTCOMES,
    PRODUCTS,
    author_days,
    coverage_days,
    deployment_days,
    repository_summaries,
    scan_days,
    scan_groups,
    scan_weeks,
    summary_marks,
    summary_state,
)
from etl.database.types import UtcDateTime, add_seconds, utc_now
from etl.model import INT64_MAX
from etl.store.day_counts import Duration, count_day
from etl.store.day_facts import facts_of
from etl.store.duration_weeks import rank_durations
from etl.store.marks import UNKNOWN_DAY, DeploymentDay, mark_all, week_of

DAYS_AT_ONCE = 7
MARKS_AT_ONCE = 100_000
KEYS_AT_ONCE = 1_000
UNFINISHED_AFTER = timedelta(days=1)
"""A scan without an end counts as running for so long, as in `bi_scan`."""
_SIX_DAYS = timedelta(days=6)
_FINDINGS = ("", "_code", "_supply_chain", "_secrets")

_mark = summary_marks.c


def newest_mark(connection: Connection) -> int:
    """The newest mark that there is. Whoever counts goes as far as this: others may leave marks without end. Where
    another program has filled the tables, and nothing was counted so far, all is marked."""
    _lock(connection)
    if _nothing_is_counted(connection):
        mark_all(connection)
    return connection.execute(select(func.max(_mark.id))).scalar() or 0


def refresh_piece(connection: Connection, newest: int = INT64_MAX) -> int:
    """Count up to `DAYS_AT_ONCE` of the days that the `newest` mark, or one before it, is of. Returns how many, 0 where
    nothing is left to count."""
    plan_by_index(connection)
    _lock(connection)
    marks = _read_marks(connection, newest)
    durations = _count(connection, list(marks))
    _add_up(connection, marks)
    rank_durations(connection, durations)
    _remove_marks(connection, [number for numbers in marks.values() for number in numbers])
    connection.execute(update(summary_state).values(refreshed_at=utc_now()))
    return len(marks)


def _lock(connection: Connection) -> None:
    """Wait for others who count. The first one of all marks everything."""
    refreshed_at = connection.execute(select(summary_state.c.refreshed_at).with_for_update()).scalar()
    if refreshed_at is None:
        mark_all(connection)
        connection.execute(update(summary_state).values(refreshed_at=utc_now()))


def _nothing_is_counted(connection: Connection) -> bool:
    """Whether there are scans, and no count of them."""

    def has_rows(*tables: Table) -> bool:
        return any(connection.execute(select(each.c.deployment_id).limit(1)).first() for each in tables)

    return not has_rows(deployment_days) and has_rows(scans, scan_listings)


def mark_everything(connection: Connection) -> None:
    """Have everything counted anew, whatever changed the tables."""
    connection.execute(update(summary_state).values(refreshed_at=None))
    counted = select(deployment_days.c.deployment_id, deployment_days.c.day)
    connection.execute(insert(summary_marks).from_select(["deployment_id", "day"], counted))


def _read_marks(connection: Connection, newest: int) -> dict[DeploymentDay, list[int]]:
    """The first of the marked days, the newest weeks first and days of one deployment together, each with its marks."""
    is_due = _mark.due_at <= select(utc_now()).scalar_subquery()
    due = select(_mark.id, _mark.deployment_id, _mark.day).where(is_due, _mark.id <= newest)
    found: dict[DeploymentDay, list[int]] = defaultdict(list)
    for number, deployment_id, day in connection.execute(due.order_by(_mark.id).limit(MARKS_AT_ONCE)):
        found[deployment_id, day].append(number)
    ordered = sorted(found, key=lambda of_day: (week_of(of_day[1]), of_day), reverse=True)
    return {of_day: found[of_day] for of_day in ordered[:DAYS_AT_ONCE]}


def _remove_marks(connection: Connection, numbers: Sequence[int]) -> None:
    """Exactly those that were read: of others the writers may not have committed when the days were counted."""
    if numbers:
        by_number = delete(summary_marks).where(_mark.id == bindparam("number"))
        connection.execute(by_number, [{"number": number} for number in numbers])


# A day

_COUNTED = (scan_days, scan_groups, author_days, coverage_days, deployment_days)
_COLUMNS = {each: tuple(column for column in each.c if column.name != "id") for each in _COUNTED}


_SOON = add_seconds(utc_now(), literal(3_600.0))
_ENDS_AT = bindparam("ends_at", type_=UtcDateTime)
# Not at once, whatever a clock says, or it would be counted without end.
_MARK_AGAIN = insert(summary_marks).values(
    deployment_id=bindparam("of"),
    day=bindparam("on"),
    due_at=case((_ENDS_AT > _SOON, _ENDS_AT), else_=_SOON),
)


def _count(connection: Connection, days: Sequence[DeploymentDay]) -> dict[DeploymentDay, list[Duration]]:
    """Replace what is counted of these days. Returns how long the scans of each took."""
    rows: dict[Table, list[tuple[Any, ...]]] = {each: [] for each in _COUNTED}
    durations: dict[DeploymentDay, list[Duration]] = {}
    again: list[dict[str, Any]] = []
    for deployment_id, day in days:
        of_day = {"deployment_id": deployment_id, "day": day}
        counts = count_day(facts_of(connection, deployment_id, day), day if day != UNKNOWN_DAY else None)
        for each, found in counts.rows.items():
            rows[each] += (_values(of_day | row, _COLUMNS[each]) for row in found)
        durations[deployment_id, day] = counts.durations
        if counts.running_since is not None:
            again.append({"of": deployment_id, "on": day, "ends_at": counts.running_since + UNFINISHED_AFTER})
    for each in _COUNTED:
        connection.execute(delete(each).where(_is_among(each, days)))
        insert_rows(connection, each, _COLUMNS[each], rows[each])
    # A day is counted again when the first of its scans that run is given up. By their numbers: a DELETE of MariaDB
    # waits for every row that it looks at.
    later = select(_mark.id).where(_is_among(summary_marks, days), _mark.due_at > utc_now())
    _remove_marks(connection, connection.execute(later).scalars().all())
    if again:
        connection.execute(_MARK_AGAIN, again)
    return durations


def _values(row: Mapping[str, Any], columns: Sequence[Column[Any]]) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in columns)


def _is_among(counted: Table, days: Sequence[DeploymentDay]) -> ColumnElement[bool]:
    by_deployment = defaultdict(list)
    for deployment_id, day in days:
        by_deployment[deployment_id].append(day)
    c = counted.c
    return or_(false(), *(and_(c.deployment_id == of, c.day.in_(each)) for of, each in by_deployment.items()))


# Weeks, and all time


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
