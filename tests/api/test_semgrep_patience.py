"""How the client bears an API that refuses, fails or goes away. Waits are real; only too early is ever wrong."""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from refusing_api import EARLY_SECONDS, ONE, errors_of, tried
from scan_rows import document
from semgrep_client import asking_at
from small_api import Answer, Call, SmallApi, found, json_answer, until

from etl.errors import FatalError, TransientError
from etl.model import Pair
from etl.telemetry.events import GateClosed, GateOpened, PaceFallen

Headers = Callable[[datetime], Mapping[str, str]]


def refusing(headers: Headers, times: int = 1, status: int = 429) -> Answer:
    """The first `times` requests of all are refused, the others answered."""
    refused = 0

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal refused
        refused += 1
        if refused <= times:
            return json_answer({"message": "slow down"}, status, headers(datetime.now(UTC)))
        return await found(call)

    return answer


# 429


REFUSALS: dict[str, Headers] = {
    "seconds": lambda _: {"Retry-After": "1"},
    "date": lambda now: {"Retry-After": format_datetime(now + timedelta(seconds=2), usegmt=True)},
    "absent": lambda _: {},
    "zero": lambda _: {"Retry-After": "0"},
    "negative": lambda _: {"Retry-After": "-30"},
    "garbage": lambda _: {"Retry-After": "soon"},
    "past": lambda now: {"Retry-After": format_datetime(now - timedelta(days=1), usegmt=True)},
    "by its own clock": lambda now: {
        "Date": format_datetime(now - timedelta(days=400), usegmt=True),
        "Retry-After": format_datetime(now - timedelta(days=400, seconds=-1), usegmt=True),
    },
    "longer": lambda _: {"Retry-After": "1", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "0.2"},
    "shorter": lambda _: {"Retry-After": "0.2", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"},
}


async def test_a_refused_request_waits_and_spends_nothing() -> None:
    """As long as the API says, or a guess where it says nothing sensible; then the scan comes after all."""

    async def bear(headers: Headers) -> tuple[float, object, int, list[type]]:
        async with SmallApi(refusing(headers)) as api, asking_at(api.base_url, retries=1) as asking:
            answer = await asking.semgrep.scan(ONE)
        first, second = api.seen
        return second.at - first.at, answer, asking.counts.rate_limited, [type(event) for event in asking.events]

    borne = dict(zip(REFUSALS, await asyncio.gather(*map(bear, REFUSALS.values())), strict=True))

    assert {name: rest for name, (_, *rest) in borne.items()} == {
        name: [document(ONE), 1, [GateClosed, GateOpened]] for name in REFUSALS
    }
    says_when = {"seconds", "date", "by its own clock", "longer", "shorter"}
    least = {name: 1.0 if name in says_when else 0.5 for name in borne}
    assert {name for name, (waited, *_) in borne.items() if waited < least[name] - EARLY_SECONDS} == set()


async def test_a_refusal_that_lasts_spends_no_attempt() -> None:
    """When the quick retries are used up, the pair goes back to the queue as it was."""
    async with (
        SmallApi(refusing(lambda _: {"Retry-After": "0.1"}, times=99)) as api,
        asking_at(api.base_url, retries=1) as asking,
    ):
        error = await tried(asking, ONE)

    assert isinstance(error, TransientError)
    assert (error.http_status, error.spends_attempt) == (429, False)
    assert asking.counts.rate_limited == len(api.seen) == 2


@pytest.mark.parametrize("retry_after", ["86400", "9" * 25])
async def test_an_absurd_wait_is_cut_to_what_we_bear(retry_after: str) -> None:
    """A day isn't waited for: after `max_wait_seconds` the API is asked again, and may have come to its senses."""
    answer = refusing(lambda _: {"Retry-After": retry_after})
    async with SmallApi(answer) as api, asking_at(api.base_url, retries=1, max_wait_seconds=0.5) as asking:
        found_at_last = await asking.semgrep.scan(ONE)

    assert found_at_last == document(ONE)
    assert api.seen[1].at - api.seen[0].at >= 0.5 - EARLY_SECONDS
    assert asking.events[0] == GateClosed(120, 0.5)


async def test_an_api_that_refuses_for_longer_ends_what_is_asked_of_the_deployment() -> None:
    """With exit code 4, after few requests: the tokens of others may be welcome."""
    answer = refusing(lambda _: {"Retry-After": "0.2"}, times=99)
    async with SmallApi(answer) as api, asking_at(api.base_url, retries=9, max_wait_seconds=0.5) as asking:
        error = await tried(asking, ONE)

    assert isinstance(error, FatalError)
    assert error.stop_code == 4
    assert 2 <= len(api.seen) <= 4


async def test_of_several_waits_the_longest_counts() -> None:
    """Also when it comes with the answer to a request that went out before the gate closed."""
    first_is_refused = asyncio.Event()

    async def answer(call: Call) -> web.StreamResponse:
        if call.times > 1 or call.pair.scan_id > 2:
            return await found(call)
        if call.pair == ONE:
            return json_answer({}, 429, {"Retry-After": "0.2"})
        await first_is_refused.wait()
        return json_answer({}, 429, {"Retry-After": "1"})

    async with SmallApi(answer) as api, asking_at(api.base_url, retries=1) as asking:
        scans = asyncio.create_task(errors_of(asking, 1, 2))
        await until(lambda: bool(asking.events))
        refused_at = time.monotonic()
        first_is_refused.set()
        await until(lambda: asking.counts.rate_limited == 2)
        others = await errors_of(asking, 3, 4)
        await scans

    assert others == [document(Pair(120, 3)), document(Pair(120, 4))]
    assert min(seen.at for seen in api.seen[2:]) >= refused_at + 1 - EARLY_SECONDS


async def test_a_503_without_a_time_closes_no_gate() -> None:
    """It is a failure like others: the pair is tried again, and nobody else waits for it."""
    async with SmallApi(refusing(lambda _: {}, status=503)) as api, asking_at(api.base_url, retries=1) as asking:
        answer = await asking.semgrep.scan(ONE)

    assert answer == document(ONE)
    assert asking.events == []


async def test_503s_without_a_time_leave_the_pace_as_it_is() -> None:
    """Half of the answers for a while, and then none: nothing was learnt of a limit, so nothing is to be forgotten."""

    async def brown_out(call: Call) -> web.StreamResponse:
        is_down = call.pair.scan_id % 2 and call.times == 1
        return json_answer({}, status=503) if is_down else await found(call)

    async with SmallApi(brown_out) as api, asking_at(api.base_url, retries=1) as asking:
        answers = await asyncio.gather(*(asking.semgrep.scan(Pair(120, number)) for number in range(1, 201)))
        why_slow = asking.semgrep.slow_pace()

    assert answers == [document(Pair(120, number)) for number in range(1, 201)]
    assert (why_slow, asking.events) == (None, [])


async def test_a_pace_below_a_tenth_of_the_ceiling_says_why() -> None:
    """Once when it falls so low and once when it is back; and whoever asks is told for as long as it is so."""
    refused = 0

    async def limited(call: Call) -> web.StreamResponse:
        nonlocal refused
        refused += 1
        if refused % 3 == 0 and refused < 60:
            return json_answer({}, 429, {"Retry-After": "0.01"})
        return await found(call)

    async with SmallApi(limited) as api, asking_at(api.base_url, retries=1, rate=100_000.0) as asking:
        at_first = asking.semgrep.slow_pace()
        await errors_of(asking, *range(1, 121))
        why_slow = asking.semgrep.slow_pace()

    [told] = [event for event in asking.events if isinstance(event, PaceFallen)]
    assert at_first is None
    assert told.deployment_id == 120
    assert told.requests_per_second < 10_000
    assert why_slow is not None
    assert "deployment 120: the API has refused more than" in why_slow


async def test_an_api_that_is_away_is_why_nothing_is_asked() -> None:
    """So whoever asks is told, until it is back."""
    down = True

    async def answer(call: Call) -> web.StreamResponse:
        return json_answer({"message": "trouble"}, status=502) if down else await found(call)

    async with SmallApi(answer) as api, asking_at(api.base_url) as asking:
        await tried(asking, ONE)
        while_away = asking.semgrep.slow_pace()
        down = False
        await asking.semgrep.scan(ONE)
        after = asking.semgrep.slow_pace()

    assert while_away is not None
    assert while_away.startswith("deployment 120: the API is unavailable: HTTP 502")
    assert after is None


@pytest.mark.parametrize("status", [429, 503])
async def test_the_gate_closes_for_all_at_once(status: int) -> None:
    """After one refusal nobody asks, whoever was refused, until the time is over."""
    answer = refusing(lambda _: {"Retry-After": "1"}, status=status)
    async with SmallApi(answer) as api, asking_at(api.base_url, retries=1) as asking:
        refused = asyncio.create_task(asking.semgrep.scan(ONE))
        await until(lambda: any(isinstance(event, GateClosed) for event in asking.events))
        others = await errors_of(asking, *range(2, 22))
        await refused

    first, *rest = api.seen
    assert others == [document(Pair(120, number)) for number in range(2, 22)]
    assert min(seen.at for seen in rest) - first.at >= 1 - EARLY_SECONDS
    assert [type(event) for event in asking.events] == [GateClosed, GateOpened]


async def test_the_gate_of_one_token_is_not_that_of_another() -> None:
    """A deployment whose token isn't refused goes on."""

    async def answer(call: Call) -> web.StreamResponse:
        if call.pair.deployment_id == 120 and call.times == 1:
            return json_answer({}, 429, {"Retry-After": "2"})
        return await found(call)

    tokens = {"SEMGREP_APP_TOKEN": "for-all", "SEMGREP_APP_TOKEN__121": "for-121"}
    async with SmallApi(answer) as api, asking_at(api.base_url, tokens, retries=1) as asking:
        refused = asyncio.create_task(asking.semgrep.scan(ONE))
        await until(lambda: bool(asking.events))
        await asking.semgrep.scan(Pair(121, 1))
        was_still_closed = GateOpened(120) not in asking.events
        await refused

    assert was_still_closed
    assert [seen.token for seen in api.seen] == ["for-all", "for-121", "for-all"]


QUOTAS: dict[str, Headers] = {
    "x": lambda _: {"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"},
    "x-epoch": lambda now: {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(now.timestamp()) + 2)},
    "x-epoch by its own clock": lambda now: {
        "Date": format_datetime(now + timedelta(days=400), usegmt=True),
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int((now + timedelta(days=400)).timestamp()) + 1),
    },
    "ietf": lambda _: {"RateLimit-Limit": "9", "RateLimit-Remaining": "0", "RateLimit-Reset": "1"},
    "ietf-one-line": lambda _: {"RateLimit": "limit=9, remaining=0, reset=1"},
    "ietf-structured": lambda _: {"RateLimit": '"default";r=0;t=1', "RateLimit-Policy": '"default";q=9;w=60'},
}


