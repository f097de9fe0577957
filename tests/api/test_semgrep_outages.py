"""Failures of pairs and outages of the API: which is which, and what each costs."""

import asyncio
import itertools
import time
from collections import Counter

import pytest
from aiohttp import web
from refusing_api import EARLY_SECONDS, ONE, errors_of, tried
from scan_rows import document
from semgrep_client import asking_at
from small_api import DEPLOYMENTS, Answer, Call, SmallApi, found, json_answer, sees_120, until

from etl.errors import FatalError, ItemError, StoppedError, TransientError
from etl.model import Pair
from etl.telemetry.events import ApiAway, ApiBack


async def fails(_: Call) -> web.StreamResponse:
    return json_answer({"message": "trouble"}, status=500)


async def gone(_: Call) -> web.StreamResponse:
    return json_answer({}, status=404)


async def resets(call: Call) -> web.StreamResponse:
    if call.request.transport is not None:
        call.request.transport.abort()
    return web.Response()


def spend_attempts(errors: list[BaseException | object]) -> set[bool]:
    """Whether the errors spend an attempt: {True}, {False} or, where they don't agree, both."""
    assert all(isinstance(error, TransientError) for error in errors), errors
    return {error.spends_attempt for error in errors if isinstance(error, TransientError)}


async def test_pairs_that_always_fail_are_to_blame_while_others_work() -> None:
    """Poisoned scans spend their attempts, and the API isn't suspected."""

    async def poisoned(call: Call) -> web.StreamResponse:
        return await (fails if call.pair.scan_id % 2 else found)(call)

    async with SmallApi(poisoned) as api, asking_at(api.base_url) as asking:
        ended = await errors_of(asking, *range(1, 41))

    assert spend_attempts(ended[::2]) == {True}
    assert ended[1::2] == [document(Pair(120, number)) for number in range(2, 41, 2)]
    assert asking.events == []


async def test_pairs_that_always_fail_are_to_blame_also_when_only_they_are_left() -> None:
    """What has worked before is asked again, and works: that isn't an outage."""

    async def poisoned(call: Call) -> web.StreamResponse:
        return await (found if call.pair == ONE else fails)(call)

    async with SmallApi(poisoned) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.scan(ONE)
        for _ in range(3):
            ended = await errors_of(asking, *range(2, 22))

            assert spend_attempts(ended) == {True}

    assert asking.events == []
    assert api.times[DEPLOYMENTS] == 0


@pytest.mark.parametrize("trouble", [fails, resets])
@pytest.mark.parametrize("count", [1, 10])
async def test_scans_that_fail_while_none_is_shown_are_not_to_blame(trouble: Answer, count: int) -> None:
    """However few they are, and though the deployments call works: none spends an attempt."""
    async with SmallApi(trouble) as api, asking_at(api.base_url) as asking:
        ended = await errors_of(asking, *range(1, count + 1))

    assert spend_attempts(ended) == {False}
    assert [type(event) for event in asking.events] == [ApiAway]


async def test_a_scan_that_is_the_first_to_fail_is_to_blame_once_others_work() -> None:
    """It had the benefit of the doubt until then."""

    async def poisoned(call: Call) -> web.StreamResponse:
        return await (fails if call.pair == ONE else found)(call)

    async with SmallApi(poisoned) as api, asking_at(api.base_url) as asking:
        first = await tried(asking, ONE)
        await asking.semgrep.scan(Pair(120, 2))
        second = await tried(asking, ONE)

    assert (spend_attempts([first]), spend_attempts([second])) == ({False}, {True})
    assert [type(event) for event in asking.events] == [ApiAway, ApiBack]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_api_that_is_in_trouble_at_the_start_is_waited_for(status: int) -> None:
    """As it would be later: for longer than the quick retries take, and then all is well."""
    times = 0

    async def deployments(call: Call) -> web.StreamResponse:
        nonlocal times
        times += 1
        return json_answer({}, status=status) if times < 5 else await sees_120(call)

    async with SmallApi(found, deployments) as api, asking_at(api.base_url, retries=1) as asking:
        await asking.semgrep.check_token(120)
        seen = await asking.semgrep.seen_by_token_of(120, patiently=True)

    assert seen == {120}
    assert times >= 5


async def test_a_token_that_is_refused_ends_what_waits_for_its_turn() -> None:
    """At four requests a second nobody else asks in vain; another deployment of the same token isn't asked for."""

    async def refused(_: Call) -> web.StreamResponse:
        return json_answer({}, status=401)

    async with SmallApi(refused, refused) as api, asking_at(api.base_url, rate=4.0) as asking:
        errors = await errors_of(asking, *range(1, 17))
        with pytest.raises(FatalError) as of_another:
            await asking.semgrep.check_token(121)

    assert {getattr(error, "kind", None) for error in errors} == {"token_refused"}
    assert of_another.value.stop_code == 3
    assert asking.counts.requests < 5


