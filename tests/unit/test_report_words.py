"""Numbers, days and changes in the words of the report."""

from datetime import date, timedelta

import pytest

from etl.report import words
from etl.report.figures import Share
from etl.store.dashboards import Period


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(0, 0, "–"), (0, 9, "0.0 %"), (1, 3, "33.3 %"), (1, 100_000, "< 0.1 %"), (1, 2000, "0.1 %"), (7, 7, "100.0 %")],
)
def test_a_percentage_has_a_base(part: int, whole: int, said: str) -> None:
    """Of nothing there is none, and little isn't nothing."""
    assert words.percent(Share(part, whole)) == said


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (date(2026, 11, 1), date(2026, 11, 30), "1 to 30 Nov 2026"),
        (date(2026, 10, 31), date(2026, 11, 29), "31 Oct to 29 Nov 2026"),
        (date(2025, 12, 5), date(2026, 1, 3), "5 Dec 2025 to 3 Jan 2026"),
        (date(2026, 3, 1), date(2026, 3, 1), "1 Mar 2026"),
    ],
)
def test_a_period_is_said_in_words(first: date, last: date, said: str) -> None:
    """As short as it can be."""
    assert words.span(Period(first, last)) == said


@pytest.mark.parametrize(
    ("first", "last", "before"),
    [
        (date(2026, 10, 31), date(2026, 11, 29), Period(date(2026, 10, 1), date(2026, 10, 30))),
        (date(2026, 3, 1), date(2026, 3, 1), Period(date(2026, 2, 28), date(2026, 2, 28))),
    ],
)
def test_the_period_before_is_as_long(first: date, last: date, before: Period) -> None:
    """It ends the day before."""
    assert Period(first, last).before() == before


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "–"), (0, "0.0 s"), (4.25, "4.2 s"), (61.4, "1 min 1 s"), (7_260, "2 h 1 min")]
)
def test_a_duration_has_two_units(seconds: float | None, said: str) -> None:
    """A short one has a decimal."""
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("lapse", "said"),
    [
        (timedelta(minutes=-5), "less than an hour"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=47.9), "47 hours"),
        (timedelta(days=2), "2 days"),
    ],
)
def test_an_age_has_one_unit(lapse: timedelta, said: str) -> None:
    """A clock that is ahead makes nothing negative."""
    assert words.age(lapse) == said


def test_a_repository_without_a_name_is_called_by_its_number() -> None:
    """And one without either is said to have none."""
    names = [words.repository(name, number) for name, number in (("acme/pay", 7), (None, 7), ("", None))]

    assert names == ["acme/pay", "number 7", "without a name"]
