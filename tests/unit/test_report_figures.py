"""The numbers of the report, and its tiles, from rows of the views."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from etl.report.figures import ExitCode, Figures, Question, Share, figures
from etl.report.tiles import Tile, tiles
from etl.store.dashboards import (
    Activity,
    CoverageDay,
    DashboardRows,
    Deployment,
    FindingsWeek,
    Freshness,
    Period,
    Repository,
    ScanGroup,
)

MADE_AT = datetime(2026, 11, 29, 21, 30, tzinfo=UTC)
PERIOD = Period(date(2026, 11, 23), date(2026, 11, 29))
NOTHING = DashboardRows(has_scans=False, deployments=())


def of(**rows: Any) -> Figures:
    """The figures of these rows, and of no others."""
    given = {"has_scans": True, "deployments": (), **rows}
    return figures(DashboardRows(**given), Question(PERIOD, 14, MADE_AT))


def tile(label: str, **rows: Any) -> Tile:
    return next(tile for tile in tiles(of(**rows)) if tile.label == label)


def repository(number: int | None, name: str | None, **values: Any) -> Repository:
    unknown: dict[str, Any] = dict.fromkeys(Repository._fields)
    return Repository(**{**unknown, "deployment_id": 120, "repository_id": number, "repository": name, **values})


def group(day: int, outcome: str, scans: int, exit_code: int | None = 0) -> ScanGroup:
    return ScanGroup(date(2026, 11, day), outcome, exit_code, None, None, scans)


def test_nothing_divides_by_nothing() -> None:
    """Of an empty database there are no percentages and no changes."""
    found = tiles(figures(NOTHING, Question(PERIOD, 14, MADE_AT)))

    assert [(each.value, each.tone) for each in found[1:]] == [("–", "")] * 5
    assert found[0] == Tile("Repositories scanned", "0 of 0", "– of those listed; 0 not scanned", "as before: 0")


def test_a_name_that_looks_like_an_id_is_a_name() -> None:
    """A repository is its number within its deployment, or without one its name; what is gone doesn't count."""
    known = [repository(100, "acme/pay"), repository(None, "100"), repository(7, "acme/web", deployment_id=130)]
    activity = [
        Activity(120, 100, "acme/pay", 3, 0, 1),
        Activity(120, 7, "acme/gone", 5, 0, 5),
        Activity(130, 7, "acme/web", 0, 0, 1),
    ]
    found = of(repositories=known, activity=activity)

    assert (found.scanned, found.scanned_before) == (Share(1, 3), Share(2, 3))


def test_stale_repositories_are_in_order() -> None:
    """Never scanned ones first, then those whose last scan is the longest ago; 14 days are stale, 13 aren't."""
    known = [
        repository(number, name, last_scan_at=days and MADE_AT - timedelta(days=days), days_since_last_scan=days)
        for number, (name, days) in enumerate([("b", 14), ("c", 13), ("z", None), ("d", 300), ("a", 14), ("y", None)])
    ]

    assert [one.repository for one in of(repositories=known).stale] == ["y", "z", "d", "a", "b"]


def test_each_day_has_its_outcomes() -> None:
    """Days without scans are there; those of the period before aren't, but for what is compared."""
    found = of(
        groups=[group(22, "failed", 1, 2), group(22, "passed", 3), group(24, "passed", 2), group(24, "failed", 2, 137)]
    )

    assert list(found.outcomes) == [date(2026, 11, day) for day in range(23, 30)]
    assert {day.day: dict(counts) for day, counts in found.outcomes.items() if counts} == {
        24: {"passed": 2, "failed": 2}
    }
    assert (found.failed, found.failed_before) == (Share(2, 4), Share(1, 4))
    assert found.exit_codes == [ExitCode(137, None, None, 2)]


def test_failures_are_added_up_by_exit_code() -> None:
    """Whatever the day; the most frequent comes first."""
    found = of(groups=[group(24, "failed", 2, 7), group(25, "failed", 3, 2), group(26, "failed", 2, 7)])

    assert [(one.exit_code, one.scans) for one in found.exit_codes] == [(7, 4), (2, 3)]


