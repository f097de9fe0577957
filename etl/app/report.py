"""The page of charts: what the views say becomes one HTML file."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from etl.database.connection import Database
from etl.errors import ConfigError
from etl.report.figures import Figures, Question, Share, figures
from etl.store import dashboards
from etl.store.dashboards import Period

PACKAGES = ("altair", "jinja2", "vl_convert")


class Report(NamedTuple):
    """The HTML, and its most important numbers."""

    html: str
    summary: dict[str, Any]


def make(database: Database, deployments: Sequence[int], days: int, stale_days: int) -> Report:
    """The page of so many days until today, of these deployments or of all. ConfigError where one isn't known, or where
    what draws the charts isn't installed."""
    try:
        from etl.report.page import empty_page, page  # noqa: PLC0415 - comes with an extra, and takes a second
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise ConfigError("a report needs more packages: pip install 'scan-etl[report]'") from error
    made_at = datetime.now(UTC)
    period = Period(made_at.date() - timedelta(days=days - 1), made_at.date())
    rows = database.read(partial(dashboards.read, chosen=deployments, period=period))
    if unknown := set(deployments) - {one.deployment_id for one in rows.deployments}:
        raise ConfigError(f"the database knows no deployment {min(unknown)}: `scan-etl status` lists those that it has")
    found = figures(rows, Question(period, stale_days, made_at))
    html = page(found) if rows.deployments else empty_page(found, has_scans=rows.has_scans)
    return Report(html, _summary(found))


def _summary(found: Figures) -> dict[str, Any]:
    period = found.question.period
    return {
        "from_day": period.first.isoformat(),
        "until_day": period.last.isoformat(),
        "deployments": [one.deployment_id for one in found.deployments],
        "repositories": found.scanned.whole,
        "repositories_scanned": found.scanned.part,
        "repositories_stale": len(found.stale),
        "scans": found.scans,
        "failed": found.failed.part,
        "failed_percent": _rounded(found.failed),
        "p95_seconds": found.p95_seconds,
        "findings": found.findings.total if found.findings else None,
        "listed": found.lost.whole,
        "lost": found.lost.part,
        "lost_percent": _rounded(found.lost),
        "newest_scan_at": found.newest_scan_at,
        "summaries_behind_since": found.behind_since,
    }


def _rounded(share: Share) -> float | None:
    return None if share.percent is None else round(share.percent, 2)
