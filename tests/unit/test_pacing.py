"""How fast one token may ask. Waits are real; upper bounds on a pace hold on any machine, and lower ones aren't set."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_budget import MemoryBudget

from etl.backoff import backoff_seconds
from etl.errors import StoppedError
from etl.semgrep.rate_limiter import RateLimiter, make_limiter
from etl.semgrep.responses import retry_after_seconds
from etl.semgrep.slot_schedule import LATE_SECONDS

NOW = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
EARLY_SECONDS = 0.01
"""How much too early a timer may fire, and two clock readings may differ."""


def pace(
    rate: float = 1_000.0,
    *,
    max_wait: float = 60.0,
    budget: MemoryBudget | None = None,
    told: list[float] | None = None,
    waits: list[float] | None = None,
) -> RateLimiter:
    gate, wait = (seen if seen is not None else [] for seen in (told, waits))
    return RateLimiter(rate, max_wait, budget or MemoryBudget(), gate.append, wait.append)


async def asked_at(paces: Sequence[RateLimiter], count: int) -> list[float]:
    """The instants at which `count` requests, spread over the paces and all there at once, had their turn."""
    instants = []

    async def ask(pace: RateLimiter) -> None:
        async with pace.request():
            instants.append(time.monotonic())

    await asyncio.gather(*(ask(pace) for pace, _ in zip(itertools.cycle(paces), range(count), strict=False)))
    return instants


def most_over(instants: Sequence[float], rate: float, slack: float) -> float:
    """By how much a stretch of the instants, at worst, exceeds `rate` and `slack` requests; not above 0 is fine."""
    return max(
        number + 1 - (late - early) * rate - slack
        for place, early in enumerate(instants)
        for number, late in enumerate(instants[place:])
    )


async def refused(one: RateLimiter, retry_after: float | None) -> bool:
    """A request goes out, and the API refuses it. Whether to go on."""
    async with one.request(past_the_gate=True) as request:
        return await request.refused(retry_after)


async def accepted(one: RateLimiter) -> None:
    """A request goes out and is answered."""
    async with one.request(past_the_gate=True) as request:
        request.accepted()


async def turn(one: RateLimiter) -> None:
    """A request goes out in its turn, and no answer comes."""
    async with one.request():
        pass


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
        async with one.request():
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
            await turn(there)
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


# The gate


async def test_a_refusal_closes_the_gate_for_all_who_wait() -> None:
    """Nobody has a turn before the time that the API asked for is over, however many wait."""
    told: list[float] = []
    one = pace(told=told)
    waiting = [asyncio.create_task(asked_at([one], 10)) for _ in range(3)]
    goes_on = await refused(one, 0.5)
    refused_at = time.monotonic()
    instants = [instant for task in waiting for instant in await task]

    assert goes_on
    assert len(instants) == 30
    assert min(instants) >= refused_at + 0.5 - EARLY_SECONDS
    assert told == [0.5, 0.0]


async def test_a_refusal_holds_other_workers_back_too() -> None:
    """The line of time is closed, so a worker that met no refusal reserves nothing in it."""
    budget = MemoryBudget()
    one, other = pace(budget=budget), pace(budget=budget)
    await refused(one, 0.5)
    refused_at = time.monotonic()
    instants = await asked_at([other], 5)

    assert budget.held == [0.5]
    assert min(instants) >= refused_at + 0.5 - EARLY_SECONDS


async def test_who_shares_the_time_learns_the_pace_of_all() -> None:
    """A refusal shows what the API allows all workers together, not what this one has asked in its own part of the
    time, which is half of it."""
    budget = MemoryBudget()
    one, other = pace(200, budget=budget), pace(200, budget=budget)
    await asked_at([one, other], 400)
    await refused(one, 0.1)

    assert one.rate > 130, one.rate


async def test_a_refusal_that_meets_a_turn_already_given_out_still_counts() -> None:
    """A request that sleeps until its slot waits for the gate as well."""
    one = pace(2)
    await turn(one)
    second = asyncio.create_task(asked_at([one], 1))
    await asyncio.sleep(0.05)
    await refused(one, 1.0)
    refused_at = time.monotonic()

    assert (await second)[0] >= refused_at + 1.0 - EARLY_SECONDS


async def test_no_wait_is_longer_than_we_bear() -> None:
    """A Retry-After of a year is cut to the longest wait, for this worker and the others."""
    told: list[float] = []
    budget = MemoryBudget()
    one = pace(max_wait=0.3, budget=budget, told=told)
    await refused(one, 31_536_000.0)
    await turn(one)

    assert told == [0.3, 0.0]
    assert budget.held == [0.3]


async def test_a_refusal_without_a_time_waits_longer_each_time() -> None:
    """The guess doubles with each refusal in a row, and an accepted request begins anew."""
    told: list[float] = []
    one = pace(max_wait=1.0, told=told)
    await refused(one, None)
    await turn(one)
    await accepted(one)
    await refused(one, None)

    assert told == [0.5, 0.0, 0.5]


async def test_refusals_of_requests_in_flight_count_as_one() -> None:
    """Ten requests that were on their way together close the gate once and slow the pace once."""
    told: list[float] = []
    one = pace(100, told=told)
    async with AsyncExitStack() as stack:
        together = [await stack.enter_async_context(one.request(past_the_gate=True)) for _ in range(10)]
        await together[0].refused(0.2)
        rate = one.rate
        for request in together[1:]:
            await request.refused(0.2)

    assert told == [0.2]
    assert one.rate == rate


async def test_the_longest_wait_counts_for_all_workers() -> None:
    """A longer one that comes while the gate is closed holds everyone back; a shorter one changes nothing."""
    budget = MemoryBudget()
    one, other = pace(budget=budget), pace(budget=budget)
    async with AsyncExitStack() as stack:
        together = [await stack.enter_async_context(one.request(past_the_gate=True)) for _ in range(3)]
        for request, seconds in zip(together, (0.2, 0.6, 0.1), strict=True):
            await request.refused(seconds)
    refused_at = time.monotonic()
    instants = await asked_at([one, other], 6)

    assert budget.held == [0.2, 0.6]
    assert min(instants) >= refused_at + 0.6 - EARLY_SECONDS


async def test_while_all_are_refused_one_at_a_time_asks() -> None:
    """Whether a quota is there again, one request finds out; the others wait for its answer."""
    one = pace()
    await refused(one, 0.01)
    await refused(one, 0.01)
    async with one.request() as asks:
        waiting = asyncio.create_task(asked_at([one], 5))
        await asyncio.sleep(0.1)
        too_early = waiting.done()
        answered_at = time.monotonic()
        asks.accepted()
    instants = await waiting

    assert not too_early
    assert min(instants) >= answered_at


async def test_an_api_that_refuses_everything_is_borne_for_so_long_only() -> None:
    """The time counts from the first refusal, and anything accepted in between starts it anew."""
    one = pace(max_wait=0.2)
    first = await refused(one, 0.05)
    await asyncio.sleep(0.3)
    await accepted(one)
    second = await refused(one, 0.05)
    await asyncio.sleep(0.3)
    third = await refused(one, 0.05)

    assert (first, second, third) == (True, True, False)


# Pause and close


async def test_a_pause_lets_nobody_through_until_it_ends() -> None:
    """Who waits has its turn after `resume`, also who slept until a slot."""
    one = pace(1_000)
    one.pause()
    waiting = asyncio.create_task(asked_at([one], 5))
    await asyncio.sleep(0.1)
    resumed_at = time.monotonic()
    one.resume()
    instants = await waiting

    assert min(instants) >= resumed_at


async def paused(one: RateLimiter) -> None:
    one.pause()


async def gate_closed(one: RateLimiter) -> None:
    await one.hold(50.0)


async def busy(one: RateLimiter) -> None:
    await turn(one)


@pytest.mark.parametrize("state", [paused, gate_closed, busy])
async def test_close_ends_every_wait(state: object) -> None:
    """Whatever they wait for, all get StoppedError at once, and so does who comes later."""
    assert callable(state)
    one = pace(0.1)
    await state(one)
    waiting = [asyncio.create_task(turn(one)) for _ in range(10)]
    sleeping = asyncio.create_task(one.sleep(100.0))
    await asyncio.sleep(0.05)
    one.close()
    ended = await asyncio.gather(*waiting, sleeping, turn(one), return_exceptions=True)

    assert [type(error) for error in ended] == [StoppedError] * 12


async def test_nobody_who_waits_at_the_limiter_goes_on_after_close() -> None:
    """A turn that the limiter holds back is none any more, whenever the close comes."""
    done: list[RateLimiter] = []

    async def ask(one: RateLimiter) -> None:
        async with one.request():
            done.append(one)

    async def close_after(one: RateLimiter, seconds: float) -> bool:
        tasks = [asyncio.create_task(ask(one)) for _ in range(5)]
        await asyncio.sleep(seconds)
        one.close()
        before = done.count(one)
        await asyncio.gather(*tasks, return_exceptions=True)
        return done.count(one) == before

    closing = [asyncio.create_task(close_after(pace(10), 0.14 + 0.01 * number)) for number in range(12)]
    await asyncio.sleep(0.02)
    # A stalled loop makes the second turn late, so that the third meets a limiter without room.
    time.sleep(0.11)  # noqa: ASYNC251 - the stall is what is tested
    kept = await asyncio.gather(*closing)

    assert kept == [True] * 12


async def test_sleep_ends_by_itself() -> None:
    """Without a close it is a plain sleep."""
    began = time.monotonic()
    await pace().sleep(0.05)

    assert time.monotonic() - began >= 0.05 - EARLY_SECONDS


async def test_a_long_wait_for_the_time_that_others_have_is_told_once() -> None:
    """Whoever looks at a silent worker sees why; what the pace itself takes is no reason to speak."""
    budget, waits = MemoryBudget(), list[float]()
    await budget.reserve(1.6)
    instants = await asked_at([pace(10.0, budget=budget, waits=waits)], 3)

    assert len(instants) == 3
    assert [round(seconds) for seconds in waits] == [2]
