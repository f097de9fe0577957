"""What the API allows one token: how many requests a second, and how many at a time. Learnt from what it refuses.

No limit is published, and servers limit in several ways: by windows of time, fixed or sliding, by buckets that refill,
by a number at a time. These two numbers cover them all. Nothing here reads a clock: `now` is in monotonic seconds.
"""

import math
from collections import deque

from msgspec import Struct
from msgspec.structs import replace

BELOW_LIMIT, BELOW_FOUND = 0.96, 0.92
"""After a refusal the pace is this share of what the API accepted in the second before; less where a search for
the limit has just run past it, for a bucket has let some of that through."""
CLIMB_A_SECOND, CALM_SECONDS = 0.002, 10.0
"""By which share of that the pace then rises a second; the climb doubles with every calm stretch. Slow, because a
refusal costs a second or more of waiting: one in 15 s is cheap, one in 5 s isn't."""
SEARCH_A_SECOND, SEARCH_AFTER_SECONDS = 0.15, 1.0
"""The climb after a refusal that came too early to show what is allowed."""
RECOVER_A_SECOND = 0.5
"""The climb back to a pace that has worked."""
LARGEST_FALL, LARGEST_NEXT_FALL = 0.2, 0.7
"""To what share a refusal lets the pace fall at most. One that comes soon after another shows too little for more."""
SLOWEST_RATE = 0.1
LATEST_ANSWERS, MANY_UNAVAILABLE = 50, 0.08
"""A 503 with a time to wait is an accident, from which the pace recovers at once, unless they are many of the latest
answers."""
LEAST_REFUSED_AT_A_TIME = 3
"""Of a refusal while fewer are on their way, their number is hardly the reason."""
FIRST_TRIAL_SECONDS, LONGEST_TRIAL_SECONDS = 8.0, 64.0
"""After how long more at a time are tried. Each refused trial makes it four times as long."""


class Sent(Struct, frozen=True):
    """A request as it went out: when, after how many in the second before, and how many were on their way with it."""

    at: float
    lately: int
    at_a_time: int


