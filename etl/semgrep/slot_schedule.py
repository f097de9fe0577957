"""When the next request of this worker is due: slots in pieces of time that all workers of a token share.

The shared line of time is kept in the database. Each worker reserves the next piece of it, a window, asks at its rate
while that lasts, and reserves another one meanwhile. So together they never ask faster than one worker may, without a
round trip a request. Seconds come from the monotonic clock.
"""

import asyncio
import math
import time
from collections import deque
from typing import Protocol

from msgspec import Struct

WINDOW_SECONDS = 0.25
"""The longest piece of time reserved at once. A worker that dies wastes at most two; a refusal that another
worker met holds this one back after two at the latest."""
LATE_SECONDS = 0.04
"""How late a slot may be used. What is later is lost, or the requests of a stalled worker would come in a heap."""
ALONE_SECONDS = 0.01
"""A window that begins so soon after the one before shows that nobody else has taken one in between."""
SMALLEST_SHARE, ALONE_SHARE = 0.02, 0.9
"""Of more of the time than that a worker has all to itself; less is too little to go by."""


class Budget(Protocol):
    """A token's line of time, shared by all its workers."""

    async def reserve(self, seconds: float) -> float:
        """Take the next free piece, `seconds` long. Returns in how many seconds it begins, 0 for now."""

    async def hold(self, seconds: float) -> None:
        """Let nothing begin in the next `seconds`, for anyone."""


class Window(Struct, frozen=True):
    """A reserved piece of time. It `is_queued` where it begins after somebody's, not at once."""

    begins_at: float
    ends_at: float
    is_queued: bool


class SlotSchedule:
    """The slots of this worker. `rate` is always that of the moment, in requests a second."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._window = Window(0.0, 0.0, is_queued=False)
        self._ahead: asyncio.Task[Window] | None = None
        self._latest = deque[Window]()
        self._length_seconds = WINDOW_SECONDS / 4
        self._next_at = 0.0
        self._used = 0

    def slot_in(self, now: float, rate: float) -> float:
        """Seconds until the next slot of the window, not above 0 if it is due; infinite where the window is over."""
        at = max(self._next_at, now - LATE_SECONDS)
        ends_at = self._window.ends_at
        if at > ends_at - 0.5 / rate:
            return math.inf
        if self._ahead is None and ends_at - at < (ends_at - self._window.begins_at) / 2:
            self._ahead = asyncio.create_task(self._reserve(rate))
        return at - now

    def take(self, now: float, rate: float) -> None:
        """Use the slot that is due."""
        self._used += 1
        self._next_at = max(self._next_at, now - LATE_SECONDS) + 1 / rate

    async def next_window(self, rate: float) -> float:
        """Go on to the window that was reserved meanwhile, or wait for one. Returns in how many seconds it begins.

        Alone, a worker takes long windows. Among others it takes as much as it used of the last one, or what it
        leaves unused would be lost to them.
        """
        ahead, self._ahead = self._ahead or asyncio.create_task(self._reserve(rate)), None
        window, last = await ahead, self._window
        if self._used * 2 > (last.ends_at - last.begins_at) * rate:
            self._length_seconds = 2 * max(self._length_seconds, 1 / rate)
        elif last.ends_at:
            self._length_seconds = self._used * 1.5 / rate
        if not window.is_queued or window.begins_at < last.ends_at + ALONE_SECONDS:
            self._length_seconds = WINDOW_SECONDS
        self._window = window
        self._latest.append(window)
        while self._latest[0].ends_at < window.begins_at - 1:
            self._latest.popleft()
        self._next_at = max(self._next_at, window.begins_at)
        self._used = 0
        return window.begins_at - time.monotonic()

    async def _reserve(self, rate: float) -> Window:
        # Whole slots: the rest of a slot would be a whole request.
        seconds = max(round(min(self._length_seconds, WINDOW_SECONDS) * rate), 1) / rate
        begins_in_seconds = await self._budget.reserve(seconds)
        begins_at = time.monotonic() + begins_in_seconds
        return Window(begins_at, begins_at + seconds, is_queued=begins_in_seconds > 0)

    def share(self, now: float, since: float) -> float:
        """How much of the last second, but not of what is before `since`, was in this worker's windows."""
        first = max(now - 1, since)
        pieces = [(max(one.begins_at, first), min(one.ends_at, now)) for one in self._latest if one.ends_at > since]
        mine = sum(max(0.0, ends_at - begins_at) for begins_at, ends_at in pieces)
        share = mine / max(now - pieces[0][0], 0.001) if pieces else 1.0
        return share if SMALLEST_SHARE < share < ALONE_SHARE else 1.0

    def close(self) -> None:
        """Reserve nothing more."""
        if self._ahead is not None:
            self._ahead.cancel()
