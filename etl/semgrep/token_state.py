"""What is known of one token: its pace, what it may see, and whether the API is believed to work for it."""

import asyncio
import math
from dataclasses import dataclass, field

from etl.errors import FatalError
from etl.semgrep.circuit_breaker import CircuitBreaker
from etl.semgrep.rate_limiter import RateLimiter
from etl.semgrep.requests import ApiResponse, Calls


@dataclass(slots=True)
class TokenState:
    """One token. All instants are on the monotonic clock."""

    token: str
    limiter: RateLimiter
    calls: Calls
    breaker: CircuitBreaker
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one that asks what the token may see."""
    deployments: ApiResponse | None = None
    """The latest answer to what the token may see."""
    visible: frozenset[int] = frozenset()
    asked_at: float = -math.inf
    proved_at: dict[int, float] = field(default_factory=dict)
    """When the latest request went out whose answer showed that the token is good for a deployment."""
    ended: FatalError | None = None
    """Why nothing is asked with this token any more."""

    def slow_because(self) -> str | None:
        """Why less than a tenth of the rate is asked; None where that isn't so."""
        if (reason := self.breaker.away_because) is not None:
            return f"the API is unavailable: {reason}"
        if self.limiter.is_refused:
            return "the API has refused, and said for how long"
        if self.limiter.is_slow:
            return f"the API has refused more than {self.limiter.rate:.3g} requests a second"
        return None

    def end(self, reason: FatalError) -> None:
        """Ask nothing more: whoever waits for its turn isn't to ask, too."""
        self.ended = reason
        self.limiter.close(reason)
