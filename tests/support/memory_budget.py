"""A token's line of time in memory, for tests of what asks it: as honest as the one in the database."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class MemoryBudget:
    """The next free instant, on the monotonic clock. `reserved` and `held` keep what was asked of it, in seconds."""

    next_free_at: float = 0.0
    reserved: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)

    async def reserve(self, seconds: float) -> float:
        now = time.monotonic()
        begins_at = max(self.next_free_at, now)
        self.next_free_at = begins_at + seconds
        self.reserved.append(seconds)
        return begins_at - now

    async def hold(self, seconds: float) -> None:
        self.next_free_at = max(self.next_free_at, time.monotonic() + seconds)
        self.held.append(seconds)
