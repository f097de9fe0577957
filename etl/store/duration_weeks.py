"""How long the scans of a week took: percentiles, which can't be added up, of each deployment and of all."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from itertools import chain, groupby
from operator import itemgetter
from statistics import quantiles
from typing import Any

from sqlalchemy import Connection, Date, Double, bindparam, column, delete, insert, select, table

from etl.database.summaries import duration_weeks, scan_weeks, summary_marks
from etl.database.types import utc_now
from etl.store.day_counts import Duration
from etl.store.marks import UNKNOWN_DAY, DeploymentDay, week_of

ALL_DEPLOYMENTS = 0
_SIX_DAYS = timedelta(days=6)
_mark, _w = summary_marks.c, scan_weeks.c
_bi_scan = table(
    "bi_scan",
    *(column(name) for name in ("deployment_id", "is_full_scan")),
    column("started_day", Date),
    column("duration_seconds", Double),
)
_b = _bi_scan.c

_days: Any = bindparam("days", type_=Date, expanding=True)
_DURATIONS = select(_b.is_full_scan, _b.duration_seconds).where(
    _b.deployment_id == bindparam("deployment"),
    _b.started_day.in_(_days),  # not BETWEEN: SQLite would rather read all scans of the deployment
    _b.duration_seconds.is_not(None),
)
_CLEAR_DURATIONS = delete(duration_weeks).where(
    duration_weeks.c.deployment_id == bindparam("deployment"), duration_weeks.c.week == bindparam("monday", type_=Date)
)


def rank_durations(connection: Connection, counted: Mapping[DeploymentDay, Sequence[Duration]]) -> None:
    """Write the percentiles of the weeks of days whose durations are known from counting them, and those of all
    deployments where a week has no more marks."""
    weeks = sorted({(week_of(day), deployment_id) for deployment_id, day in counted if day != UNKNOWN_DAY})
    for monday, of_week in groupby(weeks, itemgetter(0)):
        known = {deployment_id: _durations(connection, deployment_id, monday, counted) for _, deployment_id in of_week}
        for deployment_id, durations in known.items():
            _write_durations(connection, deployment_id, monday, durations)
        if not _is_marked(connection, monday, counted):
            others = select(_w.deployment_id).where(_w.week == monday, _w.deployment_id.not_in(known)).distinct()
            for deployment_id in connection.execute(others).scalars().all():
                known[deployment_id] = _durations(connection, deployment_id, monday, counted)
            _write_durations(connection, ALL_DEPLOYMENTS, monday, list(chain.from_iterable(known.values())))


def _is_marked(connection: Connection, monday: date, without: Collection[DeploymentDay]) -> bool:
    """Whether other days of a week are still to be counted."""
    due = _mark.due_at <= select(utc_now()).scalar_subquery()
    of_week = select(_mark.deployment_id, _mark.day).where(_mark.day.between(monday, monday + _SIX_DAYS), due)
    return any((row[0], row[1]) not in without for row in connection.execute(of_week.distinct()))


def _durations(
    connection: Connection, deployment_id: int, monday: date, counted: Mapping[DeploymentDay, Sequence[Duration]]
) -> list[Duration]:
    days = [monday + timedelta(days=number) for number in range(7)]
    known = [counted[deployment_id, day] for day in days if (deployment_id, day) in counted]
    others = [day for day in days if (deployment_id, day) not in counted]
    found = connection.execute(_DURATIONS, {"deployment": deployment_id, "days": others}).all() if others else ()
    return [*chain.from_iterable(known), *((bool(is_full), seconds) for is_full, seconds in found)]


def _write_durations(connection: Connection, deployment_id: int, monday: date, durations: Sequence[Duration]) -> None:
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
