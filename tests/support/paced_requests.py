"""Requests that a limiter lets through."""

import asyncio
import itertools
import time
from collections.abc import Sequence

from memory_budget import MemoryBudget

from etl.semgrep.rate_limiter import RateLimiter

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
        await pace.acquire()
        instants.append(time.monotonic())
        pace.done()

    await asyncio.gather(*(ask(pace) for pace, _ in zip(itertools.cycle(paces), range(count), strict=False)))
    return instants


async def busy(one: RateLimiter) -> None:
    await one.acquire()
