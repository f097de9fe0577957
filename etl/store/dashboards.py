"""What a page of charts asks: a few queries of the views for dashboards, all of them in one transaction that reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Double,
    Select,
    TableClause,
    Text,
    case,
    cast,
    column,
    func,
    null,
    select,
    table,
)

from etl.database.types import UtcDateTime

P95 = 0.95


class Period(NamedTuple):
    """Days in UTC, the first and the last among them."""

    first: date
    last: date

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    def before(self) -> "Period":
        """The equally long one that ends the day before."""
        return Period(self.first - timedelta(days=self.days), self.first - timedelta(days=1))


class Deployment(NamedTuple):
    """A deployment, and the findings now: those of the newest full scan of each repository."""

    deployment_id: int
    slug: str | None
    name: str | None
    scans: int
    findings: int | None
    findings_code: int | None
    findings_supply_chain: int | None
    findings_secrets: int | None


class Freshness(NamedTuple):
    """How new the data of a deployment are."""

    deployment_id: int
    newest_scan_at: datetime | None
    last_walk_at: datetime | None
    complete_since: datetime | None
    gaps: int
    last_run_started_at: datetime | None
    last_run_state: str | None
    last_run_exit_code: int | None
    summaries_behind_since: datetime | None


class ScanGroup(NamedTuple):
    """A day's scans that ended in the same way."""

    day: date
    outcome: str
    exit_code: int | None
    exit_meaning: str | None
    exit_fault: str | None
    scans: int


class Repository(NamedTuple):
    """A repository that isn't gone."""

    deployment_id: int
    repository_id: int | None
    repository: str | None
    last_scan_at: datetime | None
    days_since_last_scan: int | None
    findings: int | None
    last_code_day: date | None
    last_supply_chain_day: date | None
    last_secrets_day: date | None
    last_ai_day: date | None


class Activity(NamedTuple):
    """A repository's scans of the period, and of the one before."""

    deployment_id: int
    repository_id: int | None
    repository: str | None
    scans: int
    failed: int
    scans_before: int


class FindingsWeek(NamedTuple):
    """What the newest full scan of each repository had found at the end of a week."""

    week: date
    findings: int
    findings_code: int
    findings_supply_chain: int
    findings_secrets: int


class DurationWeek(NamedTuple):
    """How long a week's scans took; those of all deployments where there is no deployment_id."""

    deployment_id: int | None
    week: date
    scan_kind: str
    scans: int
    p50_seconds: float
    p95_seconds: float


class CoverageDay(NamedTuple):
    """What became of a day's scans that were listed."""

    day: date
    listed: int
    stored: int
    waiting: int
    dead: int
    expired: int
    dropped: int
    missing: int
    lost: int


@dataclass(frozen=True, slots=True)
class DashboardRows:
    """The rows of one state of the database. `has_scans` is true of scans that aren't counted yet, too."""

    has_scans: bool
    deployments: Sequence[Deployment]
    freshness: Sequence[Freshness] = ()
    groups: Sequence[ScanGroup] = ()
    repositories: Sequence[Repository] = ()
    activity: Sequence[Activity] = ()
    findings: Sequence[FindingsWeek] = ()
    durations: Sequence[DurationWeek] = ()
    coverage: Sequence[CoverageDay] = ()
    p95_seconds: float | None = None
    p95_seconds_before: float | None = None


_TYPES: dict[str, Any] = {
    **dict.fromkeys(("day", "week", "started_day"), Date()),
    **{f"last_{product}_day": Date() for product in ("code", "supply_chain", "secrets", "ai")},
    **dict.fromkeys(("duration_seconds", "p50_seconds", "p95_seconds"), Double()),
    **dict.fromkeys(("slug", "name", "repository", "outcome", "scan_kind", "exit_meaning", "exit_fault"), Text()),
    "last_run_state": Text(),
}


def _view(name: str, *names: str) -> TableClause:
    """A view with these columns; one whose type isn't known is an instant by its name, or else a whole number."""
    types = {name: UtcDateTime() if name.endswith(("_at", "_since")) else BigInteger() for name in names} | _TYPES
    return table(name, *(column(name, types[name]) for name in names))


_deployment = _view("bi_deployment", *Deployment._fields)
_freshness = _view("bi_freshness", *Freshness._fields)
_group = _view("bi_scan_group_daily", "deployment_id", *ScanGroup._fields)
_repository = _view("bi_repository", *Repository._fields, "gone_at")
_daily = _view("bi_scan_daily", "day", "deployment_id", "repository_id", "repository", "scans", "failed")
_findings = _view("bi_findings_weekly", "deployment_id", *FindingsWeek._fields)
_duration = _view("bi_duration_weekly", *DurationWeek._fields)
_duration_all = _view("bi_duration_weekly_all", *DurationWeek._fields[1:])
_coverage = _view("bi_coverage", "deployment_id", *CoverageDay._fields)
_scan = _view("bi_scan", "deployment_id", "started_day", "duration_seconds")

Read = TypeVar("Read", bound=NamedTuple)


def deployments(connection: Connection) -> list[Deployment]:
    """All deployments, in the order of their ids."""
    return _rows(connection, Deployment, select(_deployment).order_by(_deployment.c.deployment_id))


