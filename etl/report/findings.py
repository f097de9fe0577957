"""The section about findings: now and by week, by product."""

from etl.report import charts, words
from etl.report.charts import Point, Series
from etl.report.figures import Figures, Findings, FindingsOf
from etl.report.parts import Chart, Section, Table

SERIES = (Series("code", "calm"), Series("supply chain", "warm"), Series("secrets", "third"), Series("other", "grey"))


def findings(figures: Figures) -> Section:
    title, now, before = "Findings", figures.findings, figures.findings_before
    if now is None:
        return Section(title, ["No full scan has passed or has findings yet, so nobody knows how many there are."])
    sentences = [f"{words.counted(now.total, 'finding')} in the newest full scan of each repository that had one."]
    if now.other:
        sentences.append(
            "Other: findings of further products, and of scans that don't say of which product theirs are."
        )
    return Section(title, sentences, _by_week(figures), [_now(now, before)])


def _now(now: Findings, before: FindingsOf | None) -> Table:
    """By product, with the change where something is known of before."""
    counts = _by_product(now)
    if before is None:
        return Table("Findings now, by product", ("Product", "Now"), [[n, f"{c:,}"] for n, c in counts.items()], {1})
    was = _by_product(before.findings)
    rows = [[name, f"{count:,}", f"{was[name]:,}", f"{count - was[name]:+,}"] for name, count in counts.items()]
    columns = ("Product", "Now", f"On {words.day(before.day)}", "Change")
    return Table("Findings now, by product", columns, rows, range(1, 4))


def _by_product(findings: Findings) -> dict[str, int]:
    parts = (findings.code, findings.supply_chain, findings.secrets, findings.other)
    return {**dict(zip((one.name for one in SERIES), parts, strict=True)), "all": findings.total}


def _by_week(figures: Figures) -> list[Chart]:
    weeks = figures.findings_weeks
    if not weeks:
        return []
    points = [Point(day, name, _by_product(of)[name]) for day, of in weeks for name in _by_product(of) if name != "all"]
    least, most = (pick(weeks, key=lambda week: week.findings.total) for pick in (min, max))
    said = {
        name: f"{week.findings.total:,} ({words.day(week.day)})" for name, week in (("Most", most), ("Fewest", least))
    }
    ends = (
        f"{weeks[-1].findings.total:,} at the end of the last week, {weeks[0].findings.total:,} at the end of the first"
    )
    alternative = f"{ends}. Most: {said['Most']}. Fewest: {said['Fewest']}."
    rows = [[words.day(day), *(f"{count:,}" for count in _by_product(of).values())] for day, of in weeks]
    columns = ["Week until", *(one.name for one in SERIES), "all"]
    table = Table("Findings by week", columns, rows, range(1, len(columns)))
    return [Chart("Findings at the end of each week", alternative, charts.stacked(points, SERIES), table)]
