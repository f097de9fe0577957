"""The page: one HTML file, without a script, that fetches nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from etl import __version__
from etl.report import words
from etl.report.completeness import completeness
from etl.report.durations import durations
from etl.report.figures import Figures
from etl.report.findings import findings
from etl.report.parts import Section
from etl.report.repositories import coverage, stale
from etl.report.scans import failures, scans
from etl.report.tiles import tiles

SECTIONS: Sequence[Callable[[Figures], Section]] = (stale, findings, scans, failures, durations, coverage, completeness)
"""In the order of the page."""
OPEN_ROWS = 12
"""A chart's table of more rows is shown when somebody opens it."""
SHOWN_ROWS = 20
"""Of a longer table the rest is shown when somebody opens it, and on paper."""
SHORT = len("29 Nov 2026")
"""A cell of no more characters isn't broken into lines."""
NAMES = 3
"""A title with more names has their number instead."""


def page(figures: Figures) -> str:
    """The HTML. Whatever came from the database is escaped in it."""
    period = figures.question.period
    return _render(
        "page.html",
        figures,
        period=words.span(period),
        days=words.counted(period.days, "day"),
        before=words.span(period.before()),
        behind_since=figures.behind_since and words.instant(figures.behind_since),
        tiles=tiles(figures),
        sections=[section(figures) for section in SECTIONS],
        open_rows=OPEN_ROWS,
        shown_rows=SHOWN_ROWS,
        short=SHORT,
    )


def empty_page(figures: Figures, *, has_scans: bool) -> str:
    """The HTML where nothing is counted yet: whether there are scans nevertheless, and what to do."""
    return _render("empty.html", figures, has_scans=has_scans)


def _render(template: str, figures: Figures, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_code"] = _with_code
    made_at = words.instant(figures.question.made_at)
    title = f"Semgrep scans{_place(figures)}"
    return environment.get_template(template).render(title=title, made_at=made_at, version=__version__, **values)


def _with_code(sentence: str) -> Markup:
    """A sentence whose commands stand between backticks."""
    parts = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(parts))


def _place(figures: Figures) -> str:
    names = [words.deployment(one) for one in figures.deployments]
    if not names:
        return ""
    return f" of {', '.join(names) if len(names) <= NAMES else words.counted(len(names), 'deployment')}"
