"""How fast one token may ask.

A schedule gives out slots from a clock that all workers share (`slot_schedule`). A limit adapts to what the API refuses
(`adaptive_limit`). A gate is closed while the API refuses or is unavailable (`gate`). One door, `async with
limiter.request() as request`, leads through all of them, and inside it the caller says what came of the request.
aiolimiter spaces the requests inside a window.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from aiolimiter import AsyncLimiter

from etl.errors import ScanEtlError, StoppedError
from etl.semgrep.adaptive_limit import AdaptiveLimit, Sent
from etl.semgrep.gate import Gate
from etl.semgrep.slot_schedule import Budget, SlotSchedule

SLOW_SHARE = 0.1
"""A pace below this share of the ceiling is told of."""
LONG_WAIT_SECONDS = 1.0
"""A longer wait for a window, apart from what the pace itself takes, is told of."""


def make_limiter(rate: float) -> AsyncLimiter:
    """At most `rate` acquisitions a second, with a burst of a tenth of it.

    `AsyncLimiter(rate, 1)` lets twice the rate through in the first second; periods shorter than a tenth of a
    second fall short of the rate, for timers aren't that fine.
    """
    return AsyncLimiter(rate / 10, 0.1) if rate >= 10 else AsyncLimiter(1, 1 / rate)


class Request:
    """A request on its way. Say what comes of it; where no answer comes there is nothing to say."""

    def __init__(self, sent: Sent, schedule: SlotSchedule, limit: AdaptiveLimit, gate: Gate) -> None:
        self._sent = sent
        self._schedule = schedule
        self._limit = limit
        self._gate = gate

    @property
    def sent_at(self) -> float:
        """When it went out."""
        return self._sent.at

    def accepted(self) -> None:
        """The API has answered it, whatever it said of the scan."""
        now = time.monotonic()
        self._gate.accepted(now)
        self._limit.accepted(self._sent, now)

    async def refused(self, retry_after: float | None, *, is_limit: bool = True) -> bool:
        """The API has asked for less: close the gate for all workers, and go on slower after it.

        False once it has refused everything for longer than we bear.
        """
        now = time.monotonic()
        refused_seconds = self._gate.refused(now)
        share = self._schedule.share(now, since=self._gate.opens_at)
        is_new = self._limit.refused(self._sent, now, is_limit=is_limit, share=share)
        if is_new and retry_after is None:
            retry_after = self._gate.guess_seconds(refused_seconds, self._limit.refusals_in_a_row)
        if retry_after is not None:
            await self._gate.hold(retry_after)
        return refused_seconds < self._gate.longest_seconds


class RateLimiter:
    """The pace of one token in this process. Every request goes through `request`.

    `on_gate` is told the seconds for which the gate closes, and 0 when it opens; `on_wait` those for which others have
    the token's time, and `on_pace` when the pace falls below a tenth of the ceiling, and when it is back.
    """

    def __init__(
        self,
        ceiling: float,
        max_wait_seconds: float,
        budget: Budget,
        on_gate: Callable[[float], None],
        on_wait: Callable[[float], None] = lambda _: None,
        on_pace: Callable[[], None] = lambda: None,
    ) -> None:
        self._ceiling = ceiling
        self._on_pace = on_pace
        self._was_slow = False
        self._schedule = SlotSchedule(budget)
        self._limit = AdaptiveLimit(ceiling)
        self._gate = Gate(max_wait_seconds, budget, on_gate)
        self._spacing = make_limiter(ceiling)
        self._line = asyncio.Lock()
        self._changed = asyncio.Event()  # the gate or the room, for the first in the line
        self._closed = asyncio.Event()
        self._reason: ScanEtlError | None = None
        self._on_wait = on_wait
        self._is_long_wait = False

    @property
    def rate(self) -> float:
        """Requests a second at present."""
        return self._limit.rate

    @property
    def is_slow(self) -> bool:
        """Whether the API has refused so much that the pace is below a tenth of the ceiling."""
        return self.rate < SLOW_SHARE * self._ceiling

    @property
    def is_open(self) -> bool:
        """Whether requests may go out: the API neither refuses nor is unavailable."""
        return time.monotonic() >= self._gate.opens_at

    @property
    def is_refused(self) -> bool:
        """Whether nothing goes out, for the API has said so."""
        return self._gate.is_held

    @asynccontextmanager
    async def request(self, *, past_the_gate: bool = False) -> AsyncIterator[Request]:
        """The turn of one request: waits until it may go out, and ends with the block. A probe goes `past_the_gate`,
        without waiting: others wait the longer for it.

        Raises what `close` was given, or StoppedError, once the limiter is closed.
        """
        sent = self._send(time.monotonic()) if past_the_gate else await self._turn()
        try:
            if not past_the_gate:
                await self._spacing.acquire()
                self._raise_if_closed()
            yield Request(sent, self._schedule, self._limit, self._gate)
        finally:
            self._limit.done()
            self._changed.set()
            if self.is_slow != self._was_slow:
                self._was_slow = self.is_slow
                self._on_pace()

    async def _turn(self) -> Sent:
        """Wait, one behind the other, until nothing is in the way of a request."""
        # Who can go at once doesn't line up: at full speed that saves 7 % of the client's instructions (cachegrind).
        if self._obstacle(now := time.monotonic()):
            async with self._line:
                while wait := self._obstacle(now := time.monotonic()):
                    await wait()
        return self._send(now)

    def _send(self, now: float) -> Sent:
        self._schedule.take(now, self.rate)
        return self._limit.sent(now)

    def _obstacle(self, now: float) -> Callable[[], Awaitable[None]] | None:
        """How to wait for what is in the way: a closed gate, no room for one more, a window to come, a slot to come."""
        self._raise_if_closed()
        if not (self._gate.lets_through(now) and self._limit.has_room()):
            return partial(self._change, self._gate.opens_at - now)
        seconds = self._schedule.slot_in(now, self.rate)
        if seconds == math.inf:
            return self._next_window
        return partial(self.sleep, seconds) if seconds > 0 else None

    async def _change(self, seconds: float) -> None:
        """Wait until the gate or the room may have changed: for so long at most, if that is a time."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds if 0 < seconds < math.inf else None):
                await self._changed.wait()

    async def _next_window(self) -> None:
        """Go on to the next window. A long wait for it is told once, until there is a short one."""
        seconds = await self._schedule.next_window(self.rate)
        is_long = seconds > LONG_WAIT_SECONDS + 2 / self.rate
        if is_long and not self._is_long_wait and not self._gate.is_held:
            self._on_wait(seconds)
        self._is_long_wait = is_long

    async def sleep(self, seconds: float) -> None:
        """Sleep. Raises as `request` does as soon as the limiter is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        self._raise_if_closed()

    def _raise_if_closed(self) -> None:
        if self._closed.is_set():
            raise self._reason or StoppedError("no more requests")

    async def hold(self, seconds: float) -> None:
        """Close the gate for `seconds`, for all workers, but for no longer than we bear. The longest wait counts."""
        await self._gate.hold(seconds)

    def pause(self) -> None:
        """Let nobody through until `resume`."""
        self._gate.keep_closed()

    def resume(self) -> None:
        """End a pause."""
        self._gate.reopen()
        self._changed.set()

    def close(self, reason: ScanEtlError | None = None) -> None:
        """No more requests: whoever waits for its turn, or comes later, gets the reason, or else StoppedError."""
        self._reason = reason
        self._closed.set()
        self._changed.set()
        self._schedule.close()