async def test_where_no_scan_is_shown_at_all_one_is_tried_now_and_then() -> None:
    """The token is good, and every scan fails: they are tried one at a time, another one each time, until one is
    answered; then all go on at once."""
    down, at_once, most_at_once = True, 0, 0

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal at_once, most_at_once
        if not down:
            return await found(call)
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        return await fails(call)

    async with SmallApi(answer) as api, asking_at(api.base_url, retries=0, rate=1000.0) as asking:
        first = await errors_of(asking, *range(1, 17))
        most_at_once = 0
        trials = [asyncio.create_task(tried(asking, Pair(120, number))) for number in range(50, 80)]
        await until(lambda: sum(task.done() for task in trials) == 2)
        down = False
        errors = await asyncio.gather(*trials)

    assert spend_attempts(first) == {False}
    assert most_at_once == 1
    failures = [error for error in errors if isinstance(error, Exception)]
    assert len(failures) == 2
    assert spend_attempts([*failures]) == {False}
    assert [type(event).__name__ for event in asking.events] == ["ApiAway", "ApiBack"]


async def test_a_run_that_is_shown_no_scan_at_all_ends() -> None:
    """After max_wait_seconds, with its queue as it was; a scan that is gone is an answer, too, and ends the doubt."""
    missing = False

    async def answer(call: Call) -> web.StreamResponse:
        return await (gone if missing else fails)(call)

    async with SmallApi(answer) as api, asking_at(api.base_url, retries=0, max_wait_seconds=0.1) as asking:
        await errors_of(asking, *range(1, 40))
        await asyncio.sleep(0.1)
        ended = await tried(asking, Pair(120, 40))
    async with SmallApi(answer) as api, asking_at(api.base_url, retries=0) as asking:
        await errors_of(asking, *range(1, 40))
        missing = True
        of_the_gone = [await tried(asking, Pair(120, number)) for number in (40, 41)]

    assert isinstance(ended, FatalError)
    assert (ended.kind, ended.stop_code) == ("api_away", 4)
    assert {getattr(error, "kind", None) for error in of_the_gone} == {"not_found"}


async def test_where_many_fail_and_others_work_neither_the_pair_is_to_blame_nor_is_anything_waited_for() -> None:
    """What worked before fails now, too, but something else has worked meanwhile: an API that fails here and there."""
    another_worked = asyncio.Event()

    async def here_and_there(call: Call) -> web.StreamResponse:
        if (call.pair.scan_id, call.times) == (3, 1) or call.pair.scan_id == 4:
            return await found(call)
        if call.pair == ONE and call.times == 2:
            await another_worked.wait()
        return await fails(call)

    async with SmallApi(here_and_there) as api, asking_at(api.base_url, retries=1) as asking:
        await asking.semgrep.scan(Pair(120, 4))
        of_the_pairs_own = await errors_of(asking, *range(101, 113))
        one = asyncio.create_task(tried(asking, ONE))
        await until(lambda: api.times["/api/v1/deployments/120/scan/1"] == 2)
        await asking.semgrep.scan(Pair(120, 3))
        another_worked.set()
        error = await one

    assert spend_attempts(of_the_pairs_own) == {True}
    assert spend_attempts([error]) == {False}
    assert asking.events == []


@pytest.mark.parametrize(("trouble", "at_a_time"), [(fails, 1), (resets, 16)])
async def test_an_outage_spends_no_attempt_and_is_watched_by_one_probe_at_a_time(
    trouble: Answer, at_a_time: int
) -> None:
    """No pair is to blame for it. What has worked before is asked now and then, by one alone, until it works."""
    down = False
    probing = most_probing = 0
    in_outage = Counter[str]()

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal probing, most_probing
        if not down:
            return await found(call)
        in_outage[call.request.path] += 1
        if call.pair == ONE:
            probing += 1
            most_probing = max(most_probing, probing)
            await asyncio.sleep(0.02)
            probing -= 1
        return await trouble(call)

    async with SmallApi(answer) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.scan(ONE)
        down = True
        failing = asyncio.create_task(errors_of(asking, *range(2, 2 + at_a_time)))
        await until(lambda: in_outage["/api/v1/deployments/120/scan/1"] >= 2)
        down = False
        ended = await failing
        after = await errors_of(asking, *range(2, 2 + at_a_time))

    assert spend_attempts(ended) == {False}
    assert after == [document(Pair(120, number)) for number in range(2, 2 + at_a_time)]
    assert [type(event) for event in asking.events] == [ApiAway, ApiBack]
    assert most_probing == 1
    assert sum(in_outage.values()) == at_a_time + in_outage["/api/v1/deployments/120/scan/1"]


