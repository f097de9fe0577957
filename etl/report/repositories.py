"""The sections about repositories: those that aren't scanned, and those that are, by product."""

from datetime import timedelta

from etl.report import charts, words
from etl.report.charts import Bar
from etl.report.figures import Figures, Share
from etl.report.parts import Chart, Section, Table, in_period, place_cells, repository_table

MOST_STALE = 100
PRODUCT_WORDS = {"code": "code", "supply_chain": "supply chain", "secrets": "secrets", "ai": "AI"}


def stale(figures: Figures) -> Section:
    count, known = len(figures.stale), figures.scanned.whole
    days = figures.question.stale_days
    title = f"Not scanned for {words.counted(days, 'day')}"
    if not known:
        return Section(title, ["No repository is known yet."])
    all_known = words.counted(known, "repository", "repositories")
    if not count:
        return Section(
            title, [f"None: each of the {all_known} listed now had a scan within {words.counted(days, 'day')}."]
        )
    since = words.day(figures.question.made_at.date() - timedelta(days=days))
    share = words.percent(Share(count, known))
    sentences = [
        f"{count:,} of {all_known} listed now ({share}) had their last scan on {since} or before, or never one."
    ]
    if count > MOST_STALE:
        sentences.append(f"The first {MOST_STALE} are here; the view bi_repository has all of them.")
    rows = [
        [
            words.repository(one.repository, one.repository_id),
            *place_cells(figures, one.deployment_id),
            words.day(one.last_scan_at.date() if one.last_scan_at else None),
            words.number(one.days_since_last_scan),
            words.number(one.findings),
        ]
        for one in figures.stale[:MOST_STALE]
    ]
    return Section(title, sentences, tables=[repository_table(figures, "", ("Last scan", "Days", "Findings"), rows)])


def coverage(figures: Figures) -> Section:
    """How many repositories had a scan for each product."""
    title, known = "Coverage by product", figures.scanned.whole
    if not known:
        return Section(title, ["No repository is known yet."])
    named = {PRODUCT_WORDS[product]: share for product, share in figures.products.items()}
    of_all = f"of {words.counted(known, 'repository', 'repositories')} listed now"
    alternative = ", ".join(f"{name} {share.part:,} ({words.percent(share)})" for name, share in named.items())
    drawn = [Bar(name, share.part, f"{share.part:,} ({words.percent(share)})") for name, share in named.items()]
    rows = [[name, f"{share.part:,}", f"{share.whole:,}", words.percent(share)] for name, share in named.items()]
    table = Table("Repositories by product", ("Product", "Scanned", "Of", "Share"), rows, range(1, 4))
    sentence = f"Repositories with a scan for the product {in_period(figures)}, {of_all}."
    svg = charts.bars(drawn, "calm", most=known)
    return Section(title, [sentence], [Chart("Repositories scanned, by product", f"{alternative}.", svg, table)])
