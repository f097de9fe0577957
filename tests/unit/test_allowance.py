"""What is learnt of a limit from refusals. The time is an argument, so whole runs take no time at all."""

import itertools
import math
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.semgrep.adaptive_limit import SLOWEST_RATE, AdaptiveLimit

LATENCY_SECONDS = 0.05
WAIT_SECONDS = 1.0
"""How long the gate stays closed after a refusal."""

Server = Callable[[float, int], bool]
"""Whether a request that arrives now, with so many others in work, is answered."""


def windows(limit: int, seconds: float = 1.0) -> Server:
    """So many in each stretch of time."""
    seen = [-1, 0]

    def answers(now: float, _: int) -> bool:
        if int(now / seconds) != seen[0]:
            seen[:] = int(now / seconds), 0
        seen[1] += 1
        return seen[1] <= limit

    return answers


def sliding(limit: int) -> Server:
    """So many in any second."""
    seen = deque[float]()

    def answers(now: float, _: int) -> bool:
        while seen and seen[0] <= now - 1:
            seen.popleft()
        if len(seen) == limit:
            return False
        seen.append(now)
        return True

    return answers


def bucket(rate: float, size: float) -> Server:
    """One for each token, of which so many come a second and so many are saved up."""
    state = [size, 0.0]

    def answers(now: float, _: int) -> bool:
        state[:] = min(size, state[0] + (now - state[1]) * rate), now
        if state[0] < 1:
            return False
        state[0] -= 1
        return True

    return answers


def at_a_time(most: int) -> Server:
    """So many in work."""
    return lambda _, in_work: in_work < most


def every(nth: int) -> Server:
    """No limit, but every nth request meets an accident."""
    requests = itertools.count(1)
    return lambda *_: next(requests) % nth != 0


class Played:
    """A run against a server: one request after the other at the pace, with the gate between."""

    def __init__(self, server: Server, ceiling: float, count: int, *, is_limit: bool = True) -> None:
        self.allowance = AdaptiveLimit(ceiling)
        self.requests = self.refused = 0
        self.rates: list[float] = []
        self.seconds = 0.0
        self._opens_at = 0.0
        on_their_way = deque[tuple[float, Callable[[], bool]]]()
        answered, next_at = 0, 0.0
        while answered < count:
            due_at = max(next_at, self.seconds, self._opens_at) if self.allowance.has_room() else math.inf
            if on_their_way and on_their_way[0][0] <= due_at:
                self.seconds, end = on_their_way.popleft()
                answered += end()
                continue
            self.seconds = due_at
            on_their_way.append((due_at + LATENCY_SECONDS, self._send(server, len(on_their_way), is_limit)))
            next_at = due_at + 1 / self.allowance.rate

    def _send(self, server: Server, in_work: int, is_limit: bool) -> Callable[[], bool]:
        sent, answers = self.allowance.sent(self.seconds), server(self.seconds, in_work)
        self.requests += 1
        self.refused += not answers

        def end() -> bool:
            self.allowance.done()
            if answers:
                self.allowance.accepted(sent, self.seconds)
            elif self.allowance.refused(sent, self.seconds, is_limit=is_limit):
                self._opens_at = self.seconds + WAIT_SECONDS
            self.rates.append(self.allowance.rate)
            return answers

        return end


LIMITS: dict[str, Callable[[], Server]] = {
    "fixed window": lambda: windows(50),
    "sliding window": lambda: sliding(50),
    "bucket": lambda: bucket(50, 50),
    "small bucket": lambda: bucket(50, 10),
    "at a time": lambda: at_a_time(5),
    "a little at a time": lambda: at_a_time(3),
}
AT_LEAST = {"at a time": 5 / LATENCY_SECONDS, "a little at a time": 3 / LATENCY_SECONDS}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_found_and_kept(name: str) -> None:
    """Whatever its shape, with a ceiling four times too high: hardly anything is refused, and hardly any time lost."""
    limit = AT_LEAST.get(name, 50.0)
    count = round(limit * 60)
    played = Played(LIMITS[name](), 4 * limit, count)

    assert played.seconds <= 1.15 * count / limit
    assert played.refused <= 0.02 * played.requests


def test_without_refusals_the_ceiling_is_kept() -> None:
    """Nothing is learnt from an API that refuses nothing."""
    played = Played(lambda *_: True, 100, 1_000)

    assert set(played.rates) == {100}


def test_a_limit_that_has_gone_is_forgotten() -> None:
    """The pace rises to the ceiling within two minutes or so, and never above it."""
    limited = windows(50)
    played = Played(lambda now, in_work: now > 20 or limited(now, in_work), 200, 20_000)

    assert max(played.rates[:500]) == 200 > min(played.rates)
    assert played.rates[-1] == 200
    assert played.seconds < 20 + 150


@pytest.mark.parametrize("nth", [200, 60])
def test_an_accident_now_and_then_is_no_limit(nth: int) -> None:
    """A 503 among many answers slows for a moment; the pace is soon what it was."""
    played = Played(every(nth), 100, 3_000, is_limit=False)
    accidents = played.refused

    assert accidents >= 10
    assert max(played.rates[-nth:]) == 100
    assert played.seconds < 3_000 / 100 + accidents * (WAIT_SECONDS + 1.5)


def test_many_503s_are_a_limit() -> None:
    """An API that can't bear the pace says so in this way, too."""
    played = Played(sliding(20), 400, 400, is_limit=False)

    assert played.rates[-1] < 100


def test_a_quota_that_is_used_up_slows_once() -> None:
    """Refusals with nothing accepted in between say nothing of the pace: when there is quota again, it is used."""
    allowance = AdaptiveLimit(1_000)
    for second in range(20):
        allowance.refused(allowance.sent(second), second + 0.1, is_limit=True)
        allowance.done()

    assert allowance.rate >= 150


def test_what_went_out_before_a_refusal_says_nothing_new() -> None:
    """Ten refused together slow the pace once."""
    allowance = AdaptiveLimit(100)
    together = [allowance.sent(0.01 * number) for number in range(10)]
    news = [allowance.refused(sent, 0.2, is_limit=True) for sent in together]
    slowed = allowance.rate

    assert news == [True] + [False] * 9
    assert 15 < slowed < 100


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans(), st.booleans()), max_size=60),
    st.sampled_from([0.05, 1.0, 20.0, 1_000.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_pace_stays_between_its_bounds(answers: list[tuple[float, bool, bool]], ceiling: float) -> None:
    """Whatever comes: never above the ceiling, never so slow that nothing gets on, and always room for one."""
    allowance, now = AdaptiveLimit(ceiling), 0.0
    for seconds, is_accepted, is_limit in answers:
        sent = allowance.sent(now)
        now += seconds
        allowance.done()
        if is_accepted:
            allowance.accepted(sent, now)
        else:
            allowance.refused(sent, now, is_limit=is_limit)

        assert min(SLOWEST_RATE, ceiling) <= allowance.rate <= ceiling
        assert allowance.has_room()
