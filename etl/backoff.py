"""When to try again: pure arithmetic in seconds. Somebody else waits."""

import random

LONGEST_SNOOZE = 14
"""The longest wait for a running scan, in units of the shortest: 5 minutes grow to 70."""
FIRST_NIGHT_SECONDS = 20 * 3_600.0


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """The wait after the n-th failure, counted from 1: doubles from `first` to `longest`; half of it is random."""
    wait = min(longest, first * 2.0 ** min(failures - 1, 60))
    return wait * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, guards nothing


def later_night_seconds(times: int) -> float:
    """When a dead letter whose reason may pass is tried again, after its n-th death, counted from 1: in one night, then
    in two, four and so on. Somewhat sooner, for no night's run begins later than the one before."""
    return FIRST_NIGHT_SECONDS * 2.0 ** min(times - 1, 60)


def look_again_seconds(age_seconds: float, shortest: float) -> float:
    """When to look again at a scan that has run for `age_seconds`: after half of that, within bounds."""
    return min(max(age_seconds / 2, shortest), shortest * LONGEST_SNOOZE)
