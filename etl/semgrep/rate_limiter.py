"""How fast one token may ask: reserved time slots, a gate that closes when the API refuses, and a pace that adapts.

All workers of a token share one line of time, kept in the database: each reserves the next piece of it, asks at
its pace while that lasts, and reserves another one meanwhile. So together they never ask faster than one worker may,
without a round trip a request. Seconds come from the monotonic clock.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from aiolimiter import AsyncLimiter

from etl.errors import StoppedError
from etl.semgrep.adaptive_limit import AdaptiveLimit, Sent
from etl.transform.readers import header_date

WINDOW_SECONDS = 0.25
"""The longest piece of time reserved at once. A worker that dies wastes at most two; a refusal that another
worker met holds this one back after two at the latest."""
LATE_SECONDS = 0.04
"""How late a slot may be used. What is later is lost, or the requests of a stalled worker would come in a heap."""
LONG_WAIT_SECONDS = 1.0
"""A longer wait for a window, apart from what the pace itself takes, is told of."""
ALONE_SECONDS = 0.01
"""A window that begins so soon after the one before shows that nobody else has taken one in between."""
SMALLEST_SHARE, ALONE_SHARE = 0.02, 0.9
"""Of more of the time than that a worker has all to itself; less is too little to go by."""
FIRST_GUESS_SECONDS, LONGEST_GUESS_SECONDS = 0.5, 60.0
"""How long the gate closes when the API refuses without saying for how long: half as long as it has refused."""
SAME_SECONDS = 0.1
"""By so little, a wait isn't made longer for the other workers too."""


class Budget(Protocol):
    """A token's line of time, shared by all its workers."""

    async def reserve(self, seconds: float) -> float:
        """Take the next free piece, `seconds` long. Returns in how many seconds it begins, 0 for now."""

    async def hold(self, seconds: float) -> None:
        """Let nothing begin in the next `seconds`, for anyone."""


def make_limiter(rate: float) -> AsyncLimiter:
    """At most `rate` acquisitions a second, with a burst of a tenth of it.

    `AsyncLimiter(rate, 1)` lets twice the rate through in the first second; periods shorter than a tenth of a
    second fall short of the rate, for timers aren't that fine.
    """
    return AsyncLimiter(rate / 10, 0.1) if rate >= 10 else AsyncLimiter(1, 1 / rate)


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header: a number or an HTTP date. None if it says nothing sensible."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        at = header_date(header)
        if at is None:
            return None
        seconds = (at - now).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else None


