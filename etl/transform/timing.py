"""What dashboards count a scan by: the day that it began, and how long it took."""

from datetime import date, datetime, timedelta

from etl.transform.readers import FIRST_INSTANT

_AHEAD = timedelta(days=1)


def started_day(started_at: datetime | None, known_at: datetime) -> date | None:
    """The day of a start in UTC; None without one, and for one before 2000 or more than a day after it was known: some
    clock was wrong, and would stretch the calendar by centuries. Both instants are in UTC."""
    if started_at is None or started_at < FIRST_INSTANT or started_at - _AHEAD > known_at:
        return None
    return started_at.date()


def duration_seconds(started_at: datetime | None, completed_at: datetime | None) -> float | None:
    """How long a scan took, to the microsecond; None if it has no start or no end, or an end before its start."""
    if started_at is None or completed_at is None or completed_at < started_at:
        return None
    return (completed_at - started_at).total_seconds()