async def test_nothing_but_probes_is_asked_while_the_api_is_away() -> None:
    """Who comes during an outage waits for its end, and then has its answer."""
    down = True

    async def answer(call: Call) -> web.StreamResponse:
        return await (fails if down else found)(call)

    async def sees_120_when_up(call: Call) -> web.StreamResponse:
        return await fails(call) if down else json_answer({"deployments": [{"id": 120}]})

    async with SmallApi(answer, sees_120_when_up) as api, asking_at(api.base_url) as asking:
        first = asyncio.create_task(tried(asking, ONE))
        await until(lambda: bool(asking.events))
        others = asyncio.create_task(errors_of(asking, *range(2, 12)))
        await until(lambda: api.times[DEPLOYMENTS] >= 2)
        asked = len(api.details_seen())
        down = False
        ended = await others

    assert asked == 1
    assert ended == [document(Pair(120, number)) for number in range(2, 12)]
    assert spend_attempts([await first]) == {False}


async def test_a_probe_waits_for_as_long_as_the_api_says() -> None:
    """An API that is unavailable and says for how long isn't asked before that."""

    async def away(call: Call) -> web.StreamResponse:
        if call.times <= 2:
            return json_answer({}, 503, {"Retry-After": "2"})
        return await sees_120(call)

    async with SmallApi(fails, away) as api, asking_at(api.base_url) as asking:
        error = await tried(asking, ONE)

    probes = [seen.at for seen in api.seen if seen.path == DEPLOYMENTS]
    assert spend_attempts([error]) == {False}
    assert len(probes) == 3
    assert min(late - early for early, late in itertools.pairwise(probes)) >= 2 - EARLY_SECONDS


async def test_an_api_that_is_away_for_too_long_ends_the_run() -> None:
    """With exit code 4 and the reason."""
    async with SmallApi(fails, fails) as api, asking_at(api.base_url, max_wait_seconds=0.2) as asking:
        error = await tried(asking, ONE)

    assert isinstance(error, FatalError)
    assert (error.kind, error.stop_code) == ("api_away", 4)
    assert "HTTP 500" in str(error)


async def test_a_worker_waits_for_an_api_that_is_away_as_long_as_it_takes() -> None:
    """Where nobody wants an end, there is none."""
    down = True

    async def answer(call: Call) -> web.StreamResponse:
        return await (fails if down else found)(call)

    async with (
        SmallApi(answer, answer) as api,
        asking_at(api.base_url, gives_up=False, max_wait_seconds=0.001) as asking,
    ):
        waiting = asyncio.create_task(tried(asking, ONE))
        await until(lambda: api.times[DEPLOYMENTS] >= 2)
        down = False

        assert spend_attempts([await waiting]) == {False}


async def test_a_token_that_is_revoked_during_an_outage_stops_its_own_deployment() -> None:
    """The probe finds it out."""
    revoked = False

    async def answer(_: Call) -> web.StreamResponse:
        return json_answer({}, status=401 if revoked else 500)

    async with SmallApi(answer, answer) as api, asking_at(api.base_url) as asking:
        waiting = asyncio.create_task(tried(asking, ONE))
        await until(lambda: bool(asking.events))
        revoked = True
        error = await waiting

    assert isinstance(error, FatalError)
    assert error.stop_code == 3


async def test_a_stop_ends_the_wait_for_an_api_that_is_away() -> None:
    """Nobody is kept waiting, and no probe goes out any more."""
    async with SmallApi(fails, fails) as api, asking_at(api.base_url) as asking:
        waiting = asyncio.create_task(errors_of(asking, *range(1, 12)))
        await until(lambda: bool(asking.events))
        asking.semgrep.stop_sending()
        sent = asking.counts.requests
        ended = await waiting

    assert {type(error) for error in ended} == {StoppedError}
    assert asking.counts.requests == sent


async def test_a_probe_that_is_refused_or_finds_nothing_shows_that_the_api_lives() -> None:
    """429 and 404 are answers: the pair that failed is to blame, and nothing is waited for."""
    probe = Counter[Pair]()

    async def answer(call: Call) -> web.StreamResponse:
        if call.pair == Pair(120, 2):
            return await fails(call)
        probe[call.pair] += 1
        if probe[call.pair] == 2:
            return json_answer({}, status=429, headers={"Retry-After": "0.1"})
        return json_answer({}, status=404) if probe[call.pair] == 3 else await found(call)

    async with SmallApi(answer) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.scan(ONE)
        refused = await tried(asking, Pair(120, 2))
        not_found = await tried(asking, Pair(120, 2))
        asked_elsewhere = await tried(asking, Pair(120, 2))

    assert spend_attempts([refused, not_found, asked_elsewhere]) == {True}
    assert not any(isinstance(event, ApiAway) for event in asking.events)
    assert (probe[ONE], api.times[DEPLOYMENTS]) == (3, 1)


async def test_time_spent_at_the_gate_is_no_timeout() -> None:
    """A request's time begins when it goes out."""
    async with SmallApi() as api, asking_at(api.base_url, rate=2.0, timeout_seconds=1.0) as asking:
        began_at = time.monotonic()
        ended = await errors_of(asking, *range(1, 5))

    assert ended == [document(Pair(120, number)) for number in range(1, 5)]
    assert time.monotonic() - began_at >= 1.0
    assert not any(isinstance(error, ItemError) for error in ended)
