"""The gate and the pauses of a limiter: who is refused, who waits, and what ends the wait."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from memory_budget import MemoryBudget
from paced_requests import EARLY_SECONDS, asked_at, busy, pace, turn

from etl.errors import StoppedError
from etl.semgrep.rate_limiter import RateLimiter


async def refused(one: RateLimiter, retry_after: float | None) -> bool:
    """A request goes out, and the API refuses it. Whether to go on."""
    async with one.request(past_the_gate=True) as request:
        return await request.refused(retry_after)


async def accepted(one: RateLimiter) -> None:
    """A request goes out and is answered."""
    async with one.request(past_the_gate=True) as request:
        request.accepted()


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
    instants = await asked_at([one, other], 400)
    await refused(one, 0.1)

    pace_of_all = len(instants) / (max(instants) - min(instants))
    assert one.rate > 0.65 * pace_of_all, (one.rate, pace_of_all)


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
        first, longest, last = together
        await first.refused(0.2)
        refused_at = time.monotonic()  # not after it: a busy machine may stop us meanwhile
        await longest.refused(0.6)
        await last.refused(0.1)
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