class RateLimiter:
    """The pace of one token in this process. Every request passes `acquire`, and its answer is reported.

    `on_gate` is told the seconds for which the gate closes, and 0 when it opens; `on_wait` those for which others have
    the token's time.
    """

    def __init__(
        self,
        ceiling: float,
        max_wait_seconds: float,
        budget: Budget,
        on_gate: Callable[[float], None],
        on_wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._allowance = AdaptiveLimit(ceiling)
        self._has_room = self._allowance.has_room
        self._max_wait_seconds = max_wait_seconds
        self._budget = budget
        self._on_gate, self._on_wait = on_gate, on_wait
        self._is_long_wait = False
        self._limiter = make_limiter(ceiling)
        self._turn = asyncio.Lock()
        self._closed = asyncio.Event()
        self._running = asyncio.Event()
        self._running.set()
        self._stands = False  # paused or closed: one look for every request
        self._room: asyncio.Event | None = None  # of who waits until fewer are on their way
        # The window in use, and the one reserved meanwhile.
        self._next_at = self._begins_at = self._ends_at = 0.0
        self._used = 0
        self._length_seconds = WINDOW_SECONDS / 4
        self._ahead: asyncio.Task[tuple[float, float, bool]] | None = None
        self._latest = deque[tuple[float, float]]()
        # The gate.
        self._opens_at = self._held_until = 0.0
        self._gate_closed = False
        self._refused_since: float | None = None
        self._refused_seconds = 0.0

    @property
    def rate(self) -> float:
        """Requests a second at present."""
        return self._allowance.rate

    async def acquire(self) -> Sent:
        """Wait for the turn of one request. StoppedError once the pace is closed.

        Say afterwards what came of it, and in any case that it is `done`.
        """
        # Without the lock first: waiting in line for it costs more than all the rest.
        now = time.monotonic()
        if self._slot_in(now) > 0:
            async with self._turn:
                while (seconds := self._slot_in(now := time.monotonic())) > 0:
                    await self._wait(seconds)
        self._used += 1
        self._next_at = max(self._next_at, now - LATE_SECONDS) + 1 / self._allowance.rate
        sent = self._allowance.sent(now)
        try:
            await self._limiter.acquire()
            if self._stands and self._closed.is_set():
                raise StoppedError("no more requests")
        except BaseException:
            self.done()
            raise
        return sent

    async def _wait(self, seconds: float) -> None:
        if not self._closed.is_set() and not self._running.is_set():
            await self._running.wait()
        elif not self._closed.is_set() and not self._has_room():
            self._room = asyncio.Event()
            await self._room.wait()
        else:
            await (self._next_window() if seconds == math.inf else self.sleep(seconds))

    def sent(self) -> Sent:
        """A request goes out without waiting for its turn."""
        return self._allowance.sent(time.monotonic())

    def done(self) -> None:
        """A request is over, however it ended."""
        self._allowance.done()
        if self._room is not None:
            self._room.set()
            self._room = None

    def _slot_in(self, now: float) -> float:
        """Seconds until the next slot of this window; infinite where the window is over."""
        if now < self._opens_at or self._stands or not self._has_room():
            return max(self._opens_at - now, 0.001)
        if self._gate_closed:
            self._gate_closed = False
            self._on_gate(0.0)
        at = max(self._next_at, now - LATE_SECONDS)
        if at > self._ends_at - 0.5 / self._allowance.rate:
            return math.inf
        if self._ahead is None and self._ends_at - at < (self._ends_at - self._begins_at) / 2:
            self._ahead = asyncio.create_task(self._reserve())
        return at - now

    async def _next_window(self) -> None:
        """Take the window that was reserved meanwhile, or wait for one.

        Alone, a worker takes long windows. Among others it takes as much as it used of the last one, or what it
        leaves unused would be lost to them.
        """
        ahead, self._ahead = self._ahead or asyncio.create_task(self._reserve()), None
        begins_at, ends_at, waited = await ahead
        self._emit_wait(begins_at - time.monotonic())
        if self._used * 2 > (self._ends_at - self._begins_at) * self.rate:
            self._length_seconds = 2 * max(self._length_seconds, 1 / self.rate)
        elif self._ends_at:
            self._length_seconds = self._used * 1.5 / self.rate
        if not waited or begins_at < self._ends_at + ALONE_SECONDS:
            self._length_seconds = WINDOW_SECONDS
        self._begins_at, self._ends_at = begins_at, ends_at
        self._latest.append((begins_at, ends_at))
        while self._latest[0][1] < begins_at - 1:
            self._latest.popleft()
        self._next_at = max(self._next_at, begins_at)
        self._used = 0

    def _emit_wait(self, seconds: float) -> None:
        """Tell of a long wait, once until there is a short one."""
        is_long = seconds > LONG_WAIT_SECONDS + 2 / self.rate
        if is_long and not self._is_long_wait and not self._gate_closed:
            self._on_wait(seconds)
        self._is_long_wait = is_long

    async def _reserve(self) -> tuple[float, float, bool]:
        """Begin and end of a new window, and whether it isn't the present moment that it begins at."""
        # Whole slots: the rest of a slot would be a whole request.
        seconds = max(round(min(self._length_seconds, WINDOW_SECONDS) * self.rate), 1) / self.rate
        begins_in_seconds = await self._budget.reserve(seconds)
        begins_at = time.monotonic() + begins_in_seconds
        return begins_at, begins_at + seconds, begins_in_seconds > 0

    async def sleep(self, seconds: float) -> None:
        """Sleep; StoppedError as soon as the pace is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise StoppedError("no more requests")

    def pause(self) -> None:
        """Let nobody through until `resume`."""
        self._running.clear()
        self._stands = True

    def resume(self) -> None:
        """End a pause."""
        self._running.set()
        self._stands = self._closed.is_set()

    def accepted(self, sent: Sent) -> None:
        """The API answered a request, whatever it said of the scan."""
        now = time.monotonic()
        if self._refused_since is not None:
            self._refused_seconds, self._refused_since = now - self._refused_since, None
        self._allowance.accepted(sent, now)

    def unavailable(self, sent: Sent) -> None:
        """The API can't answer, and doesn't say for how long: slower, if that happens often."""
        self._allowance.refused(sent, time.monotonic(), is_limit=False)

    async def refused(self, sent: Sent, retry_after: float | None, *, is_limit: bool = True) -> bool:
        """The API asked for less: close the gate for all workers, and go on slower after it.

        False once it has refused everything for longer than we bear.
        """
        now = time.monotonic()
        since = self._refused_since = self._refused_since or now
        is_new = self._allowance.refused(sent, now, is_limit=is_limit, share=self._share(now))
        if is_new and retry_after is None:
            retry_after = self._guess(now - since)
        if retry_after is not None:
            await self.hold(retry_after)
        # Not the attribute: an answer to another request may have come while this one waited.
        return now - since < self._max_wait_seconds

    def _share(self, now: float) -> float:
        """How much of the last second, without what is before a gate, was in this worker's windows."""
        windows = [(max(begins_at, now - 1), min(ends_at, now)) for begins_at, ends_at in self._latest]
        mine = sum(max(0.0, ends_at - begins_at) for begins_at, ends_at in windows)
        share = mine / max(now - windows[0][0], 0.001) if windows else 1.0
        return share if SMALLEST_SHARE < share < ALONE_SHARE else 1.0

    def _guess(self, refused_seconds: float) -> float:
        """For how long to wait where the API doesn't say. A quota is used up for about as long as the last time."""
        if self._allowance.refusals_in_a_row == 2:
            refused_seconds = max(refused_seconds, self._refused_seconds)
        return min(max(FIRST_GUESS_SECONDS, refused_seconds / 2), LONGEST_GUESS_SECONDS)

    async def hold(self, seconds: float) -> None:
        """Close the gate for `seconds`, but for no longer than we bear. The longest wait counts."""
        seconds = min(seconds, self._max_wait_seconds)
        self._opens_at = max(self._opens_at, time.monotonic() + seconds)
        self._latest.clear()
        if not self._gate_closed:
            self._gate_closed = True
            self._on_gate(seconds)
        if self._opens_at > self._held_until + SAME_SECONDS:
            self._held_until = self._opens_at
            await self._budget.hold(seconds)

    def close(self) -> None:
        """No more requests: whoever waits for its turn gets StoppedError."""
        self._closed.set()
        self._running.set()
        self._stands = True
        if self._room is not None:
            self._room.set()
        if self._ahead is not None:
            self._ahead.cancel()
