"""The deployments of which nothing is asked, and when a worker may ask again. Nothing here reads a clock."""

from collections.abc import Collection

from msgspec import Struct

from etl.backoff import backoff_seconds
from etl.errors import TOKEN_EXIT, FatalError

LONGEST_HALT_SECONDS = 1_800.0
"""The longest time after which a worker asks again for a deployment that was refused."""


class _Halt(Struct, frozen=True):
    """A deployment that was refused for the n-th time, and when it may be asked again, on the monotonic clock."""

    times: int
    until: float


class Halts:
    """What stopped each deployment is in `errors`, which others fill, too: what they stop stays so."""

    def __init__(self, errors: dict[int, FatalError], first_seconds: float) -> None:
        self.errors = errors
        self._first_seconds = first_seconds
        self._halts: dict[int, _Halt] = {}
        self._buried = set[int]()

    def add(self, deployment_id: int, error: FatalError, now: float) -> float | None:
        """Halt a deployment. In how many seconds it may be asked again, longer each time; None if it was halted."""
        if deployment_id in self.errors:
            return None
        self.errors[deployment_id] = error
        before = self._halts.get(deployment_id)
        times = before.times + 1 if before else 1
        seconds = backoff_seconds(times, self._first_seconds, LONGEST_HALT_SECONDS)
        self._halts[deployment_id] = _Halt(times, now + seconds)
        return seconds

    def to_bury(self, busy: Collection[int]) -> list[int]:
        """The deployments that no token may ask for, each once, and not while it is `busy`: what an outage keeps back
        can be fetched after it."""
        refused = {number for number, error in self.errors.items() if error.stop_code == TOKEN_EXIT} - set(busy)
        found = sorted(refused - self._buried)
        self._buried |= refused
        return found

    def release(self, now: float) -> list[int]:
        """Halt those no longer that may be asked again."""
        due = [number for number in self.errors if number in self._halts and self._halts[number].until <= now]
        for number in due:
            del self.errors[number]
            self._buried.discard(number)
        return due
