"""What is known of one token: its pace, what it may see, and how the API has answered it lately."""

import asyncio
import math
from dataclasses import dataclass, field

from etl.errors import FatalError
from etl.semgrep.rate_limiter import RateLimiter

LATEST_REQUESTS, MANY_FAILING = 30, 0.25
"""Where so many of the latest requests fail, the API is more likely to blame for a failure than the pair."""
MANY_FAILED = 25
"""So many scans that fail, while none has been answered yet, are not to blame: their endpoint doesn't work."""


@dataclass(slots=True)
class TokenState:
    """One token. All instants are on the monotonic clock."""

    token: str
    deployment_id: int | None
    """The deployment that was the first to be asked about with it; None where that isn't known yet."""
    pace: RateLimiter
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    visible: frozenset[int] = frozenset()
    asked_at: float = -math.inf
    proved_at: dict[int, float] = field(default_factory=dict)
    """When the latest request went out whose answer showed that the token is good for a deployment."""
    answered_at: float = -math.inf
    """When the request went out that was answered as it should be, and as the latest."""
    ended: FatalError | None = None
    """Why nothing is asked with this token any more."""

    failing: float = 0.0
    """Which share of the latest requests has failed."""
    worked: str = ""
    """The scan that was answered as the latest, if any was."""
    probed_at: float = -math.inf
    back_at: float = -math.inf

    failed: set[str] = field(default_factory=set)
    """Some of the scans that have failed while none was answered."""
    doubted_at: float = -math.inf
    trials: int = 0
    trying: asyncio.Lock = field(default_factory=asyncio.Lock)

    def count(self, *, failed: bool) -> None:
        """Count a request for the share of those that fail."""
        self.failing += (failed - self.failing) / LATEST_REQUESTS

    @property
    def is_doubted(self) -> bool:
        """Whether scans seem not to be shown at all, although the API lives."""
        return len(self.failed) >= MANY_FAILED

    def doubt(self, path: str, now: float) -> bool:
        """A scan has failed. Whether that raises the doubt."""
        if self.worked or self.is_doubted:
            return False
        self.failed.add(path)
        self.doubted_at, self.trials = now, 0
        return self.is_doubted
