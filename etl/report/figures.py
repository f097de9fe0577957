"""The numbers of the page, made of the rows of the views. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import NamedTuple

from etl.store.dashboards import (
    Activity,
    CoverageDay,
    DashboardRows,
    Deployment,
    DurationWeek,
    FindingsWeek,
    Freshness,
    Period,
    Repository,
    ScanGroup,
)

PRODUCTS = ("code", "supply_chain", "secrets", "ai")
WORST = 10


class Share(NamedTuple):
    """A part of a whole that may be nothing."""

    part: int
    whole: int

    @property
    def percent(self) -> float | None:
        return 100 * self.part / self.whole if self.whole else None


class Question(NamedTuple):
    """What the page was asked to be about, and when."""

    period: Period
    stale_days: int
    made_at: datetime


class Findings(NamedTuple):
    """Findings by product. `other` are those that no number of a product tells of."""

    total: int
    code: int
    supply_chain: int
    secrets: int

    @property
    def other(self) -> int:
        return max(self.total - self.code - self.supply_chain - self.secrets, 0)


class FindingsOf(NamedTuple):
    """Findings at the end of a day."""

    day: date
    findings: Findings


class ExitCode(NamedTuple):
    """Failures with an exit code; `meaning` and `fault` are None for one that isn't documented."""

    exit_code: int | None
    meaning: str | None
    fault: str | None
    scans: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All numbers of the page. What has `_before` in its name is of the period before."""

    question: Question
    deployments: Sequence[Deployment]
    freshness: Sequence[Freshness]
    newest_scan_at: datetime | None
    behind_since: datetime | None
    scanned: Share
    scanned_before: Share
    failed: Share
    failed_before: Share
    p95_seconds: float | None
    p95_seconds_before: float | None
    findings: Findings | None
    findings_before: FindingsOf | None
    lost: Share
    lost_before: Share
    stale: Sequence[Repository]
    findings_weeks: Sequence[FindingsOf]
    outcomes: Mapping[date, Mapping[str, int]]
    exit_codes: Sequence[ExitCode]
    worst: Sequence[Activity]
    durations: Sequence[DurationWeek]
    products: Mapping[str, Share]
    coverage: Sequence[CoverageDay]

    @property
    def scans(self) -> int:
        return self.failed.whole


def figures(rows: DashboardRows, question: Question) -> Figures:
    """The numbers that answer the question."""
    period, before = question.period, question.period.before()
    now = [group for group in rows.groups if group.day >= period.first]
    earlier = [group for group in rows.groups if group.day < period.first]
    coverage = _dense(rows.coverage, period)
    weeks = [_findings_of(week) for week in rows.findings]
    scanned, scanned_before = _scanned(rows.repositories, rows.activity)
    return Figures(
        question=question,
        deployments=rows.deployments,
        freshness=rows.freshness,
        newest_scan_at=max((each.newest_scan_at for each in rows.freshness if each.newest_scan_at), default=None),
        behind_since=min((s for each in rows.freshness if (s := each.summaries_behind_since)), default=None),
        scanned=scanned,
        scanned_before=scanned_before,
        failed=_failed(now),
        failed_before=_failed(earlier),
        p95_seconds=rows.p95_seconds,
        p95_seconds_before=rows.p95_seconds_before,
        findings=_findings_now(rows.deployments),
        findings_before=max((week for week in weeks if week.day <= before.last), default=None),
        lost=_lost(coverage),
        lost_before=_lost(day for day in rows.coverage if day.day < period.first),
        stale=_stale(rows.repositories, question.stale_days),
        findings_weeks=weeks,
        outcomes=_outcomes(now, period),
        exit_codes=_exit_codes(now),
        worst=_worst(rows.activity),
        durations=rows.durations,
        products=_products(rows.repositories, period),
        coverage=coverage,
    )


def _key(repository: Repository | Activity) -> tuple[int, int | str | None, bool]:
    """A repository is its number within its deployment, or without one its name."""
    has_id = repository.repository_id is not None
    return repository.deployment_id, repository.repository_id if has_id else repository.repository, has_id


def _scanned(repositories: Collection[Repository], activity: Iterable[Activity]) -> tuple[Share, Share]:
    """How many of the repositories that aren't gone had a scan in the period, and in the one before."""
    known = {_key(one) for one in repositories}
    there = [one for one in activity if _key(one) in known]
    now, before = (sum(1 for one in there if one.scans), sum(1 for one in there if one.scans_before))
    return Share(now, len(known)), Share(before, len(known))


def _failed(groups: Iterable[ScanGroup]) -> Share:
    by_outcome = Counter[str]()
    for group in groups:
        by_outcome[group.outcome] += group.scans
    return Share(by_outcome["failed"], by_outcome.total())


def _lost(coverage: Iterable[CoverageDay]) -> Share:
    days = list(coverage)
    return Share(sum(day.lost for day in days), sum(day.listed for day in days))


def _dense(coverage: Iterable[CoverageDay], period: Period) -> list[CoverageDay]:
    """Each day of the period, with zeros where nothing was listed."""
    known = {day.day: day for day in coverage}
    return [known.get(day) or CoverageDay(day, 0, 0, 0, 0, 0, 0, 0, 0) for day in days_of(period)]


def _findings_now(deployments: Iterable[Deployment]) -> Findings | None:
    """None where no repository had a full scan."""
    known = [one for one in deployments if one.findings is not None]
    if not known:
        return None
    columns = zip(
        *((d.findings, d.findings_code, d.findings_supply_chain, d.findings_secrets) for d in known), strict=True
    )
    return Findings(*(sum(number or 0 for number in column) for column in columns))


def _findings_of(week: FindingsWeek) -> FindingsOf:
    return FindingsOf(week.week + timedelta(days=6), Findings(*week[1:]))


def _stale(repositories: Iterable[Repository], days: int) -> list[Repository]:
    """Those that were never scanned, then those whose last scan is the longest ago."""

    def order(one: Repository) -> tuple[bool, int, int, str]:
        return one.last_scan_at is not None, -(one.days_since_last_scan or 0), one.deployment_id, one.repository or ""

    known = (one for one in repositories if one.last_scan_at is None or (one.days_since_last_scan or 0) >= days)
    return sorted(known, key=order)


def days_of(period: Period) -> list[date]:
    return [period.first + timedelta(days=number) for number in range(period.days)]


def _outcomes(groups: Iterable[ScanGroup], period: Period) -> dict[date, Counter[str]]:
    """How many scans of each day ended how; days without any are there, too."""
    found = {day: Counter[str]() for day in days_of(period)}
    for group in groups:
        found[group.day][group.outcome] += group.scans
    return found


def _exit_codes(groups: Iterable[ScanGroup]) -> list[ExitCode]:
    """The failures by exit code, the most frequent first."""
    scans = Counter[tuple[int | None, str | None, str | None]]()
    for group in groups:
        if group.outcome == "failed":
            scans[group.exit_code, group.exit_meaning, group.exit_fault] += group.scans
    return [ExitCode(*code, count) for code, count in scans.most_common()]


def _worst(activity: Iterable[Activity]) -> list[Activity]:
    failing = [one for one in activity if one.failed]
    return sorted(failing, key=lambda one: (-one.failed, one.scans, one.repository or ""))[:WORST]


def _products(repositories: Collection[Repository], period: Period) -> dict[str, Share]:
    """How many of the repositories that aren't gone had a scan for the product in the period."""
    counts = {
        product: sum(1 for one in repositories if (day := getattr(one, f"last_{product}_day")) and day >= period.first)
        for product in PRODUCTS
    }
    return {product: Share(count, len(repositories)) for product, count in counts.items()}
