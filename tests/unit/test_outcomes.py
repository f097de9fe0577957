"""What a failure or an answer means for its pair."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from drained_queue import ONE, drained
from hypothesis import given
from hypothesis import strategies as st
from memory_ports import FAR_AWAY, MemoryPorts, sound
from scan_rows import scan_rows

from etl.backoff import LONGEST_SNOOZE
from etl.config.settings import QueueSettings
from etl.errors import DatabaseError, ItemError, TransientError
from etl.model import (
    RETENTION,
    Complete,
    Discard,
    Lease,
    Outcome,
    Release,
    Retry,
    Snooze,
    pair_of,
)
from etl.pipeline.outcomes import after_failure, after_refusal, after_unfinished

HOUR_SECONDS = 3_600.0
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


# What no pair is to blame for


@pytest.mark.parametrize("error", [KeyError("a bug"), ZeroDivisionError(), DatabaseError("database unavailable")])
@pytest.mark.parametrize("port", ["fetch", "flatten", "lease", "settle", "renew", "next_due_seconds"])
async def test_bugs_and_a_database_that_is_away_come_out_as_they_are(port: str, error: Exception) -> None:
    """Wherever they happen, nothing swallows them, and no group hides them."""

    class Faulty(MemoryPorts):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name != port:
                return found

            def call(*_: object) -> Any:
                raise error

            return call

    ports = Faulty([ONE], (lambda _pair, _times: asyncio.Event().wait()) if port == "renew" else sound)

    with pytest.raises(type(error)) as caught:
        await drained(ports, lease_seconds=0.1)
    assert caught.value is error
    assert ONE not in ports.dead


# Outcomes, pure


@given(
    attempts=st.integers(0, 200),
    most=st.integers(1, 100),
    spends=st.booleans(),
    asked_for=st.one_of(st.none(), st.floats(0.001, 1e6)),
)
def test_a_failure_is_later_or_dead(attempts: int, most: int, spends: bool, asked_for: float | None) -> None:
    """Dead by the last attempt, and each one after it; else later, not before the server wants it, and within the
    longest wait. What spends none never kills."""
    error = TransientError("m", kind="k", http_status=500, retry_after_seconds=asked_for, spends_attempt=spends)
    numbers = QueueSettings(max_attempts=most, backoff_seconds=1.0, backoff_max_seconds=60.0)
    outcome = after_failure(Lease(ONE, attempts, FAR_AWAY), error, numbers)

    assert isinstance(outcome, Discard if spends and attempts + 1 >= most else Retry)
    assert outcome.attempts == attempts + spends
    if isinstance(outcome, Retry):
        assert min(asked_for or 0.5, 60.0) <= outcome.delay_seconds <= 60.0


def test_a_failure_that_may_pass_is_tried_again_by_later_nights() -> None:
    """In one, two, four and eight of them: one try a night, each counted, less than a day after the one before."""
    error = TransientError("m", kind="http_status", http_status=502)
    deaths = [after_failure(Lease(ONE, attempts, FAR_AWAY), error, QueueSettings()) for attempts in (4, 5, 6, 7)]

    found = {death.attempts: death.again_in_seconds for death in deaths if isinstance(death, Discard)}
    assert found == {5: 20 * HOUR_SECONDS, 6: 40 * HOUR_SECONDS, 7: 80 * HOUR_SECONDS, 8: 160 * HOUR_SECONDS}


@pytest.mark.parametrize(
    ("kind", "status", "is_retried"),
    [
        ("refused", 401, True),
        ("refused", 403, True),
        ("not_found", 404, False),
        ("gone", 410, False),
        ("odd", None, False),
    ],
)
def test_a_refusal_of_its_own_is_for_good(kind: str, status: int | None, is_retried: bool) -> None:
    """But a right that is missing may be given."""
    death = after_refusal(Lease(ONE, 0, FAR_AWAY), ItemError("m", kind=kind, http_status=status))

    assert (death.attempts, death.again_in_seconds is not None) == (1, is_retried)


@pytest.mark.parametrize(
    ("age", "snoozes"),
    [
        (timedelta(0), 1),
        (timedelta(minutes=-5), 1),
        (timedelta(minutes=10), 1),
        (timedelta(minutes=40), 4),
        (timedelta(hours=5), LONGEST_SNOOZE),
        (timedelta(days=29), LONGEST_SNOOZE),
    ],
)
def test_a_running_scan_is_looked_at_again_after_half_its_age(age: timedelta, snoozes: float) -> None:
    """Within bounds: from one snooze to fourteen."""
    rows = scan_rows(1, started_at=(NOW - age).isoformat(), completed_at=None)
    outcome = after_unfinished(Lease(ONE, 0, FAR_AWAY), rows, QueueSettings(), NOW)

    assert outcome == Snooze(rows, 300.0 * snoozes, NOW - age + RETENTION)


@pytest.mark.parametrize(
    ("started_at", "expires_at"),
    [
        (NOW - RETENTION, NOW + timedelta(days=20)),
        (NOW - timedelta(days=1), NOW),
        (None, NOW - timedelta(days=1)),
    ],
)
def test_a_scan_that_has_expired_is_left_as_it_is(started_at: datetime | None, expires_at: datetime) -> None:
    """The API doesn't show it any longer, so there is nothing to wait for."""
    rows = scan_rows(1, started_at=started_at and started_at.isoformat(), completed_at=None)
    outcome = after_unfinished(Lease(ONE, 0, expires_at), rows, QueueSettings(), NOW)

    assert outcome == Complete(rows)


def test_a_running_scan_at_the_end_of_all_time_has_no_beginning() -> None:
    """Such a start can't be true: it is as if there were none."""
    rows = scan_rows(1, started_at="9999-12-31T00:00:00Z", completed_at=None)
    outcome = after_unfinished(Lease(ONE, 0, FAR_AWAY), rows, QueueSettings(), NOW)

    assert outcome == Snooze(rows, 300.0, FAR_AWAY)


def test_a_running_scan_without_a_beginning_expires_too() -> None:
    """The time counts from when it was queued."""
    rows = scan_rows(1, started_at=None, completed_at=None)
    expires_at = NOW - timedelta(days=1) + RETENTION
    outcome = after_unfinished(Lease(ONE, 0, expires_at), rows, QueueSettings(), NOW)

    assert outcome == Snooze(rows, 300.0, expires_at)


def test_pair_of_every_outcome() -> None:
    """Each kind of outcome is about one pair."""
    rows = scan_rows(1)
    outcomes: list[Outcome] = [
        Complete(rows),
        Snooze(rows, 1.0, NOW),
        Retry(ONE, 1.0, 1, None, None),
        Discard(ONE, 1, "k", "m", None),
        Release(ONE),
    ]

    assert {pair_of(outcome) for outcome in outcomes} == {ONE}
