"""The gate of a token: closed while the API refuses or is unavailable. Seconds are those of the monotonic clock."""

import math
import time
from collections.abc import Callable

from etl.semgrep.slot_schedule import Budget

FIRST_GUESS_SECONDS, LONGEST_GUESS_SECONDS = 0.5, 60.0
"""How long the gate closes when the API refuses without saying for how long: half as long as it has refused."""
SAME_SECONDS = 0.1
"""By so little, a wait isn't made longer for the other workers too."""


class Gate:
    """Its one state is the instant at which it opens: past, to come, or infinite while somebody keeps it closed.

    `longest_seconds` is the longest wait that we bear. `on_gate` is told the seconds for which the gate closes, and 0
    when it opens.
    """

    def __init__(self, longest_seconds: float, budget: Budget, on_gate: Callable[[float], None]) -> None:
        self.longest_seconds = longest_seconds
        self._budget = budget
        self._on_gate = on_gate
        self.opens_at = 0.0
        # What the API asked for: until when all workers wait. None once somebody has passed after it.
        self._held_until: float | None = None
        # For how long it has refused, and did so the last time.
        self._refused_since: float | None = None
        self._refused_seconds = 0.0

    @property
    def is_held(self) -> bool:
        """Whether it has closed for a refusal, and nobody has passed since."""
        return self._held_until is not None

    def lets_through(self, now: float) -> bool:
        """Whether it is open. The first look that finds it so is told of."""
        if now < self.opens_at:
            return False
        if self._held_until is not None:
            self._held_until = None
            self._on_gate(0.0)
        return True

    async def hold(self, seconds: float) -> None:
        """Close for `seconds`, for all workers, but for no longer than we bear. The longest wait counts."""
        seconds = min(seconds, self.longest_seconds)
        until = time.monotonic() + seconds
        self.opens_at = max(self.opens_at, until)
        known = self._held_until
        if known is None:
            self._on_gate(seconds)
        if known is None or until > known + SAME_SECONDS:
            self._held_until = until
            await self._budget.hold(seconds)

    def keep_closed(self) -> None:
        """Let nobody through until `reopen`."""
        self.opens_at = math.inf

    def reopen(self) -> None:
        """Open, unless a refusal holds it."""
        self.opens_at = self._held_until or 0.0

    def accepted(self, now: float) -> None:
        """The API has let a request through."""
        if self._refused_since is not None:
            self._refused_seconds, self._refused_since = now - self._refused_since, None

    def refused(self, now: float) -> float:
        """The API has refused a request. For how many seconds it has refused all by now."""
        self._refused_since = self._refused_since or now
        return now - self._refused_since

    def guess_seconds(self, refused_seconds: float, refusals_in_a_row: int) -> float:
        """For how long to wait where the API doesn't say. A quota is used up for about as long as the last time."""
        if refusals_in_a_row == 2:
            refused_seconds = max(refused_seconds, self._refused_seconds)
        return min(max(FIRST_GUESS_SECONDS, refused_seconds / 2), LONGEST_GUESS_SECONDS)
