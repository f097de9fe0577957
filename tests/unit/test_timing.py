"""What dashboards count a scan by."""

from datetime import UTC, date, datetime, timedelta

import pytest

from etl.transform.timing import duration_seconds, started_day

LAST_MOMENT = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("started_at", "known_at", "day"),
    [
        (LAST_MOMENT, LAST_MOMENT + DAY, date(2026, 2, 28)),
        (LAST_MOMENT + MOMENT, LAST_MOMENT + DAY, date(2026, 3, 1)),
        (LAST_MOMENT, LAST_MOMENT - DAY, date(2026, 2, 28)),
        (LAST_MOMENT, LAST_MOMENT - DAY - MOMENT, None),
        (datetime(2000, 1, 1, tzinfo=UTC), LAST_MOMENT, date(2000, 1, 1)),
        (datetime(2000, 1, 1, tzinfo=UTC) - MOMENT, LAST_MOMENT, None),
        (datetime.min.replace(tzinfo=UTC), LAST_MOMENT, None),
        (datetime.max.replace(tzinfo=UTC), LAST_MOMENT, None),
        (None, LAST_MOMENT, None),
    ],
)
def test_a_day_is_that_of_a_start_that_can_be(
    started_at: datetime | None, known_at: datetime, day: date | None
) -> None:
    """Not before 2000, nor more than a day after somebody knew of it."""
    assert started_day(started_at, known_at) == day


@pytest.mark.parametrize(
    ("started_at", "completed_at", "seconds"),
    [
        (LAST_MOMENT, LAST_MOMENT + MOMENT, 0.000001),
        (LAST_MOMENT, LAST_MOMENT, 0.0),
        (LAST_MOMENT, LAST_MOMENT - MOMENT, None),
        (LAST_MOMENT, LAST_MOMENT + DAY, 86_400.0),
        (None, LAST_MOMENT, None),
        (LAST_MOMENT, None, None),
    ],
)
def test_a_duration_is_never_negative(
    started_at: datetime | None, completed_at: datetime | None, seconds: float | None
) -> None:
    """It is exact to the microsecond."""
    assert duration_seconds(started_at, completed_at) == seconds
