"""How often something took how long."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from msgspec import Struct, field

BOUNDS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram(Struct):
    """Durations in seconds, counted by the first bound that is not below them."""

    sum: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, the last one infinite, and how many took no longer."""
        return zip((*BOUNDS_SECONDS, math.inf), accumulate(self.counts), strict=True)