def test_the_ten_worst_have_the_most_failures() -> None:
    """Of those with as many, the one with fewer scans is worse; one without failures isn't among them."""
    activity = [Activity(120, number, f"r{number}", 10 + number, number // 2, 0) for number in range(14)]

    assert [one.repository_id for one in of(activity=activity).worst] == [12, 13, 10, 11, 8, 9, 6, 7, 4, 5]


def test_findings_are_compared_with_the_last_week_before_the_period() -> None:
    """A week that ends within the period isn't before it. What no product tells of is other."""
    weeks = [FindingsWeek(date(2026, 11, day), total, 5, 2, 1) for day, total in ((9, 8), (16, 11), (23, 20))]
    deployment = Deployment(120, None, None, 9, 20, 5, 2, None)
    none = Deployment(130, None, None, 0, None, None, None, None)
    found = of(deployments=[deployment, none], findings=weeks)

    assert found.findings is not None
    assert (found.findings.total, found.findings.other) == (20, 13)
    assert tile("Findings now", deployments=[deployment], findings=weeks)[3:] == ("▲ 9 from 11 on 22 Nov 2026", "worse")
    assert of(deployments=[none]).findings is None


def test_coverage_is_of_all_that_are_listed() -> None:
    """A repository is covered that had a scan for the product in the period."""
    days = [date(2026, 11, 22), date(2026, 11, 23), None, date(2026, 11, 29)]
    known = [repository(number, "r", last_code_day=day) for number, day in enumerate(days)]

    assert of(repositories=known).products["code"] == Share(2, 4)
    assert of(repositories=known).products["ai"] == Share(0, 4)


def test_what_is_lost_is_of_what_was_listed() -> None:
    """Each day of the period is there, with zeros where nothing was listed."""
    coverage = [
        CoverageDay(date(2026, 11, day), 10, 10 - lost, 0, lost, 0, 0, 0, lost) for day, lost in ((20, 5), (25, 1))
    ]
    found = of(coverage=coverage)

    assert (found.lost, found.lost_before) == (Share(1, 10), Share(5, 10))
    assert [day.listed for day in found.coverage] == [0, 0, 10, 0, 0, 0, 0]
    assert tile("Scans lost", coverage=coverage)[1:] == (
        "1",
        "10.0 % of 10 listed scans",
        "▼ 40.0 points from 50.0 % (5 of 10)",
        "better",
    )


@pytest.mark.parametrize(
    ("now", "before", "change"),
    [
        (60.0, 90.0, ("▼ 30 s from 1 min 30 s", "better")),
        (90.0, 60.0, ("▲ 30 s from 1 min", "worse")),
        (60.0, 60.0, ("as before: 1 min", "")),
        (60.0, None, ("nothing to compare with before", "")),
        (None, 60.0, ("nothing to compare with before", "")),
    ],
)
def test_a_change_says_whether_it_is_for_the_better(
    now: float | None, before: float | None, change: tuple[str, str]
) -> None:
    """With what it was before."""
    assert tile("Scan time, p95", p95_seconds=now, p95_seconds_before=before)[3:] == change


def test_data_reach_as_far_as_the_newest_scan_of_any_deployment() -> None:
    """And are behind since the first change that isn't counted."""
    unknown: dict[str, Any] = dict.fromkeys(Freshness._fields)
    fresh = [
        Freshness(**{**unknown, "deployment_id": 120, "newest_scan_at": MADE_AT - timedelta(days=3)}),
        Freshness(**{**unknown, "deployment_id": 130, "newest_scan_at": MADE_AT - timedelta(hours=2)}),
        Freshness(**{**unknown, "deployment_id": 140, "summaries_behind_since": MADE_AT}),
    ]

    assert of(freshness=fresh).behind_since == MADE_AT
    assert tile("Data until", freshness=fresh)[1:4] == (
        "29 Nov 2026",
        "19:30 UTC, 2 hours before this page",
        "no run is recorded",
    )
