"""When to try again: pure arithmetic in seconds. Somebody else waits."""

import random

LONGEST_SNOOZE = 14
"""The longest wait for a running scan, in units of the shortest: 5 minutes grow to 70."""


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """The wait after the n-th failure, counted from 1: doubles from `first` to `longest`; half of it is random."""
    wait = min(longest, first * 2.0 ** min(failures - 1, 60))
    return wait * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, guards nothing


def look_again_seconds(age_seconds: float, shortest: float) -> float:
    """When to look again at a scan that has run for `age_seconds`: after half of that, within bounds."""
    return min(max(age_seconds / 2, shortest), shortest * LONGEST_SNOOZE)
