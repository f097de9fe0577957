"""One deployment's part of a run. What holds one deployment back, such as its token's pace, holds no other."""

import asyncio
import time
from collections import deque

from etl.model import Lease

AHEAD_SECONDS = 10
"""For how long a worker leases work ahead: enough to keep it busy, little enough to share."""


class Prefetcher:
    """The pairs of one deployment: `todo` ones aren't begun, `undone` ones have no outcome, `held` ones are leased.

    At most `prefetch_limit` are held at a time, which bounds the memory, and fetched by `concurrency` at a time.
    """

    def __init__(self, concurrency: int, prefetch_limit: int) -> None:
        # An asyncio.Queue takes a dozen calls a pair, in the way of its request.
        self.todo: deque[Lease] = deque()
        self._filled = asyncio.Event()
        self._is_closed = False
        self.undone = self.held = self.decided = 0
        self.low_water = concurrency
        self._least, self._most = 2 * concurrency, prefetch_limit
        self._measured_at, self._measured, self._per_second = time.monotonic(), 0, 0.0

    def put(self, lease: Lease) -> None:
        """One more to do."""
        self.todo.append(lease)
        self.undone += 1
        self.held += 1
        self._filled.set()

    def close(self) -> None:
        """Nothing more will be put here."""
        self._is_closed = True
        self._filled.set()

    async def has_more(self) -> bool:
        """Wait until there is something to do; False if nothing more will come."""
        while not self.todo and not self._is_closed:
            self._filled.clear()
            await self._filled.wait()
        return bool(self.todo)

    def wanted(self) -> int:
        """How many pairs to lease now: none while there is enough to do.

        Enough is what this worker gets done in `AHEAD_SECONDS`, so that others get theirs too.
        """
        now = time.monotonic()
        elapsed = now - self._measured_at
        if elapsed >= 1 or not self._per_second:
            self._per_second = (self.decided - self._measured) / max(elapsed, 0.01)
        if elapsed >= 1:
            self._measured_at, self._measured = now, self.decided
        wanted = max(self._least, min(self._most, round(self._per_second * AHEAD_SECONDS)))
        self.low_water = wanted // 2
        if self.undone > self.low_water:
            return 0
        return max(0, min(wanted - self.undone, self._most - self.held))
