"""The section about time: the median and the 95th percentile by week, of full and of diff scans."""

from collections.abc import Collection, Iterator, Sequence
from datetime import date, timedelta

from etl.report import charts, words
from etl.report.charts import Point, Series
from etl.report.figures import Figures
from etl.report.parts import Chart, Section, Table
from etl.store.dashboards import DurationWeek

SERIES = (Series("median", "calm"), Series("95th percentile", "bad"))
KINDS = {"full": "Full scans", "diff": "Diff scans"}
UNITS = ((7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))
"""From so many seconds on a chart is drawn in a unit of so many seconds."""


def durations(figures: Figures) -> Section:
    """Percentiles can't be added up: those of several deployments, but not of all, are shown one by one."""
    title = "How long scans take"
    if not figures.durations:
        return Section(title, ["No scan of these weeks has a duration."])
    sentence = (
        "By the week in which scans started. Half of them took the median at most, 95 of 100 the 95th percentile at"
        " most. The last week may not be over."
    )
    return Section(title, [sentence], list(_charts(figures)))


def _charts(figures: Figures) -> Iterator[Chart]:
    names = {one.deployment_id: words.deployment(one) for one in figures.deployments}
    weeks = _weeks_between({one.week for one in figures.durations})
    for deployment_id in dict.fromkeys(one.deployment_id for one in figures.durations):
        place = f" of {names[deployment_id]}" if deployment_id and len(names) > 1 else ""
        for kind, name in KINDS.items():
            of_kind = {o.week: o for o in figures.durations if (o.deployment_id, o.scan_kind) == (deployment_id, kind)}
            if of_kind:
                yield _chart(f"{name}{place}", of_kind, weeks)


def _weeks_between(weeks: Collection[date]) -> Sequence[date]:
    """All Mondays from the first to the last: a week without scans is a gap in the line."""
    first, last = min(weeks), max(weeks)
    return [first + timedelta(days=7 * number) for number in range((last - first).days // 7 + 1)]


def _chart(title: str, by_week: dict[date, DurationWeek], weeks: Sequence[date]) -> Chart:
    longest = max(one.p95_seconds for one in by_week.values())
    unit_seconds, unit = next((size, name) for least, size, name in UNITS if longest >= least)
    points = []
    for week in weeks:
        one = by_week.get(week)
        for series, seconds in zip(SERIES, (one.p50_seconds, one.p95_seconds) if one else (None, None), strict=True):
            points.append(Point(week, series.name, None if seconds is None else seconds / unit_seconds))
    last = by_week[max(by_week)]
    alternative = (
        f"In {unit}. In the week from {words.day(last.week)} the median of {words.counted(last.scans, 'scan')} was"
        f" {words.duration(last.p50_seconds)}, the 95th percentile {words.duration(last.p95_seconds)}."
    )
    rows = [
        [words.day(week), f"{one.scans:,}", words.duration(one.p50_seconds), words.duration(one.p95_seconds)]
        for week, one in by_week.items()
    ]
    table = Table(title, ("Week from", "Scans", "Median", "95th percentile"), rows, range(1, 4))
    return Chart(f"{title}, in {unit}", alternative, charts.lines(points, SERIES), table)
