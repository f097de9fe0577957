"""How fast one token may ask: a ceiling, a gate that closes when the API refuses, and the arithmetic of waits."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aiolimiter import AsyncLimiter

from etl.errors import StoppedError

FIRST_REFUSAL_SECONDS = 1.0
"""How long the gate closes when the API refuses and doesn't say for how long. Doubles with each refusal in a row."""


def make_limiter(rate: float) -> AsyncLimiter:
    """At most `rate` acquisitions a second, with a burst of a tenth of it.

    `AsyncLimiter(rate, 1)` lets twice the rate through in the first second; windows shorter than a
    tenth of a second fall short of the rate, for timers aren't that fine.
    """
    return AsyncLimiter(rate / 10, 0.1) if rate >= 10 else AsyncLimiter(1, 1 / rate)


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header: a number or an HTTP date. None if it says nothing sensible."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            at = parsedate_to_datetime(header)
        except (ValueError, TypeError):
            return None
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        seconds = (at - now).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """The wait after the n-th failure, counted from 1: doubles from `first` to `longest`; half of it is random."""
    wait = min(longest, first * 2.0 ** min(failures - 1, 60))
    return wait * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, guards nothing


class Pace:
    """The pace of one token. Every request passes `acquire`; answers are reported back.

    While the API refuses, the gate is closed for all who ask. Seconds come from the monotonic clock.
    """

    def __init__(
        self,
        rate: float,
        max_wait_seconds: float,
        *,
        on_gate: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.rate = rate
        self._limiter = make_limiter(rate)
        self._max_wait_seconds = max_wait_seconds
        self._on_gate = on_gate
        self._opens_at = 0.0
        self._refused_since: float | None = None
        self._refusals_in_a_row = 0
        self._closed = asyncio.Event()

    async def acquire(self) -> None:
        """Wait for the turn of one request. StoppedError once the pace is closed."""
        while (wait := self._opens_at - time.monotonic()) > 0 or self._closed.is_set():
            if self._closed.is_set():
                raise StoppedError("no more requests")
            try:
                async with asyncio.timeout(wait):
                    await self._closed.wait()
            except TimeoutError:
                pass
        await self._limiter.acquire()

    def accepted(self) -> None:
        """The API answered a request, whatever it said of the scan."""
        if self._refused_since is not None:
            self._refused_since = None
            self._refusals_in_a_row = 0

    def refused(self, retry_after: float | None) -> bool:
        """The API asked for less. Close the gate; False once it has refused for longer than we bear."""
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        if now >= self._opens_at:
            self._refusals_in_a_row += 1
            wait = retry_after or backoff_seconds(self._refusals_in_a_row, FIRST_REFUSAL_SECONDS, 60)
            wait = min(wait, self._max_wait_seconds)
            self._opens_at = now + wait
            self._on_gate(wait)
        return now - self._refused_since < self._max_wait_seconds

    def close(self) -> None:
        """No more requests: whoever waits for its turn gets StoppedError."""
        self._closed.set()