def read(connection: Connection, chosen: Sequence[int], period: Period) -> DashboardRows:
    """What is known of these deployments in the period, and in the one before: all of them if none is named."""
    known = deployments(connection)
    ids = [one.deployment_id for one in known if not chosen or one.deployment_id in chosen]
    both = Period(period.before().first, period.last)

    def of(view: TableClause) -> ColumnElement[bool]:
        return view.c.deployment_id.in_(ids)

    def asked(kind: type[Read], query: Select[Any]) -> list[Read]:
        return _rows(connection, kind, query)

    return DashboardRows(
        has_scans=connection.execute(select(_scan.c.deployment_id).limit(1)).first() is not None,
        deployments=[one for one in known if one.deployment_id in ids],
        freshness=asked(Freshness, select(_freshness).where(of(_freshness)).order_by(_freshness.c.deployment_id)),
        groups=asked(ScanGroup, _groups(of(_group), both)),
        repositories=asked(Repository, _repositories(of(_repository))),
        activity=asked(Activity, _activity(of(_daily), period)),
        findings=asked(FindingsWeek, _findings_weekly(of(_findings), both)),
        durations=asked(DurationWeek, _durations(None if len(ids) == len(known) else of(_duration), both)),
        coverage=asked(CoverageDay, _coverage_daily(of(_coverage), both)),
        p95_seconds=_percentile(connection, of(_scan), period, P95),
        p95_seconds_before=_percentile(connection, of(_scan), period.before(), P95),
    )


def _rows(connection: Connection, kind: type[Read], query: Select[Any]) -> list[Read]:
    make: Callable[..., Read] = kind
    return [make(*row) for row in connection.execute(query)]


def _sum(amount: ColumnElement[Any]) -> ColumnElement[int]:
    """A whole number: sums are decimals on PostgreSQL and MariaDB."""
    return cast(func.sum(amount), BigInteger)


def _within(day: ColumnElement[Any], period: Period) -> ColumnElement[bool]:
    return day.between(period.first, period.last)


def _weeks_of(week: ColumnElement[Any], period: Period) -> ColumnElement[bool]:
    return week.between(period.first - timedelta(days=period.first.weekday()), period.last)


def _groups(chosen: ColumnElement[bool], period: Period) -> Select[Any]:
    kept = [_group.c[name] for name in ScanGroup._fields[:-1]]
    query = select(*kept, _sum(_group.c.scans)).where(chosen, _within(_group.c.day, period))
    return query.group_by(*kept).order_by(*kept)


def _repositories(chosen: ColumnElement[bool]) -> Select[Any]:
    shown = [_repository.c[name] for name in Repository._fields]
    return select(*shown).where(chosen, _repository.c.gone_at.is_(None))


def _activity(chosen: ColumnElement[bool], period: Period) -> Select[Any]:
    of = _daily.c
    is_now = of.day >= period.first
    sums = (
        _sum(case((is_now, of.scans), else_=0)),
        _sum(case((is_now, of.failed), else_=0)),
        _sum(case((is_now, 0), else_=of.scans)),
    )
    kept = (of.deployment_id, of.repository_id, of.repository)
    both = _within(of.day, Period(period.before().first, period.last))
    return select(*kept, *sums).where(chosen, both).group_by(*kept).having(func.sum(of.scans) > 0)


def _findings_weekly(chosen: ColumnElement[bool], period: Period) -> Select[Any]:
    week = _findings.c.week
    sums = [_sum(_findings.c[name]) for name in FindingsWeek._fields[1:]]
    return select(week, *sums).where(chosen, _weeks_of(week, period)).group_by(week).order_by(week)


def _durations(chosen: ColumnElement[bool] | None, period: Period) -> Select[Any]:
    """Percentiles can't be added up: those of all deployments have rows of their own."""
    if chosen is None:
        shown, week = _duration_all.c, _duration_all.c.week
        query = select(null(), *(shown[name] for name in DurationWeek._fields[1:]))
    else:
        shown, week = _duration.c, _duration.c.week
        query = select(*(shown[name] for name in DurationWeek._fields)).where(chosen)
    return query.where(shown.scan_kind != "all", _weeks_of(week, period)).order_by(week)


def _coverage_daily(chosen: ColumnElement[bool], period: Period) -> Select[Any]:
    day = _coverage.c.day
    sums = [_sum(_coverage.c[name]) for name in CoverageDay._fields[1:]]
    return select(day, *sums).where(chosen, _within(day, period)).group_by(day).order_by(day)


def _percentile(connection: Connection, chosen: ColumnElement[bool], period: Period, share: float) -> float | None:
    """Of the durations in the period, on the line between two scans, as PERCENTILE_CONT has it; None without any."""
    seconds = _scan.c.duration_seconds
    ranked = (
        select(
            seconds.label("seconds"),
            (func.row_number().over(order_by=seconds) - 1).label("rank"),
            ((func.count().over() - 1) * share).label("wanted"),
        )
        .where(chosen, _within(_scan.c.started_day, period), seconds.is_not(None))
        .subquery()
    )
    distance = func.abs(cast(ranked.c.rank, Double) - ranked.c.wanted)
    nearest = connection.execute(select(ranked.c.seconds, distance).where(distance < 1)).all()
    # The two of them are 1 apart, and one that is exactly there has no other.
    return sum(float(seconds) * (1 - float(distance)) for seconds, distance in nearest) if nearest else None