class AdaptiveLimit:
    """The pace, and the number at a time, that seem to be allowed. Each request is `sent`, answered, and `done`."""

    def __init__(self, ceiling: float) -> None:
        self._ceiling = ceiling
        self.rate = ceiling
        self._lately = deque[float]()
        self._on_their_way = 0
        # The pace. `goal` is what has worked; `is_sure` says whether the limit has shown itself.
        self._goal = self._known_limit = ceiling
        self._is_sure = self._is_first = True
        self._unavailable = 0.0
        self._refused_at = -math.inf
        self._begun_at: float | None = None
        self._raised_at = 0.0
        # A quota that is used up.
        self.refusals_in_a_row = 0
        self._sent_since = 0
        # The number at a time.
        self._most_accepted: float = 1
        self._at_a_time = math.inf
        self._more = 1
        self._tried_at, self._trial_seconds = 0.0, FIRST_TRIAL_SECONDS

    def has_room(self) -> bool:
        """Whether one more may go out. While all are refused, one at a time asks whether that is over."""
        if self.refusals_in_a_row > 1:
            return self._sent_since == 0
        return self._on_their_way < self._at_a_time

    def sent(self, now: float) -> Sent:
        """One request goes out."""
        lately = self._lately
        while lately and lately[0] <= now - 1:
            lately.popleft()
        if self._begun_at is None:
            self._begun_at = now
        self._on_their_way += 1
        self._sent_since += 1
        one = Sent(now, len(lately), self._on_their_way)
        lately.append(now)
        return one

    def done(self) -> None:
        """One request is over, however it ended."""
        self._on_their_way -= 1
        if self.refusals_in_a_row > 1:
            self._sent_since = 0

    def accepted(self, one: Sent, now: float) -> None:
        """One request was answered, whatever the answer said of the scan."""
        self._unavailable -= self._unavailable / LATEST_ANSWERS
        self._most_accepted = max(self._most_accepted, one.at_a_time)
        if one.at > self._refused_at:
            self.refusals_in_a_row = 0
        if self.rate < self._ceiling and self._begun_at is not None:
            self._climb(now, now - self._begun_at)
        if one.at_a_time >= self._at_a_time and now - self._tried_at >= self._trial_seconds:
            self._at_a_time += self._more
            self._more *= 2
            self._tried_at = now

    def refused(self, one: Sent, now: float, *, is_limit: bool, share: float = 1.0) -> bool:
        """One request was refused: because of a limit, or perhaps for another reason (503 with a time to wait).

        `share` is how much of the time before was this process's to ask in: the rest was other workers'.
        False if the request had gone out before the last refusal came: then it says nothing new.
        """
        if not is_limit:
            self._unavailable += (1 - self._unavailable) / LATEST_ANSWERS
        if one.at <= self._refused_at:
            return False
        self.refusals_in_a_row += 1
        # With nothing accepted since the one before, it says nothing of the pace: a quota is used up.
        if self.refusals_in_a_row == 1 and not self._was_one_too_many(one, now):
            if is_limit or self._unavailable > MANY_UNAVAILABLE:
                self._learn_rate(replace(one, lately=round(one.lately / share)), is_limit=is_limit)
            else:
                self.rate = self._no_slower(self.rate * LARGEST_NEXT_FALL)
        self._refused_at = self._raised_at = now
        self._begun_at = None
        self._sent_since = 0
        return True

    def _was_one_too_many(self, one: Sent, now: float) -> bool:
        """Whether more than the known number at a time were tried, so that the pace isn't to blame.

        A server that limits this number refuses when more are on their way than ever were before. So may another
        one, by chance; then the number is larger than its pace needs.
        """
        if one.at_a_time < LEAST_REFUSED_AT_A_TIME or self._most_accepted >= one.at_a_time < self._at_a_time - 1:
            self._most_accepted = max(self._most_accepted - 1, 1)
            return False
        was_known = self._at_a_time < math.inf
        if was_known:
            self._trial_seconds = min(self._trial_seconds * 4, LONGEST_TRIAL_SECONDS)
        self._at_a_time = self._most_accepted = (self._at_a_time if was_known else one.at_a_time) - 1
        self._tried_at, self._more = now, 1
        return was_known

    def _learn_rate(self, one: Sent, *, is_limit: bool) -> None:
        """Fall to what was accepted lately. Soon after a start that may be far from the limit: search on from there."""
        is_long = self._begun_at is not None and one.at - self._begun_at >= 1
        least = self.rate * (LARGEST_FALL if is_long or self._is_first else LARGEST_NEXT_FALL)
        below = BELOW_LIMIT if self._is_sure else BELOW_FOUND
        self._is_sure = is_limit and (is_long or one.lately > least)
        self._is_first = False
        self._known_limit = min(self.rate, max(one.lately, least))
        self.rate = self._goal = self._no_slower(self._known_limit * below)

    def _no_slower(self, rate: float) -> float:
        return max(rate, min(SLOWEST_RATE, self._ceiling))

    def _climb(self, now: float, calm_seconds: float) -> None:
        """Back to a pace that has worked fast, and above it slowly."""
        elapsed = min(now - self._raised_at, 1.0)
        self._raised_at = now
        if self.rate < self._goal:
            self.rate = min(self._goal, self.rate + self._goal * RECOVER_A_SECOND * elapsed)
            return
        if self._is_sure:
            share = CLIMB_A_SECOND * 2 ** min(calm_seconds // CALM_SECONDS, 20)
        else:
            share = SEARCH_A_SECOND if calm_seconds > SEARCH_AFTER_SECONDS else 0.0
        self.rate = self._goal = min(self._ceiling, self.rate + self._known_limit * share * elapsed)
