"""The section about completeness: what became of each scan that was listed, and how new the data are."""

from collections.abc import Sequence

from etl.report import charts, words
from etl.report.charts import Point, Series
from etl.report.figures import Figures, Share
from etl.report.parts import Chart, Section, Table, in_period
from etl.store.dashboards import CoverageDay

SERIES = (Series("stored", "calm"), Series("waiting", "grey"), Series("lost", "bad"))
STATES = {
    "stored": "details are there",
    "waiting": "still to be fetched, or still running",
    "dead": "lost: given up, or gone at the API",
    "expired": "lost: older than 30 days before it was fetched",
    "dropped": "lost: dropped by hand",
    "missing": "lost, until the next walk queues it again",
}


def completeness(figures: Figures) -> Section:
    """What is stored of what was listed, and how far the data reach."""
    title, listed = "Completeness", figures.lost.whole
    tables = [_freshness(figures)]
    if not listed:
        sentence = f"No scan was listed {in_period(figures)}: only what `scan-etl sync` has walked can be complete."
        return Section(title, [sentence], tables=tables)
    count = figures.lost.part
    lost = f"{words.counted(count, 'is', 'are')} lost ({words.percent(figures.lost)})" if count else "none is lost"
    sentences = [f"Of {words.counted(listed, 'scan')} that were listed {in_period(figures)}, {lost}."]
    if count:
        sentences.append("`scan-etl failures list` says why, `scan-etl status --by-repository` of which repositories.")
    return Section(title, sentences, [_by_day(figures.coverage)], [_states(figures), *tables])


def _by_day(coverage: Sequence[CoverageDay]) -> Chart:
    points = [Point(day.day, one.name, getattr(day, one.name)) for day in coverage for one in SERIES]
    totals = {one.name: sum(getattr(day, one.name) for day in coverage) for one in SERIES}
    alternative = ", ".join(f"{count:,} {name}" for name, count in totals.items())
    columns = ("Day", "listed", *(one.name for one in SERIES))
    rows = [[words.day(day.day), *(f"{getattr(day, name):,}" for name in columns[1:])] for day in coverage]
    table = Table("Listed scans a day", columns, rows, range(1, len(columns)))
    return Chart("Listed scans a day, by what became of them", f"{alternative}.", charts.stacked(points, SERIES), table)


def _states(figures: Figures) -> Table:
    totals = {name: Share(sum(getattr(day, name) for day in figures.coverage), figures.lost.whole) for name in STATES}
    rows = [[name, f"{share.part:,}", words.percent(share), STATES[name]] for name, share in totals.items()]
    return Table("What became of them", ("State", "Scans", "Of listed", "Meaning"), rows, range(1, 3))


def _freshness(figures: Figures) -> Table:
    names = {one.deployment_id: words.deployment(one) for one in figures.deployments}
    rows = [
        [
            names[one.deployment_id],
            words.instant(one.newest_scan_at),
            words.instant(one.last_walk_at),
            words.instant(one.complete_since),
            f"{one.gaps:,}",
        ]
        for one in figures.freshness
    ]
    columns = ("Deployment", "Newest scan", "Last walk of the list", "Listed without a gap since", "Gaps")
    return Table("How far the data reach", columns, rows, {4})
