"""The sections about scans: how they end, day by day, and why they fail."""

from collections import Counter
from collections.abc import Mapping

from etl.report import charts, words
from etl.report.charts import Bar, Point, Series
from etl.report.figures import Figures, Share
from etl.report.parts import Chart, Section, Table, in_period, place_cells, repository_table

MOST_BARS = 12
OUTCOMES = {
    "passed": "passed",
    "findings": "with findings",
    "failed": "failed",
    "running": "running",
    "unfinished": "unfinished",
    "cancelled": "cancelled",
    "never_finished": "never finished",
    "unknown": "ended without exit code",
}
NO_RESULT = "no result"
SERIES = (Series("passed", "calm"), Series("with findings", "warm"), Series("failed", "bad"), Series(NO_RESULT, "grey"))


def scans(figures: Figures) -> Section:
    title, days = "Scans", figures.outcomes
    if not figures.scans:
        return Section(title, [f"No scan started {in_period(figures)}."])
    total = Counter[str]()
    for outcomes in days.values():
        total.update(outcomes)
    points = [Point(day, name, count) for day, outcomes in days.items() for name, count in _by_series(outcomes).items()]
    busiest = max(days, key=lambda day: sum(days[day].values()))
    parts = ", ".join(f"{count:,} {name}" for name, count in _by_series(total).items())
    alternative = f"{parts}. Most on {words.day(busiest)}: {sum(days[busiest].values()):,}."
    shown = [outcome for outcome in OUTCOMES if total[outcome]]
    columns = ["Day", "all", *(OUTCOMES[outcome] for outcome in shown)]
    rows = [
        [words.day(day), *(f"{count:,}" for count in (sum(outcomes.values()), *(outcomes[name] for name in shown)))]
        for day, outcomes in days.items()
    ]
    table = Table("Scans a day, by outcome", columns, rows, range(1, len(columns)))
    chart = Chart("Scans a day, by outcome", alternative, charts.stacked(points, SERIES), table)
    sentence = f"{words.counted(figures.scans, 'scan')} started {in_period(figures)}."
    return Section(title, [sentence, _NO_RESULT], [chart])


_NO_RESULT = (
    "No result: still running, unfinished after a day, cancelled, never finished, or ended without an exit code."
)


def _by_series(outcomes: Mapping[str, int]) -> dict[str, int]:
    """The three ways in which a scan ends, and the rest in one."""
    ended = {OUTCOMES[name]: outcomes.get(name, 0) for name in ("passed", "findings", "failed")}
    return {**ended, NO_RESULT: sum(outcomes.values()) - sum(ended.values())}


def failures(figures: Figures) -> Section:
    title, failed = "Failures", figures.failed
    if not failed.part:
        return Section(title, [f"None of {words.counted(failed.whole, 'scan')} failed {in_period(figures)}."])
    sentence = f"{words.of(failed, 'scans')} ({words.percent(failed)}) failed {in_period(figures)}."
    return Section(title, [sentence], [_exit_codes(figures)], [_worst(figures)])


def _exit_codes(figures: Figures) -> Chart:
    shares = {one: Share(one.scans, figures.failed.part) for one in figures.exit_codes}
    rows = [
        [str(one.exit_code), f"{one.scans:,}", words.percent(share), one.meaning or "not documented", one.fault or "–"]
        for one, share in shares.items()
    ]
    first, share = next(iter(shares.items()))
    alternative = (
        f"Most often {first.exit_code}, {first.meaning or 'which is not documented'}:"
        f" {words.of(share, 'failures')} ({words.percent(share)})."
    )
    columns = ("Exit code", "Scans", "Share", "Meaning", "Where to look")
    drawn = [
        Bar(f"exit code {one.exit_code}", one.scans, f"{one.scans:,} ({words.percent(share)})")
        for one, share in list(shares.items())[:MOST_BARS]
    ]
    table = Table("Failures by exit code", columns, rows, range(3))
    return Chart("Failures by exit code", alternative, charts.bars(drawn, "bad"), table)


def _worst(figures: Figures) -> Table:
    rows = [
        [
            words.repository(one.repository, one.repository_id),
            *place_cells(figures, one.deployment_id),
            f"{one.failed:,}",
            f"{one.scans:,}",
            words.percent(Share(one.failed, one.scans)),
        ]
        for one in figures.worst
    ]
    count = words.counted(len(rows), "repository", "repositories")
    return repository_table(figures, f"The {count} with the most failures", ("Failed", "Scans", "Rate"), rows)