async def test_a_used_up_quota_closes_the_gate_before_a_refusal_comes() -> None:
    """Where the API says that nothing remains, nothing is asked until there is more, and no 429 is met."""

    async def use_up(headers: Headers) -> tuple[float, int, int]:
        async def last_one(call: Call) -> web.StreamResponse:
            if call.pair == ONE:
                return json_answer(document(ONE), headers=headers(datetime.now(UTC)))
            return await found(call)

        async with SmallApi(last_one) as api, asking_at(api.base_url) as asking:
            await asking.semgrep.scan(ONE)
            await errors_of(asking, *range(2, 8))
        first, *rest = api.seen
        return min(seen.at for seen in rest) - first.at, asking.counts.rate_limited, asking.counts.requests

    used_up = dict(zip(QUOTAS, await asyncio.gather(*map(use_up, QUOTAS.values())), strict=True))

    assert {name: rest for name, (_, *rest) in used_up.items()} == {name: [0, 7] for name in QUOTAS}
    assert {name for name, (waited, *_) in used_up.items() if waited < 1 - EARLY_SECONDS} == set()


async def test_a_quota_that_remains_changes_nothing() -> None:
    """Only its end counts."""

    async def plenty(call: Call) -> web.StreamResponse:
        return json_answer(document(call.pair), headers={"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "86400"})

    async with SmallApi(plenty) as api, asking_at(api.base_url) as asking:
        await errors_of(asking, *range(1, 8))

    assert asking.events == []
