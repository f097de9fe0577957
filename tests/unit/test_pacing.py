"""How fast one token may ask. Waits are real; upper bounds on a pace hold on any machine, and lower ones aren't set."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_budget import MemoryBudget
from paced_requests import EARLY_SECONDS, asked_at, pace

from etl.backoff import backoff_seconds
from etl.semgrep.rate_limiter import LATE_SECONDS, make_limiter, retry_after_seconds

NOW = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)


def most_over(instants: Sequence[float], rate: float, slack: float) -> float:
    """By how much a stretch of the instants, at worst, exceeds `rate` and `slack` requests; not above 0 is fine."""
    return max(
        number + 1 - (late - early) * rate - slack
        for place, early in enumerate(instants)
        for number, late in enumerate(instants[place:])
    )


# Pure


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        ("1.5", 1.5),
        (" 3 ", 3.0),
        ("0", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("9" * 30, 1e30),
        ("", None),
        ("soon", None),
        ("Tue, 31 Feb 2026 10:00:00 GMT", None),
        ("Tue, 24 Nov 99999999999 10:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW + timedelta(seconds=90)).replace("+0000", "-0000"), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), None),
        ("Tue, 24 Nov 2026 11:30:05 +0100", 5.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """What lies in the past, or makes no sense, is no wait."""
    found = retry_after_seconds(header, NOW)

    assert found == seconds


@given(st.text(max_size=40))
def test_retry_after_takes_any_text(header: str) -> None:
    """No header ends a run, and none makes a negative or endless wait."""
    found = retry_after_seconds(header, NOW)

    assert found is None or 0 < found < float("inf")


@given(st.integers(1, 10_000), st.floats(0.001, 1_000), st.floats(0.001, 100_000))
def test_backoff_doubles_within_its_bounds(failures: int, first: float, longest: float) -> None:
    """Half of each wait is random; none is above the longest, nor below half of what is due."""
    due = min(longest, first * 2.0 ** min(failures - 1, 200))

    assert due / 2 <= backoff_seconds(failures, first, longest) <= due


@pytest.mark.parametrize("rate", [0.5, 1, 9.9, 10, 20, 1_000])
def test_the_limiter_lets_a_tenth_of_the_rate_through_at_once(rate: float) -> None:
    """Its burst is a tenth of a second's requests, or one, and its lasting rate is the one asked for."""
    limiter = make_limiter(rate)

    assert limiter.max_rate == max(1, rate / 10)
    assert limiter.max_rate / limiter.time_period == pytest.approx(rate)


# The ceiling


async def test_no_stretch_of_time_has_more_than_the_rate() -> None:
    """However many wait at once, each stretch has at most the rate's share, and what a late timer may catch up."""
    instants = await asked_at([pace(400)], 300)

    assert len(instants) == 300
    assert most_over(instants, 400, slack=400 * (LATE_SECONDS + EARLY_SECONDS) + 3) <= 0


async def test_idle_time_is_not_saved_up() -> None:
    """After a pause the requests come at the pace, not in a heap."""
    one = pace(100)
    await asked_at([one], 3)
    await asyncio.sleep(0.5)
    instants = await asked_at([one], 40)

    assert most_over(instants, 100, slack=100 * (LATE_SECONDS + EARLY_SECONDS) + 3) <= 0


async def test_a_slow_rate_has_one_request_at_a_time() -> None:
    """Below ten a second there is no burst at all."""
    instants = await asked_at([pace(5)], 4)

    assert all(b - a >= 0.2 - LATE_SECONDS - EARLY_SECONDS for a, b in itertools.pairwise(instants))


async def test_turns_come_in_the_order_asked_for() -> None:
    """Nobody is overtaken, so nobody starves."""
    one, order = pace(2_000), []

    async def ask(number: int) -> None:
        await one.acquire()
        order.append(number)

    await asyncio.gather(*(ask(number) for number in range(100)))

    assert order == list(range(100))


async def test_workers_of_one_token_share_its_rate() -> None:
    """Three paces on one line of time are together no faster than one, and each has a part."""
    budget = MemoryBudget()
    paces = [pace(300, budget=budget) for _ in range(3)]
    instants = await asked_at(paces, 240)

    began, ended = min(instants), max(instants)
    assert (ended - began) * 300 + 3 * 300 * (LATE_SECONDS + EARLY_SECONDS) + 6 >= 240
    assert sum(budget.reserved) <= (ended - began) + 2.0


async def test_who_comes_later_gets_as_much_as_who_is_there() -> None:
    """A run that finds the pace taken soon has its half, and not one request for each window of the other."""
    budget = MemoryBudget()
    there, late = pace(400, budget=budget), pace(400, budget=budget)
    turns = 0

    async def keep_busy() -> None:
        nonlocal turns
        while True:
            await there.acquire()
            there.done()
            turns += 1

    async with asyncio.TaskGroup() as tasks:
        busy = [tasks.create_task(keep_busy()) for _ in range(8)]
        while len(budget.reserved) < 4:
            await there.sleep(0.05)
        before = turns
        await asked_at([late], 200)
        meanwhile = turns - before
        for task in busy:
            task.cancel()

    assert meanwhile < 800, meanwhile


async def test_time_is_reserved_in_pieces_not_a_request_at_a_time() -> None:
    """Under load the database is asked far more seldom than the API."""
    budget = MemoryBudget()
    await asked_at([pace(1_000, budget=budget)], 500)

    assert len(budget.reserved) <= 100
    assert max(budget.reserved) <= 0.25
