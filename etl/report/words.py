"""Numbers, days and changes as people read them. Pure."""

from datetime import date, datetime, timedelta

from etl.report.figures import Share
from etl.store.dashboards import Deployment, Period
from etl.store.plan import format_duration

LEAST_SHOWN_PERCENT = 0.05
SHORT_SECONDS = 10
NOTHING = "–"


def number(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 scan`, `2 scans`, `3 repositories`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(share: Share) -> str:
    """With one decimal; what isn't nothing is never shown as 0."""
    value = share.percent
    if value is None:
        return NOTHING
    return "< 0.1 %" if 0 < value < LEAST_SHOWN_PERCENT else f"{value:.1f} %"


def of(share: Share, what: str) -> str:
    return f"{share.part:,} of {share.whole:,} {what}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f} s" if seconds < SHORT_SECONDS else format_duration(round(seconds))


def day(value: date | None) -> str:
    return "never" if value is None else f"{value.day} {value:%b %Y}"


def span(period: Period) -> str:
    """`1 to 30 Nov 2026`, `31 Oct to 29 Nov 2026`, `5 Dec 2025 to 3 Jan 2026`."""
    first, last = period
    if first == last:
        return day(last)
    if first.year != last.year:
        return f"{day(first)} to {day(last)}"
    month = f" {first:%b}" if first.month != last.month else ""
    return f"{first.day}{month} to {day(last)}"


def instant(at: datetime | None) -> str:
    return "never" if at is None else f"{day(at.date())} {at:%H:%M} UTC"


def age(lapse: timedelta) -> str:
    """How long ago, in one unit."""
    hours = max(lapse.total_seconds(), 0) / 3600
    if hours < 1:
        return "less than an hour"
    return counted(int(hours), "hour") if hours < 48 else counted(int(hours // 24), "day")


def deployment(one: Deployment) -> str:
    return one.name or one.slug or f"deployment {one.deployment_id}"


def repository(name: str | None, repository_id: int | None) -> str:
    if name:
        return name
    return "without a name" if repository_id is None else f"number {repository_id}"
